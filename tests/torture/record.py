"""The record of a run: what people and platforms saw, and the rows that are left in PostgreSQL."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from tests.torture import journal


@dataclass(frozen=True)
class Event:
    """A message as its sender knows it. `acknowledged` is when the first 2xx came."""

    platform: str
    conversation: str
    key: str
    text: str
    first_sent: float
    acknowledged: float | None


@dataclass(frozen=True)
class Message:
    """A message that came in, as it is stored. `passed`: the session's cursor is at it or after it."""

    conversation: str
    seq: int
    key: str
    text: str
    status: str
    reason: str | None = None
    passed: bool = True


@dataclass(frozen=True)
class Turn:
    """A row of `turns`; times in seconds of the same clock as in the journals."""

    conversation: str
    id: str
    status: str
    first_seq: int
    last_seq: int
    started: float
    finished: float | None
    outcome: str | None = None
    owner: str = ""


@dataclass(frozen=True)
class Reply:
    """A stored reply and its delivery; the replies of a run have one part. `turn` is None for a notice outside one."""

    platform: str
    conversation: str
    seq: int
    turn: str | None
    kind: str
    text: str
    key: str
    status: str


@dataclass(frozen=True)
class Taken:
    """A reply that the platform took, each time it did. `duplicate`: it knew the key, and showed nothing."""

    platform: str
    conversation: str
    key: str
    text: str
    at: float
    duplicate: bool = False


@dataclass(frozen=True)
class Heard:
    """A message as the agent got it, each time it did."""

    text: str
    id: str


@dataclass(frozen=True)
class Fault:
    """Something that was done to the bridge."""

    kind: str
    target: str
    at: float
    until: float


@dataclass
class Record:
    """All of it. `stuck` says what did not come to an end in time."""

    events: Sequence[Event] = ()
    messages: Sequence[Message] = ()
    turns: Sequence[Turn] = ()
    replies: Sequence[Reply] = ()
    taken: Sequence[Taken] = ()
    heard: Sequence[Heard] = ()
    faults: Sequence[Fault] = ()
    stuck: Sequence[str] = ()
    owners: dict[str, str] = field(default_factory=dict[str, str])  # the replica behind each turn's owner
    errors: Counter[str] = field(default_factory=Counter[str])  # what replicas logged as errors, by event


UNFINISHED = {
    "turns that still run": "select count(*) from turns where status = 'running'",
    "rows in `waiting`": "select count(*) from waiting",
    "replies not delivered": "select count(*) from deliveries where status in ('pending', 'sending')",
    "messages without a final state": """select count(*) from messages m
        join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
        where m.direction = 'inbound' and m.status = 'accepted' and m.seq > s.answered_seq""",
}

MESSAGES = """select s.platform_conversation_id as conversation, m.seq, m.event_key as key, m.content_text as text,
        m.status, m.metadata ->> 'reason' as reason, m.seq <= s.answered_seq as passed
    from messages m join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
    where m.direction = 'inbound' order by 1, 2"""

TURNS = """select s.platform_conversation_id as conversation, t.id::text, t.status, t.first_seq, t.last_seq,
        extract(epoch from t.started_at)::float8 as started, extract(epoch from t.finished_at)::float8 as finished,
        t.outcome, t.owner
    from turns t join sessions s on s.conversation_id = t.conversation_id and s.id = t.session_id order by 1, 6"""

REPLIES = """select s.platform, s.platform_conversation_id as conversation, m.seq, m.turn_id::text as turn,
        m.content_type as kind, m.content_text as text, d.idempotency_key::text as key, d.status
    from messages m join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
    join deliveries d on d.conversation_id = m.conversation_id and d.seq = m.seq
    where m.direction = 'outbound' order by 2, 3"""


async def unfinished(dsn: str) -> list[str]:
    """What has not come to an end yet."""
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        counts = {name: await connection.fetchval(query) for name, query in UNFINISHED.items()}
    finally:
        await connection.close()
    return [f"{count} {name}" for name, count in counts.items() if count]


async def read_record(dsn: str, peer_journal: Path, agent_journal: Path) -> Record:
    """What the journals and the database tell."""
    record = read_journal(peer_journal)
    calls = [line for line in journal.read(agent_journal) if line["what"] == "begun"]
    record.heard = [Heard(*each) for call in calls for each in zip(call["text"].split(), call["ids"], strict=True)]
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        record.messages = [Message(**row) for row in await connection.fetch(MESSAGES)]
        record.turns = [Turn(**row) for row in await connection.fetch(TURNS)]
        record.replies = [Reply(**row) for row in await connection.fetch(REPLIES)]
    finally:
        await connection.close()
    return record


def read_journal(path: Path) -> Record:
    """What people sent and heard, and what their platform took."""
    first_sent: dict[tuple[str, str, str, str], float] = {}
    acknowledged: dict[tuple[str, str, str, str], float] = {}
    taken: list[Taken] = []
    for line in journal.read(path):
        if line["what"] == "taken":
            names = ("platform", "conversation", "key", "text", "at", "duplicate")
            taken.append(Taken(**{name: line[name] for name in names}))
        else:
            event = (line["platform"], line["conversation"], line["key"], line["text"])
            (first_sent if line["what"] == "sent" else acknowledged).setdefault(event, line["at"])
    events = [Event(*event, at, acknowledged.get(event)) for event, at in first_sent.items()]
    return Record(events=events, taken=taken)
