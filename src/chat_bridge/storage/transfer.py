"""Whole conversations: history of another program on its way in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from chat_bridge.model import Address, ConversationId, Json, MessageId, SessionId
from chat_bridge.storage.postgres import Database, Record, Transaction, win
from chat_bridge.storage.text import storable, storable_or_none, to_jsonb

_SESSION_COLUMNS = (
    "conversation_id", "id", "platform", "account", "platform_conversation_id", "thread", "user_id", "status",
    "created_at", "last_activity", "parent_session_id", "message_count", "next_seq", "answered_seq", "metadata",
)  # fmt: skip
_MESSAGE_COLUMNS = (
    "conversation_id", "seq", "id", "session_id", "direction", "status", "content_type", "content_text", "event_key",
    "created_at", "sender_id", "platform_message_id", "agent_request_id", "attachments", "metadata",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HistoricSession:
    """A session as another program had it. `closed`: it does not go on, though it be the newest."""

    id: SessionId
    address: Address
    created_at: datetime
    user_id: str | None = None
    parent: SessionId | None = None
    closed: bool = False
    metadata: Json = field(default_factory=dict[str, Any])


class HistoricMessage(NamedTuple):  # many are made at once
    """A message as another program had it. `key` is its event key; a `kind` says what it is if not a message:
    then it is kept as an event that was not answered. `timed`: the time is its own, not a guess; `own_id`: so is the
    id, and a message that has it is this one, whatever its key."""

    session: HistoricSession
    key: str
    id: MessageId
    direction: Literal["inbound", "outbound"]
    text: str
    created_at: datetime
    timed: bool = True
    own_id: bool = False
    kind: str | None = None
    sender_id: str | None = None
    sender_name: str | None = None
    platform_message_id: str | None = None
    agent_request_id: str | None = None
    attachments: Sequence[Json] = ()
    metadata: Json | None = None

    @property
    def content_type(self) -> Literal["text", "event"]:
        return "text" if self.kind is None else "event"


@dataclass(slots=True)
class Outcome:
    """What became of a batch. `refused` has places in the batch and reasons; `behind` the conversations that had
    messages of the bridge, which come first now."""

    stored: int = 0
    known: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    behind: set[ConversationId] = field(default_factory=set[ConversationId])


async def store_history(database: Database, batch: Sequence[HistoricMessage]) -> Outcome:
    """Store messages as they are, once, after all that their conversations have: they are final and start nothing.

    A session that goes on becomes its conversation's active one, unless the bridge has had a message there already.
    Raises StorageError: then nothing was stored, or nobody knows; doing it again is always safe.
    """
    # Who makes the same conversation at the same time wins or loses as in `receive`.
    return await win(lambda: _store(database, batch))


async def _store(database: Database, batch: Sequence[HistoricMessage]) -> Outcome:
    outcome = Outcome()
    async with database.transaction() as transaction:
        places = {message.session.address.id: _Place() for message in batch}
        for row in await transaction.fetch("lock_history", sorted(places)):
            places[row["conversation_id"]].add(row)
        fresh = await _fresh(transaction, batch, outcome)
        rows = [(message, places[message.session.address.id].take(message)) for message in fresh]
        # Statements lock in the order of conversation_id everywhere.
        ordered = sorted(places.items())
        changes = [(where, *change) for where, place in ordered for change in place.changes()]
        if changes:
            await transaction.fetch("extend_sessions", *zip(*changes, strict=True))
        await transaction.copy("sessions", _SESSION_COLUMNS, [row for _, place in ordered for row in place.rows()])
        await transaction.copy("messages", _MESSAGE_COLUMNS, [_message_row(message, seq) for message, seq in rows])
        await _keep_people(transaction, fresh)
    outcome.stored = len(fresh)
    outcome.behind = {where for where, place in places.items() if place.began_here and place.taken}
    return outcome


async def _fresh(
    transaction: Transaction, batch: Sequence[HistoricMessage], outcome: Outcome
) -> Sequence[HistoricMessage]:
    """The messages that are not stored yet and can be."""
    sessions: dict[SessionId, ConversationId] = {}
    for message in batch:
        sessions.setdefault(message.session.id, message.session.address.id)
    elsewhere = await transaction.fetch("sessions_elsewhere", list(sessions), list(sessions.values()))
    lost = {row["id"]: row["archived"] for row in elsewhere}
    known = await _find(transaction, batch)
    fresh: list[HistoricMessage] = []
    seen: dict[tuple[ConversationId, str | MessageId], HistoricMessage] = {}
    for number, message in enumerate(batch):
        where = message.session.address.id
        said = message.direction, message.text
        twin = seen.get((where, message.key)) or seen.get((where, message.id))
        row = known.get(number)
        before = (row["direction"], stored_text(message, row)) if row else (twin.direction, twin.text) if twin else None
        if lost.get(message.session.id):
            outcome.refused.append((number, "its session is archived; `chat-bridge archive restore` brings it back"))
        elif message.session.id in lost or sessions[message.session.id] != where:
            outcome.refused.append((number, "its session belongs to another conversation"))
        elif before is None:
            fresh.append(message)
            seen[where, message.key] = seen[where, message.id] = message
        elif before == said:
            outcome.known += 1
        else:
            outcome.refused.append((number, "another message with this id is stored already"))
    return fresh


async def find_history(database: Database, batch: Sequence[HistoricMessage]) -> Mapping[int, Record]:
    """The rows of those messages that are stored, by their places in the batch."""
    async with database.transaction() as transaction:
        return await _find(transaction, batch)


async def _find(transaction: Transaction, batch: Sequence[HistoricMessage]) -> Mapping[int, Record]:
    rows = await transaction.fetch(
        "find_history", [message.session.address.id for message in batch], [message.key for message in batch]
    )
    found: dict[int, Record] = {row["ord"] - 1: row for row in rows}
    unknown: dict[tuple[ConversationId, MessageId], list[int]] = {}
    for number, message in enumerate(batch):
        if message.own_id and number not in found:
            unknown.setdefault((message.session.address.id, message.id), []).append(number)
    if unknown:
        where, ids = zip(*unknown, strict=True)
        for row in await transaction.fetch("find_history_by_id", list(set(where)), ids):
            found |= dict.fromkeys(unknown.get((row["conversation_id"], row["id"]), ()), row)
    return found


def stored_text(message: HistoricMessage, row: Record) -> str:
    """The text of a row that may be this message: an export has an edited one's newest text."""
    return message.text if message.text == row["shown_text"] else row["content_text"]


