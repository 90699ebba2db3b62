"""`make torture`: a short run, a run that must find a broken promise, and the checker on records made by hand."""

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.needs import unavailable
from tests.observe import rows
from tests.servers import MissingError, find_redis
from tests.torture import journal
from tests.torture.adapters import KEYED, PLAIN
from tests.torture.agent import answer_to, manner
from tests.torture.check import PROMISES, check, shown_twice
from tests.torture.record import Event, Heard, Message, Record, Reply, Taken, Turn, read_record
from tests.torture.run import settle, torture
from tests.torture.stage import Child, Stage, staged
from tests.torture.torment import WEIGHTS, plans

SEED = "1"


@pytest.fixture(autouse=True)
def _redis() -> None:
    try:
        find_redis()
    except MissingError as error:
        unavailable(str(error))


# Runs


@pytest.mark.timeout(300)
async def test_every_promise_is_kept(tmp_path: Path) -> None:
    told: list[str] = []
    outcome = await torture(tmp_path, seconds=15, seed=SEED, replicas=2, conversations=4, say=told.append)
    assert outcome.kept, {promise: examples for promise, examples in outcome.broken.items() if examples}
    assert {fault.kind for fault in outcome.record.faults} == set(WEIGHTS)
    answered = [message for message in outcome.record.messages if message.status == "accepted"]
    assert len(answered) > 10, outcome.record.messages
    ElementTree.fromstring(outcome.timeline.read_text())
    assert any("SIGKILL replica" in line for line in told)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("program", ["chat_bridge", "tests.torture.unfenced"])
async def test_a_stale_worker_is_caught_if_nothing_fences_it(tmp_path: Path, program: str) -> None:
    async with staged(tmp_path, SEED, 2, program, TURN_TIMEOUT_SECONDS="60") as stage:
        await stage.ask_peer("begin", replicas=stage.urls, conversations=0)
        await stage.ask_peer("say", platform=KEYED, conversation="k00", number=slow_message(), replica=0)
        sleeper = await owner_of_the_turn(stage)
        async with sleeper.held:
            sleeper.send(signal.SIGSTOP)
            await lines_of(stage.journals["peer"], "taken", 1)  # the other replica's
            sleeper.send(signal.SIGCONT)
        await end_of_the_turn(sleeper)
        stuck = await settle(stage)
        record = await read_record(stage.postgres.dsn, stage.journals["peer"], stage.journals["agent"])
    record.stuck = stuck
    broken = check(record)
    if program == "chat_bridge":
        assert not any(broken.values()), broken
    else:
        assert len(record.replies) == 2
        assert broken["one reply to each message"]
        assert broken["one running turn at most"]


def slow_message() -> int:
    """The number of a message that the agent answers slowly at first, and at once when it comes again."""

    def fits(number: int) -> bool:
        (first, seconds), (second, _) = (manner(SEED, f"k00#{number}", times) for times in (1, 2))
        return (first, second) == ("slow", "quick") and seconds > 1.8

    return next(filter(fits, count(1)))


async def owner_of_the_turn(stage: Stage) -> Child:
    """The replica that has called the agent."""
    await lines_of(stage.journals["agent"], "begun", 1)
    (turn,) = await rows(stage.postgres.dsn, "select owner from turns where status = 'running'")
    name = stage.owners()[turn["owner"]]
    return next(replica for replica in stage.replicas if replica.name == name)


async def lines_of(path: Path, what: str, wanted: int) -> None:
    """Wait until a journal tells of something so many times."""
    while not path.exists() or sum(line["what"] == what for line in journal.read(path)) < wanted:
        await asyncio.sleep(0.02)


async def end_of_the_turn(replica: Child) -> None:
    """Wait until a replica has said what became of its only turn."""
    ends = ("turn.completed", "turn.superseded", "turn.given_back")
    while not any(end in replica.log.read_text() for end in ends):
        await asyncio.sleep(0.02)


def test_all_faults_come_from_the_seed() -> None:
    assert plans("1", 30, 3) == plans("1", 30, 3)
    assert plans("1", 30, 3) != plans("2", 30, 3)
    assert {plan.kind for plan in plans("1", 30, 3)} == set(WEIGHTS)
    assert {plan.replica for plan in plans("1", 30, 3)} == {0, 1, 2}


# The checker


