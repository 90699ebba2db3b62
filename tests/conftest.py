"""Servers, databases and Redis for all tests, and a guard against forgotten tasks.

A test that asks for `database` gets an own PostgreSQL 18 database with the schema, `any_database` runs it on
PostgreSQL 18 and 15, `empty_database` is `any_database` without the schema. `redis_url` is a real and empty Redis,
`any_redis_url` runs the test with that one and with the one inside the process (None).
"""

import asyncio
import fcntl
import os
import signal
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from chat_bridge.storage.migrate import migrate
from tests.bridge import BridgeProcess, running_bridge
from tests.needs import unavailable
from tests.s3 import running_s3
from tests.servers import Servers

SERVERS = pytest.StashKey[Servers]()
TEMPLATE = "template_chat_bridge"


def pytest_configure(config: pytest.Config) -> None:
    """Start the servers; the workers of xdist inherit their addresses."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background of a shell: programs that tests start would not hear a Ctrl-C either.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # the same, after nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if not hasattr(config, "workerinput"):
        config.stash[SERVERS] = Servers(workers=config.getoption("numprocesses", None) or 1)


def pytest_unconfigure(config: pytest.Config) -> None:
    if SERVERS in config.stash:
        config.stash[SERVERS].stop()


@pytest.fixture(autouse=True)
async def _no_task_left() -> AsyncGenerator[None]:
    """Fail a test that leaves tasks running. Those that are about to end may do so."""
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        _, running = await asyncio.wait(left, timeout=0.5)
        for task in running:
            task.cancel()
        assert not running, f"tasks are still running: {sorted(task.get_name() for task in running)}"


@pytest.fixture
async def database() -> AsyncGenerator[str]:
    """The DSN of a fresh PostgreSQL 18 database with the schema."""
    async with fresh_database("18", template=True) as dsn:
        yield dsn


@pytest.fixture(params=["18", "15"], ids=["postgresql-18", "postgresql-15"])
async def any_database(request: pytest.FixtureRequest) -> AsyncGenerator[str]:
    """As `database`, on the newest and on the oldest PostgreSQL."""
    async with fresh_database(request.param, template=True) as dsn:
        yield dsn


@pytest.fixture(params=["18", "15"], ids=["postgresql-18", "postgresql-15"])
async def empty_database(request: pytest.FixtureRequest) -> AsyncGenerator[str]:
    """As `any_database`, but without the schema."""
    async with fresh_database(request.param, template=False) as dsn:
        yield dsn


@pytest.fixture
async def redis_url() -> str:
    """The URL of a real Redis that is this test's alone, and empty."""
    url = _server(f"TEST_REDIS_{os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw')}")
    async with redis.asyncio.from_url(url) as client:
        await client.flushdb()
    return url


@pytest.fixture(params=["redis", "in-process"])
def any_redis_url(request: pytest.FixtureRequest) -> str | None:
    """`redis_url`, or None for the Redis inside the process."""
    return request.getfixturevalue("redis_url") if request.param == "redis" else None


@asynccontextmanager
async def fresh_database(version: str, *, template: bool) -> AsyncGenerator[str]:
    """A database of a new name on the server of this version; dropped afterwards, whoever is still connected."""
    socket = _server(f"TEST_POSTGRES_{version}")
    name = f"test_{uuid.uuid4().hex}"
    admin = await asyncpg.connect(_dsn(socket, "postgres"))
    try:
        if template:
            await _make_template(admin, socket)
        source = TEMPLATE if template else "template0"
        await admin.execute(f"create database {name} template {source} strategy file_copy")
        yield _dsn(socket, name)
        await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()


async def _make_template(admin: asyncpg.Connection, socket: str) -> None:
    """Migrate one database of the server, once in a test run; the others are copies of it."""
    with Path(socket).with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if await admin.fetchval("select 1 from pg_database where datname = $1", TEMPLATE):
            return
        await admin.execute("drop database if exists half_made with (force)")
        await admin.execute("create database half_made")
        await migrate(_dsn(socket, "half_made"))
        await admin.execute(f"alter database half_made rename to {TEMPLATE}")
        await admin.execute(f"alter database {TEMPLATE} allow_connections false")


def _dsn(socket: str, name: str) -> str:
    return f"postgresql://chat_bridge@/{name}?host={socket}&port=5432"


def _server(name: str) -> str:
    return os.environ.get(name) or unavailable(os.environ.get(f"{name}_MISSING", f"there is no {name}"))


@pytest.fixture
async def bridge(database: str) -> AsyncGenerator[BridgeProcess]:
    """A running bridge with the echo agent, on PostgreSQL 18 and the Redis inside the process."""
    async with running_bridge(database) as process:
        yield process


@pytest.fixture
async def bucket() -> AsyncGenerator[tuple[str, dict[str, str]]]:
    """The URL of an empty bucket of an S3 server, and the environment that leads to it."""
    async with running_s3() as place:
        yield place
