"""After an import: is everything in PostgreSQL as it is in the file?"""

import hashlib
import heapq
from collections.abc import Sequence
from datetime import datetime

from chat_bridge.model import Session, SessionId
from chat_bridge.storage import sessions
from chat_bridge.storage.postgres import Database, Record
from chat_bridge.storage.transcripts import Transcripts
from chat_bridge.storage.transfer import HistoricMessage, find_history, stored_text
from chat_bridge.transfer.report import CheckResult

SAMPLES = 5  # sessions
LINES = 20  # messages of each
_WIDTH = 60


class Check:
    """Compares messages, in the order of the file, with their rows; keeps the beginnings of some sessions to show."""

    def __init__(self, database: Database) -> None:
        self.compared = 0
        self._database = database
        self._missing = 0
        self._different = 0
        self._out_of_order = 0
        self._ours, self._theirs = hashlib.sha256(), hashlib.sha256()
        self._last: tuple[SessionId, int] | None = None
        self._samples: list[tuple[int, str, list[HistoricMessage]]] = []  # a heap, the one to go first
        self._sample: list[HistoricMessage] = []

    async def compare(self, messages: Sequence[HistoricMessage]) -> None:
        """Look for these messages in PostgreSQL."""
        rows = await find_history(self._database, messages)
        for number, message in enumerate(messages):
            self._take_sample(message)
            theirs = _facts(message, message.session.id, message.direction, message.content_type, message.text,
                            message.sender_id, message.created_at)  # fmt: skip
            self._theirs.update(theirs)
            row = rows.get(number)
            if row is None:
                self._missing += 1
                continue
            ours = _stored_facts(message, row)
            self._ours.update(ours)
            self._different += ours != theirs
            self._follow(message.session.id, row["seq"])
        self.compared += len(messages)

    def result(self) -> CheckResult:
        """What all of it came to."""
        self._keep_sample()
        return CheckResult(
            self.compared,
            self._missing,
            self._different,
            self._out_of_order,
            self._theirs.hexdigest(),
            self._ours.hexdigest(),
        )

    async def sample(self) -> str:
        """Some sessions as the file and as PostgreSQL has them, side by side, in Markdown."""
        parts = ["# Sample: the file and PostgreSQL side by side\n"]
        for _, _, messages in sorted(self._samples, reverse=True):
            session = await sessions.get_session(self._database, messages[0].session.id)
            parts.append(_table(messages, await self._stored(session, len(messages)) if session else []))
        return "\n".join(parts)

    async def _stored(self, session: Session, limit: int) -> Sequence[Record]:
        """The first imported messages of a session, in the order in which PostgreSQL has them."""
        found: list[Record] = []
        if session.status == "archived":  # nothing was imported there
            return found
        async for row in Transcripts(self._database, None).of_session(session):
            found.append(row)
            if len(found) == limit:
                break
        return found

    def _follow(self, session: SessionId, seq: int) -> None:
        if self._last is not None and self._last[0] == session and seq < self._last[1]:
            self._out_of_order += 1
        self._last = session, seq

    def _take_sample(self, message: HistoricMessage) -> None:
        if self._sample and self._sample[0].session.id != message.session.id:
            self._keep_sample()
        if len(self._sample) < LINES:
            self._sample.append(message)

    def _keep_sample(self) -> None:
        """The sessions whose ids have the smallest digests: a choice from everywhere, the same at each run."""
        if not self._sample:
            return
        session = str(self._sample[0].session.id)
        order = -int.from_bytes(hashlib.sha256(session.encode()).digest()[:8])
        heapq.heappush(self._samples, (order, session, self._sample))
        if len(self._samples) > SAMPLES:
            heapq.heappop(self._samples)
        self._sample = []


def _stored_facts(message: HistoricMessage, row: Record) -> bytes:
    # What the bridge had as a command or a notice is a message to an export, and to an import.
    content_type = "event" if row["content_type"] == "event" else "text"
    text = stored_text(message, row)
    return _facts(message, row["session_id"], row["direction"], content_type, text, row["sender_id"], row["created_at"])


def _facts(
    message: HistoricMessage,
    session: SessionId,
    direction: str,
    content_type: str,
    text: str,
    sender: str | None,
    at: datetime,
) -> bytes:
    moment = at.timestamp() if message.timed else None
    return repr((message.key, str(session), direction, content_type, text, sender, moment)).encode()


def _table(messages: Sequence[HistoricMessage], rows: Sequence[Record]) -> str:
    address = messages[0].session.address
    same = [(message.direction, message.text) for message in messages] == [
        (row["direction"], row["content_text"]) for row in rows
    ]
    lines = [
        f"## {address.platform} {_cell(address.conversation)}: {'the same' if same else 'NOT THE SAME'}\n",
        f"Session {messages[0].session.id}\n",
        "| the file | PostgreSQL |",
        "| --- | --- |",
    ]
    for number in range(max(len(messages), len(rows))):
        left = f"{messages[number].direction}: {_cell(messages[number].text)}" if number < len(messages) else ""
        right = f"{rows[number]['direction']}: {_cell(rows[number]['content_text'])}" if number < len(rows) else ""
        lines.append(f"| {left} | {right} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    short = text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."
    return " ".join(short.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "\\<").replace("`", "\\`")
