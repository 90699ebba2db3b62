"""Receive, claim, complete, recover and deliver in any order, by several stores on one PostgreSQL, against a model that
keeps plain lists. hypothesis makes up the order of things; after each of them database and model must say the same."""

import asyncio
from collections.abc import Coroutine, Generator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import Any, Literal, TypeVar

import asyncpg
import pytest
from hypothesis import Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from chat_bridge.model import Address, BusyPolicy, Receipt, ReceiveStatus, SessionId, Turn, TurnOutcome
from chat_bridge.storage import outbox, sessions, turns
from chat_bridge.storage.messages import Arrival
from chat_bridge.storage.outbox import MOST_FAILURES, Delivery, DeliveryResult
from chat_bridge.storage.postgres import QUERIES
from chat_bridge.storage.store import Store
from chat_bridge.storage.turns import MOST_LOST_TURNS, Completed, Completion
from tests.storage.dialogue import contradictions, ending, looking, make_due, opened_often, said, texts, wish

T = TypeVar("T")

STORES = 3
CONVERSATIONS = 3
PLATFORM, ACCOUNT = "webchat", "main"
TABLES = "sessions, archived_sessions, messages, turns, deliveries, waiting, users"

places = st.integers(0, CONVERSATIONS - 1)
stores = st.integers(0, STORES - 1)
some = st.integers(0, 1000)  # one of those that are there, whichever
words = st.sampled_from(["text", "text", "text", "/help", "/stop", "overheard"])
outcomes = st.sampled_from([TurnOutcome.ANSWERED, TurnOutcome.ANSWERED, TurnOutcome.ERROR, TurnOutcome.CANCELLED])

FINAL = {"done": "answered", "failed": "failed", "cancelled": "cancelled"}


@dataclass
class Message:
    """A message as the model has it, with the status that `history` tells."""

    seq: int
    text: str
    status: str
    inbound: bool = True
    key: str = ""
    command: bool = False

    @property
    def waits(self) -> bool:
        return self.status == "pending"


@dataclass
class Held:
    """A turn that some store claimed."""

    turn: Turn
    last_seq: int
    status: str = "running"
    expired: bool = False
    lost: bool = False

    def has(self, message: Message) -> bool:
        return self.turn.messages[0].seq <= message.seq <= self.last_seq


@dataclass
class Part:
    """A delivery."""

    seq: int
    part: int
    status: str
    attempts: int = 0
    failures: int = 0

    @property
    def open(self) -> bool:
        return self.status in ("pending", "sending")


