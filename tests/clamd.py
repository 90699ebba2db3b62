"""A real clamd for tests, which knows one harmful file: that of EICAR, made for such tests."""

import asyncio
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.needs import unavailable

# Put together here, so that no scanner takes this file for the other.
EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}" + b"$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
NAME = "Eicar-Test-File.UNOFFICIAL"  # what it is called in a database that is not signed

_PROGRAM = shutil.which("clamd") or "/usr/sbin/clamd"


class Clamd:
    """One daemon on one port, which can be stopped and started again."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        digest = hashlib.sha256(EICAR).hexdigest()
        (folder / "test.hsb").write_text(f"{digest}:{len(EICAR)}:Eicar-Test-File\n")
        settings = {
            "DatabaseDirectory": str(folder),
            "TCPSocket": self.address.rpartition(":")[2],
            "TCPAddr": "127.0.0.1",
            "Foreground": "yes",
            "StreamMaxLength": str(most_bytes),
            "TemporaryDirectory": str(folder),
        }
        (folder / "clamd.conf").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))

    async def start(self) -> None:
        """Start it, and return when it listens."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_PROGRAM, "--config-file", self._folder / "clamd.conf"], stdout=log, stderr=log
            )
        host, _, port = self.address.rpartition(":")
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return

    async def stop(self) -> None:
        """Nobody listens any more."""
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            self._process = None


@asynccontextmanager
async def running_clamd(most_bytes: int = 25 * 2**20) -> AsyncGenerator[Clamd]:
    """A daemon of its own, which takes files up to so many bytes."""
    if not os.access(_PROGRAM, os.X_OK):
        unavailable("clamd is not installed (the package clamav-daemon)")
    with tempfile.TemporaryDirectory(prefix="clamd-") as folder:
        clamd = Clamd(Path(folder), most_bytes)
        try:
            await clamd.start()
            yield clamd
        finally:
            await clamd.stop()
