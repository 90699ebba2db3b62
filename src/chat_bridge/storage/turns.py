"""Turns: the right to answer, held by one running row a conversation, and its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal
from uuid import UUID

from chat_bridge.model import (
    Address,
    Attachment,
    BusyPolicy,
    ConversationId,
    Json,
    MessageId,
    Seq,
    SessionId,
    Turn,
    TurnId,
    TurnOutcome,
    new_turn_id,
)
from chat_bridge.storage.messages import files_as_json, pending_message
from chat_bridge.storage.postgres import Database, Record, Transaction
from chat_bridge.storage.text import from_jsonb, storable, storable_or_none, to_jsonb

MOST_LOST_TURNS = 3  # of one message, whose worker died each time: then it is set aside


@dataclass(frozen=True, slots=True)
class Wish:
    """A worker's wish for a turn in a conversation, of at most `most` messages."""

    conversation_id: ConversationId
    agent: str
    busy_policy: BusyPolicy = BusyPolicy.COLLECT
    most: int = 1000


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a turn. Without `message_id` nothing is said to the user.

    `parts`: in how many messages the platform sends it. `attachments` are its files, each with the id of its content in
    `contents`. `preview` is the platform's id of a message that
    becomes the first of them. `error_text`: told at most once a minute in a conversation. `session_metadata` is merged
    into the session's.
    """

    turn: Turn
    outcome: TurnOutcome
    text: str = ""
    message_id: MessageId | None = None
    content_type: Literal["text", "notice"] = "text"
    parts: int = 0
    error_text: bool = False
    error: str | None = None
    agent_request_id: str | None = None
    usage: Json | None = None
    metadata: Json | None = None
    session_metadata: Json | None = None
    preview: str | None = None
    attachments: Sequence[Attachment] = ()
    contents: Sequence[UUID] = ()


@dataclass(frozen=True, slots=True)
class Completed:
    """What `complete` did. `seq` is None when nothing was said; `more`: messages wait already for the next turn.
    `send_key` is the idempotency key of the first part, which the caller has to send now; None: there is nothing to
    send, or earlier replies have to be sent first."""

    seq: Seq | None
    more: bool
    send_key: UUID | None


async def claim(
    database: Database, wishes: Sequence[Wish], *, owner: str, lease_seconds: float
) -> Sequence[Turn | None]:
    """Try to take a turn in each conversation, in one statement. None: nothing waits, or another turn is running."""
    order = sorted(range(len(wishes)), key=lambda place: wishes[place].conversation_id)
    ids = [new_turn_id() for _ in order]
    rows = await database.fetch(
        "claim",
        [wishes[place].conversation_id for place in order],
        ids,
        [wishes[place].agent for place in order],
        [wishes[place].busy_policy.value for place in order],
        [wishes[place].most for place in order],
        owner,
        timedelta(seconds=lease_seconds),
    )
    found: dict[UUID, list[Record]] = {}
    for row in await _with_whole_albums(database, rows):
        found.setdefault(row["turn_id"], []).append(row)
    turns: list[Turn | None] = [None] * len(wishes)
    for place, turn_id in zip(order, ids, strict=True):
        if turn_id in found:
            turns[place] = _turn(found[turn_id])
    return turns


async def _with_whole_albums(database: Database, rows: Sequence[Record]) -> Sequence[Record]:
    """Albums with the parts that came while the claim waited for the session. None can come any more."""
    albums = [row for row in rows if row["metadata"] is not None and '"parts"' in row["metadata"]]
    if not albums:
        return rows
    places = [row["conversation_id"] for row in albums], [row["seq"] for row in albums]
    now = {(row["conversation_id"], row["seq"]): row for row in await database.fetch("read_albums", *places)}
    return [{**row, **now.get((row["conversation_id"], row["seq"]), {})} for row in rows]


def _turn(rows: Sequence[Record]) -> Turn:
    first = rows[0]
    return Turn(
        id=first["turn_id"],
        conversation_id=first["conversation_id"],
        session_id=first["session_id"],
        address=Address(first["platform"], first["account"], first["platform_conversation_id"], first["thread"]),
        user_id=first["user_id"],
        messages=tuple(pending_message(row) for row in rows),
        metadata=from_jsonb(first["session_metadata"]) or {},
    )


async def complete(runner: Database | Transaction, completions: Sequence[Completion]) -> Sequence[Completed | None]:
    """End turns in one statement. None: the turn was not ours any more, and nothing was written for it."""
    rows = await runner.fetch(
        "complete",
        *zip(*(_columns(completion) for completion in completions), strict=True),
    )
    done = {row["turn_id"]: Completed(seq=row["seq"], more=row["more"], send_key=row["send_key"]) for row in rows}
    return [done.get(completion.turn.id) for completion in completions]


def _columns(completion: Completion) -> tuple[object, ...]:
    return (
        completion.turn.conversation_id,
        completion.turn.id,
        completion.outcome.turn_status,
        completion.outcome.value,
        storable_or_none(completion.error),
        storable_or_none(completion.agent_request_id),
        to_jsonb(completion.usage),
        completion.message_id,
        storable(completion.text),
        completion.content_type,
        completion.parts,
        completion.error_text,
        to_jsonb(completion.metadata),
        to_jsonb(completion.session_metadata),
        storable_or_none(completion.preview),
        to_jsonb(files_as_json(completion.attachments)),
        to_jsonb([str(content) for content in completion.contents]),
    )


async def note(database: Database, turn: Turn, metadata: Json) -> bool:
    """Merge into the session's metadata what a running turn leaves behind in case it does not reach its end. False: the
    turn is not ours any more."""
    return await database.fetch_one("note", turn.conversation_id, turn.id, to_jsonb(metadata)) is not None


async def stored_reply(database: Database, completion: Completion) -> Completed | None:
    """What `complete` did when its answer was lost: the reply is there, or (None) the turn was not ours any more."""
    if completion.message_id is None:
        return None
    turn = completion.turn
    row = await database.fetch_one("stored_reply", turn.conversation_id, turn.messages[-1].seq, completion.message_id)
    return None if row is None else Completed(seq=row["seq"], more=True, send_key=row["send_key"])


async def renew(database: Database, turns: Sequence[Turn], lease_seconds: float) -> set[TurnId]:
    """Renew the leases of turns; return those still ours. The worker of any other must stop."""
    rows = await database.fetch(
        "renew",
        [turn.conversation_id for turn in turns],
        [turn.id for turn in turns],
        timedelta(seconds=lease_seconds),
    )
    return {row["id"] for row in rows}


async def supersede(
    database: Database, conversation: ConversationId, reason: str, turn: TurnId | None = None
) -> TurnId | None:
    """Take a running turn away (this one, or whichever runs) so that its messages wait again; return its id."""
    row = await database.fetch_one("supersede", conversation, turn, reason)
    return row["id"] if row else None


async def recover(
    database: Database, accounts: Sequence[tuple[str, str]], *, all_owners: bool = False
) -> Sequence[tuple[ConversationId, TurnId]]:
    """Free the messages of turns of these accounts (platform, account) whose lease ran out; `all_owners`: of every
    running turn, for a process that knows it is alone. Return these turns; their conversations need a worker."""
    rows = await database.fetch("recover", all_owners, *_columns_of(accounts))
    return [(row["conversation_id"], row["id"]) for row in rows]


@dataclass(frozen=True, slots=True)
class SetAside:
    """A message that will not be answered, since every worker that tried was lost."""

    message_id: MessageId
    session_id: SessionId
    address: Address


async def set_aside(database: Database, lost: Sequence[tuple[ConversationId, TurnId]]) -> Sequence[SetAside]:
    """Of the messages of turns that were just lost, those that have lost MOST_LOST_TURNS end as failed; return them.
    If the process dies before this, they get one more turn."""
    places = [conversation for conversation, _ in lost], [turn for _, turn in lost]
    async with database.transaction() as transaction:
        await transaction.fetch("lock_lost", *places)
        rows = await transaction.fetch("set_aside", *places, MOST_LOST_TURNS)
    return [
        SetAside(
            row["id"],
            row["session_id"],
            Address(row["platform"], row["account"], row["platform_conversation_id"], row["thread"]),
        )
        for row in rows
    ]


async def find_pending(
    database: Database, accounts: Sequence[tuple[str, str]], limit: int = 1000
) -> Sequence[tuple[ConversationId, str]]:
    """Conversations of these accounts (platform, account) that wait and have no turn, longest first, with their
    platform."""
    rows = await database.fetch("find_pending", limit, *_columns_of(accounts))
    return [(row["conversation_id"], row["platform"]) for row in rows]


def _columns_of(accounts: Sequence[tuple[str, str]]) -> tuple[Sequence[str], Sequence[str]]:
    return [platform for platform, _ in accounts], [account for _, account in accounts]