@dataclass
class Conversation:
    """What a conversation should look like."""

    address: Address
    policy: BusyPolicy
    queue_cap: int
    session: SessionId | None = None  # the active one
    suspect_seq: int = 0  # up to here a turn takes one message alone: one of them may kill who takes it
    messages: list[Message] = field(default_factory=list[Message])
    turns: list[Held] = field(default_factory=list[Held])
    parts: list[Part] = field(default_factory=list[Part])

    @property
    def running(self) -> Held | None:
        return next((held for held in self.turns if held.status == "running"), None)

    @property
    def waiting(self) -> list[Message]:
        return [message for message in self.messages if message.waits]

    def known(self, key: str) -> Message | None:
        return next((message for message in self.messages if message.key == key), None)

    def full(self, coming: int = 1) -> bool:
        """Whether so many more texts are too many."""
        most = 1 if self.policy is BusyPolicy.REJECT else self.queue_cap
        return sum(not message.command for message in self.waiting) + coming > most

    def receives(self, arrival: Arrival, receipt: Receipt, full: bool | None = None) -> None:
        """Take an arrival down, and check what the store said of it. `full`: only the store can know."""
        event, known = arrival.event, self.known(arrival.event.event_key)
        if known is not None:
            same = "duplicate" if known.text == event.text else "conflict"
            assert (receipt.status, receipt.seq) == (same, known.seq)
            return
        command = arrival.content_type == "command"
        full = self.full() if full is None else full
        skipped = arrival.skip_reason is not None or (full and not command)
        assert receipt.status == (ReceiveStatus.SKIPPED if skipped else ReceiveStatus.ACCEPTED)
        assert self.session in (None, receipt.session_id)
        assert receipt.seq > max((message.seq for message in self.messages), default=0)
        self.session = receipt.session_id
        status = "skipped" if skipped else "pending"
        self.messages.append(Message(receipt.seq, event.text, status, key=event.event_key, command=command))

    def takes(self) -> list[Message]:
        """What a claim takes now."""
        waiting = self.waiting
        if self.running is not None or not waiting:
            return []
        if stops := [message.seq for message in waiting if message.text == "/stop"]:
            return [message for message in waiting if message.seq <= stops[-1]]
        if waiting[0].command or self.policy is BusyPolicy.FOLLOWUP or waiting[0].seq <= self.suspect_seq:
            return waiting[:1]
        return list(takewhile(lambda message: not message.command, waiting))

    def claims(self, claimed: Turn | None) -> None:
        """A store had this turn, or none."""
        taken = self.takes()
        if not taken:
            assert claimed is None
            return
        assert claimed is not None
        if taken[-1].text == "/stop":
            passed_over = "cancelled"
        else:
            passed_over = "skipped" if self.policy is BusyPolicy.LATEST else None
        if passed_over is not None:
            for message in taken[:-1]:
                message.status = passed_over
        assert texts(claimed) == [message.text for message in taken if message.waits]
        self.turns.append(Held(claimed, taken[-1].seq))

    def completes(self, held: Held, completion: Completion, done: Completed | None) -> Delivery | None:
        """The running turn ended; the delivery that its store has to send now."""
        assert done is not None
        held.status = completion.outcome.turn_status
        for message in self.waiting:
            if message.seq <= held.last_seq:
                message.status = FINAL[held.status]
        assert done.more == bool(self.waiting)
        if completion.message_id is None:
            assert (done.seq, done.send_key) == (None, None)
            return None
        assert done.seq is not None
        assert done.seq > max(message.seq for message in self.messages)
        self.messages.append(Message(done.seq, completion.text, "stored", inbound=False))
        now = completion.parts > 0 and not any(part.open for part in self.parts)
        self.parts += [Part(done.seq, number, "pending") for number in range(1, completion.parts + 1)]
        assert (done.send_key is not None) == now
        if done.send_key is None:
            return None
        part = self.following()
        assert part is not None
        part.status, part.attempts = "sending", 1
        metadata = completion.metadata or {}
        return Delivery(
            self.address.id, done.seq, 1, 1, done.send_key, completion.message_id, self.address, "", metadata
        )

    def loses(self, held: Held) -> int:
        """The worker of the running turn is dead; how many messages are set aside for that."""
        held.status, held.lost = "superseded", True
        times = {
            message.seq: sum(other.lost and other.has(message) for other in self.turns)
            for message in self.waiting
            if held.has(message)
        }
        if suspects := [seq for seq, often in times.items() if often >= MOST_LOST_TURNS - 1]:
            self.suspect_seq = max(suspects)
        aside = [message for message in self.waiting if times.get(message.seq, 0) >= MOST_LOST_TURNS]
        for message in aside:
            message.status = "failed"
        return len(aside)

    def following(self) -> Part | None:
        """The first delivery that is not final."""
        return next((part for part in self.parts if part.open), None)

    def closes(self) -> None:
        """The session was closed, with all that waited in it."""
        self.session, self.suspect_seq = None, 0
        if self.running is not None:
            self.running.status = "cancelled"
        for message in self.waiting:
            message.status = "cancelled"


@dataclass
class World:
    """Several stores on one database, as several replicas have them, and a connection to look behind them."""

    runner: asyncio.Runner
    stores: list[Store]
    connection: asyncpg.Connection

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)


