"""Requests made up from the OpenAPI document: every answer is one that the document promises, and none is a 5xx."""

import asyncio
import urllib.request
from collections.abc import Generator
from contextlib import asynccontextmanager

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CHECKS

from tests.bridge import API_KEY, running_bridge
from tests.conftest import fresh_database


@pytest.fixture(scope="module")
def bridge_url() -> Generator[str]:
    @asynccontextmanager
    async def running():
        async with fresh_database("18", template=True) as database, running_bridge(database) as bridge:
            yield bridge.url

    with asyncio.Runner() as runner:
        bridge = running()
        yield runner.run(bridge.__aenter__())
        runner.run(bridge.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def document(bridge_url: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{bridge_url}/openapi.json").exclude(path_regex="/events$")


print(CHECKS)
schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])
def test_every_answer_is_promised(case: schemathesis.Case) -> None:
    case.call_and_validate(headers={"Authorization": f"Bearer {API_KEY}"})
