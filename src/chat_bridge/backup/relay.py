"""TLS for PostgreSQL's programs. Their libpq may be built without, as that of the extra `embedded` is."""

import asyncio
import re
import struct
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from chat_bridge.storage.postgres import Connection, plain

# SSLRequest and AuthenticationSASL: https://www.postgresql.org/docs/current/protocol-message-formats.html
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_SASL = struct.pack("!i", 10)
_BLOCK = 1 << 18


@asynccontextmanager
async def for_programs(dsn: str, connection: Connection) -> AsyncGenerator[str]:
    """The DSN for programs on this machine. What the connection does by TLS, they do without, through a socket that
    only our account can open; from there on it is encrypted as the connection is, to the same server."""
    transport: Any = connection._transport  # asyncpg has no other way to its TLS
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        yield plain(dsn)
        return
    host, port, *_ = transport.get_extra_info("peername")
    talks = set[asyncio.Task[None]]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):  # the program then says that it lost its server
            from_server, to_server = await asyncio.open_connection(host, port)
            try:
                to_server.write(_SSL_REQUEST)
                if await from_server.readexactly(1) == b"S":
                    await to_server.start_tls(tls.context, server_hostname=tls.server_hostname)
                    await asyncio.gather(_pass_on(reader, to_server), _answer(from_server, writer))
            finally:
                to_server.close()
        writer.close()

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(talk(reader, writer), name="backup.relay")
        talks.add(task)
        task.add_done_callback(talks.discard)

    with tempfile.TemporaryDirectory(prefix="chat-bridge-") as folder:
        server = await asyncio.start_unix_server(take, Path(folder) / ".s.PGSQL.5432")
        try:
            yield _through(plain(dsn), folder)
        finally:
            server.close()
            for task in talks:
                task.cancel()
            await asyncio.gather(*talks, return_exceptions=True)


async def _answer(server: asyncio.StreamReader, program: asyncio.StreamWriter) -> None:
    kind, length = struct.unpack("!ci", await server.readexactly(5))
    body = await server.readexactly(length - 4)
    if kind == b"R" and body[:4] == _SASL:
        # How to log in: not bound to the TLS, which the program does not see. It would hang up for being offered that.
        ways = [way for way in body[4:].split(b"\0") if way and not way.endswith(b"-PLUS")]
        body = _SASL + b"".join(way + b"\0" for way in [*ways, b""])
    program.write(struct.pack("!ci", kind, len(body) + 4) + body)
    await _pass_on(server, program)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_BLOCK):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


def _through(dsn: str, folder: str) -> str:
    parts = re.fullmatch(r"(\w+://(?:[^@/?#]*@)?)[^/?#]*(/[^?#]*)?(?:\?(.*))?", dsn, re.DOTALL)
    assert parts is not None
    elsewhere = re.compile(r"(ssl\w*|host|port|target_session_attrs)=")
    options = [option for option in (parts[3] or "").split("&") if option and not elsewhere.match(option)]
    query = "&".join([*options, f"host={quote(folder, safe='')}", "port=5432"])
    return f"{parts[1]}{parts[2] or '/'}?{query}"