@pytest.fixture
def world(database: str) -> Generator[World]:
    """One for all examples of a test; each empties the tables."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        opened = runner.run(stack.enter_async_context(opened_often(database, STORES, lease_seconds=3600)))
        connection = runner.run(stack.enter_async_context(looking(database)))
        yield World(runner, opened, connection)
        runner.run(stack.aclose())


class Bridge(RuleBasedStateMachine):
    """Everything that may happen between replicas and the database.

    A rule that finds nothing to do does nothing. None has a precondition: who wins a race would decide whether it
    holds, and for Hypothesis the same choices must always lead to the same rules.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.run = world.run
        self.numbers = count(1)
        self.conversations: list[Conversation] = []
        self.sent: list[tuple[Conversation, Delivery]] = []  # deliveries that some store was told to send

    @initialize(policies=st.tuples(*[st.sampled_from(BusyPolicy)] * CONVERSATIONS), queue_cap=st.sampled_from([2, 50]))
    def begin(self, policies: Iterable[BusyPolicy], queue_cap: int) -> None:
        self.run(self.world.connection.execute(f"truncate {TABLES}"))
        self.conversations = [
            Conversation(Address(PLATFORM, ACCOUNT, f"chat-{number}"), policy, queue_cap)
            for number, policy in enumerate(policies)
        ]

    # Messages

    @rule(place=places, by=stores, word=words)
    def receive(self, place: int, by: int, word: str) -> None:
        conversation = self.conversations[place]
        arrival = self.arrival(conversation, word)
        conversation.receives(arrival, self.run(self.world.stores[by].receive(arrival)))

    @rule(number=some, by=stores, other_text=st.booleans())
    def receive_again(self, number: int, by: int, other_text: bool) -> None:
        """A redelivery; or an event that has the key of another one."""
        if not self.keys():
            return
        conversation, message = pick(self.keys(), number)
        text = "something else" if other_text else message.text
        arrival = said(text, to=conversation.address, key=message.key)
        conversation.receives(arrival, self.run(self.world.stores[by].receive(arrival)))

    @rule(place=places, by=stores, said_words=st.lists(words, min_size=2, max_size=4), twice=st.booleans())
    def receive_several(self, place: int, by: int, said_words: list[str], twice: bool) -> None:
        """By one store, which gives them to one statement: in the order in which they came."""
        conversation = self.conversations[place]
        arrivals = [self.arrival(conversation, word) for word in said_words]
        arrivals += arrivals[:1] if twice else []
        receipts = self.run(together(self.world.stores[by].receive(arrival) for arrival in arrivals))
        for arrival, receipt in zip(arrivals, receipts, strict=True):
            conversation.receives(arrival, receipt)

    @rule(place=places, said_words=st.lists(words, min_size=2, max_size=4), twice=st.booleans())
    def receive_everywhere(self, place: int, said_words: list[str], twice: bool) -> None:
        """By all stores at once: who is first is theirs to say, and how many wait is counted by each for itself."""
        conversation = self.conversations[place]
        arrivals = [self.arrival(conversation, word) for word in said_words]
        arrivals += arrivals[:1] if twice else []
        by = [self.world.stores[number % STORES] for number in range(len(arrivals))]
        receipts = self.run(together(store.receive(arrival) for store, arrival in zip(by, arrivals, strict=True)))
        may_be_full = conversation.full(len(arrivals))
        in_order = sorted(
            zip(arrivals, receipts, strict=True), key=lambda pair: (pair[1].seq, pair[1].status is DUPLICATE)
        )
        for arrival, receipt in in_order:
            full = receipt.status is ReceiveStatus.SKIPPED if may_be_full else None
            conversation.receives(arrival, receipt, full)

    def arrival(self, conversation: Conversation, word: str) -> Arrival:
        more = {"busy_policy": conversation.policy, "queue_cap": conversation.queue_cap}
        if word.startswith("/"):
            return said(word, to=conversation.address, content_type="command", **more)
        skip_reason = "not_addressed" if word == "overheard" else None
        return said(f"{word} {next(self.numbers)}", to=conversation.address, skip_reason=skip_reason, **more)

    def keys(self) -> list[tuple[Conversation, Message]]:
        return [(each, message) for each in self.conversations for message in each.messages if message.key]

    # Turns

    @rule(place=places, by=stores)
    def claim(self, place: int, by: int) -> None:
        conversation = self.conversations[place]
        conversation.claims(self.run(self.world.stores[by].claim(wish(conversation.address, conversation.policy))))

    @rule(place=places)
    def claim_everywhere(self, place: int) -> None:
        conversation = self.conversations[place]
        wanted = wish(conversation.address, conversation.policy)
        had = self.run(together(store.claim(wanted) for store in self.world.stores))
        claimed = [turn for turn in had if turn is not None]
        assert len(claimed) <= 1
        conversation.claims(claimed[0] if claimed else None)

    @rule(
        number=some, by=stores, outcome=outcomes, parts=st.integers(0, 2), says=st.booleans(), new_session=st.booleans()
    )
    def complete(self, number: int, by: int, outcome: TurnOutcome, parts: int, says: bool, new_session: bool) -> None:
        if not self.held(running=True):
            return
        conversation, held = pick(self.held(running=True), number)
        completion = self.ending(held, outcome, parts) if says else Completion(held.turn, outcome)
        store = self.world.stores[by]
        done = self.run(store.complete(completion, follow_with_new_session=new_session))
        self.begin_sending(conversation, conversation.completes(held, completion, done))
        if new_session:
            ((session, _),) = self.run(sessions.active_in(store.database, conversation.address))
            assert session != conversation.session
            conversation.session = session

    @rule(place=places, by=stores, parts=st.integers(1, 2))
    def answer(self, place: int, by: int, parts: int) -> None:
        """The usual course. Without it, few examples come as far as to deliveries."""
        conversation = self.conversations[place]
        self.receive(place, by, "text")
        self.claim(place, by)
        if (held := conversation.running) is not None:
            completion = self.ending(held, TurnOutcome.ANSWERED, parts)
            done = self.run(self.world.stores[by].complete(completion))
            self.begin_sending(conversation, conversation.completes(held, completion, done))

    @rule(number=some, parts=st.integers(1, 2))
    def complete_everywhere(self, number: int, parts: int) -> None:
        """Several stores believe that the turn is theirs: one of them is right."""
        if not self.held(running=True):
            return
        conversation, held = pick(self.held(running=True), number)
        completions = [self.ending(held, TurnOutcome.ANSWERED, parts) for _ in self.world.stores]
        answers = self.run(
            together(
                store.complete(completion) for store, completion in zip(self.world.stores, completions, strict=True)
            )
        )
        ended = [pair for pair in zip(completions, answers, strict=True) if pair[1] is not None]
        assert len(ended) == 1
        self.begin_sending(conversation, conversation.completes(held, *ended[0]))

    @rule(number=some, by=stores, outcome=outcomes, new_session=st.booleans())
    def complete_too_late(self, number: int, by: int, outcome: TurnOutcome, new_session: bool) -> None:
        """The turn is over, or another one is running: this changes nothing."""
        if not self.held(running=False):
            return
        _, held = pick(self.held(running=False), number)
        completion = self.ending(held, outcome, 1)
        assert self.run(self.world.stores[by].complete(completion, follow_with_new_session=new_session)) is None

    @rule(by=stores)
    def renew(self, by: int) -> None:
        """All turns there ever were: only what runs is still somebody's."""
        everything = [held for _, held in self.held()]
        renewed = self.run(turns.renew(self.world.stores[by].database, [held.turn for held in everything], 3600))
        assert renewed == {held.turn.id for held in everything if held.status == "running"}
        for held in everything:
            held.expired = False

    @rule(number=some)
    def let_the_lease_run_out(self, number: int) -> None:
        if not self.held(running=True):
            return
        _, held = pick(self.held(running=True), number)
        self.expire(held)

    def expire(self, held: Held) -> None:
        held.expired = True
        self.run(
            self.world.connection.execute(
                "update turns set lease_until = now() - interval '1 s' where id = $1", held.turn.id
            )
        )

    @rule()
    def recover(self) -> None:
        """By two at once: each lost turn is found by one of them."""
        databases = [store.database for store in self.world.stores[:2]]
        found = self.run(together(turns.recover(database, [(PLATFORM, ACCOUNT)]) for database in databases))
        lost = [(conversation, held) for conversation, held in self.held(running=True) if held.expired]
        expected = sorted((conversation.address.id, held.turn.id) for conversation, held in lost)
        assert sorted(pair for each in found for pair in each) == expected
        aside = self.run(
            together(turns.set_aside(database, each) for database, each in zip(databases, found, strict=True))
        )
        assert sum(map(len, aside)) == sum(conversation.loses(held) for conversation, held in lost)

    @rule(place=places, by=stores)
    def die_again_and_again(self, place: int, by: int) -> None:
        """Whoever takes a turn here dies of it: nothing that waits does that more often than is allowed."""
        conversation = self.conversations[place]
        for _ in range(MOST_LOST_TURNS):
            self.claim(place, by)
            if conversation.running is not None:
                self.expire(conversation.running)
            self.recover()

    @rule(place=places, by=stores)
    def interrupt(self, place: int, by: int) -> None:
        conversation = self.conversations[place]
        taken = self.run(turns.supersede(self.world.stores[by].database, conversation.address.id, "interrupted"))
        running = conversation.running
        assert taken == (running.turn.id if running else None)
        if running is not None:
            running.status = "superseded"

    @rule(number=some, by=stores)
    def close_session(self, number: int, by: int) -> None:
        if not (open_ones := [each for each in self.conversations if each.session]):
            return
        conversation = pick(open_ones, number)
        assert conversation.session is not None
        assert self.run(sessions.close_session(self.world.stores[by].database, conversation.session))
        conversation.closes()

    def ending(self, held: Held, outcome: TurnOutcome, parts: int) -> Completion:
        return ending(held.turn, f"answer {next(self.numbers)}", outcome, parts=parts)

    def held(self, *, running: bool | None = None) -> list[tuple[Conversation, Held]]:
        return [
            (conversation, held)
            for conversation in self.conversations
            for held in conversation.turns
            if running is None or (held.status == "running") == running
        ]

    # Deliveries

    @rule(number=some, by=stores, status=st.sampled_from(["sent", "sent", "pending", "failed", "unknown"]))
    def finish_delivery(self, number: int, by: int, status: Literal["sent", "pending", "failed", "unknown"]) -> None:
        """A platform answered: to the attempt that counts, or to one that was taken over."""
        if not self.sent:
            return
        conversation, delivery = pick(self.sent, number)
        ends = status == "failed" and number % 2 == 0
        result = DeliveryResult(delivery, status, failure=status == "pending", retry_seconds=3600, ends=ends)
        told = self.run(self.world.stores[by].finish_delivery(result))
        part = next(each for each in conversation.parts if (each.seq, each.part) == (delivery.seq, delivery.part))
        if (part.status, part.attempts) != ("sending", delivery.attempt):
            assert told is None
            return
        part.status = status
        part.failures += status == "pending"
        if ends:
            for each in conversation.parts:
                each.status = "failed" if each.open else each.status
        following = None if status == "pending" else conversation.following()
        assert (told is None) == (following is None)
        if told is not None and following is not None:
            following.status = "sending"
            following.attempts += 1
            assert (told.seq, told.part, told.attempt) == (following.seq, following.part, following.attempts)
            self.begin_sending(conversation, told)

    @rule(by=stores, repeatable=st.booleans())
    def take_due_deliveries(self, by: int, repeatable: bool) -> None:
        """Time passes: what is to be tried again is due, and who was sending counts as dead."""
        self.run(make_due(self.world.connection))
        database = self.world.stores[by].database
        due = self.run(outbox.due_deliveries(database, [(PLATFORM, ACCOUNT)], [PLATFORM] if repeatable else []))
        taken = {delivery.conversation_id: delivery for delivery in due}
        assert len(taken) == len(due)
        for conversation in self.conversations:
            delivery, part = taken.get(conversation.address.id), conversation.following()
            if part is None:
                assert delivery is None
                continue
            left_behind = part.status == "sending"
            part.attempts += 1
            part.failures += left_behind
            part.status = "sending"
            if left_behind and not repeatable:
                part.status = "unknown"
            elif left_behind and part.failures >= MOST_FAILURES:
                part.status = "failed"
            assert (delivery is not None) == (part.status == "sending")
            if delivery is not None:
                assert (delivery.seq, delivery.part, delivery.attempt) == (part.seq, part.part, part.attempts)
            self.begin_sending(conversation, delivery)

    def begin_sending(self, conversation: Conversation, delivery: Delivery | None) -> None:
        if delivery is not None:
            self.sent.append((conversation, delivery))

    # What must be so after each of these

    @invariant()
    def model_and_database_say_the_same(self) -> None:
        self.run(self.compare())

    async def compare(self) -> None:
        store, connection = self.world.stores[0], self.world.connection
        for conversation in self.conversations:
            place = conversation.address.id
            history = await store.history(place, limit=1000)
            assert [(message.seq, message.text, message.status) for message in history] == [
                (message.seq, message.text, message.status) for message in conversation.messages
            ]
            taken = await connection.fetch("select id, status from turns where conversation_id = $1 order by id", place)
            assert [(row["id"], row["status"]) for row in taken] == sorted(
                (held.turn.id, held.status) for held in conversation.turns
            )
            deliveries = await connection.fetch(
                "select seq, part, status, attempts from deliveries where conversation_id = $1 order by seq, part",
                place,
            )
            assert [tuple(row) for row in deliveries] == [
                (part.seq, part.part, part.status, part.attempts) for part in conversation.parts
            ]
        found = await turns.find_pending(store.database, [(PLATFORM, ACCOUNT)])
        assert sorted(place for place, _ in found) == sorted(
            each.address.id for each in self.conversations if each.waiting and each.running is None
        )
        assert await contradictions(connection) == {}


