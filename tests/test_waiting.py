"""DATABASE_WAIT_SECONDS: containers start in any order, so a bridge may be there before its database."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.bridge import SECRET, BridgeProcess
from tests.servers import OwnServer, own_server


@pytest.fixture
async def server() -> AsyncGenerator[OwnServer]:
    """A PostgreSQL of the test's own, which does not run."""
    async with own_server() as server:
        await server.make()
        await server.stop()
        yield server


async def starting(bridge: BridgeProcess) -> asyncio.Task[None]:
    """Start it, and return when it waits."""
    start = asyncio.create_task(bridge.start())
    while not (bridge.log.exists() and bridge.events("database.waiting")):
        assert not start.done(), bridge.log.read_text()
        await asyncio.sleep(0.02)
    return start


def settings(server: OwnServer, database: str = "postgres") -> dict[str, str]:
    return {
        "PORT": "0",
        "DATABASE_URL": server.dsn(database),
        "DATABASE_WAIT_SECONDS": "600",
        "CHAT_BRIDGE_SECRET": SECRET,
    }


async def test_it_starts_when_the_database_comes(server: OwnServer, tmp_path: Path) -> None:
    bridge = BridgeProcess(tmp_path, settings(server))
    start = await starting(bridge)
    await server.start()
    await start
    assert bridge.events("schema.ready")
    assert await bridge.stop() == 0


async def test_a_signal_ends_the_wait(server: OwnServer, tmp_path: Path) -> None:
    bridge = BridgeProcess(tmp_path, settings(server))
    start = await starting(bridge)
    assert await bridge.stop(signal.SIGTERM) == 0
    with pytest.raises(AssertionError):  # it never was ready
        await start


async def test_what_time_does_not_mend_is_told_at_once(server: OwnServer, tmp_path: Path) -> None:
    await server.start()
    bridge = BridgeProcess(tmp_path, settings(server, "no_such_database"))
    with pytest.raises(AssertionError, match='database "no_such_database" does not exist'):
        await bridge.start()
    assert bridge.exit_code == 1
