from collections.abc import AsyncGenerator

import pytest_asyncio

from tests.bridge import BridgeProcess, running_bridge
from tests.conftest import fresh_database


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def database() -> AsyncGenerator[str]:
    """The database of the chapter."""
    async with fresh_database("18", template=True) as dsn:
        yield dsn


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge(database: str) -> AsyncGenerator[BridgeProcess]:
    """One bridge for the whole chapter."""
    async with running_bridge(database) as process:
        yield process