DUPLICATE = ReceiveStatus.DUPLICATE


def pick(choices: list[T], number: int) -> T:
    return choices[number % len(choices)]


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    return list(await asyncio.gather(*works))


def test_whatever_happens_database_and_model_say_the_same(world: World) -> None:
    thorough = settings(max_examples=25, stateful_step_count=30, deadline=None, print_blob=True)
    run_state_machine_as_test(lambda: Bridge(world), settings=thorough)


@pytest.mark.timeout(240)  # it ends with the first contradiction, which on a slow machine takes a while
@pytest.mark.parametrize(
    ("query", "promise", "broken"),
    [
        ("receive", "case when f.refused is null then f.status else 'skipped' end", "f.status"),
        ("claim", "then w.seq <= w.stop_seq", "then w.seq = w.first_seq"),
        ("complete", " and t.finished_at is null", ""),
        ("renew", "where t.finished_at is null", ""),
        ("set_aside", "and t.first_seq <= m.seq", "and false"),
        ("recover", "t.lease_until < clock_timestamp() or", "true or"),
        ("due_deliveries", "when d.status = 'sending' and s.platform", "when false and s.platform"),
    ],
)
def test_a_broken_promise_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch, query: str, promise: str, broken: str
) -> None:
    assert promise in QUERIES[query]
    monkeypatch.setitem(QUERIES, query, QUERIES[query].replace(promise, broken))
    quick = settings(
        max_examples=100,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(lambda: Bridge(world), settings=quick)
