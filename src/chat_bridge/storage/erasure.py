"""The rows of people, conversations and sessions that are to be erased, and the record of erasures."""

import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from chat_bridge.errors import ChatBridgeError
from chat_bridge.model import ConversationId, Json, MessageId, Seq, SessionId
from chat_bridge.storage.postgres import Database, Record
from chat_bridge.storage.retention import FIRST, UserKey
from chat_bridge.storage.text import from_jsonb, storable, storable_or_none, to_jsonb

Kind = Literal["user", "conversation", "session"]


class HeldError(ChatBridgeError):
    """What is to be erased is on legal hold."""

    def __init__(self, conversations: Iterable[ConversationId]) -> None:
        names = ", ".join(str(each) for each in sorted(conversations))
        super().__init__(f"on legal hold: {names}. Lift that first (`chat-bridge hold`)")


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
    """A session that has something of what is to be erased. `begun`: also who began it. `held`: it is on legal hold.
    `archived`: it must get its rows back first. `resource` owns what the agent remembers of it. `others`: somebody else
    wrote there too."""

    conversation_id: ConversationId
    id: SessionId
    resource: str
    others: bool
    begun: bool
    held: bool
    archived: bool


@dataclass(frozen=True, slots=True)
class Message:
    """A message that is to be erased."""

    id: MessageId
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


async def begin(database: Database, erasure: UUID, kind: Kind, target: Json) -> Erasure:
    """Note what is to be erased. One that is on record already stays as it is."""
    row = await database.fetch_one("begin_erasure", erasure, kind, to_jsonb(target))
    row = row or await database.fetch_one("erasure", erasure)
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
    database: Database, platform: str, account: str | None, user: str, moment: datetime
) -> AsyncGenerator[Sequence[Found]]:
    """The sessions in which somebody wrote before a moment, or which they began, page by page; every message of the
    platform is looked at."""
    last, person = (FIRST, UUID(int=0)), storable(user)
    conversations: dict[ConversationId, None] = {}
    while page := await database.fetch("sessions_after", *last, PAGE, platform, storable_or_none(account)):
        last = page[-1]["conversation_id"], page[-1]["id"]
        conversations |= dict.fromkeys(row["conversation_id"] for row in page if row["wanted"])
        while len(conversations) > CONVERSATIONS:
            some = list(conversations)[:CONVERSATIONS]
            yield await _with_person(database, some, person, moment)
            for each in some:
                del conversations[each]
    if conversations:
        yield await _with_person(database, list(conversations), person, moment)


async def _with_person(
    database: Database, conversations: Sequence[ConversationId], person: str, moment: datetime
) -> Sequence[Found]:
    wrote = await database.fetch("wrote_in", conversations, person, moment)
    others = {row["session_id"]: row["others"] for row in wrote}
    rows = await database.fetch("sessions_with_person", conversations, person, list(others), moment)
    return [_found(row, others=others.get(row["id"], False)) for row in rows]


async def sessions_of_conversation(
    database: Database, conversation: ConversationId, moment: datetime, session: SessionId | None = None
) -> Sequence[Found]:
    """All sessions of a conversation that began before a moment, or one of them."""
    rows = await database.fetch("sessions_of_conversation", conversation, session, moment)
    return [_found(row, others=False) for row in rows]


async def sessions_with_ids(database: Database, ids: Sequence[SessionId]) -> Sequence[Found]:
    """These sessions, of those that there are."""
    return [_found(row, others=False) for row in await database.fetch("sessions_with_ids", ids)]


async def close_whole(
    database: Database, conversation: ConversationId, session: SessionId, person: str | None, moment: datetime
) -> tuple[bool, Seq | None]:
    """Whether all of a session is to be erased: nobody but the person wrote there, and nothing came since the moment.
    Then it is closed; if it was active, its next seq tells which turns are to be stopped. Raises HeldError."""
    async with database.transaction() as transaction:
        rows = await transaction.fetch("hold_session", conversation, session)
        if not rows:
            return True, None
        _require_free(rows[0]["held"], conversation)
        (found,) = await transaction.fetch("others_in_session", conversation, session, storable_or_none(person), moment)
        if found["others"]:
            return False, None
        await transaction.fetch("close_session", session)
        return True, rows[0]["next_seq"] if rows[0]["active"] else None


async def erase_session(database: Database, conversation: ConversationId, session: SessionId) -> Counts:
    """Delete a closed session with everything in it, in pieces; what went. What is on hold stays."""
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


async def messages_to_blank(
    database: Database,
    conversation: ConversationId,
    session: SessionId,
    person: str | None,
    moment: datetime,
    ids: Sequence[MessageId] | None = None,
) -> Sequence[Message]:
    """What somebody wrote in a session before a moment, and the replies to it; without a person everything, or with ids
    these."""
    rows = await database.fetch(
        "messages_to_blank", conversation, session, storable_or_none(person), moment, None if ids is None else list(ids)
    )
    return [Message(row["id"], row["seq"]) for row in rows]


async def blank(
    database: Database,
    conversation: ConversationId,
    session: SessionId,
    person: str | None,
    messages: Sequence[Message],
) -> Counts:
    """Take from single messages of a session what they told, in pieces, and from the session who began it; what went.
    Raises HeldError."""
    counts = Counts()
    for start in range(0, max(len(messages), 1), MESSAGES):
        async with database.transaction() as transaction:
            rows = await transaction.fetch("hold_session", conversation, session)
            if not rows:
                return counts
            _require_free(rows[0]["held"], conversation)
            seqs = [message.seq for message in messages[start : start + MESSAGES]]
            (row,) = await transaction.fetch("blank_messages", conversation, seqs)
            await transaction.fetch("blank_session", conversation, session, storable_or_none(person))
        counts.messages += row["messages"]
        counts.files += row["files"]
    return counts


async def senders_of(database: Database, conversation: ConversationId, messages: Sequence[Message]) -> Sequence[str]:
    """Who wrote these messages."""
    rows = await database.fetch("senders_of", conversation, [message.seq for message in messages])
    return [row["sender_id"] for row in rows]


async def person(database: Database, platform: str, account: str | None, user: str) -> Sequence[Json]:
    """What is known of somebody, on each account."""
    rows = await database.fetch("person", platform, storable_or_none(account), storable(user))
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


async def erase_people(database: Database, keys: Sequence[UserKey]) -> int:
    """Forget people; how many there were."""
    columns = ([key[place] for key in keys] for place in range(3))
    return len(await database.fetch("erase_people", *columns))


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


def _require_free(held: bool, conversation: ConversationId) -> None:
    if held:
        raise HeldError([conversation])


def _found(row: Record, *, others: bool) -> Found:
    # As the agent was told: the chat in groups, else who began it.
    owner = row["platform_conversation_id"] if row["is_group"] else row["user_id"] or row["platform_conversation_id"]
    resource = row["resource"] or f"{row['platform']}:{row['account']}:{owner}"
    return Found(row["conversation_id"], row["id"], resource, others, bool(row["begun"]), row["held"], row["archived"])


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
