from collections.abc import AsyncGenerator

import pytest_asyncio

from tests.mastra import MastraServer, running_mastra


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mastra() -> AsyncGenerator[MastraServer]:
    """One Mastra server for all tests; each uses sessions of its own."""
    async with running_mastra() as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def guarded_mastra() -> AsyncGenerator[MastraServer]:
    """A Mastra server that asks for the key `right`."""
    async with running_mastra(token="right") as server:
        yield server
