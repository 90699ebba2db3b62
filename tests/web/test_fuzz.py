"""Requests made up from the OpenAPI document: every answer is one that the document promises, and none is a 5xx."""

import asyncio

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.bridge import API_KEY, running_bridge

EXAMPLES = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


async def test_every_answer_is_one_that_the_document_promises(database: str) -> None:
    async with running_bridge(database) as bridge:
        assert await asyncio.to_thread(try_all, bridge.url) >= 10
        assert '"level": "error"' not in bridge.log.read_text()


def try_all(url: str) -> int:
    """Call every operation in many ways, but for the event streams, which do not end; how many operations there are."""
    document = schemathesis.openapi.from_url(f"{url}/openapi.json").exclude(path_regex="/events$")
    operations = [operation.ok() for operation in document.get_all_operations()]
    for operation in operations:

        @EXAMPLES
        @given(operation.as_strategy())
        def call(case: Case) -> None:
            # That a page is after or before a seq, and not both, is more than the document can say; and that what is
            # sent to a place for uploads must not be empty.
            hidden = {"after", "before"} <= (case.query or {}).keys() or case.path.endswith("/uploads")
            case.call_and_validate(
                headers={"Authorization": f"Bearer {API_KEY}"},
                excluded_checks=[positive_data_acceptance] if hidden else [],
            )

        call()
    return len(operations)
