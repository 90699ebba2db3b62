"""Receiving: in order, once, and nothing is lost, whatever comes between."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_bridge.errors import StorageError
from chat_bridge.model import (
    Address,
    Attachment,
    BusyPolicy,
    ConversationId,
    Receipt,
    ReceiveStatus,
    Turn,
    User,
)
from chat_bridge.storage import messages, sessions, turns
from chat_bridge.storage.store import Store
from chat_bridge.storage.text import storable
from tests.storage.dialogue import (
    ADA,
    CHAT,
    answer_all,
    assert_consistent,
    chat,
    claimed,
    command,
    ending,
    looking,
    opened,
    opened_often,
    said,
    statuses,
    texts,
    wish,
)

ACCEPTED, SKIPPED = ReceiveStatus.ACCEPTED, ReceiveStatus.SKIPPED
DUPLICATE, CONFLICT = ReceiveStatus.DUPLICATE, ReceiveStatus.CONFLICT


async def test_messages_are_kept_in_the_order_they_came(any_database: str) -> None:
    async with opened(any_database) as store:
        receipts = [await store.receive(said(f"{n}")) for n in range(10)]
        assert [receipt.seq for receipt in receipts] == list(range(1, 11))
        assert {receipt.status for receipt in receipts} == {ACCEPTED}
        assert [message.text for message in await store.history(CHAT.id)] == [f"{n}" for n in range(10)]
    await assert_consistent(any_database)


async def test_a_hundred_at_once_keep_the_order_in_which_they_were_submitted(any_database: str) -> None:
    async with opened(any_database) as store:
        receipts = await asyncio.gather(*(store.receive(said(f"{n}", queue_cap=1000)) for n in range(100)))
        assert [receipt.seq for receipt in receipts] == list(range(1, 101))
        history = await store.history(CHAT.id, limit=200)
        assert [message.text for message in history] == [f"{n}" for n in range(100)]
    await assert_consistent(any_database)


async def test_many_conversations_at_once_do_not_mix(database: str) -> None:
    async with opened(database) as store:
        await asyncio.gather(*(store.receive(said(f"{n}", to=chat(n % 40))) for n in range(400)))
        for number in range(40):
            history = await store.history(chat(number).id)
            assert [message.text for message in history] == [f"{n}" for n in range(number, 400, 40)]
            assert [message.seq for message in history] == list(range(1, 11))
    await assert_consistent(database)


async def test_a_reader_never_meets_an_earlier_seq_later(database: str) -> None:
    done = asyncio.Event()

    async def read(connection: asyncpg.Connection) -> int:
        seen: set[int] = set()
        finished = False
        while not finished:
            finished = done.is_set()
            rows = await connection.fetch("select seq from messages where conversation_id = $1", CHAT.id)
            new = {row["seq"] for row in rows} - seen
            assert not new or min(new) > max(seen, default=0)
            seen |= new
        return len(seen)

    async with opened_often(database, 3) as stores, looking(database) as one, looking(database) as other:
        readers = [asyncio.create_task(read(connection)) for connection in (one, other)]
        writers = (stores[n % 3].receive(said(f"{n}", queue_cap=1000)) for n in range(240))
        receipts = await asyncio.gather(*writers)
        done.set()
        assert await asyncio.gather(*readers) == [240, 240]
    assert sorted(receipt.seq for receipt in receipts) == list(range(1, 241))


# Once.


async def test_a_redelivery_stores_nothing(any_database: str) -> None:
    async with opened(any_database) as store:
        first = await store.receive(said("hello", key="k"))
        again = [await store.receive(said("hello", key="k")) for _ in range(3)]
        assert {receipt.status for receipt in again} == {DUPLICATE}
        assert {(receipt.message_id, receipt.seq, receipt.session_id) for receipt in again} == {
            (first.message_id, first.seq, first.session_id)
        }
        assert len(await store.history(CHAT.id)) == 1
    await assert_consistent(any_database)


async def test_another_text_under_the_same_key_is_a_conflict_and_stores_nothing(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("hello", key="k"))
        assert (await store.receive(said("good bye", key="k"))).status is CONFLICT
        assert await statuses(store) == {"hello": "pending"}


async def test_the_same_key_in_another_conversation_is_another_message(database: str) -> None:
    async with opened(database) as store:
        receipts = await asyncio.gather(*(store.receive(said(to=chat(n), key="k")) for n in range(5)))
    assert {receipt.status for receipt in receipts} == {ACCEPTED}


async def test_redeliveries_at_once_in_one_process(database: str) -> None:
    async with opened(database) as store:
        assert_once(await asyncio.gather(*(store.receive(said("hello", key="k")) for _ in range(30))))
    await assert_consistent(database)


async def test_redeliveries_at_once_in_five_processes(any_database: str) -> None:
    async with opened_often(any_database, 5) as stores:
        for round_ in range(6):
            receipts = await asyncio.gather(
                *(store.receive(said("hello", key=f"k{round_}")) for store in stores for _ in range(4))
            )
            assert_once(receipts)
        history = await stores[0].history(CHAT.id)
        assert [message.event_key for message in history] == [f"k{round_}" for round_ in range(6)]
    await assert_consistent(any_database)


def assert_once(receipts: Sequence[Receipt]) -> None:
    statuses = [receipt.status for receipt in receipts]
    assert statuses.count(ACCEPTED) == 1
    assert statuses.count(DUPLICATE) == len(statuses) - 1
    assert len({(receipt.seq, receipt.message_id, receipt.session_id) for receipt in receipts}) == 1


async def test_a_redelivery_after_the_answer_runs_nothing(database: str) -> None:
    async with opened(database) as store:
        await store.receive(said("hello", key="k"))
        await answer_all(store)
        assert (await store.receive(said("hello", key="k"))).status is DUPLICATE
        assert await store.claim(wish()) is None
    await assert_consistent(database)


async def test_a_redelivery_after_the_session_was_closed_opens_no_session(database: str) -> None:
    async with opened(database) as store:
        first = await store.receive(said("hello", key="k"))
        await answer_all(store)
        assert await sessions.close_session(store.database, first.session_id)
        assert (await store.receive(said("hello", key="k"))).status is DUPLICATE
        assert await sessions.active_session(store.database, CHAT.id) is None


async def test_a_redelivery_after_a_rotation_is_known(database: str) -> None:
    async with opened(database) as store:
        await store.receive(said("hello", key="k"))
        await store.complete(ending(await claimed(store)), follow_with_new_session=True)
        assert (await store.receive(said("hello", key="k"))).status is DUPLICATE
        assert await store.claim(wish()) is None
    await assert_consistent(database)


async def test_keys_that_postgresql_can_not_tell_apart_harm_nobody(database: str) -> None:
    async with opened(database) as store:
        blockers = [store.receive(said(to=chat(f"other-{n}"))) for n in range(2)]
        bystander = store.receive(said("an innocent message", to=chat("bystander")))
        twins = [store.receive(said("hello", key=key)) for key in ("k\x00", "k\ufffd", "k\ud800")]
        receipts = await asyncio.gather(*blockers, bystander, *twins)
    assert [receipt.status for receipt in receipts] == [ACCEPTED] * 4 + [DUPLICATE] * 2


# Sessions.


async def test_the_message_after_a_close_opens_a_session_that_names_its_parent(any_database: str) -> None:
    async with opened(any_database) as store:
        first = await store.receive(said("one"))
        await answer_all(store)
        await sessions.close_session(store.database, first.session_id)
        second = await store.receive(said("two"))
        assert second.session_id != first.session_id
        assert second.seq == 3
        session = await sessions.get_session(store.database, second.session_id)
        assert session is not None
        assert (session.parent_session_id, session.message_count) == (first.session_id, 1)
        assert texts(await claimed(store)) == ["two"]
    await assert_consistent(any_database)


async def test_receiving_while_sessions_are_being_closed_loses_nothing(database: str) -> None:
    async with opened_often(database, 3) as stores:

        async def close() -> None:
            for _ in range(15):
                listed = await sessions.list_sessions(
                    stores[0].database, sessions.SessionFilter(conversation_id=CHAT.id, status="active"), 1
                )
                for session in listed:
                    await sessions.close_session(stores[0].database, session.id)

        receipts, _ = await asyncio.gather(
            asyncio.gather(*(stores[n % 3].receive(said(f"{n}", queue_cap=1000)) for n in range(150))), close()
        )
        assert sorted(receipt.seq for receipt in receipts) == list(range(1, 151))
        await answer_all(stores[1])
        assert set((await statuses(stores[0])).values()) <= {"answered", "cancelled"}
    await assert_consistent(database)


# Policies.


async def test_more_than_may_wait_are_stored_and_skipped_with_the_reason(any_database: str) -> None:
    async with opened(any_database) as store:
        receipts = [await store.receive(said(f"{n}", queue_cap=3)) for n in range(5)]
        assert [receipt.status for receipt in receipts] == [ACCEPTED] * 3 + [SKIPPED] * 2
        assert [receipt.reason for receipt in receipts[3:]] == ["queue_full"] * 2
        assert (await store.history(CHAT.id))[-1].metadata == {"reason": "queue_full"}
        assert (await store.receive(command("/stop"))).status is ACCEPTED, "a command passes a full queue"
        await answer_all(store)
        assert (await store.receive(said("later", queue_cap=3))).status is ACCEPTED
    await assert_consistent(any_database)


async def test_the_queue_cap_holds_within_one_statement(database: str) -> None:
    async with opened(database) as store:
        receipts = await messages.receive(store.database, [said(f"{n}", queue_cap=3) for n in range(5)])
        assert [receipt.reason for receipt in receipts] == [None, None, None, "queue_full", "queue_full"]
    await assert_consistent(database)


async def test_reject_skips_what_comes_while_something_waits_or_runs(database: str) -> None:
    async with opened(database) as store:
        reject = [said(f"{n}", busy_policy=BusyPolicy.REJECT) for n in range(4)]
        assert (await store.receive(reject[0])).status is ACCEPTED
        assert (await store.receive(reject[1])).reason == "busy"
        turn = await claimed(store)
        assert (await store.receive(reject[2])).reason == "busy"
        await store.complete(ending(turn))
        assert (await store.receive(reject[3])).status is ACCEPTED
    await assert_consistent(database)


async def test_a_message_that_nobody_will_answer_makes_nobody_busy(database: str) -> None:
    first = said("not for the bot", skip_reason="not_addressed", busy_policy=BusyPolicy.REJECT, queue_cap=1)
    second = said("for the bot", busy_policy=BusyPolicy.REJECT, queue_cap=1)
    async with opened(database) as store:
        receipts = await messages.receive(store.database, [first, second])
    assert [receipt.status for receipt in receipts] == [SKIPPED, ACCEPTED]


async def test_a_sessions_own_policy_goes_before_the_platforms(database: str) -> None:
    async with opened(database) as store:
        first = await store.receive(said("one"))
        assert first.busy_policy is BusyPolicy.COLLECT
        assert await sessions.set_busy_policy(store.database, first.session_id, BusyPolicy.REJECT)
        refused = await store.receive(said("two"))
        assert (refused.reason, refused.busy_policy) == ("busy", BusyPolicy.REJECT)
        assert await sessions.set_busy_policy(store.database, first.session_id, None)
        assert (await store.receive(said("three"))).busy_policy is BusyPolicy.COLLECT


async def test_a_skipped_message_is_kept_and_does_not_wait(database: str) -> None:
    async with opened(database) as store:
        receipt = await store.receive(said("hi all", skip_reason="not_addressed"))
        assert (receipt.status, receipt.reason) == (SKIPPED, "not_addressed")
        assert await store.claim(wish()) is None
        assert (await store.receive(said("@bot hello"))).status is ACCEPTED
        assert texts(await claimed(store)) == ["@bot hello"]
    await assert_consistent(database)


# What a message may hold.


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\x00b", "a\ufffdb"),
        ("half \ud83d", "half \ufffd"),
        ("\ud83d\ude00 joins", "😀 joins"),
        ("😀🏳️‍🌈\U00010fff", "😀🏳️‍🌈\U00010fff"),
        ("", ""),
        ("x'; drop table messages; --$1%s{}\\", "x'; drop table messages; --$1%s{}\\"),
        ("xyz\n" * 250_000, "xyz\n" * 250_000),
    ],
    ids=["NUL", "half a pair", "a pair in halves", "astral", "empty", "SQL", "1 MB"],
)
async def test_any_text_is_kept(database: str, text: str, kept: str) -> None:
    async with opened(database) as store:
        await store.receive(said(text, key="k"))
        assert (await store.history(CHAT.id))[0].text == kept
        assert texts(await claimed(store)) == [kept]
        assert (await store.receive(said(text, key="k"))).status is DUPLICATE


async def test_all_facts_of_a_message_are_kept(database: str) -> None:
    photo = Attachment("image", "image/png", "file-1", "a cat\x00.png", 17)
    arrival = said("look", attachments=[photo], metadata={"a": {"\x00b": [1, "\ud800", float("nan")]}}, group=True)
    async with opened(database) as store:
        await store.receive(arrival)
        (stored,) = await store.history(CHAT.id)
        (pending,) = (await claimed(store)).messages
    for message in (stored, pending):
        assert message.attachments == (replace(photo, name="a cat\ufffd.png"),)
        assert message.metadata == {"a": {"\ufffdb": [1, "\ufffd", None]}, "group": True}
        assert message.sender_id == "ada"
    assert pending.sender_name == "Ada"


HOSTILE = ["a\x00b", "\ud800", "'; drop table users; --", "{}%s$1", "é" * 200, "\x1f", " ", "\u202e"]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
async def test_any_id_is_taken(database: str, name: str) -> None:
    address = Address("webchat", "main", storable(name), storable(name))
    arrival = said("hello", to=address, key=name, user=User(name, name, name, name), platform_message_id=name)
    async with opened(database) as store:
        receipts = await asyncio.gather(*(store.receive(arrival) for _ in range(3)), store.receive(said("a bystander")))
        assert [receipt.status for receipt in receipts] == [ACCEPTED, DUPLICATE, DUPLICATE, ACCEPTED]
        turn = await claimed(store, address)
        assert await store.complete(ending(turn, name)) is not None
    await assert_consistent(database)


async def test_half_a_character_in_the_id_of_a_conversation_harms_nobody(database: str) -> None:
    async with opened(database) as store:
        results = await asyncio.gather(
            *(store.receive(said(to=chat(name))) for name in ("a", "b", "\ud800", "c")), return_exceptions=True
        )
    assert [getattr(result, "status", None) for result in results] == [ACCEPTED, ACCEPTED, ACCEPTED, ACCEPTED]


def very_long(name: str) -> str:
    """Too much for an index of PostgreSQL, which compresses what repeats."""
    return name + "".join(chr(0x4E00 + (n * 7919) % 20000) for n in range(5000))


async def test_an_endless_event_key_is_taken_like_any_other(database: str) -> None:
    async with opened(database) as store:
        arrivals = [said(key=very_long("k")), said(key=very_long("l")), said(key=very_long("k"))]
        receipts = [await store.receive(arrival) for arrival in arrivals]
    assert [receipt.status for receipt in receipts] == [ACCEPTED, ACCEPTED, DUPLICATE]


@pytest.mark.parametrize("field", ["conversation", "thread", "user"])
async def test_an_endless_id_is_refused_and_harms_nobody_else(database: str, field: str) -> None:
    address = replace(CHAT, **{field: very_long("c")}) if field != "user" else chat("other")
    endless = said(to=address, user=User(very_long("u")) if field == "user" else ADA)
    async with opened(database) as store:
        innocent = [said(to=chat(n)) for n in range(4)]
        results = await asyncio.gather(
            *map(store.receive, innocent[:3]),
            store.receive(endless),
            store.receive(innocent[3]),
            return_exceptions=True,
        )
    assert [getattr(result, "status", None) for result in results] == [ACCEPTED, ACCEPTED, ACCEPTED, None, ACCEPTED]
    assert isinstance(results[3], StorageError)
    assert "too long" in str(results[3])


# Users.


async def test_a_session_belongs_to_who_wrote_first_in_it(any_database: str) -> None:
    async def owner(receipt: Receipt) -> str | None:
        session = await sessions.get_session(store.database, receipt.session_id)
        assert session is not None
        return session.user_id

    def joined(to: Address) -> messages.Arrival:
        return said(to=to, user=User("admin"), content_type="event", skip_reason="event")

    async with opened(any_database) as store:
        receipt = await store.receive(joined(CHAT))
        assert await owner(receipt) is None
        for user in (User("bob"), ADA):
            assert (await store.receive(said(user=user))).session_id == receipt.session_id
            assert await owner(receipt) == "bob"
        assert (await claimed(store)).user_id == "bob"
        both = await messages.receive(store.database, [joined(chat(1)), said(to=chat(1), user=User("bob"))])
        assert [await owner(each) for each in both] == ["bob", "bob"]
    await assert_consistent(any_database)


async def test_a_user_is_written_on_change_only(any_database: str) -> None:
    async def row() -> asyncpg.Record:
        return await connection.fetchrow("select *, xmin::text as version from users")

    async with opened(any_database) as store, looking(any_database) as connection:
        await store.receive(said(user=ADA))
        first = await row()
        await store.receive(said(user=ADA))
        await store.receive(said(user=User("ada")))  # a platform that tells less now
        assert await row() == first
        await store.receive(said(user=replace(ADA, name="Ada Lovelace")))
        changed = await row()
    assert changed["version"] != first["version"]
    assert (changed["display_name"], changed["username"]) == ("Ada Lovelace", "ada_l")
    assert changed["first_seen"] == first["first_seen"]


async def test_two_names_of_a_user_in_one_statement(database: str) -> None:
    arrivals = [said(user=ADA), said(user=replace(ADA, name="Countess"), to=chat(2)), said(user=User("bob"))]
    async with opened(database) as store, looking(database) as connection:
        await messages.receive(store.database, arrivals)
        rows = await connection.fetch("select platform_user_id, display_name from users order by 1")
    assert [tuple(row) for row in rows] in ([("ada", "Countess"), ("bob", None)], [("ada", "Ada"), ("bob", None)])


# Everything together, against a model.


@dataclass
class ModelSession:
    """A session as it should be."""

    parent: int | None
    active: bool = True
    waiting: list[str] = field(default_factory=list[str])


@dataclass
class ModelConversation:
    """A conversation as it should be: sessions in order, what became of each message, and the running turn."""

    address: Address
    sessions: list[ModelSession] = field(default_factory=list[ModelSession])
    fates: dict[str, str] = field(default_factory=dict[str, str])
    home: dict[str, int] = field(default_factory=dict[str, int])  # the place of a message's session
    taken: list[str] = field(default_factory=list[str])
    session: ModelSession | None = None  # of the running turn

    def active(self) -> ModelSession:
        if not self.sessions or not self.sessions[-1].active:
            self.sessions.append(ModelSession(len(self.sessions) - 1 if self.sessions else None))
        return self.sessions[-1]

    def receive(self, text: str) -> ReceiveStatus:
        if text in self.fates:
            return DUPLICATE
        self.active().waiting.append(text)
        self.fates[text], self.home[text] = "pending", len(self.sessions) - 1
        return ACCEPTED

    def claim(self) -> list[str] | None:
        self.session = next((session for session in self.sessions if session.waiting), None)
        if self.session is None:
            return None
        self.taken = list(self.session.waiting)
        return self.taken

    def end(self, fate: str) -> None:
        assert self.session is not None
        self.fates |= dict.fromkeys(self.taken, fate)
        self.session.waiting = [text for text in self.session.waiting if text not in self.taken]

    def rotate(self) -> None:
        assert self.session is not None
        self.session.active = False
        moved, self.session.waiting = self.session.waiting, []
        self.active().waiting = moved
        self.home |= dict.fromkeys(moved, len(self.sessions) - 1)

    def close(self) -> None:
        session = self.sessions[-1]
        session.active = False
        self.fates |= dict.fromkeys(session.waiting, "cancelled")
        session.waiting = []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["receive"] * 5 + ["again", "claim", "claim", "complete", "complete"])
        | st.sampled_from(["fail", "supersede", "rotate", "close", "stale"]),
        st.integers(0, 1),
    ),
    max_size=40,
)
numbers = count()


class Run:
    """Does the steps on a store and on the model, and compares."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.models = [ModelConversation(chat(f"model-{next(numbers)}")) for _ in range(2)]
        self.turns: dict[ConversationId, Turn] = {}
        self.stale: dict[ConversationId, Turn] = {}

    async def step(self, name: str, model: ModelConversation) -> None:
        conversation = model.address.id
        turn = self.turns.get(conversation)
        match name:
            case "receive" | "again":
                text = f"{len(model.fates)}" if name == "receive" else "0"
                receipt = await self.store.receive(said(text, key=text, to=model.address))
                assert receipt.status is model.receive(text)
            case "claim":
                claimed = await self.store.claim(wish(model.address))
                assert (texts(claimed) if claimed else None) == (None if turn else model.claim())
                if claimed:
                    self.turns[conversation] = claimed
            case "complete" | "fail" | "rotate" if turn:
                outcome, fate = ("error", "failed") if name == "fail" else ("answered", "answered")
                completion = ending(turn, outcome=type(ending(turn).outcome)(outcome))
                done = await self.store.complete(completion, follow_with_new_session=name == "rotate")
                assert done is not None
                model.end(fate)
                if name == "rotate":
                    model.rotate()
                self.stale[conversation] = self.turns.pop(conversation)
            case "supersede" if turn:
                assert await turns.supersede(self.store.database, conversation, "superseded") == turn.id
                self.stale[conversation] = self.turns.pop(conversation)
            case "stale" if conversation in self.stale:
                assert await self.store.complete(ending(self.stale[conversation], "stale")) is None
            case "close" if model.sessions and model.sessions[-1].active:
                assert await sessions.close_session(self.store.database, (await self.sessions_of(model))[-1].id)
                model.close()
                if turn:
                    self.stale[conversation] = self.turns.pop(conversation)
            case _:
                pass

    async def sessions_of(self, model: ModelConversation) -> list[sessions.Session]:
        wanted = sessions.SessionFilter(conversation_id=model.address.id)
        return list(reversed(await sessions.list_sessions(self.store.database, wanted, 100)))

    async def compare(self, model: ModelConversation) -> None:
        history = await self.store.history(model.address.id, limit=1000)
        inbound = [message for message in history if message.direction == "inbound"]
        assert [message.text for message in inbound] == list(model.fates), "in the order in which they were received"
        assert {message.text: message.status for message in inbound} == model.fates
        rows = await self.sessions_of(model)
        places = {row.id: place for place, row in enumerate(rows)}
        assert {message.text: places[message.session_id] for message in inbound} == model.home
        assert [places.get(row.parent_session_id) for row in rows] == [session.parent for session in model.sessions]
        assert [row.status == "active" for row in rows] == [session.active for session in model.sessions]
        assert not any("stale" in message.text for message in history)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_any_sequence_of_events_does_what_the_model_says(database: str, steps: list[tuple[str, int]]) -> None:
    async with opened(database, pool_size=2) as store:
        run = Run(store)
        for name, number in steps:
            await run.step(name, run.models[number])
        for model in run.models:
            await run.compare(model)
        await assert_consistent(database)
        for model in run.models:
            if turn := run.turns.get(model.address.id):
                await store.complete(ending(turn))
            await answer_all(store, model.address)
            assert "pending" not in (await statuses(store, model.address)).values()
        await assert_consistent(database)
