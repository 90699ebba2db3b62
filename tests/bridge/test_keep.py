"""Which files are let in, and how they are stored: with a real PostgreSQL, a real folder, and a real clamd."""

import hashlib
import io
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest
import pytest_asyncio
from PIL import Image

from chat_bridge.bridge.keep import IN_MEMORY_BYTES, Keeper, NotKeptError, Rules, readable
from chat_bridge.bridge.scan import Scanner
from chat_bridge.errors import PlaceError
from chat_bridge.storage.attachments import Content
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.places import Folder
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.store import Store
from tests.clamd import EICAR, NAME, running_clamd
from tests.observe import rows

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Kept:
    """Where things are kept: the store, and the folder."""

    store: Store
    folder: Path
    dsn: str

    def keeper(self, most: int = 10**8, types: Sequence[str] = ("*/*",), scanner: str | None = None) -> Keeper:
        blobs = Blobs(Folder(self.folder))
        return Keeper(self.store, blobs, Rules(most, types), Scanner(scanner) if scanner else None)

    def objects(self) -> dict[str, bytes]:
        """All that is in the folder."""
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}

    async def mark_written(self, content: Content) -> None:
        """As when an attachment has it."""
        await rows(self.dsn, "update contents set status = 'stored' where id = $1", content.id)


@pytest_asyncio.fixture(loop_scope="module")
async def kept(database: str, tmp_path: Path) -> AsyncGenerator[Kept]:
    async with Database.open(database) as connected:
        yield Kept(Store(connected, owner="test"), tmp_path, database)
    await rows(database, "delete from contents")