def kept() -> Record:
    """One conversation on each platform: a message and its answer, a lost turn, then two messages in one turn."""
    record = Record()
    for platform, name, at in ((KEYED, "k", 0.0), (PLAIN, "p", 0.5)):
        texts = [f"{name}#{number}" for number in (1, 2, 3)]
        record.events = [
            *record.events,
            *(Event(platform, name, text, text, at + start, at + start + 0.1) for start, text in enumerate(texts)),
        ]
        record.messages = [
            *record.messages,
            *(Message(name, seq, text, text, "accepted") for seq, text in zip((1, 3, 4), texts, strict=True)),
        ]
        record.heard = [*record.heard, *(Heard(text, f"id of {text}") for text in (*texts, *texts[1:]))]
        record.turns = [
            *record.turns,
            Turn(name, f"{name}-first", "done", 1, 1, at + 0.2, at + 0.8, "answered"),
            Turn(name, f"{name}-lost", "superseded", 3, 3, at + 1.2, at + 4, "superseded"),
            Turn(name, f"{name}-last", "done", 3, 4, at + 4, at + 5, "answered"),
        ]
        replies = [
            Reply(platform, name, 2, f"{name}-first", "text", answer_to(texts[0]), f"{name}-key-2", "sent"),
            Reply(platform, name, 5, f"{name}-last", "text", answer_to(" ".join(texts[1:])), f"{name}-key-5", "sent"),
        ]
        record.replies = [*record.replies, *replies]
        record.taken = [
            *record.taken,
            *(Taken(platform, name, reply.key, reply.text, at + reply.seq) for reply in replies),
        ]
    return record


def changed(name: str, place: int, **facts: object) -> Callable[[Record], None]:
    """One item of a record is another."""

    def change(record: Record) -> None:
        items = list(getattr(record, name))
        items[place] = replace(items[place], **facts)
        setattr(record, name, items)

    return change


def without(name: str, place: int) -> Callable[[Record], None]:
    """One item of a record is missing."""

    def change(record: Record) -> None:
        items = list(getattr(record, name))
        del items[place]
        setattr(record, name, items)

    return change


def doubled(name: str, place: int, **facts: object) -> Callable[[Record], None]:
    """One item of a record is there again, with these facts."""

    def change(record: Record) -> None:
        items = list(getattr(record, name))
        setattr(record, name, [*items, replace(items[place], **facts)])

    return change


def stuck(record: Record) -> None:
    record.stuck = ["1 turns that still run"]


BROKEN: Mapping[str, Sequence[Callable[[Record], None]]] = {
    "acknowledged messages are stored, once": [
        without("messages", 2),
        doubled("messages", 0),
        changed("events", 0, acknowledged=None),
    ],
    "every message has a final state": [
        changed("messages", 2, passed=False),
        changed("messages", 0, status="failed"),
    ],
    "one reply to each message": [
        without("turns", 0),
        without("replies", 0),
        doubled("turns", 0, id="k-again", started=6.0, finished=7.0),
        doubled("replies", 0, seq=9, key="another"),
        changed("replies", 1, turn="k-lost"),
        changed("replies", 1, text=answer_to("k#2")),
        changed("messages", 0, status="failed", reason="error"),
    ],
    "the agent knows a message by one id": [doubled("heard", 0, id="another")],
    "nothing is out of order": [
        changed("messages", 1, seq=9),
        changed("turns", 0, started=6.0, finished=7.0),
        changed("replies", 0, seq=9),
        changed("taken", 0, at=6.0),
    ],
    "one running turn at most": [
        changed("turns", 1, finished=4.5),
        changed("turns", 1, finished=None),
    ],
    "replies are delivered, once by key": [
        without("taken", 0),
        without("taken", 2),
        doubled("taken", 0),
        doubled("taken", 0, key="another"),
        changed("taken", 0, text="something else"),
        changed("taken", 0, conversation="p"),
        doubled("replies", 0, seq=9, key="another"),
    ],
    "nothing is stuck": [stuck],
}


def test_a_record_that_keeps_every_promise() -> None:
    assert not any(check(kept()).values())


@pytest.mark.parametrize(
    ("promise", "change"), [(promise, change) for promise, changes in BROKEN.items() for change in changes]
)
def test_a_broken_promise_is_found(promise: str, change: Callable[[Record], None]) -> None:
    record = kept()
    change(record)
    assert check(record)[promise]


def test_every_promise_can_be_broken() -> None:
    assert BROKEN.keys() == PROMISES.keys()


def test_what_is_no_broken_promise() -> None:
    record = kept()
    # A lost answer on either platform, a reply given up, a message set aside.
    doubled("taken", 0, at=2.5, duplicate=True)(record)
    doubled("taken", 2, at=3.0)(record)
    changed("replies", 3, status="unknown")(record)
    without("taken", 3)(record)
    doubled("events", 2, key="k#4", text="k#4", first_sent=8.0, acknowledged=8.1)(record)
    doubled("messages", 2, seq=6, key="k#4", text="k#4", status="failed", reason="set_aside")(record)
    assert not any(check(record).values())
    assert shown_twice(record) == 1
