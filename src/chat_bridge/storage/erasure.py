"""The rows of people, conversations and sessions that are to be erased, and the record of erasures."""

import hashlib
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from chat_bridge.model import ConversationId, Json, MessageId, Seq, SessionId
from chat_bridge.storage.postgres import Database, Record
from chat_bridge.storage.retention import FIRST, UserKey
from chat_bridge.storage.text import from_jsonb, storable, storable_or_none, to_jsonb

Kind = Literal["user", "conversation", "session"]

PAGE = 5000  # sessions
CONVERSATIONS = 50
MESSAGES = 500


@dataclass(frozen=True, slots=True)
class Erasure:
    """What somebody wanted erased. `target`: what is left to do; None: nothing. The receipt counts what was erased."""

    id: UUID
    created_at: datetime
    finished_at: datetime | None
    kind: Kind
    target: Json | None
    receipt: Json


@dataclass(frozen=True, slots=True)
class Found:
    """A session that has something of what is to be erased: all of it (`alone`), or single messages, and perhaps who
    began it (`begun`). `held`: it is on legal hold. `archived`: what is in it is not known yet. `resource` owns what
    the agent remembers of it."""

    conversation_id: ConversationId
    id: SessionId
    resource: str
    alone: bool
    begun: bool
    held: bool
    archived: bool


class Place(NamedTuple):
    """Where a message is."""

    id: MessageId
    conversation_id: ConversationId
    seq: Seq


@dataclass(slots=True)
class Counts:
    """What was erased."""

    sessions: int = 0
    messages: int = 0
    files: int = 0
    people: int = 0
    threads: int = 0

    def add(self, more: "Counts") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(more, each.name))


class Person(NamedTuple):
    """A person as we know them, of one account. `digest` tells them apart for ever and from nobody: it is made of the
    moment we first heard of them too, which nothing tells once the row is gone."""

    key: UserKey
    digest: str


async def begin(database: Database, erasure: UUID, kind: Kind, target: Json) -> Erasure:
    """Note what is to be erased."""
    row = await database.fetch_one("begin_erasure", erasure, kind, to_jsonb(target))
    assert row is not None
    return _erasure(row)


async def find(database: Database, erasure: UUID) -> Erasure | None:
    """One erasure."""
    row = await database.fetch_one("erasure", erasure)
    return None if row is None else _erasure(row)


async def unfinished(database: Database) -> Sequence[Erasure]:
    """Those that something is left to do for."""
    return [_erasure(row) for row in await database.fetch("unfinished_erasures")]


async def known(database: Database, erasures: Sequence[UUID]) -> set[UUID]:
    """Which of these are on record."""
    return {row["id"] for row in await database.fetch("known_erasures", erasures)}


async def note(database: Database, erasure: UUID, counts: Counts) -> None:
    """Add to a receipt."""
    await database.fetch(
        "note_erasure", erasure, counts.sessions, counts.messages, counts.files, counts.people, counts.threads
    )


async def aim(database: Database, erasure: UUID, target: Json | None, receipt: Json) -> None:
    """What is left to do (None: nothing, it is finished), and what else the receipt tells."""
    await database.fetch("aim_erasure", erasure, to_jsonb(target), json.dumps(receipt))


async def sessions_of_person(
    database: Database, platform: str, account: str | None, user: str
) -> AsyncGenerator[Sequence[Found]]:
    """The sessions in which somebody wrote, page by page; every message of the platform is looked at."""
    last, person = (FIRST, UUID(int=0)), storable(user)
    conversations: dict[ConversationId, None] = {}
    while page := await database.fetch("sessions_after", *last, PAGE, platform, storable_or_none(account)):
        last = page[-1]["conversation_id"], page[-1]["id"]
        conversations |= dict.fromkeys(row["conversation_id"] for row in page if row["wanted"])
        while len(conversations) > CONVERSATIONS:
            some = list(conversations)[:CONVERSATIONS]
            yield [_found(row) for row in await database.fetch("sessions_of_person", some, person)]
            for each in some:
                del conversations[each]
    if conversations:
        yield [_found(row) for row in await database.fetch("sessions_of_person", list(conversations), person)]


async def sessions_of_conversation(
    database: Database, conversation: ConversationId, session: SessionId | None = None
) -> Sequence[Found]:
    """All sessions of a conversation, or one of them."""
    return [_found(row) for row in await database.fetch("sessions_of_conversation", conversation, session)]


async def messages_of_person(database: Database, found: Found, user: str) -> Sequence[Place]:
    """What somebody wrote in a session with others, and the replies to it."""
    rows = await database.fetch("messages_of_person", found.conversation_id, found.id, storable(user))
    return [Place(row["id"], row["conversation_id"], row["seq"]) for row in rows]


async def messages_with_ids(database: Database, ids: Sequence[UUID]) -> Sequence[Place]:
    """Where these messages are, of those that there are and that still tell something."""
    rows = await database.fetch("messages_with_ids", ids)
    return [Place(row["id"], row["conversation_id"], row["seq"]) for row in rows]