async def in_pieces(content: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def photo() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((400, 300), 80).save(file, "PNG")
    return file.getvalue()


@asynccontextmanager
async def refused(reason: str, *, for_good: bool) -> AsyncGenerator[None]:
    with pytest.raises(NotKeptError) as caught:
        yield
    assert (str(caught.value), caught.value.for_good) == (reason, for_good)


async def test_a_picture_is_written_with_a_small_one(kept: Kept) -> None:
    content = photo()
    stored = await kept.keeper().keep(in_pieces(content), "text/plain")
    assert (stored.mime_type, stored.width, stored.height, stored.size) == ("image/png", 400, 300, len(content))
    assert not stored.written  # until an attachment has it
    objects = kept.objects()
    assert set(objects) == {stored.name, stored.thumbnail_name}
    assert objects[stored.name] == content


@pytest.mark.parametrize("size", [1, IN_MEMORY_BYTES, IN_MEMORY_BYTES + 1, 3 * IN_MEMORY_BYTES])
async def test_every_byte_is_written(kept: Kept, size: int) -> None:
    content = bytes([1]) * size
    stored = await kept.keeper().keep(in_pieces(content, 70_000), "")
    assert kept.objects() == {stored.name: content}
    (row,) = await rows(kept.dsn, "select sha256, size from contents where id = $1", stored.id)
    assert (row["sha256"], row["size"]) == (hashlib.sha256(content).digest(), size)


async def test_the_same_bytes_are_written_once(kept: Kept) -> None:
    first = await kept.keeper().keep(in_pieces(b"the same"), "text/plain")
    await kept.mark_written(first)
    (path,) = [path for path in kept.folder.rglob("*") if path.is_file()]
    written = path.stat().st_mtime_ns
    second = await kept.keeper().keep(in_pieces(b"the same"), "text/html")
    assert (second.id, second.mime_type, second.written) == (first.id, "text/plain", True)
    assert path.stat().st_mtime_ns == written


async def test_what_was_half_written_is_written_again(kept: Kept) -> None:
    first = await kept.keeper().keep(in_pieces(b"half"), "")
    (kept.folder / first.name).unlink()  # a crash between the row and the object
    second = await kept.keeper().keep(in_pieces(b"half"), "")
    assert second.id == first.id
    assert kept.objects() == {first.name: b"half"}


async def test_what_is_too_large_is_not_read_to_its_end(kept: Kept) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield bytes(1000)

    async with refused("it is larger than 4.9 KB", for_good=True):
        await kept.keeper(most=5000).keep(endless(), "")
    assert read == 6
    assert (await kept.keeper(most=5000).keep(in_pieces(bytes(5000)), "")).size == 5000
    assert len(kept.objects()) == 1


async def test_what_is_empty_is_no_file(kept: Kept) -> None:
    async with refused("it is empty", for_good=True):
        await kept.keeper().keep(in_pieces(b""), "text/plain")


@pytest.mark.parametrize(
    ("types", "allowed"),
    [(["*/*"], True), (["image/*"], True), (["image/png"], True), (["text/plain", "image/jpeg"], False), ([], False)],
)
async def test_only_allowed_types(kept: Kept, types: list[str], allowed: bool) -> None:
    if allowed:
        assert (await kept.keeper(types=types).keep(in_pieces(photo()), "")).mime_type == "image/png"
        return
    async with refused("files of type image/png are not taken", for_good=True):
        await kept.keeper(types=types).keep(in_pieces(photo()), types[0] if types else "")
    assert kept.objects() == {}


async def test_rules_that_have_changed_count_for_what_is_there(kept: Kept) -> None:
    await kept.mark_written(await kept.keeper().keep(in_pieces(b"text"), "text/plain"))
    async with refused("files of type text/plain are not taken", for_good=True):
        await kept.keeper(types=["image/*"]).keep(in_pieces(b"text"), "image/png")


async def test_what_breaks_off_leaves_nothing(kept: Kept) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await kept.keeper().keep(broken(), "")
    assert kept.objects() == {}
    assert await rows(kept.dsn, "select from contents") == []


async def test_a_place_that_takes_nothing(kept: Kept) -> None:
    (kept.folder / "attachments").write_text("a file is in the way")
    with pytest.raises(PlaceError):
        await kept.keeper().keep(in_pieces(b"text"), "")
    (kept.folder / "attachments").unlink()
    stored = await kept.keeper().keep(in_pieces(b"text"), "")
    assert kept.objects() == {stored.name: b"text"}


class NoSmallOne(Blobs):
    """Fails at the object itself, when the small picture is written already."""

    async def write(self, name: str, source: BinaryIO) -> None:
        if not name.endswith(".thumbnail"):
            raise PlaceError("full")
        await super().write(name, source)


async def test_the_small_picture_is_there_before_the_large_one(kept: Kept) -> None:
    keeper = Keeper(kept.store, NoSmallOne(Folder(kept.folder)), Rules(10**8, ["*/*"]), None)
    with pytest.raises(PlaceError):
        await keeper.keep(in_pieces(photo()), "")
    (name,) = kept.objects()
    assert name.endswith(".thumbnail")


# The scanner


async def test_what_the_scanner_finds_is_not_kept(kept: Kept) -> None:
    async with running_clamd(most_bytes=3000) as clamd:
        keeper = kept.keeper(scanner=clamd.address)
        async with refused(f"the scanner found {NAME} in it", for_good=True):
            await keeper.keep(in_pieces(EICAR), "text/plain")
        assert kept.objects() == {}
        stored = await keeper.keep(in_pieces(b"clean"), "text/plain")
        assert kept.objects() == {stored.name: b"clean"}
        async with refused("the scanner takes no file of 3.9 KB", for_good=True):
            await keeper.keep(in_pieces(bytes(4000)), "")
        await clamd.stop()
        async with refused("it can't be scanned at the moment", for_good=False):
            await keeper.keep(in_pieces(b"also clean"), "text/plain")
        await clamd.start()
        assert (await keeper.keep(in_pieces(b"also clean"), "text/plain")).size == 10


async def test_what_was_kept_before_there_was_a_scanner_is_scanned_when_it_comes_again(kept: Kept) -> None:
    await kept.mark_written(await kept.keeper().keep(in_pieces(EICAR), "text/plain"))
    async with running_clamd() as clamd, refused(f"the scanner found {NAME} in it", for_good=True):
        await kept.keeper(scanner=clamd.address).keep(in_pieces(EICAR), "text/plain")


async def test_what_is_not_taken_is_not_scanned(kept: Kept) -> None:
    async with refused("files of type text/plain are not taken", for_good=True):
        await kept.keeper(types=["image/*"], scanner="127.0.0.1:1").keep(in_pieces(b"text"), "text/plain")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        *((0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KB"), (1536, "1.5 KB"), (3_250_586, "3.1 MB")),
        *((1_040_000, "1016 KB"), (1_048_575, "1024 KB"), (20 * 2**20, "20 MB"), (150 * 2**20, "150 MB")),
        (2**31, "2 GB"),
    ],
)
async def test_sizes_for_people(size: int, words: str) -> None:
    assert readable(size) == words
