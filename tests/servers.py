"""The real servers of a test run: started once, found by every worker through the environment, stopped at the end.

    TEST_POSTGRES_18, TEST_POSTGRES_15   the folder of the server's socket
    TEST_REDIS_0, TEST_REDIS_1, ...      a Redis URL for each worker

Where a server can't be had, NAME_MISSING says why instead.
"""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from chat_bridge.errors import EmbeddedPostgresError
from chat_bridge.storage.embedded import binaries
from chat_bridge.storage.server_account import ServerAccount, let_pass, server_account
from chat_bridge.storage.server_process import ServerPlace, ServerProcess, run_program, start_server
from tests.needs import unavailable

PREFIX = "chat-bridge-tests-"
PLACES = (Path("/dev/shm"), Path("/tmp"))
ROOM = 4 * 1024**3  # bytes; containers often have a /dev/shm of 64 MB

POSTGRES_SETTINGS = """
listen_addresses = ''
unix_socket_directories = '{socket}'
max_connections = 300
shared_preload_libraries = 'pg_stat_statements'
# a test's database may be lost in a power cut
fsync = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
checkpoint_timeout = 1h
autovacuum = off
jit = off
timezone = 'UTC'
"""


class MissingError(Exception):
    """A server is not installed; the message says which."""


class Servers:
    """All servers, in one temporary folder."""

    def __init__(self, workers: int) -> None:
        end_leftovers()
        place = next(place for place in PLACES if place.is_dir() and shutil.disk_usage(place).free > ROOM)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=place))
        self._account = server_account()
        os.chown(self._folder, self._account.uid, self._account.gid)
        self._postgres: list[ServerProcess] = []
        self._redis: list[subprocess.Popen[bytes]] = []
        asyncio.run(self._start(workers))

    def stop(self) -> None:
        asyncio.run(self._stop())
        shutil.rmtree(self._folder)

    async def _start(self, workers: int) -> None:
        await asyncio.gather(
            publish("TEST_POSTGRES_18", self._start_postgres("18")),
            publish("TEST_POSTGRES_15", self._start_postgres("15")),
            *(publish(f"TEST_REDIS_{worker}", self._start_redis(worker)) for worker in range(workers)),
        )

    async def _stop(self) -> None:
        for redis in self._redis:
            redis.kill()
            redis.wait()
        await asyncio.gather(*(server.stop() for server in self._postgres))

    async def _start_postgres(self, version: str) -> str:
        cluster, door = self._own_folder(f"postgres-{version}"), self._own_folder(f"socket-{version}")
        programs = await make_cluster(version, cluster, door, self._account)
        log = self._folder / f"postgres-{version}.log"
        server = await start_server(ServerPlace(programs / "postgres", cluster, door, log, self._account))
        self._postgres.append(server)
        await server.ready()
        return str(door)

    async def _start_redis(self, worker: int) -> str:
        if "TEST_REDIS_URL" in os.environ:
            return f"{os.environ['TEST_REDIS_URL'].rstrip('/')}/{worker}"
        program = find_redis()
        folder = self._own_folder(f"redis-{worker}")
        door = folder / "redis.sock"
        options = {"port": "0", "unixsocket": str(door), "dir": str(folder), "save": "", "logfile": str(folder / "log")}
        command = [program, *(word for name, value in options.items() for word in (f"--{name}", value))]
        process = subprocess.Popen(command, cwd="/", start_new_session=True, **self._account.options)
        self._redis.append(process)
        while not accepts_connections(door):
            if process.poll() is not None:
                raise MissingError(f"redis-server did not start: {(folder / 'log').read_text()[-500:]}")
            await asyncio.sleep(0.01)
        return f"unix://{door}"

    def _own_folder(self, name: str) -> Path:
        return make_folder(self._folder / name, self._account)


