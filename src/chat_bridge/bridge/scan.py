"""Scan: ask clamd, the daemon of ClamAV, whether a file is harmful. Protocol: INSTREAM of clamd(8), over TCP."""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import BinaryIO

from chat_bridge.errors import ChatBridgeError

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
PIECE_BYTES = 64 * 1024
LONGEST_ANSWER = 4096


class ScannerError(ChatBridgeError):
    """The scanner can't be asked; nobody knows whether the file is harmful."""


class TooLargeToScanError(ScannerError):
    """The file is larger than the scanner takes (its StreamMaxLength)."""


class Scanner:
    """clamd at `address` (HOST:PORT)."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host = host.strip("[]")  # of an IPv6 address
        self._port = int(port)

    async def harm(self, file: BinaryIO) -> str | None:
        """The name of what is harmful in a file, None if nothing is. Raises ScannerError."""
        try:
            # In a thread, since looking up the name may take a while too.
            connection = await asyncio.to_thread(socket.create_connection, (self._host, self._port), CONNECT_SECONDS)
        except OSError as error:
            raise ScannerError(f"the scanner can't be reached ({type(error).__name__})") from error
        try:
            connection.setblocking(False)
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await _ask(file, connection)
        except OSError as error:
            raise ScannerError(f"the scanner did not answer ({type(error).__name__})") from error
        finally:
            connection.close()
        if answer == "stream: OK":
            return None
        if answer.startswith("stream: ") and answer.endswith(" FOUND"):
            return answer.removeprefix("stream: ").removesuffix(" FOUND")
        if "size limit exceeded" in answer:
            raise TooLargeToScanError("the scanner takes no file as large as this")
        raise ScannerError(f"the scanner says: {answer[:200]}")


async def _ask(file: BinaryIO, connection: socket.socket) -> str:
    """What clamd says of a file. It may say so before it has read all, and close: asyncio's streams would lose that,
    while a socket still gives it when it takes nothing any more."""
    loop = asyncio.get_running_loop()
    file.seek(0)
    with suppress(ConnectionError):
        await loop.sock_sendall(connection, b"zINSTREAM\0")
        while piece := file.read(PIECE_BYTES):
            await loop.sock_sendall(connection, struct.pack("!I", len(piece)) + piece)
        await loop.sock_sendall(connection, struct.pack("!I", 0))
    answer = b""
    while not answer.endswith(b"\0"):
        piece = await loop.sock_recv(connection, LONGEST_ANSWER)
        answer += piece
        if not piece or len(answer) > LONGEST_ANSWER:
            raise ScannerError("the scanner gave no whole answer")
    return answer.rstrip(b"\0").decode("utf-8", "replace")
