"""Transcripts: the messages of a conversation, wherever they are: in PostgreSQL, or below it in archives."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from chat_bridge.model import ConversationId, Seq, Session, SessionId, StoredMessage
from chat_bridge.storage.archives import Shelf, Stretch
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.messages import stored_message
from chat_bridge.storage.postgres import Database, Record

PAGE = 1000
_LAST = 2**63 - 1
# As `history_before` and `history_after` have them, in their order.
_COLUMNS = (
    "seq", "id", "session_id", "direction", "content_type", "content_text", "event_key", "sender_id", "created_at",
    "attachments", "metadata", "status", "archived",
)  # fmt: skip


class Transcripts:
    """Reads messages; what is in PostgreSQL costs one statement. All raises StorageError, and ArchiveError, which
    is one, when what lies in an archive can't be read, or there are no `blobs` to read it from: what is given is never
    less than there is."""

    def __init__(self, database: Database, blobs: Blobs | None) -> None:
        self._database = database
        self._shelf = Shelf(blobs)

    async def history(
        self,
        conversation: ConversationId,
        *,
        before: Seq | None = None,
        limit: int = 50,
        session: SessionId | None = None,
    ) -> Sequence[StoredMessage]:
        """The newest messages (or those before a seq) of a conversation, or of one session of it; oldest first."""
        high = _LAST if before is None else before
        rows = await self._database.fetch("history_before", conversation, high, limit, session)
        archived, there = _apart(rows)
        lowest = there[-1]["seq"] if len(there) == limit else 0
        if archived is not None and archived > lowest:
            arguments = conversation, high, limit, session
            there = await self._page("history_before", arguments, conversation, session, 0, high, limit)
        return [stored_message(conversation, row) for row in reversed(there)]

    async def history_after(self, conversation: ConversationId, after: Seq, limit: int = 50) -> Sequence[StoredMessage]:
        """The messages that follow a seq, oldest first."""
        archived, there = _apart(await self._database.fetch("history_after", conversation, after, limit))
        if archived is not None:
            arguments = conversation, after, limit
            there = await self._page("history_after", arguments, conversation, None, after, _LAST, limit)
        return [stored_message(conversation, row) for row in there]

    async def of_session(self, session: Session) -> AsyncGenerator[Record]:
        """All messages of a session, oldest first, a page at a time, with the names of those who wrote."""
        after, where = -1, session.conversation_id
        while True:
            arguments = where, session.id, after, PAGE
            archived, rows = _apart(await self._database.fetch("messages_of_session", *arguments))
            if archived is not None:
                rows = await self._merged("messages_of_session", arguments, where, session.id, after, _LAST, PAGE)
                rows = await self._named(session, rows)
            for row in rows:
                yield row
            if len(rows) < PAGE:
                return
            after = rows[-1]["seq"]

    async def _page(self, *arguments: Any) -> Sequence[Record]:
        """As `_merged`, with the columns in the order of the query."""
        return [{name: row[name] for name in _COLUMNS} for row in await self._merged(*arguments)]

    async def _merged(
        self,
        query: str,
        arguments: Sequence[object],
        conversation: ConversationId,
        session: SessionId | None,
        low: int,
        high: int,
        limit: int,
    ) -> Sequence[Record]:
        """A page between two seqs, as the query gives it, with what archives have of it."""
        newest = query == "history_before"
        async with self._database.snapshot() as moment:  # a session may be on its way between them
            _, rows = _apart(await moment.fetch(query, *arguments))
            parts = await moment.fetch("archived_between", conversation, session, low, high)
        found: dict[int, Record] = {row["seq"]: row for row in rows}
        for part in sorted(parts, key=lambda part: part["last_seq" if newest else "first_seq"], reverse=newest):
            page = sorted(found, reverse=newest)[:limit]
            if len(page) == limit and (page[-1] > part["last_seq"] if newest else page[-1] < part["first_seq"]):
                break
            for row in await self._archived(part):
                if low < row["seq"] < high:
                    found.setdefault(row["seq"], row)
        return [found[seq] for seq in sorted(found, reverse=newest)[:limit]]

    async def _archived(self, part: Record) -> Sequence[Record]:
        stretch = Stretch(part["archive_id"], part["number"], part["block_start"], part["size"], part["sha256"])
        block = await self._shelf.read(stretch)
        nth = next(nth for nth, each in enumerate(block["sessions"]) if each["id"] == part["session_id"])
        return [_as_queried(row, part["session_id"]) for row in block["messages"] if row["session"] == nth]

    async def _named(self, session: Session, rows: Sequence[Record]) -> Sequence[Record]:
        people = list({row["sender_id"] for row in rows if row["sender_id"] is not None})
        address = session.address
        found = await self._database.fetch("names_of", address.platform, address.account, people)
        names: dict[str, Any] = {row["platform_user_id"]: row["display_name"] for row in found}
        return [{**row, "display_name": names.get(row["sender_id"])} for row in rows]


def _apart(rows: Sequence[Record]) -> tuple[int | None, Sequence[Record]]:
    """What a query tells of archives, and its messages."""
    return rows[0]["archived"], [row for row in rows if row["seq"] is not None]


def _as_queried(row: Record, session: SessionId) -> Record:
    # A closed session has no message that waits.
    status = "answered" if row["status"] == "accepted" else row["status"]
    return {**row, "session_id": session, "status": status, "archived": None}