class OwnServer:
    """A PostgreSQL that belongs to one test, which may stop, kill, freeze and start it."""

    def __init__(self, folder: Path, account: ServerAccount, version: str) -> None:
        self.folder = folder
        self._account = account
        self._version = version
        program = programs_of(version) / "postgres"
        self._place = ServerPlace(program, folder / "data", folder / "socket", folder / "log", account)
        self._server: ServerProcess | None = None
        make_folder(self._place.cluster, account)
        make_folder(self._place.socket, account)

    async def make(self, settings: str = "") -> None:
        """Make an empty cluster and start it."""
        await make_cluster(self._version, self._place.cluster, self._place.socket, self._account, settings)
        await self.start()

    async def make_replica(self, primary: "OwnServer") -> None:
        """Copy another server and start as its standby."""
        command = [self._place.program.with_name("pg_basebackup"), "--no-sync", "--checkpoint=fast"]
        source = [f"--host={primary._place.socket}", "--username=chat_bridge", "--write-recovery-conf"]
        target = f"--pgdata={self._place.cluster}"
        await asyncio.to_thread(run_program, [*command, *source, target], self._place.cluster, self._account)
        with (self._place.cluster / "postgresql.conf").open("a") as file:
            file.write(f"unix_socket_directories = '{self._place.socket}'\n")
        await self.start()

    def dsn(self, database: str) -> str:
        return f"postgresql://chat_bridge@{self.host}/{database}"

    @property
    def host(self) -> str:
        """How a DSN names it."""
        return f"{quote(str(self._place.socket), safe='')}:5432"

    async def start(self) -> None:
        self._server = await start_server(self._place)
        await self._server.ready()

    async def stop(self) -> None:
        """At once and without a word to anybody, as a crash is. Starting recovers."""
        if self._server is not None:
            with suppress(FileNotFoundError, ProcessLookupError):  # it may have ended by itself
                os.kill(int((self._place.cluster / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
            await self._server.stop()
            self._server = None

    @contextmanager
    def frozen(self) -> Generator[None]:
        """Meanwhile it takes connections, as the kernel does that for it, and says nothing."""
        pids = processes_in(self._place.cluster)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def own_server(version: str = "18") -> AsyncGenerator[OwnServer]:
    """A server's folders; `make` or `make_replica` begins it."""
    account = server_account()
    place = next(place for place in PLACES if place.is_dir() and shutil.disk_usage(place).free > ROOM)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=place))
    os.chown(folder, account.uid, account.gid)
    try:
        server = OwnServer(folder, account, version)
    except (MissingError, EmbeddedPostgresError) as error:
        shutil.rmtree(folder)
        unavailable(str(error))
    try:
        yield server
    finally:
        await server.stop()
        shutil.rmtree(folder)


async def make_cluster(version: str, cluster: Path, door: Path, account: ServerAccount, settings: str = "") -> Path:
    """Make an empty cluster whose socket is in the folder `door`; the folder of the programs it needs."""
    programs = programs_of(version)
    if account.uid != os.getuid():
        let_pass(account.uid, programs / "postgres")
    initdb = [programs / "initdb", "--no-sync", "--auth=trust", "--username=chat_bridge", "--encoding=UTF8"]
    await asyncio.to_thread(run_program, [*initdb, "--locale=C.UTF-8"], cluster, account)
    with (cluster / "postgresql.conf").open("a") as file:
        file.write(POSTGRES_SETTINGS.format(socket=door) + settings)
    return programs


def make_folder(folder: Path, account: ServerAccount) -> Path:
    folder.mkdir(mode=0o700)
    os.chown(folder, account.uid, account.gid)
    return folder


async def publish(name: str, starting: Awaitable[str]) -> None:
    """Tell this process and the workers where a server is, or why it isn't."""
    try:
        os.environ[name] = await starting
    except (MissingError, EmbeddedPostgresError) as error:
        os.environ[f"{name}_MISSING"] = str(error)


def programs_of(version: str) -> Path:
    """The folder of the programs of a PostgreSQL: of the embedded one, or of an installed one."""
    return binaries() if version == "18" else find_postgres(version)


def find_postgres(version: str) -> Path:
    """The folder of the programs of an installed PostgreSQL of this major version."""
    places = [f"/usr/lib/postgresql/{version}/bin", f"/opt/homebrew/opt/postgresql@{version}/bin"]
    for folder in [os.environ.get(f"TEST_PG{version}_BIN"), *places, *os.environ["PATH"].split(os.pathsep)]:
        program = Path(folder or "/nonexistent", "postgres")
        if program.is_file() and f"(PostgreSQL) {version}." in output_of(program, "--version"):
            return program.resolve().parent
    raise MissingError(f"PostgreSQL {version} is not installed (TEST_PG{version}_BIN can name its bin folder)")


def find_redis() -> str:
    program = shutil.which("redis-server")
    if program is None:
        raise MissingError("redis-server is not installed (TEST_REDIS_URL can name a running one)")
    version = re.search(r"v=(\d+)", output_of(program, "--version"))
    if version is None or int(version[1]) < 7:
        raise MissingError(f"{program} is older than Redis 7")
    return program


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def accepts_connections(door: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(door))
        except OSError:
            return False
        return True


def end_leftovers() -> None:
    """End the servers of test runs that were killed, and remove their files. The folder's name tells whose it was."""
    ours = {os.getuid(), server_account().uid}
    for folder in (folder for place in PLACES for folder in place.glob(f"{PREFIX}*-*")):
        if folder.lstat().st_uid in ours and not is_alive(int(folder.name.removeprefix(PREFIX).partition("-")[0])):
            for pid in processes_in(folder):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def processes_in(folder: Path) -> list[int]:
    """Processes that work inside the folder, as our servers do."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
