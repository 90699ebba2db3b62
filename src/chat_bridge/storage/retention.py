"""Deleting what is old, in small pieces, and what is on legal hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from chat_bridge.model import Address, ConversationId
from chat_bridge.storage import archives
from chat_bridge.storage.postgres import Database, Record, Transaction
from chat_bridge.storage.text import storable

FIRST = ConversationId(UUID(int=0))

Moments = Mapping[ConversationId, datetime]
"""For each conversation the moment before which something is too old."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A conversation, with what its policy depends on. `oldest`: when its oldest message came, but for those that are
    `archived`; None: it has none."""

    conversation_id: ConversationId
    platform: str
    account: str
    group: bool
    oldest: datetime | None
    held: bool
    archived: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """A conversation on legal hold. `address` is None where nothing is known of it (any more, or yet)."""

    conversation_id: ConversationId
    since: datetime
    reason: str
    address: Address | None


async def conversations_after(database: Database, last: ConversationId, limit: int) -> Sequence[Candidate]:
    """A page of conversations, in the order of their ids."""
    rows = await database.fetch("conversations_after", last, limit)
    return [
        Candidate(
            row["conversation_id"],
            row["platform"],
            row["account"],
            row["is_group"],
            row["oldest"],
            row["held"],
            row["archived"],
        )
        for row in rows
    ]


async def expire_messages(database: Database, old: Moments, of_each: int) -> tuple[Mapping[ConversationId, int], int]:
    """Delete messages that are too old, at most so many of each conversation, with all that belongs to them. How many
    messages went, by conversation, and how many files."""
    async with database.transaction() as transaction:
        held = await transaction.fetch("lock_expired_messages", *_columns(old), of_each)
        if not held:
            return {}, 0
        keys = [row["conversation_id"] for row in held], [row["seq"] for row in held]
        rows = await transaction.fetch("expire_messages", *keys, of_each)
        return {row["conversation_id"]: row["messages"] for row in rows}, rows[0]["all_files"] if rows else 0


async def drop_empty_sessions(database: Database, old: Moments) -> Sequence[ConversationId]:
    """Delete sessions of which nothing is left; the conversations they were of, one for each."""
    async with database.transaction() as transaction:
        rows = await transaction.fetch("drop_empty_sessions", *_columns(old))
        for row in rows:
            if row["ended"]:
                await _forget_moves(transaction, row)
        return [row["conversation_id"] for row in rows]


async def _forget_moves(transaction: Transaction, gone: Record) -> None:
    """Forget where a conversation moved from of which nothing is left. Its first id is known by who owns what the agent
    remembers, and each tells the next."""
    platform, account = gone["platform"], gone["account"]
    first = Address(platform, account, (gone["resource"] or "").removeprefix(f"{platform}:{account}:"), gone["thread"])
    for where in (gone["conversation_id"], first.id):
        following = where
        while moved := await transaction.fetch("forget_move", following):
            following = replace(first, conversation=moved[0]["platform_conversation_id"]).id


async def expire_archives(database: Database, old: Moments, limit: int) -> tuple[int, int, int]:
    """Give up archived sessions that are too old, at most so many: how many those were, and how many messages and files
    went. They are empty then. Their objects are written anew without them, or deleted, by the archiver."""
    async with database.transaction() as transaction:
        rows = await transaction.fetch("lock_expired_archives", *_columns(old), limit)
        if not rows:
            return 0, 0, 0
        keys = [row["conversation_id"] for row in rows], [row["id"] for row in rows]
        (counts,) = await transaction.fetch("expire_archived_files", *keys)
        for where in dict.fromkeys(keys[0]):
            await archives.forget(transaction, where, [row["id"] for row in rows if row["conversation_id"] == where])
        await transaction.fetch("empty_archived_sessions", *keys)
        return len(rows), counts["messages"], counts["files"]


async def count_expired_archives(database: Database, conversation: ConversationId, moment: datetime) -> int:
    """How many messages those sessions have."""
    row = await database.fetch_one("count_expired_archives", conversation, moment)
    assert row is not None
    return row["messages"]


async def expire_attachments(database: Database, old: Moments, limit: int, reason: str) -> int:
    """Give up the bytes of files that are too old; how many those were. `reason` is told instead of them."""
    row = await database.fetch_one("expire_attachments", *_columns(old), limit, reason)
    assert row is not None
    return row["files"]


async def count_expired(database: Database, old: Moments) -> tuple[int, int]:
    """How many messages are too old, and their bytes."""
    row = await database.fetch_one("count_expired", *_columns(old))
    assert row is not None
    return row["messages"], row["bytes"]


async def count_expired_attachments(
    database: Database, conversation: ConversationId, moment: datetime | None, with_message: datetime | None
) -> tuple[int, int]:
    """How many of a conversation's files are too old, by themselves or with their messages, and their bytes."""
    row = await database.fetch_one("count_expired_attachments", [conversation], [moment], [with_message])
    assert row is not None
    return row["files"], row["bytes"]


UserKey = tuple[str, str, str]
"""(platform, account, the platform's id) of a person."""


async def users_after(database: Database, last: UserKey, limit: int) -> Sequence[UserKey]:
    """A page of people, in the order of their keys."""
    rows = await database.fetch("users_after", *last, limit)
    return [(row["platform"], row["account"], row["platform_user_id"]) for row in rows]


async def expire_users(database: Database, old: Sequence[tuple[UserKey, datetime]]) -> int:
    """Forget those of whom nothing new was heard since a moment; how many those were."""
    columns: Sequence[Sequence[object]] = list(zip(*((*key, moment) for key, moment in old), strict=True)) or [()] * 4
    return len(await database.fetch("expire_users", *(list(column) for column in columns)))


async def hold(database: Database, conversation: ConversationId, reason: str) -> None:
    """Put a conversation on legal hold, under all ids that it has: nothing of it is deleted any more."""
    await database.fetch("hold", await _same(database, conversation), storable(reason))


async def lift_hold(database: Database, conversation: ConversationId) -> bool:
    """End a legal hold; False: there was none."""
    return bool(await database.fetch("lift_hold", await _same(database, conversation)))


async def _same(database: Database, conversation: ConversationId) -> Sequence[ConversationId]:
    return [row["conversation_id"] for row in await database.fetch("same_conversation", conversation)]


async def holds(database: Database) -> Sequence[Hold]:
    """All legal holds, the oldest first."""
    return [_hold(row) for row in await database.fetch("holds")]


def _hold(row: Record) -> Hold:
    known = row["platform"] is not None
    address = Address(row["platform"], row["account"], row["platform_conversation_id"], row["thread"])
    return Hold(row["conversation_id"], row["created_at"], row["reason"], address if known else None)


def _columns(old: Moments) -> tuple[list[ConversationId], list[datetime]]:
    return list(old), list(old.values())
