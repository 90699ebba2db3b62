"""One browser for all tests of pages: its start costs more than most of them."""

from collections.abc import AsyncGenerator

import pytest_asyncio
from playwright.async_api import Browser

from tests.web.browser import open_browser


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def _running_browser() -> AsyncGenerator[Browser]:
    async with open_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def browser(_running_browser: Browser) -> AsyncGenerator[Browser]:
    """The machine's own Chromium, with nothing open. A test that uses it runs in the session's event loop."""
    yield _running_browser
    for context in [*_running_browser.contexts]:
        await context.close()
