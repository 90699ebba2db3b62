"""Redis servers of a test's own, to be killed, paused and started again: one, a cluster of three, a pair that Sentinels
look after, and one that talks TLS. All listen on loopback or a socket in their folder."""

import asyncio
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import redis.asyncio

from tests.needs import unavailable
from tests.servers import MissingError, accepts_connections, find_redis

SLOTS = 16384
QUOTES = '""'  # an empty value in redis.conf


class RedisServer:
    """One server, on a socket in its folder and, with a `port`, on 127.0.0.1. `options` are those of redis.conf."""

    def __init__(self, folder: Path, port: int = 0, options: Mapping[str, str] | None = None) -> None:
        try:
            self._program = find_redis()
        except MissingError as error:
            unavailable(str(error))
        self.folder = folder
        self.port = port
        self.url = f"unix://{folder / 'redis.sock'}"
        self._options = {"port": str(port), "bind": "127.0.0.1", "save": "", **(options or {})}
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, *, sentinel: bool = False) -> None:
        """Start it and wait until it can be connected to."""
        door = self.folder / "redis.sock"
        configuration = self.folder / "redis.conf"  # a Sentinel writes into it what it has learned
        if not configuration.exists():
            options = {"unixsocket": str(door), "dir": str(self.folder), "logfile": "log", **self._options}
            configuration.write_text("".join(f"{name} {value or QUOTES}\n" for name, value in options.items()))
        command = [self._program, str(configuration), *(["--sentinel"] if sentinel else [])]
        self._process = subprocess.Popen(command)
        while not accepts_connections(door):
            assert self._process.poll() is None, (self.folder / "log").read_text()
            await asyncio.sleep(0.01)

    def pause(self) -> None:
        """Stop it where it is: connections stay, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def ask(self, *command: object) -> Any:
        """Say something to it, past the bridge."""
        async with redis.asyncio.Redis(unix_socket_path=str(self.folder / "redis.sock")) as client:
            return await client.execute_command(*command)


@asynccontextmanager
async def own_server(port: int = 0, options: Mapping[str, str] | None = None) -> AsyncGenerator[RedisServer]:
    """A server that is not started yet, in a new folder."""
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        server = RedisServer(Path(folder), port, options)
        try:
            yield server
        finally:
            server.kill()


@asynccontextmanager
async def cluster() -> AsyncGenerator[Sequence[RedisServer]]:
    """Three primaries without replicas; when one is gone, the others serve on."""
    async with AsyncExitStack() as stack:
        nodes: list[RedisServer] = []
        ports = free_ports(6)
        for port, bus in zip(ports[:3], ports[3:], strict=True):
            options = {
                "cluster-enabled": "yes",
                "cluster-port": str(bus),
                "cluster-node-timeout": "1000",
                "cluster-require-full-coverage": "no",
            }
            node = await stack.enter_async_context(own_server(port, options))
            await node.start()
            nodes.append(node)
        for number, node in enumerate(nodes):
            first, end = SLOTS * number // 3, SLOTS * (number + 1) // 3
            await node.ask("CLUSTER ADDSLOTSRANGE", first, end - 1)
            await node.ask("CLUSTER SET-CONFIG-EPOCH", number + 1)
            await node.ask("CLUSTER MEET", "127.0.0.1", ports[0], ports[3])
        for node in nodes:
            whole = {"cluster_slots_ok": str(SLOTS), "cluster_state": "ok", "cluster_known_nodes": "3"}
            await until(node, "CLUSTER INFO", says=lambda info, whole=whole: whole.items() <= info.items())
        yield nodes


class Watched:
    """A primary, its replica, and two Sentinels that promote the replica when the primary is gone."""

    def __init__(self, primary: RedisServer, replica: RedisServer, sentinels: Sequence[RedisServer]) -> None:
        self.primary = primary
        self.replica = replica
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        self.url = f"redis+sentinel://{places}/bridge/0"


@asynccontextmanager
async def watched_pair() -> AsyncGenerator[Watched]:
    async with AsyncExitStack() as stack:
        at, *others = free_ports(4)
        primary = await stack.enter_async_context(own_server(at))
        replica = await stack.enter_async_context(own_server(others[0], {"replicaof": f"127.0.0.1 {at}"}))
        for server in (primary, replica):
            await server.start()
        await until(replica, "INFO", "replication", says=lambda info: info["master_link_status"] == "up")
        sentinels: list[RedisServer] = []
        for port in others[1:]:
            options = {
                "sentinel monitor bridge 127.0.0.1": f"{at} 1",
                "sentinel down-after-milliseconds bridge": "500",
                "sentinel failover-timeout bridge": "3000",
            }
            sentinels.append(await stack.enter_async_context(own_server(port, options)))
            await sentinels[-1].start(sentinel=True)
        for sentinel in sentinels:
            await until(
                sentinel,
                "SENTINEL MASTER",
                "bridge",
                says=lambda told: told["num-slaves"] == told["num-other-sentinels"] == 1,
            )
        yield Watched(primary, replica, sentinels)


@asynccontextmanager
async def tls_server(folder: Path) -> AsyncGenerator[tuple[str, Path]]:
    """A started server that talks TLS only and wants no certificate of its clients: its URL, and its CA."""
    authority, certificate, key = make_certificates(folder)
    port = free_ports(1)[0]
    options = {
        "port": "0",
        "tls-port": str(port),
        "tls-cert-file": str(certificate),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(authority),
        "tls-auth-clients": "no",
    }
    async with own_server(port, options) as server:
        await server.start()
        yield f"rediss://localhost:{port}/0", authority


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A CA of our own, and a certificate and key for localhost."""
    openssl = shutil.which("openssl")
    if openssl is None:
        unavailable("openssl is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", names, "-addext", "basicConstraints=critical,CA:FALSE"]
    for words in (
        [*new, "-subj", "/CN=A CA for a test", "-keyout", "ca.key", "-out", "ca.pem"],
        [*new, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.pem", *signed],
    ):
        subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True)
    return folder / "ca.pem", folder / "server.pem", folder / "server.key"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


async def until(server: RedisServer, *question: str, says: Callable[[Mapping[str, Any]], bool]) -> None:
    """Ask a server until its answer is good."""
    while not says(await server.ask(*question)):
        await asyncio.sleep(0.05)
