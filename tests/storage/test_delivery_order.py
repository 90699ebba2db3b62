"""Replies, senders that die, retries and sweeps in any order: every part is sent in its turn, and nothing is stuck."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import asyncpg
import pytest

from chat_bridge.model import Address, ConversationId
from chat_bridge.storage import outbox, sessions
from chat_bridge.storage.outbox import Delivery, DeliveryResult
from chat_bridge.storage.store import Store
from tests.storage.dialogue import (
    HERE,
    assert_consistent,
    chat,
    deadlocks,
    ending,
    looking,
    make_due,
    opened,
    opened_often,
    said,
    tell_deadlocks_soon,
    wish,
)

Key = tuple[ConversationId, int, int]


def key(delivery: Delivery) -> Key:
    return delivery.conversation_id, delivery.seq, delivery.part


@dataclass
class Platform:
    """What a platform saw: each first send in its order, and how often each part came."""

    first: dict[ConversationId, list[tuple[int, int]]] = field(
        default_factory=dict[ConversationId, list[tuple[int, int]]]
    )
    sends: Counter[Key] = field(default_factory=Counter[Key])
    deaths: Counter[Key] = field(default_factory=Counter[Key])  # senders that never said what came of it
    retries: Counter[Key] = field(default_factory=Counter[Key])

    def send(self, delivery: Delivery) -> None:
        if not self.sends[key(delivery)]:
            self.first.setdefault(delivery.conversation_id, []).append((delivery.seq, delivery.part))
        self.sends[key(delivery)] += 1


class Run:
    """A random life: what senders hold, what the platform saw."""

    def __init__(self, stores: list[Store], seed: int, *, repeatable: bool) -> None:
        self.stores = stores
        self.chance = random.Random(seed)
        self.repeatable = ["webchat"] if repeatable else []
        self.platform = Platform()
        self.places = [chat(f"order-{seed}-{number}") for number in range(3)]
        self.held: list[Delivery] = []

    def store(self) -> Store:
        return self.chance.choice(self.stores)

    def take(self, delivery: Delivery | None) -> None:
        if delivery is not None:
            self.held.append(delivery)

    async def reply(self, place: Address) -> None:
        store = self.store()
        await store.receive(said(to=place))
        turn = await store.claim(wish(place))
        if turn is None:
            return
        completion = ending(turn, parts=self.chance.randint(1, 4))
        done = await store.complete(completion)
        if done is not None and done.send_key is not None:
            assert done.seq is not None
            assert completion.message_id is not None
            self.take(Delivery(place.id, done.seq, 1, 1, done.send_key, completion.message_id, place, completion.text))

    async def notice(self, connection: asyncpg.Connection, place: Address) -> None:
        receipt = await self.store().receive(said(to=place, skip_reason="not_addressed"))
        await connection.execute("update sessions set error_told_at = null where conversation_id = $1", place.id)
        text, parts = "a notice", self.chance.randint(1, 2)
        noticed = await sessions.say(self.store().database, place.id, receipt.session_id, text, {}, parts)
        if noticed is not None and noticed[2] is not None:
            self.take(Delivery(place.id, noticed[1], 1, 1, noticed[2], noticed[0], place, text))

    async def message(self, place: Address) -> None:
        """Of a program; who has stored it looks for what is due."""
        store = self.store()
        receipt = await store.receive(said(to=place, skip_reason="not_addressed"))
        session = await sessions.get_session(store.database, receipt.session_id)
        assert session is not None
        parts = self.chance.randint(1, 3)
        await outbox.store_message(store.database, session, str(receipt.message_id), "news", (), {}, parts)
        for delivery in await outbox.due_deliveries(store.database, HERE, self.repeatable, 10, place.id):
            self.take(delivery)

    async def send(self, delivery: Delivery) -> None:
        """What a sender may come to. It holds nothing afterwards but what it is given."""
        self.platform.send(delivery)
        status: Literal["sent", "pending", "unknown", "failed", "dies"]
        status = self.chance.choice(["sent"] * 6 + ["pending", "pending", "unknown", "failed", "dies"])
        if status == "dies":
            self.platform.deaths[key(delivery)] += 1
            return
        self.platform.retries[key(delivery)] += status == "pending"
        self.take(await self.store().finish_delivery(DeliveryResult(delivery, status, retry_seconds=300)))

    async def sweep(self, connection: asyncpg.Connection) -> None:
        """The time has come for everything of which no living sender holds the right."""
        living = [key(delivery) for delivery in self.held]
        await connection.execute(
            """update deliveries d set next_attempt_at = now() - interval '1 s'
            where not exists (select from unnest($1::uuid[], $2::bigint[], $3::integer[]) as h (c, seq, part)
              where (h.c, h.seq, h.part) = (d.conversation_id, d.seq, d.part))""",
            *([place[n] for place in living] for n in range(3)),
        )
        for delivery in await outbox.due_deliveries(
            self.store().database, HERE, self.repeatable, self.chance.randint(1, 20)
        ):
            self.take(delivery)

    async def finish(self, connection: asyncpg.Connection) -> None:
        """Go on until nothing is left to send."""
        for _ in range(1000):
            if not await connection.fetchval("select count(*) from deliveries where status in ('pending', 'sending')"):
                return
            while self.held:
                await self.send(self.held.pop(0))
            await self.sweep(connection)
        pytest.fail("deliveries are stuck")

    def judge(self) -> None:
        assert not self.held
        for order in self.platform.first.values():
            assert order == sorted(order), "first sends are in the order of the conversation"
        for what, sends in self.platform.sends.items():
            allowed = 1 + self.platform.retries[what] + (self.platform.deaths[what] if self.repeatable else 0)
            assert sends <= allowed, "nobody sends again what another sent"


async def every_part_was_sent(connection: asyncpg.Connection, run: Run) -> None:
    """All but what a sender left behind before it was heard of was sent at least once."""
    rows = await connection.fetch("select conversation_id, seq, part, status from deliveries")
    assert rows
    assert {row["status"] for row in rows} <= {"sent", "unknown", "failed"}
    assert {tuple(row)[:3] for row in rows} == set(run.platform.sends)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("repeatable", [True, False], ids=["repeatable", "not"])
async def test_one_thing_after_another_in_any_order(database: str, seed: int, *, repeatable: bool) -> None:
    async with opened(database) as store, looking(database) as connection:
        run = Run([store], seed, repeatable=repeatable)
        for _ in range(60):
            match run.chance.choice(["reply", "reply", "notice", "message", "send", "send", "send", "sweep"]):
                case "reply":
                    await run.reply(run.chance.choice(run.places))
                case "notice":
                    await run.notice(connection, run.chance.choice(run.places))
                case "message":
                    await run.message(run.chance.choice(run.places))
                case "send" if run.held:
                    await run.send(run.held.pop(run.chance.randrange(len(run.held))))
                case _:
                    await run.sweep(connection)
            assert len({delivery.conversation_id for delivery in run.held}) == len(run.held), "one at a time"
        await assert_consistent(database)
        await run.finish(connection)
        run.judge()
        await every_part_was_sent(connection, run)
    await assert_consistent(database)


@pytest.mark.parametrize("seed", range(4))
async def test_all_at_once_in_several_processes(any_database: str, seed: int) -> None:
    await tell_deadlocks_soon(any_database)
    async with opened_often(any_database, 3) as stores, looking(any_database) as connection:
        run = Run(stores, seed, repeatable=True)
        for _ in range(12):
            held, run.held = run.held, []
            # Each holds the only right to its conversation, so that they send at once.
            assert len({delivery.conversation_id for delivery in held}) == len(held)
            await asyncio.gather(
                *(run.send(delivery) for delivery in held),
                *(run.reply(place) for place in run.places for _ in range(2)),
                *(run.message(place) for place in run.places),
                *(outbox_due(run) for _ in range(2)),
            )
            await run.notice(connection, run.chance.choice(run.places))
            await run.sweep(connection)
        await run.finish(connection)
        run.judge()
        await every_part_was_sent(connection, run)
    assert await deadlocks(any_database) == 0
    await assert_consistent(any_database)


async def outbox_due(run: Run) -> None:
    for delivery in await outbox.due_deliveries(run.store().database, HERE, run.repeatable, 10):
        run.take(delivery)


async def test_a_retry_that_is_refused_for_good_lets_the_rest_go_on(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        run = Run([store], 1, repeatable=False)
        place = run.places[0]
        for _ in range(3):
            await run.reply(place)
        (first,) = run.held
        await store.finish_delivery(DeliveryResult(first, "pending"))
        await make_due(connection)
        (again,) = await outbox.due_deliveries(store.database, HERE, [])
        run.held = []
        run.platform.send(first)
        run.take(await store.finish_delivery(DeliveryResult(again, "failed")))
        await run.finish(connection)
        run.judge()
        await every_part_was_sent(connection, run)
    await assert_consistent(any_database)
