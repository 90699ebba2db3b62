"""Real `chat-bridge serve` processes, the people who write to them over HTTP, and the agent that they ask."""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import asyncpg

API_KEY = "a-key-for-measuring-only"
IDLE_SECONDS = 4.0  # the bridge closes connections that were idle for five
RETRY_SECONDS = 2.0
ANSWER = "This is what the agent says. " * 10


class Agent:
    """Speaks what the bridge needs of Mastra: each run says at once that it began, and answers so many `seconds` after
    `open` is set."""

    def __init__(self, seconds: float = 0) -> None:
        self.waiting = 0
        self._seconds = seconds
        self.open = asyncio.Event()
        self.endpoint = ""
        self._ends = b"".join(
            _chunk(_said(kind, **payload))
            for kind, payload in (("text-delta", {"text": ANSWER}), ("finish", {"stepResult": {"reason": "stop"}}))
        )

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[Self]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await _body(reader, await reader.readuntil(b"\r\n\r\n"))
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                    + _chunk(_said("start"))
                )
                self.waiting += 1
                try:
                    await self.open.wait()
                    await asyncio.sleep(self._seconds)
                finally:
                    self.waiting -= 1
                writer.write(self._ends + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        writer.close()


class Bridge:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.pid = process.pid
        self.port = port

    def memory(self, what: str) -> float:
        """MB of this process: `VmRSS` now, `VmHWM` at the most so far."""
        found = re.search(rf"^{what}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) / 1024

    def cpu_seconds(self) -> float:
        """What it has computed so far, by the kernel's clock of that process."""
        return time.clock_gettime(~self.pid << 3 | 2)


@asynccontextmanager
async def bridge(folder: Path, **settings: str) -> AsyncGenerator[Bridge]:
    """Start `chat-bridge serve` with these settings and no others, and wait until it is ready."""
    environ = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        "PORT": "0",
        "CHAT_BRIDGE_API_KEY": API_KEY,
        "CHAT_BRIDGE_SECRET": "s" * 32,
        "WEBCHAT_RATE_CONVERSATION": str(10**9),
        "MASTRA_AGENT_ID": "bench",
        "CHAT_BRIDGE_DRAIN_SECONDS": "0",
        **settings,
    }
    log = folder / f"bridge-{uuid4().hex}.log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "chat_bridge", "serve", cwd=folder, env=environ, stdout=file, stderr=file
        )
    try:
        while not (ready := re.search(r"http://localhost:(\d+)/docs", log.read_text())):
            if process.returncode is not None:
                raise RuntimeError(f"chat-bridge did not start:\n{log.read_text()}")
            await asyncio.sleep(0.05)
        yield Bridge(process, int(ready[1]))
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


class Connection:
    """A minimal keep-alive client, so that most of the work measured is the bridge's."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._writer.close()

    async def _connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._used = time.monotonic()

    async def send(self, conversation: str) -> None:
        """Send a message of 300 bytes; it is stored when this returns. While the bridge is too busy, come again."""
        message = json.dumps({"client_msg_id": str(uuid4()), "text": "x" * 300}).encode()
        if time.monotonic() - self._used > IDLE_SECONDS:
            self._writer.close()
            await self._connect()
        status = b"503"
        while status == b"503":
            self._write("POST", f"{conversation}/messages", message)
            head = await self._reader.readuntil(b"\r\n\r\n")
            await _body(self._reader, head)
            status = head.split(b" ", 2)[1]
            if status == b"503":
                await asyncio.sleep(RETRY_SECONDS)
        assert status in (b"202", b"200"), head
        self._used = time.monotonic()

    async def read(self, conversation: str) -> list[dict[str, Any]]:
        """The messages of a conversation."""
        self._write("GET", f"{conversation}/messages")
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        return json.loads(await _body(self._reader, head))["messages"]

    async def listen(self, conversation: str) -> None:
        """Turn this connection into the event stream of a conversation."""
        self._write("GET", f"{conversation}/events")
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head

    async def reply(self) -> None:
        """Wait for a reply on the event stream."""
        while line := await self._reader.readline():
            if line.startswith(b"data:") and b'"outbound"' in line:
                return
        raise RuntimeError("the event stream ended")

    def _write(self, method: str, path: str, body: bytes = b"") -> None:
        self._writer.write(
            f"{method} /api/v1/chat/{path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {API_KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )


async def empty(dsn: str) -> None:
    """Remove everything from the tables."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("truncate sessions, messages, turns, deliveries, users, waiting")
    await connection.close()


@asynccontextmanager
async def connections(ports: list[int]) -> AsyncGenerator[list[Connection]]:
    """A connection to each port."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Connection(port)) for port in ports]


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    return await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))


def _said(kind: str, **payload: object) -> bytes:
    return f"data: {json.dumps({'type': kind, 'runId': 'bench', 'payload': payload})}\n\n".encode()


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"
