"""Asking a real clamd; and what is no clamd."""

import asyncio
import io
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from chat_bridge.bridge import scan
from chat_bridge.bridge.scan import Scanner, ScannerError, TooLargeToScanError
from tests.clamd import EICAR, NAME, Clamd, running_clamd

pytestmark = pytest.mark.asyncio(loop_scope="module")
MOST = 2**20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clamd() -> AsyncGenerator[Clamd]:
    async with running_clamd(MOST) as daemon:
        yield daemon


async def harm(address: str, content: bytes) -> str | None:
    file = io.BytesIO(content)
    file.seek(len(content) // 2)  # wherever others have left it
    return await Scanner(address).harm(file)


async def test_what_is_harmful_has_a_name(clamd: Clamd) -> None:
    assert await harm(clamd.address, EICAR) == NAME


@pytest.mark.parametrize("size", [0, 1, scan.PIECE_BYTES, scan.PIECE_BYTES + 1, MOST])
async def test_what_is_clean(clamd: Clamd, size: int) -> None:
    assert await harm(clamd.address, random.Random(1).randbytes(size)) is None


@pytest.mark.parametrize("size", [MOST + 1, 2 * MOST, 30 * MOST])
async def test_what_is_too_large_is_told_every_time(clamd: Clamd, size: int) -> None:
    for _ in range(5):
        with pytest.raises(TooLargeToScanError):
            await harm(clamd.address, bytes(size))


async def test_many_at_once(clamd: Clamd) -> None:
    found = await asyncio.gather(*(harm(clamd.address, EICAR if n % 2 else b"clean") for n in range(20)))
    assert found == [None, NAME] * 10


async def test_nobody_is_there() -> None:
    async with running_clamd() as daemon:
        await daemon.stop()
        with pytest.raises(ScannerError, match="can't be reached"):
            await harm(daemon.address, b"clean")
        await daemon.start()
        assert await harm(daemon.address, b"clean") is None


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def talking(talk: Talk) -> AsyncGenerator[str]:
    """Something that is no clamd."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "no whole answer|did not answer"),
        (b"stream: OK", "no whole answer|did not answer"),  # cut off
        (b"\x00", "says: "),
        (b"UNKNOWN COMMAND\x00", "says: UNKNOWN COMMAND"),
        (b"stream: Can't allocate memory ERROR\x00", "says: stream: Can't allocate memory ERROR"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n\x00", "says: HTTP"),
        (b"x" * 200_000, "no whole answer|did not answer"),
        (b"\xff\xfe\x00", "says: "),
    ],
)
async def test_what_is_no_answer_clears_no_file(answer: bytes, reason: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()

    async with talking(talk) as address:
        for size in (10, 3 * 2**20):
            with pytest.raises(ScannerError, match=reason) as caught:
                await harm(address, bytes(size))
            assert len(str(caught.value)) < 300


async def test_silence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "ANSWER_SECONDS", 0.2)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()

    gone = asyncio.Event()
    async with talking(talk) as address:
        for size in (10, 30 * 2**20):
            with pytest.raises(ScannerError, match="did not answer"):
                await harm(address, bytes(size))
        gone.set()