class _Place:
    """One conversation while history is added to it: gives out seq, and says which session is active."""

    def __init__(self) -> None:
        self.taken = 0
        self.began_here = False  # the bridge has sessions of its own here
        self._next_seq = 1
        self._known: set[SessionId] = set()
        self._active: SessionId | None = None
        self._active_since: datetime | None = None
        self._resting = False  # the active session waits for its first message
        self._closed: set[SessionId] = set()
        self._added: dict[SessionId, list[HistoricMessage]] = {}
        self._last_seq: dict[SessionId, int] = {}

    def add(self, row: Record) -> None:
        """A session that is there."""
        self._known.add(row["id"])
        self._next_seq = max(self._next_seq, row["next_seq"])
        self.began_here = self.began_here or not row["imported"]
        if row["status"] == "active":
            self._active, self._active_since, self._resting = row["id"], row["created_at"], row["resting"]

    def take(self, message: HistoricMessage) -> int:
        """The seq of a new message."""
        session = message.session
        if session.id not in self._known and session.id not in self._added and not session.closed:
            self._follow(session)
        self._added.setdefault(session.id, []).append(message)
        seq = self._next_seq
        self._last_seq[session.id] = seq
        self._next_seq += 1
        self.taken += 1
        return seq

    def _follow(self, session: HistoricSession) -> None:
        """The newest session is active, though an older one come later."""
        if self._active_since is not None and not (self._resting and session.created_at >= self._active_since):
            return
        if self._active is not None and self._active in self._known:
            self._closed.add(self._active)
        self._active, self._active_since, self._resting = session.id, session.created_at, True

    def changes(self) -> Sequence[tuple[object, ...]]:
        """What changes in sessions that were there: id, next seq, messages added, when the last was, whether it
        closes."""
        if not self.taken:
            return []
        changed = self._known & {*self._added, *self._closed, *([self._active] if self._active else [])}
        return [
            (
                session,
                self._next_seq if session == self._active else self._last_seq.get(session, 0) + 1,
                len(self._added.get(session, ())),
                max((message.created_at for message in self._added.get(session, ())), default=None),
                session in self._closed,
            )
            for session in sorted(changed)
        ]

    def rows(self) -> Sequence[tuple[object, ...]]:
        """The rows of new sessions."""
        return [self._row(session, messages) for session, messages in self._added.items() if session not in self._known]

    def _row(self, id_: SessionId, messages: Sequence[HistoricMessage]) -> tuple[object, ...]:
        session = messages[0].session
        active = id_ == self._active
        next_seq = self._next_seq if active else self._last_seq[id_] + 1
        return (
            session.address.id,
            id_,
            session.address.platform,
            session.address.account,
            storable(session.address.conversation),
            storable(session.address.thread),
            storable_or_none(session.user_id),
            "active" if active else "closed",
            session.created_at,
            max(message.created_at for message in messages),
            session.parent,
            len(messages),
            next_seq,
            next_seq - 1,
            to_jsonb(session.metadata) or "{}",
        )


def _message_row(message: HistoricMessage, seq: int) -> tuple[object, ...]:
    metadata = dict(message.metadata or {})
    if message.kind is not None:
        metadata["reason"] = f"kind:{message.kind}"
    return (
        message.session.address.id,
        seq,
        message.id,
        message.session.id,
        message.direction,
        "stored" if message.kind is None else "skipped",
        message.content_type,
        message.text,
        message.key,
        message.created_at,
        message.sender_id,
        message.platform_message_id,
        message.agent_request_id,
        to_jsonb(message.attachments),
        to_jsonb(metadata),
    )


async def _keep_people(transaction: Transaction, messages: Sequence[HistoricMessage]) -> None:
    people = {
        (message.session.address.platform, message.session.address.account, message.sender_id): message
        for message in messages
        if message.sender_id is not None and message.direction == "inbound"
    }
    rows = [(*who, message.sender_name, message.created_at) for who, message in people.items()]
    if rows:
        await transaction.fetch("keep_people", *zip(*rows, strict=True))
