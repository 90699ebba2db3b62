"""Deliver: what follows from each answer of a platform, and when trying ends."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from chat_bridge.bridge import deliver
from chat_bridge.bridge.deliver import Deliverer
from chat_bridge.bridge.load import Loader
from chat_bridge.errors import StorageError
from chat_bridge.platforms.contract import (
    Capabilities,
    OutboundPart,
    Platform,
    Refused,
    RefusedUs,
    RetryAfter,
    RetryLater,
    SendResult,
    Sent,
)
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.outbox import MOST_FAILURES, TAKEN_SECONDS, Delivery, DeliveryResult
from chat_bridge.storage.places import Folder
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from tests.conftest import fresh_database
from tests.storage.dialogue import HERE, assert_consistent, chat, looking, make_due, opened, replied

NOWHERE = Path("nowhere")  # for deliveries without files


class Scripted(Platform):
    """A platform that answers as it is told, the last answer again and again."""

    capabilities = Capabilities("webchat", max_text=100, idempotent_send=True)
    account = "main"

    def __init__(self, *answers: SendResult) -> None:
        self.answers = list(answers)
        self.parts: list[OutboundPart] = []

    async def send(self, part: OutboundPart) -> SendResult:
        self.parts.append(part)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture(autouse=True)
def _no_retry_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are tried again by `try_again` alone, however slow the machine is."""
    monkeypatch.setattr(deliver, "FIRST_RETRY_SECONDS", deliver.LONGEST_RETRY_SECONDS)


@pytest.fixture
async def dsn() -> AsyncGenerator[str]:
    async with fresh_database("18", template=True) as fresh:
        yield fresh


@asynccontextmanager
async def delivering(store: Store, platform: Platform, folder: Path = NOWHERE) -> AsyncGenerator[Deliverer]:
    async with Hot.open(None) as hot:
        loader = Loader(store, Blobs(Folder(folder)))
        deliverer = Deliverer(store, hot, {"webchat": platform}, loader, resend_unknown=False)
        try:
            yield deliverer
        finally:
            await deliverer.aclose()


async def try_again(deliverer: Deliverer, connection: asyncpg.Connection) -> int:
    """Let the time pass, and wait until what is due was tried."""
    await make_due(connection)
    taken = await deliverer.redeliver(HERE)
    if deliverer._sending:  # to their ends: they look for more, and might take what the next call is to count
        await asyncio.wait(deliverer._sending)
    return taken


async def dead(connection: asyncpg.Connection) -> Sequence[tuple[str, str]]:
    return [tuple(row) for row in await connection.fetch("select status, error from deliveries order by seq")]


async def test_a_reply_is_given_up_after_eight_failures(dsn: str) -> None:
    platform = Scripted(RetryLater("HTTP 500"))
    async with (
        opened(dsn) as store,
        looking(dsn) as connection,
        delivering(store, platform) as deliverer,
    ):
        first = await replied(store)
        assert first is not None
        await deliverer.deliver(first)
        for tried in range(1, MOST_FAILURES):
            assert len(platform.parts) == tried
            assert await try_again(deliverer, connection) == 1
        assert await dead(connection) == [("failed", "given up after 8 tries: HTTP 500")]
        assert await try_again(deliverer, connection) == 0
        assert len(platform.parts) == MOST_FAILURES
        assert len({part.idempotency_key for part in platform.parts}) == 1
    await assert_consistent(dsn)


async def test_waiting_because_the_platform_asks_for_it_is_no_failure(dsn: str) -> None:
    platform = Scripted(RetryAfter(30, "slow down"), RefusedUs("the key is wrong"), RetryAfter(30, "slow down"))
    async with (
        opened(dsn) as store,
        looking(dsn) as connection,
        delivering(store, platform) as deliverer,
    ):
        first = await replied(store)
        assert first is not None
        await deliverer.deliver(first)
        for _ in range(2 * MOST_FAILURES):
            assert await try_again(deliverer, connection) == 1
        assert await connection.fetchval("select status || failures from deliveries") == "pending0"


async def test_after_a_day_the_next_try_is_the_last(dsn: str) -> None:
    platform = Scripted(RetryAfter(30, "slow down"))
    async with (
        opened(dsn) as store,
        looking(dsn) as connection,
        delivering(store, platform) as deliverer,
    ):
        first = await replied(store)
        assert first is not None
        await deliverer.deliver(first)
        await connection.execute("update deliveries set give_up_at = now() - interval '1 s'")
        assert await try_again(deliverer, connection) == 1
        assert await dead(connection) == [("failed", "given up after a day of trying: slow down")]


async def test_what_waits_behind_a_dead_letter_is_sent(dsn: str) -> None:
    platform = Scripted(RetryLater("no connection"), Refused("gone"), Sent("2"))
    async with (
        opened(dsn) as store,
        looking(dsn) as connection,
        delivering(store, platform) as deliverer,
    ):
        first = await replied(store, text="one")
        assert first is not None
        assert await replied(store, text="two") is None, "it waits for the one before it"
        await deliverer.deliver(first)
        await try_again(deliverer, connection)
        assert [row[0] for row in await dead(connection)] == ["failed", "sent"]
        assert [part.content.text for part in platform.parts] == ["one", "one", "two"]


async def test_an_account_that_has_to_wait_is_left_alone_in_every_process(dsn: str) -> None:
    # What one process hears from the platform, the others hear from it: see Workers.
    platform = Scripted(Sent("1"))
    async with (
        opened(dsn) as store,
        looking(dsn) as connection,
        delivering(store, platform) as deliverer,
    ):
        deliverer.hold("webchat", "main", 3600)
        first = await replied(store, chat(1))
        assert first is not None
        await deliverer.deliver(first)
        assert platform.parts == []
        assert await connection.fetchval("select status from deliveries") == "pending"


async def test_a_delivery_that_was_taken_too_long_ago_is_taken_anew_before_it_is_sent(dsn: str) -> None:
    platform = Scripted(Sent("1"))
    async with (
        opened(dsn) as store,
        looking(dsn) as connection,
        delivering(store, platform) as deliverer,
    ):
        first = await replied(store)
        assert first is not None
        await deliverer.deliver(replace(first, taken_at=first.taken_at - TAKEN_SECONDS))
        while await connection.fetchval("select status from deliveries") != "sent":
            await asyncio.sleep(0.01)
        assert len(platform.parts) == 1
        assert await connection.fetchval("select attempts || '-' || failures from deliveries") == "2-0"


async def test_what_was_sent_counts_as_sent_though_the_store_was_away_for_a_moment(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "RECORD_RETRY_SECONDS", 0.0)
    platform = Scripted(Sent("1"))
    async with (
        opened(dsn) as store,
        looking(dsn) as connection,
        delivering(store, platform) as deliverer,
    ):
        finish, breaks = store.finish_delivery, ["once", "twice"]

        async def finish_at_last(result: DeliveryResult) -> Delivery | None:
            if breaks:
                raise StorageError(breaks.pop())
            return await finish(result)

        monkeypatch.setattr(store, "finish_delivery", finish_at_last)
        first = await replied(store)
        assert first is not None
        await deliverer.deliver(first)
        assert await connection.fetchval("select status from deliveries") == "sent"
        assert len(platform.parts) == 1
