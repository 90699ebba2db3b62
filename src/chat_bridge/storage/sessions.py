"""Sessions: looking them up, listing, closing and following one by the next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from chat_bridge.model import (
    Address,
    BusyPolicy,
    ConversationId,
    Json,
    MessageId,
    Seq,
    Session,
    SessionId,
    new_message_id,
    new_session_id,
)
from chat_bridge.storage.postgres import Database, Record, Transaction, win
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.text import from_jsonb, storable, storable_or_none, to_jsonb


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions to list; None means any."""

    before: SessionId | None = None
    platform: str | None = None
    conversation: str | None = None
    conversation_id: ConversationId | None = None
    user_id: str | None = None
    status: str | None = None
    active_since: datetime | None = None


async def get_session(database: Database, session: SessionId) -> Session | None:
    """One session by its id."""
    row = await database.fetch_one("get_session", session)
    return None if row is None else _session(row)


async def look_up(database: Database, hot: Hot, address: Address) -> Session | None:
    """The active session of a conversation: from Redis, where its counts, times and metadata may be old, else from
    PostgreSQL."""
    kept = await hot.session(address.id)
    if kept is not None:
        return kept
    row = await database.fetch_one("session_of_conversation", address.id)
    if row is None:
        return None
    session = _session(row)
    await hot.keep_session(session)
    return session


async def active_session(database: Database, conversation: ConversationId) -> tuple[datetime, int] | None:
    """When the active session of a conversation began, and how many messages it holds."""
    row = await database.fetch_one("active_session", conversation)
    return None if row is None else (row["created_at"], row["message_count"])


async def active_in(database: Database, address: Address) -> Sequence[tuple[SessionId, ConversationId]]:
    """The active sessions of a chat, in all its threads."""
    rows = await database.fetch("active_in", address.platform, storable(address.conversation), address.account)
    return [(row["id"], row["conversation_id"]) for row in rows]


async def list_sessions(database: Database, wanted: SessionFilter, limit: int) -> Sequence[Session]:
    """A page of sessions, newest first; the next page is `before` the last one's id."""
    async with database.transaction() as transaction:
        # Which index serves best depends on which filters are set.
        await transaction.fetch("plan_by_arguments")
        rows = await transaction.fetch(
            "list_sessions",
            wanted.before,
            storable_or_none(wanted.platform),
            storable_or_none(wanted.conversation),
            wanted.conversation_id,
            storable_or_none(wanted.user_id),
            wanted.status,
            wanted.active_since,
            limit,
        )
    return [_session(row) for row in rows]


async def close_session(database: Database, session: SessionId) -> bool:
    """Close an active session and cancel what waits in it; False when it is not there or closed already."""
    async with database.transaction() as transaction:
        # The second statement sees all that was stored before the first one had the lock.
        if not await transaction.fetch("lock_session", session):
            return False
        await transaction.fetch("close_session", session)
        return True


async def rotate(transaction: Transaction, conversation: ConversationId, session: SessionId, last_seq: Seq) -> None:
    """Close a session after `last_seq` and open its successor, which takes along what arrived later."""
    await transaction.fetch("rotate", conversation, session, last_seq, new_session_id())


async def rotate_ended(database: Database, coming: Sequence[tuple[ConversationId, str]], moment: datetime) -> None:
    """Open a new session in each of these conversations in which nothing happened since a moment and nothing waits.
    `coming`: the messages that are about to be received, by their stored keys; those that are known open nothing."""
    conversations, keys = [conversation for conversation, _ in coming], [key for _, key in coming]
    # In order, as every statement locks them.
    successors = {conversation: new_session_id() for conversation in sorted(set(conversations))}
    await win(
        lambda: database.fetch("rotate_ended", [*successors], [*successors.values()], moment, conversations, keys)
    )


async def say(
    database: Database, conversation: ConversationId, session: SessionId, text: str, metadata: Json, parts: int
) -> tuple[MessageId, Seq, UUID | None] | None:
    """Store a notice outside of any turn: its id, its seq, and the idempotency key of the first part if that is to be
    sent now. None when one was said within the last minute."""
    message = new_message_id()
    async with database.transaction() as transaction:
        await transaction.fetch("lock_session", session)
        rows = await transaction.fetch("say", conversation, session, message, storable(text), to_jsonb(metadata), parts)
    return (message, rows[0]["seq"], rows[0]["send_key"]) if rows else None


async def move(database: Database, old: Address, new: Address) -> bool:
    """The platform gave a conversation a new id: everything of it moves there, and a turn that runs is taken away.
    False: there is nothing under the old id; what comes late is known all the same. If the new id is in use already,
    the old sessions become the past of the new one."""
    # The new id may come into use meanwhile. A batch that made it known and then waits for the old one is in a ring
    # with the move: PostgreSQL ends that after deadlock_timeout, and one of them begins again.
    return await win(lambda: _move(database, old, new))


async def _move(database: Database, old: Address, new: Address) -> bool:
    async with database.transaction() as transaction:
        held = await transaction.fetch("lock_conversations", [old.id, new.id])
        places = {row["conversation_id"] for row in held}
        if old.id not in places:
            await transaction.fetch("note_move", old.id, storable(new.conversation))
            return False
        await transaction.fetch("copy_hold", old.id, new.id)
        if new.id in places:
            await transaction.fetch("copy_hold", new.id, old.id)
            await transaction.fetch("follow_conversation", old.id, new.id, storable(new.conversation))
            return True
        await transaction.fetch("move_sessions", old.id, new.id, storable(new.conversation))
        for table in ("move_messages", "move_turns", "move_deliveries", "move_attachments", "move_waiting"):
            await transaction.fetch(table, old.id, new.id)
        await transaction.fetch("note_move", old.id, storable(new.conversation))
        return True


async def moved_to(database: Database, address: Address) -> Address | None:
    """Where a conversation lives now that had this address once; None: it has not moved."""
    row = await database.fetch_one("moved_to", address.id)
    return None if row is None else replace(address, conversation=row["platform_conversation_id"])


async def set_busy_policy(database: Database, session: SessionId, policy: BusyPolicy | None) -> bool:
    """Give a session a busy policy of its own, or (None) the platform's again; False when there is no such session."""
    return await database.fetch_one("set_session_metadata", session, to_jsonb({"busy_policy": policy})) is not None


def _session(row: Record) -> Session:
    return Session(
        id=row["id"],
        conversation_id=row["conversation_id"],
        address=Address(row["platform"], row["account"], row["platform_conversation_id"], row["thread"]),
        user_id=row["user_id"],
        status=row["status"],
        mode=row["mode"],
        created_at=row["created_at"],
        last_activity=row["last_activity"],
        parent_session_id=row["parent_session_id"],
        message_count=row["message_count"],
        pending_since=row["pending_since"],
        metadata=from_jsonb(row["metadata"]) or {},
    )
