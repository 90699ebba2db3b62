"""A real Mastra server for tests: the packages of tests/mastra_server, run by their own Node."""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import platformdirs

from tests.needs import unavailable

_SOURCE = Path(__file__).parent / "mastra_server"
_CACHE = platformdirs.user_cache_path("agoric-chat-bridge-tests", appauthor=False)


class MastraServer:
    """One server and its data. `endpoint` stays the same over restarts; `events` is what the server told so far."""

    def __init__(self, folder: Path, token: str | None) -> None:
        self._folder = folder
        self._token = token
        self._log = folder / "server.log"
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """What MASTRA_ENDPOINT would be."""
        return f"http://127.0.0.1:{self._port}/api"

    @property
    def events(self) -> list[dict[str, Any]]:
        """The server's own account: its `listening`, `call` and `abort`, oldest first (see server.mjs)."""
        complete, _, _ = self._log.read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in complete.splitlines() if line.startswith(b"{")]

    async def event(self, kind: str, **facts: object) -> dict[str, Any]:
        """Wait for an event of this kind with these facts, and return it."""
        while True:
            for event in self.events:
                if event["event"] == kind and facts.items() <= event.items():
                    return event
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"the Mastra server is not running:\n{self._log.read_text()}")
            await asyncio.sleep(0.02)

    async def start(self) -> None:
        """Start it, on the data and the port of the last time, and wait until it listens."""
        environ = {
            **os.environ,
            "DATA_FILE": str(self._folder / "memory.db"),
            "MASTRA_TELEMETRY_DISABLED": "1",
            "PORT": str(self._port),
            **({"TOKEN": self._token} if self._token is not None else {}),
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [node(self._folder), "server.mjs"], cwd=self._folder, env=environ, stdout=log, stderr=log
            )
        self._port = (await self.event("listening", pid=self._process.pid))["port"]

    async def kill(self) -> None:
        """End it at once, as `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            self._process = None


@asynccontextmanager
async def running_mastra(token: str | None = None) -> AsyncGenerator[MastraServer]:
    """A server with new data; with a `token`, it asks for that key. Skips the test where there is no Node."""
    packages = await asyncio.to_thread(installed_packages)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(_SOURCE / "server.mjs", folder)
        (folder / "node_modules").symlink_to(packages)
        server = MastraServer(folder, token)
        try:
            await server.start()
            yield server
        finally:
            await server.kill()


def node(folder: Path) -> str:
    """Node 22 from the packages; where they have none for this machine, the one on the PATH."""
    packaged = folder / "node_modules" / ".bin" / "node"
    return str(packaged) if packaged.exists() else "node"


def installed_packages() -> Path:
    """The node_modules folder of the lock file, installed at the first call on this machine."""
    lock_file = (_SOURCE / "package-lock.json").read_bytes()
    installed = _CACHE / f"mastra-{hashlib.sha256(lock_file).hexdigest()[:16]}"
    if installed.exists():
        return installed / "node_modules"
    if shutil.which("npm") is None or shutil.which("node") is None:
        unavailable("node and npm are not installed")
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first of several test processes installs, the others wait
        if not installed.exists():
            unfinished = installed.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(_SOURCE / name, unfinished)
            done = subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
                cwd=unfinished,
                capture_output=True,
                check=False,
            )
            if done.returncode:
                unavailable(f"Mastra's packages can't be installed: {done.stderr.decode()[-500:]}")
            unfinished.rename(installed)
    return installed / "node_modules"