async def sessions_with_ids(database: Database, ids: Sequence[UUID]) -> Sequence[tuple[ConversationId, SessionId]]:
    """Where these sessions are, of those that there are."""
    return [(row["conversation_id"], row["id"]) for row in await database.fetch("sessions_with_ids", ids)]


async def erase_session(database: Database, conversation: ConversationId, session: SessionId) -> Counts:
    """Delete a closed session with everything in it, in pieces; what went."""
    counts, last = Counts(), 0
    while True:
        row = await database.fetch_one("erase_messages", conversation, session, last, MESSAGES)
        assert row is not None
        if not row["messages"]:
            break
        last = row["last_seq"]
        counts.messages += row["messages"]
        counts.files += row["files"]
    row = await database.fetch_one("erase_session", conversation, session)
    if row is not None:
        counts.sessions += 1
        counts.files += row["files"]
    return counts


async def blank(database: Database, places: Sequence[Place]) -> Counts:
    """Take from single messages what they told, in pieces; what went."""
    counts = Counts()
    for start in range(0, len(places), MESSAGES):
        some = places[start : start + MESSAGES]
        row = await database.fetch_one(
            "blank_messages", [place.conversation_id for place in some], [place.seq for place in some]
        )
        assert row is not None
        counts.messages += row["messages"]
        counts.files += row["files"]
    return counts


async def blank_sessions(database: Database, ids: Sequence[SessionId]) -> None:
    """Forget who began these sessions."""
    await database.fetch("blank_sessions", ids)


async def person(database: Database, platform: str, account: str | None, user: str) -> Sequence[tuple[Person, Json]]:
    """What is known of somebody, on each account."""
    rows = await database.fetch("person", platform, storable_or_none(account), storable(user))
    return [(_person(row), {name: _plain(value) for name, value in row.items()}) for row in rows]


async def people_with_digests(database: Database, digests: set[str]) -> Sequence[UserKey]:
    """Who of all people has one of these digests. Everybody is looked at."""
    last: UserKey = ("", "", "")
    found: list[UserKey] = []
    while digests and (page := await database.fetch("people_after", *last, PAGE)):
        people = [_person(row) for row in page]
        last = people[-1].key
        found += [each.key for each in people if each.digest in digests]
    return found


async def erase_people(database: Database, keys: Sequence[UserKey]) -> int:
    """Forget people; how many there were."""
    columns = ([key[place] for key in keys] for place in range(3))
    return len(await database.fetch("erase_people", *columns))


async def archived_with_ids(
    database: Database, ids: Sequence[SessionId]
) -> Sequence[tuple[ConversationId, SessionId, bool]]:
    """Those of these sessions that are archived, and whether they are on legal hold."""
    rows = await database.fetch("archived_with_ids", ids)
    return [(row["conversation_id"], row["id"], row["held"]) for row in rows]


async def archives_of(database: Database, sessions: Sequence[SessionId]) -> Sequence[UUID]:
    """The archives that have something of these sessions."""
    return [row["archive_id"] for row in await database.fetch("archives_of_sessions", sessions)]


async def remaining_archives(database: Database, archives: Sequence[UUID]) -> Sequence[UUID]:
    """Of these archives, those that are not deleted yet."""
    return [row["id"] for row in await database.fetch("there_are_archives", archives)]


async def contents_in(database: Database, conversations: Sequence[ConversationId]) -> Sequence[UUID]:
    """What the files of these conversations consist of: their contents may be unused afterwards."""
    return [row["content_id"] for row in await database.fetch("contents_in", conversations)]


async def doom(database: Database, contents: Sequence[UUID]) -> None:
    """Have contents that nothing has any more deleted by the next clean-up, and not in an hour."""
    await database.fetch("doom_erased", contents)


async def undeleted(database: Database, contents: Sequence[UUID]) -> Sequence[UUID]:
    """Of these contents, those that nothing has and that are still there."""
    return [row["id"] for row in await database.fetch("undeleted_contents", contents)]


def _found(row: Record) -> Found:
    owner = row["user_id"] or row["platform_conversation_id"]
    resource = row["resource"] or f"{row['platform']}:{row['account']}:{owner}"
    return Found(
        row["conversation_id"], row["id"], resource, row["alone"], bool(row["begun"]), row["held"], row["archived"]
    )


def _person(row: Record) -> Person:
    key: UserKey = row["platform"], row["account"], row["platform_user_id"]
    first = row["first_seen"].isoformat(timespec="microseconds")
    return Person(key, hashlib.sha256("\x1f".join((*key, first)).encode()).hexdigest())


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _erasure(row: Record) -> Erasure:
    return Erasure(
        row["id"],
        row["created_at"],
        row["finished_at"],
        row["kind"],
        from_jsonb(row["target"]),
        from_jsonb(row["receipt"]) or {},
    )
