"""Everything of a run that is a process: PostgreSQL, Redis, the agent, the peer and the replicas."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from chat_bridge.storage.embedded import embedded_postgres
from tests.servers import accepts_connections, find_redis
from tests.torture.adapters import KEYED, PLAIN

PROJECT = Path(__file__).parent.parent.parent
LEASE_SECONDS = 3
STOPPING_SECONDS = 15.0
RESTART_SECONDS = 0.3
LOOK_SECONDS = 0.02


class Child:
    """A process that can be killed, paused and started again. `held` is taken by who does something to it."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name.replace(' ', '-')}.log"
        self.held = asyncio.Lock()
        self.pids: list[int] = []
        self._command = command
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONUNBUFFERED": "1"} | environment
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def change(self, environment: dict[str, str]) -> None:
        """Set more for the next starts."""
        self._environment |= environment

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        self.pids.append(self._process.pid)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it; what has not ended long after a gentler signal is killed."""
        if self._process is None:
            return
        self.send(number)
        try:
            async with asyncio.timeout(STOPPING_SECONDS):
                while self.running:
                    await asyncio.sleep(LOOK_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()

    async def address(self) -> str:
        """The first line that it prints."""
        while "\n" not in self.log.read_text():
            assert self.running, f"{self.name} ended; see {self.log}"
            await asyncio.sleep(LOOK_SECONDS)
        return self.log.read_text().splitlines()[0]


class Postgres:
    """A cluster of its own, as durable as PostgreSQL is by default."""

    def __init__(self, folder: Path) -> None:
        self.held = asyncio.Lock()
        self.dsn = ""
        self._folder = folder
        self._running = AsyncExitStack()

    async def start(self) -> None:
        self.dsn = await self._running.enter_async_context(embedded_postgres(self._folder))

    async def stop(self, *, at_once: bool = False) -> None:
        """`at_once`: as after a crash, without a checkpoint; the next start recovers."""
        if at_once:
            pid = (self._folder / "postgres" / "postmaster.pid").read_text().splitlines()[0]
            os.kill(int(pid), signal.SIGQUIT)
        await self._running.aclose()


class Stage:
    """All processes. `http` is for requests to them."""

    def __init__(self, folder: Path, seed: str, replicas: int, program: str, settings: dict[str, str]) -> None:
        self.folder = folder
        self.journals = {name: folder / f"{name}.jsonl" for name in ("peer", "agent")}
        self.door = folder / "redis.sock"
        self.postgres = Postgres(folder / "data")
        self.redis = Child("redis", [find_redis(), *_redis_options(self.door)], {}, folder)
        self.agent, self.peer = (
            Child(name, [sys.executable, "-m", f"tests.torture.{name}", str(journal), seed], _imports(folder), folder)
            for name, journal in reversed(self.journals.items())
        )
        self._ports = unused_ports(replicas)
        self.replicas = [self._replica(number, port, program, settings) for number, port in enumerate(self._ports, 1)]
        self.urls = [f"http://127.0.0.1:{port}" for port in self._ports]
        self.http = aiohttp.ClientSession()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start everything; returns when all replicas are ready."""
        _write_entry_points(self.folder)
        for child in (self.redis, self.agent, self.peer):
            child.start()
        await self.postgres.start()
        while not accepts_connections(self.door):
            assert self.redis.running, f"redis ended; see {self.redis.log}"
            await asyncio.sleep(LOOK_SECONDS)
        settings = {
            "DATABASE_URL": self.postgres.dsn,
            "MASTRA_ENDPOINT": f"{await self.agent.address()}/api",
            "TORTURE_URL": await self.peer.address(),
        }
        for replica in self.replicas:
            replica.change(settings)
        self._keeper = asyncio.create_task(self._keep_running(), name="keeper")
        while not await self.all_ready():
            await asyncio.sleep(LOOK_SECONDS)

    async def stop(self) -> None:
        """Kill everything, and remove the database."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        children = [*self.replicas, self.agent, self.peer, self.redis]
        await asyncio.gather(*(child.stop() for child in children), return_exceptions=True)
        await self.http.close()
        await self.postgres.stop()
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    async def all_ready(self) -> bool:
        """Whether every replica says that nothing is wrong."""
        return all(await asyncio.gather(*map(self._ready, self.urls)))

    async def ask_peer(self, what: str, **told: Any) -> None:
        """Tell the peer what to do; returns when it has done that."""
        url = f"{await self.peer.address()}/{what}"
        async with self.http.post(url, json=told, timeout=aiohttp.ClientTimeout(total=None)) as response:
            response.raise_for_status()

    def errors(self) -> Counter[str]:
        """What the replicas logged as errors, by event."""
        lines = [line for replica in self.replicas for line in replica.log.read_text().splitlines()]
        logged = [json.loads(line) for line in lines if line.startswith("{")]
        return Counter(entry["event"].strip() for entry in logged if entry["level"] == "error")

    def owners(self) -> dict[str, str]:
        """Which replica a turn's owner was."""
        host = socket.gethostname()
        return {f"{host}:{pid}": replica.name for replica in self.replicas for pid in replica.pids}

    async def _ready(self, url: str) -> bool:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self.http.get(f"{url}/readyz", timeout=aiohttp.ClientTimeout(total=2)) as response:
                return (await response.json())["status"] == "ok"
        return False

    async def _keep_running(self) -> None:
        """Start replicas that ended, as whatever runs them in production does."""
        while True:
            for replica in self.replicas:
                if not replica.running and not replica.held.locked():
                    replica.start()
            await asyncio.sleep(RESTART_SECONDS)

    def _replica(self, number: int, port: int, program: str, more: dict[str, str]) -> Child:
        settings = {
            "PORT": str(port),
            "REDIS_URL": f"unix://{self.door}",
            "CHAT_BRIDGE_PLATFORMS": f"{KEYED},{PLAIN}",
            "WEBCHAT_ENABLED": "false",
            "COALESCE_SECONDS": "0",
            "QUEUE_CAP": "1000",
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "CHAT_BRIDGE_DRAIN_SECONDS": "2",
            "MASTRA_AGENT_ID": "torture",
            "MASTRA_TIMEOUT": "2000",
            "TURN_TIMEOUT_SECONDS": "6",
        }
        command = [sys.executable, "-m", program, "serve"]
        return Child(f"replica {number}", command, _imports(self.folder) | settings | more, self.folder)


@asynccontextmanager
async def staged(
    folder: Path, seed: str, replicas: int, program: str = "chat_bridge", **settings: str
) -> AsyncGenerator[Stage]:
    """A running stage; its files are in this folder, and stay there but for the database."""
    stage = Stage(folder, seed, replicas, program, settings)
    try:
        await stage.start()
        yield stage
    finally:
        await stage.stop()


def unused_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [door.getsockname()[1] for door in doors]
    for door in doors:
        door.close()
    return ports


def _redis_options(door: Path) -> list[str]:
    return ["--port", "0", "--unixsocket", str(door), "--save", ""]


def _imports(folder: Path) -> dict[str, str]:
    """So that a process finds this package, and the entry points of its adapters."""
    return {"PYTHONPATH": f"{folder / 'installed'}{os.pathsep}{PROJECT}"}


def _write_entry_points(folder: Path) -> None:
    """What an installation of the adapters would leave behind."""
    info = folder / "installed" / "torture-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torture\nVersion: 1.0\n")
    lines = [f"{name} = tests.torture.adapters:make_{name.removeprefix('torture_')}" for name in (KEYED, PLAIN)]
    (info / "entry_points.txt").write_text("\n".join(["[chat_bridge.platforms]", *lines, ""]))
