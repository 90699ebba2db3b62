from collections.abc import AsyncGenerator

import pytest_asyncio

from tests.conftest import fresh_database


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def database() -> AsyncGenerator[str]:
    """The database of the module's bridges."""
    async with fresh_database("18", template=True) as dsn:
        yield dsn
