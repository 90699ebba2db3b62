"""Archive: closed sessions in which nothing has happened for long go from the tables into objects. Of all processes one
does it.

Each step can be the last of a process; the next run goes on from what PostgreSQL says:

1. `writing`: a row. A day later the object, if there is one, is deleted.
2. The object is written and read back: `partial`. What no session has of it is dropped by writing it anew.
3. Sessions leave their tables, a few a commit. The others stay, and come into the next object.
4. `stored`: all of them did.
"""

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import groupby
from typing import BinaryIO, Self, TypeVar, cast
from uuid import UUID

from uuid_utils.compat import uuid7

from chat_bridge.errors import PlaceError, StorageError
from chat_bridge.storage import archives, leases
from chat_bridge.storage.archive_format import TABLES, ArchiveError, Block, Row, encode, header
from chat_bridge.storage.archives import Copied, Piece, Shelf, Stretch, Written, object_name
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.postgres import Database, Record
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import ARCHIVE_FAILURES, ARCHIVED, log
from chat_bridge.upkeep.ages import Ages

LEASE = "archive"
LEASE_SECONDS = 600.0
RUN_SECONDS = 3600.0
PAUSE_SECONDS = 0.5  # between commits: live traffic goes first
SESSIONS = 1000  # in an object
OBJECT_BYTES = 64 * 1024 * 1024  # about so many, before they are compressed
BLOCK_BYTES = 1024 * 1024
MESSAGES_AT_ONCE = 2000  # removed in one commit; a session goes as a whole
PAGE = 500
GIVEN_UP = timedelta(days=1)  # an object that is still being written then
AT_REST = timedelta(hours=1)  # who has just looked up where a session is may be reading it there
_FIRST = UUID(int=0)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done:
    """What a run did."""

    sessions: int
    messages: int


