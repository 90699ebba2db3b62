"""Archives: which there are, and what of which session lies in them.

A session leaves its tables in the transaction that names its blocks in `archived_sessions`: it is always wholly in the
one or the other. The object was there, and had been read back, before that.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

from chat_bridge.errors import PlaceError
from chat_bridge.model import ConversationId, SessionId
from chat_bridge.storage.archive_format import ArchiveError, Block, Row, decode
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.postgres import Database, Record, Transaction, win

PIECES = 8  # of a session's messages in one statement: about as many megabytes
KEPT_BLOCKS = 8  # decoded, for who reads a transcript page by page


@dataclass(frozen=True, slots=True)
class Stretch:
    """A block of an archive: so many bytes of its object, from one on."""

    archive: UUID
    number: int
    start: int
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """What one block has of a session: so many messages, from one seq to another; 0 if there are none."""

    block: int
    first_seq: int
    last_seq: int
    messages: int


@dataclass(slots=True)
class Copied:
    """A session that is in an object: its `pieces`, and what tells whether its rows are still as they were copied.
    `first_turn` and `last_turn` are ids."""

    row: Row
    pieces: list[Piece]
    versions: int = 0
    first_turn: UUID | None = None
    last_turn: UUID | None = None

    @property
    def key(self) -> tuple[UUID, UUID]:
        return self.row["conversation_id"], self.row["id"]

    @property
    def messages(self) -> int:
        return sum(piece.messages for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Written:
    """An object that was written."""

    size: int
    sha256: bytes
    blocks: Sequence[Stretch]
    sessions: Sequence[Copied]


class ChangedError(ArchiveError):
    """Sessions changed after they were copied; they stay as they are."""

    def __init__(self, sessions: set[tuple[UUID, UUID]]) -> None:
        super().__init__(f"{len(sessions)} sessions changed while they were archived")
        self.sessions = sessions


def object_name(archive: UUID) -> str:
    """Where an archive lies in object storage. Spread over folders, as attachments are."""
    return f"archives/{archive.hex[-3:]}/{archive.hex}"


async def begin(database: Database, archive: UUID) -> None:
    """Note that the object of a new archive will be written."""
    await database.fetch("begin_archive", archive)


async def written(runner: Database | Transaction, archive: UUID, object_: Written) -> bool:
    """The object is there, and was read back. False: the archive was given up meanwhile."""
    blocks = object_.blocks
    rows = await runner.fetch(
        "archive_written",
        archive,
        object_.size,
        object_.sha256,
        len(object_.sessions),
        sum(session.messages for session in object_.sessions),
        [block.number for block in blocks],
        [block.start for block in blocks],
        [block.size for block in blocks],
        [block.sha256 for block in blocks],
    )
    return bool(rows)


async def move_in(database: Database, archive: UUID, sessions: Sequence[Copied]) -> Sequence[Copied]:
    """Remove the rows of these sessions, which an archive has: all of them in one commit. Those that are not as they
    were copied stay. Those that were moved. Raises StorageError."""
    while True:
        try:
            return await _move_in(database, archive, sessions)
        except ChangedError as error:
            sessions = [session for session in sessions if session.key not in error.sessions]


async def _move_in(database: Database, archive: UUID, sessions: Sequence[Copied]) -> Sequence[Copied]:
    async with database.transaction() as transaction:
        if not await transaction.fetch("hold_archive", archive):
            return []
        keys = [session.key for session in sessions]
        rows = await transaction.fetch("lock_archivable", *_split(keys))
        held = {(row["conversation_id"], row["id"]): row["next_seq"] for row in rows}
        moving = [session for session in sessions if held.get(session.key) == session.row["next_seq"]]
        if not moving:
            return []
        await add_pieces(transaction, archive, [(session.key, session.pieces) for session in moving])
        await _remove_rows(transaction, moving)
        await transaction.fetch("sessions_archived", *_split([session.key for session in moving]))
        return moving


async def add_pieces(
    transaction: Transaction, archive: UUID, pieces: Sequence[tuple[tuple[UUID, UUID], Sequence[Piece]]]
) -> None:
    """Note where sessions (conversation, session) are in an archive."""
    rows = [
        (*key, piece.block, piece.first_seq, piece.last_seq, piece.messages) for key, own in pieces for piece in own
    ]
    await transaction.fetch("add_archived", archive, *zip(*rows, strict=True))


async def _remove_rows(transaction: Transaction, sessions: Sequence[Copied]) -> None:
    pieces = [(*session.key, piece.first_seq, piece.last_seq) for session in sessions for piece in session.pieces]
    removed = {session.key[1]: (0, 0) for session in sessions}
    for start in range(0, len(pieces), PIECES):
        columns = zip(*pieces[start : start + PIECES], strict=True)
        for row in await transaction.fetch("remove_archived_messages", *columns):
            messages, versions = removed[row["session_id"]]
            removed[row["session_id"]] = messages + row["messages"], versions + int(row["versions"])
    changed = {session.key for session in sessions if removed[session.key[1]] != (session.messages, session.versions)}
    if changed:
        raise ChangedError(changed)
    turns = [(*session.key, session.first_turn, session.last_turn) for session in sessions if session.first_turn]
    if turns:
        await transaction.fetch("remove_archived_turns", *zip(*turns, strict=True))


def _split(keys: Sequence[tuple[UUID, UUID]]) -> tuple[Sequence[UUID], Sequence[UUID]]:
    return [conversation for conversation, _ in keys], [session for _, session in keys]


async def replace(database: Database, old: UUID, new: UUID, object_: Written) -> bool:
    """An archive was written anew with the sessions that it still has. False: they are not the same any more, and
    nothing is changed."""
    pieces = {session.row["id"]: session.pieces for session in object_.sessions}
    async with database.transaction() as transaction:
        rows = await transaction.fetch("lock_archive", old)
        left = await transaction.fetch("sessions_of_archive", old)
        # A conversation may have moved, and its sessions with it.
        where = {row["session_id"]: row["conversation_id"] for row in left}
        if not rows or where.keys() != pieces.keys() or not await written(transaction, new, object_):
            return False
        await transaction.fetch("forget_sessions_of_archive", old)
        await add_pieces(transaction, new, [((where[id_], id_), own) for id_, own in pieces.items()])
        await transaction.fetch("doom_archive", old)
        await transaction.fetch("archive_filled", new)
        return True


async def filled(database: Database, archive: UUID) -> None:
    """All sessions of the object are archived."""
    await database.fetch("archive_filled", archive)


async def doom(database: Database, archive: UUID) -> bool:
    """Nothing names this archive: its object is to be deleted in an hour. False: something does."""
    async with database.transaction() as transaction:
        # The second statement sees what was added while the first one waited.
        await transaction.fetch("lock_archive", archive)
        return bool(await transaction.fetch("doom_archive", archive))


async def deleted(database: Database, archive: UUID) -> None:
    """The object of an archive is gone."""
    await database.fetch("archive_deleted", archive)


async def list_archives(database: Database, archive: UUID | None = None) -> Sequence[Record]:
    """All archives, oldest first, or one; and what sessions still have of them."""
    return await database.fetch("list_archives", archive)


async def blocks_of(database: Database, archive: UUID) -> Sequence[Stretch]:
    """The blocks of an archive, in their order."""
    rows = await database.fetch("blocks_of_archive", archive)
    return [Stretch(archive, row["number"], row["block_start"], row["size"], row["sha256"]) for row in rows]


async def sessions_of(database: Database, archive: UUID) -> Mapping[tuple[ConversationId, SessionId], list[Piece]]:
    """The sessions that are in an archive, and where."""
    found: dict[tuple[ConversationId, SessionId], list[Piece]] = {}
    for row in await database.fetch("sessions_of_archive", archive):
        piece = Piece(row["block"], row["first_seq"], row["last_seq"], row["messages"])
        found.setdefault((row["conversation_id"], row["session_id"]), []).append(piece)
    return found


async def forget(transaction: Transaction, conversation: ConversationId, sessions: Sequence[SessionId]) -> None:
    """No archive has these sessions of a conversation any more: they have their rows again, or are to be deleted for
    good, which is when this comes first. The objects that had them are written anew without them."""
    await transaction.fetch("forget_archived", conversation, sessions)


class Shelf:
    """Reads blocks of archives, and keeps some."""

    def __init__(self, blobs: Blobs | None) -> None:
        self._blobs = blobs
        self._kept = OrderedDict[tuple[UUID, int], Block]()

    async def read(self, block: Stretch) -> Block:
        """A block, with one request. Raises ArchiveError."""
        key = block.archive, block.number
        found = self._kept.pop(key, None)
        if found is None:
            data = await self._bytes(block)
            if sha256(data).digest() != block.sha256:
                raise ArchiveError(
                    f"the archive {block.archive} is damaged: the checksum of block {block.number} differs"
                )
            found = await asyncio.to_thread(decode, data)
        self._kept[key] = found
        while len(self._kept) > KEPT_BLOCKS:
            self._kept.popitem(last=False)
        return found

    async def _bytes(self, block: Stretch) -> bytes:
        if self._blobs is None:
            raise ArchiveError(f"this is in the archive {block.archive}, which is not read here")
        try:
            return b"".join(
                [part async for part in self._blobs.stream(object_name(block.archive), block.start, block.size)]
            )
        except PlaceError as error:
            raise ArchiveError(f"the archive {block.archive} can't be read: {error}") from error


async def restore(database: Database, shelf: Shelf, session: SessionId) -> int | None:
    """Give an archived session its rows again, as they were; how many messages those are. None: it is not archived.
    A message that came again meanwhile keeps its event key; the restored one has none then. Raises ArchiveError,
    StorageError."""
    return await win(lambda: _restore(database, shelf, session))


async def _restore(database: Database, shelf: Shelf, session: SessionId) -> int | None:
    async with database.transaction() as transaction:
        rows = await transaction.fetch("lock_archived", session)
        if not rows:
            return None
        (now,) = rows
        count = 0
        for row in await transaction.fetch("blocks_of_session", now["conversation_id"], session):
            stretch = Stretch(row["archive_id"], row["number"], row["block_start"], row["size"], row["sha256"])
            count += await _restore_block(transaction, await shelf.read(stretch), now)
        await forget(transaction, now["conversation_id"], [session])
        await transaction.fetch("session_restored", now["conversation_id"], session)
        return count


async def _restore_block(transaction: Transaction, block: Block, now: Record) -> int:
    nth = next(nth for nth, each in enumerate(block["sessions"]) if each["id"] == now["id"])
    was = block["sessions"][nth]
    messages = [dict(row) for row in block["messages"] if row["session"] == nth]
    if was["platform_conversation_id"] != now["platform_conversation_id"]:
        # It has moved: the platform's ids of messages mean others there, as for those that moved in their tables.
        for row in messages:
            row["platform_message_id"] = None
    keys = [row["event_key"] for row in messages if row["event_key"] is not None]
    known = {row["event_key"] for row in await transaction.fetch("known_keys", now["conversation_id"], keys)}
    for row in messages:
        row["event_key"] = None if row["event_key"] in known else row["event_key"]
    await _copy(transaction, "messages", messages, now, lambda _: {"session_id": now["id"]})
    turns = [row for row in block["turns"] if row["session"] == nth]
    await _copy(
        transaction, "turns", turns, now, lambda row: {"session_id": now["id"], "lease_until": row["finished_at"]}
    )
    # The key is nobody's: nothing is sent any more.
    deliveries = [row for row in block["deliveries"] if row["session"] == nth]
    await _copy(transaction, "deliveries", deliveries, now, lambda _: {"idempotency_key": uuid4()})
    return len(messages)


async def _copy(
    transaction: Transaction, table: str, rows: Sequence[Row], now: Record, more: Callable[[Row], Mapping[str, Any]]
) -> None:
    whole = [{"conversation_id": now["conversation_id"], **row, **more(row)} for row in rows]
    if whole:
        columns = [name for name in whole[0] if name != "session"]
        await transaction.copy(table, columns, [[row[name] for name in columns] for row in whole])