class Archiver:
    """Archives what is old enough, and tidies up archives. `told` hears how many sessions and messages went."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        ages: Ages,
        *,
        pause_seconds: float = PAUSE_SECONDS,
        told: Callable[[int, int], None] = lambda _sessions, _messages: None,
    ) -> None:
        self._store = store
        self._database = store.database
        self._blobs = blobs
        self._ages = ages
        self._pause_seconds = pause_seconds
        self._told = told
        self._owner = f"{store.owner}:{uuid7()}"

    async def run(self) -> None:
        """Archive for ever."""
        while True:
            try:
                await self.once()
            except (StorageError, PlaceError) as error:
                ARCHIVE_FAILURES.inc()
                log.error("archive.failed", reason=str(error), effect="nothing is lost; it is tried again")
            await asyncio.sleep(RUN_SECONDS)

    async def once(self) -> Done | None:
        """Archive all there is to archive now. None: another process is doing that. Raises StorageError, PlaceError."""
        if not await self._ours():
            return None
        try:
            await self._tidy()
            return await self._archive()
        finally:
            with suppress(StorageError):  # then it runs out
                await leases.release(self._database, LEASE, self._owner)

    async def _ours(self) -> bool:
        return await leases.take(self._database, LEASE, self._owner, LEASE_SECONDS)

    async def _archive(self) -> Done:
        sessions = messages = 0
        before = self._ages.archive_before()
        place = datetime(1, 1, 1, tzinfo=UTC), _FIRST
        # Two processes at once would do everything twice, and lose nothing.
        while before is not None and await self._ours():
            rows = await self._database.fetch("archivable_sessions", before, *place, SESSIONS)
            if not rows:
                break
            place = rows[-1]["created_at"], rows[-1]["id"]
            while rows:
                moved, rows = await self._archive_some(rows)
                sessions, messages = sessions + len(moved), messages + sum(each.messages for each in moved)
                self._told(sessions, messages)
        if sessions:
            log.info("archive.archived", sessions=sessions, messages=messages)
        return Done(sessions, messages)

    async def _archive_some(self, rows: Sequence[Record]) -> tuple[Sequence[Copied], Sequence[Record]]:
        """Archive sessions in one object: those that went, and those that found no place in it."""
        async with _Packing(self._database, self._blobs) as packing:
            left = await self._copy(packing, rows)
            if not packing.sessions:
                return [], left
            object_ = await packing.write()
        if not await archives.written(self._database, packing.archive, object_):
            raise ArchiveError(f"writing the archive {packing.archive} took more than a day")
        moved = await self._move(packing.archive, object_.sessions)
        if len(moved) == len(object_.sessions):
            await archives.filled(self._database, packing.archive)
        return moved, left

    async def _copy(self, packing: "_Packing", rows: Sequence[Record]) -> Sequence[Record]:
        """Copy sessions, conversation by conversation, until the object is full; those that are left."""
        ordered = sorted(rows, key=lambda row: row["conversation_id"])
        groups = [list(group) for _, group in groupby(ordered, key=lambda row: row["conversation_id"])]
        portions = [part for group in groups for part in _in_portions(group, lambda row: row["message_count"])]
        while portions and packing.raw < OBJECT_BYTES:
            sessions = portions.pop(0)
            where, ids = sessions[0]["conversation_id"], [session["id"] for session in sessions]
            below = max(session["next_seq"] for session in sessions)
            unfinished = await self._database.fetch("unfinished_sessions", where, ids, below)
            finished = {*ids} - {row["session_id"] for row in unfinished}
            await self._copy_rows(packing, [session for session in sessions if session["id"] in finished])
        return [session for portion in portions for session in portion]

    async def _copy_rows(self, packing: "_Packing", sessions: Sequence[Record]) -> None:
        """Copy the rows of sessions of one conversation."""
        if not sessions:
            return
        where, ids = sessions[0]["conversation_id"], [session["id"] for session in sessions]
        below = max(session["next_seq"] for session in sessions)
        by_id = {session["id"]: session for session in sessions}

        async def copy(table: str, first: Sequence[object], after: Callable[[Record], Sequence[object]]) -> None:
            place = first
            while rows := await self._database.fetch(f"{table}_to_archive", where, ids, *place, PAGE):
                for row in rows:
                    await packing.add(table, by_id[row["session_id"]], row)
                place = after(rows[-1])

        await copy("messages", (-1, below), lambda row: (row["seq"], below))
        await copy("turns", (_FIRST,), lambda row: (row["id"],))
        await copy("deliveries", (-1, 0, below), lambda row: (row["seq"], row["part"], below))

    async def _move(self, archive: UUID, sessions: Sequence[Copied]) -> Sequence[Copied]:
        """Have sessions leave their tables, a few at a time; those that did."""
        moved = list[Copied]()
        for some in _in_portions(sessions, lambda session: session.messages):
            went = await archives.move_in(self._database, archive, some)
            ARCHIVED.labels("sessions").inc(len(went))
            ARCHIVED.labels("messages").inc(sum(session.messages for session in went))
            moved += went
            await asyncio.sleep(self._pause_seconds)
        return moved

    async def _tidy(self) -> None:
        """Go on with what dead processes left, and drop what no session has any more."""
        place = datetime(1, 1, 1, tzinfo=UTC), _FIRST
        while rows := await self._database.fetch("unsettled_archives", *place, GIVEN_UP, AT_REST, PAGE):
            for row in rows:
                try:
                    await self._settle(row)
                except (PlaceError, ArchiveError) as error:  # one that can't be had must not stop the others
                    ARCHIVE_FAILURES.inc()
                    log.error("archive.not_settled", archive=str(row["id"]), status=row["status"], reason=str(error))
            place = rows[-1]["created_at"], rows[-1]["id"]

    async def purge(self, archive: UUID) -> None:
        """Write an archive anew without what no session has of it any more, and delete the old object at once, even
        if somebody is reading it. Raises StorageError, PlaceError."""
        for _ in ("writing it anew", "deleting it"):
            for row in await archives.list_archives(self._database, archive):
                if row["status"] in ("partial", "deleting"):
                    await self._settle(row)

    async def _settle(self, row: Record) -> None:
        archive: UUID = row["id"]
        if row["status"] == "deleting":
            await self._blobs.delete([object_name(archive)])
            await archives.deleted(self._database, archive)
        elif not await archives.doom(self._database, archive):
            await self._write_anew(archive)

    async def _write_anew(self, old: UUID) -> None:
        """Write an archive anew, with the sessions that it still has."""
        kept = {session for _, session in await archives.sessions_of(self._database, old)}
        shelf = Shelf(self._blobs)
        async with _Packing(self._database, self._blobs) as packing:
            for stretch in await archives.blocks_of(self._database, old):
                block: Block = await shelf.read(stretch)
                for table in ("messages", "turns", "deliveries"):
                    for row in block[table]:
                        nth: int = row["session"]
                        owner = block["sessions"][nth]
                        if owner["id"] in kept:
                            await packing.add(table, owner, row)
            if not packing.sessions:
                return  # all of them have just gone
            object_ = await packing.write()
        if await archives.replace(self._database, old, packing.archive, object_):
            log.info("archive.written_anew", archive=str(packing.archive), before=str(old), sessions=len(kept))


class _Packing:
    """Packs rows into an object, block by block; until it is written, in a file that has no name."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self.archive = uuid7()
        self.sessions: dict[UUID, Copied] = {}
        self.raw = 0  # bytes so far, about, before they are compressed
        self._database = database
        self._blobs = blobs
        self._file = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - closed by __aexit__
        self._sha256 = sha256()
        self._size = 0
        self._blocks = list[Stretch]()
        self._empty_block()

    def _empty_block(self) -> None:
        self._rows: dict[str, list[Row]] = {table: [] for table in TABLES}
        self._nth: dict[UUID, int] = {}  # the places of sessions
        self._full_at = self.raw + BLOCK_BYTES

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._append, header(self.archive, datetime.now(UTC)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._file.close()

    async def add(self, table: str, session: Row, row: Row) -> None:
        """Add a row of a session."""
        copied = self.sessions.setdefault(session["id"], Copied(session, []))
        if session["id"] not in self._nth:
            self._nth[session["id"]] = len(self._nth)
            self._rows["sessions"].append({name: session[name] for name in TABLES["sessions"]})
        own = {name: row[name] for name in TABLES[table] if name != "session"}
        self._rows[table].append({"session": self._nth[session["id"]], **own})
        if table == "messages":
            copied.versions += row.get("version", 0) * row["seq"]
        elif table == "turns":
            copied.first_turn = min(copied.first_turn or row["id"], row["id"])
            copied.last_turn = max(copied.last_turn or row["id"], row["id"])
        self.raw += sum(len(value) if isinstance(value, str) else 8 for value in own.values())
        if self.raw >= self._full_at:
            await self._end_block()

    async def _end_block(self) -> None:
        data = await asyncio.to_thread(encode, self._rows)
        number, start = len(self._blocks), self._size
        await asyncio.to_thread(self._append, data)
        self._blocks.append(Stretch(self.archive, number, start, len(data), sha256(data).digest()))
        seqs: dict[int, list[int]] = {nth: [] for nth in self._nth.values()}
        for row in self._rows["messages"]:
            seqs[row["session"]].append(row["seq"])
        for session, nth in self._nth.items():
            own = seqs[nth]
            piece = Piece(number, min(own, default=0), max(own, default=0), len(own))
            self.sessions[session].pieces.append(piece)
        self._empty_block()

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._size += len(data)

    async def write(self) -> Written:
        """Write the object, and read it back. Raises PlaceError, ArchiveError, StorageError."""
        if self._nth:
            await self._end_block()
        await archives.begin(self._database, self.archive)
        name = object_name(self.archive)
        await self._blobs.write(name, self._file)
        there = sha256()
        async for part in self._blobs.stream(name):
            there.update(part)
        if there.digest() != self._sha256.digest():
            raise ArchiveError(f"the archive {self.archive} is not there as it was written; nothing was archived")
        return Written(self._size, there.digest(), self._blocks, list(self.sessions.values()))


def _in_portions(sessions: Sequence[T], messages: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """A few sessions at a time, which have not too many messages together."""
    portion, count = list[T](), 0
    for session in sessions:
        if portion and count + messages(session) > MESSAGES_AT_ONCE:
            yield portion
            portion, count = [], 0
        portion.append(session)
        count += messages(session)
    if portion:
        yield portion
