"""What an import did, for people and for programs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from chat_bridge.model import ConversationId, SessionId
from chat_bridge.storage.transfer import HistoricMessage
from chat_bridge.transfer.progress import counted
from chat_bridge.transfer.rows import Notes
from chat_bridge.transfer.source import Columns

_REASONS = 20  # that are printed


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What the second reading found. The digests are over every row's facts, in the order of the file."""

    compared: int
    missing: int
    different: int
    out_of_order: int
    source_digest: str
    stored_digest: str

    @property
    def passed(self) -> bool:
        return self.source_digest == self.stored_digest


@dataclass(slots=True)
class Report:
    """The counts of one run. Every row read is stored, known from before, or rejected."""

    file: str
    source: str
    mapping: str
    dry_run: bool
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime | None = None
    rows: int = 0
    read: int = 0
    stored: int = 0
    known: int = 0
    rejected: Counter[str] = field(default_factory=Counter[str])
    events: Counter[str] = field(default_factory=Counter[str])
    messages: Counter[str] = field(default_factory=Counter[str])
    columns: Mapping[str, Columns] = field(default_factory=dict[str, Columns])
    empty_sessions: int = 0
    orphans: int = 0
    sessions: int = 0
    behind: set[ConversationId] = field(default_factory=set[ConversationId])
    notes: Notes = field(default_factory=Notes)
    check: CheckResult | None = None
    _last_session: SessionId | None = None

    @property
    def complete(self) -> bool:
        """Whether every row is in, and was found again."""
        return self.read == self.rows and not self.rejected and (self.check is None or self.check.passed)

    def count(self, messages: Sequence[HistoricMessage]) -> None:
        """Count what was read; a session's messages come together."""
        for message in messages:
            if message.kind is None:
                self.messages[message.direction] += 1
            else:
                self.events[message.kind] += 1
            if message.session.id != self._last_session:
                self._last_session = message.session.id
                self.sessions += 1

    def reject(self, reason: str) -> None:
        self.rejected[reason] += 1

    def as_json(self) -> dict[str, Any]:
        """For report.json."""
        ended = self.ended_at or self.began_at
        return {
            "file": self.file,
            "source": self.source,
            "mapping": self.mapping,
            "dry_run": self.dry_run,
            "began_at": self.began_at.isoformat(),
            "ended_at": ended.isoformat(),
            "seconds": round((ended - self.began_at).total_seconds(), 1),
            "rows": self.rows,
            "read": self.read,
            "stored": self.stored,
            "known": self.known,
            "rejected": dict(self.rejected),
            "columns": {table: asdict(columns) for table, columns in self.columns.items()},
            "messages": dict(self.messages),
            "events": dict(self.events),
            "sessions": self.sessions,
            "empty_sessions": self.empty_sessions,
            "orphans": self.orphans,
            "behind": sorted(map(str, self.behind)),
            "notes": asdict(self.notes),
            "check": None if self.check is None else {**asdict(self.check), "passed": self.check.passed},
            "complete": self.complete,
        }

    def lines(self) -> list[str]:
        """For people."""
        of_people = counted(self.messages["inbound"], "message")
        lines = [
            f"{self.file}: {counted(self.read, 'row')}, as {self.mapping}",
            f"  {of_people} of people and {self.messages['outbound']:,} of the agent in "
            f"{counted(self.sessions, 'session')}",
        ]
        for table, columns in self.columns.items():
            left = (
                f"; not read: {', '.join(name or 'one without a name' for name in columns.left)}"
                if columns.left
                else ""
            )
            lines.append(f"  columns of {table}: read: {', '.join(columns.read) or 'none'}{left}")
        lines += [
            f"  {count:,} {kind}: kept as events, since they are no messages" for kind, count in self.events.items()
        ]
        if self.read != self.rows:
            lines.append(
                f"  the file has {counted(self.rows, 'row')}, which is not what was read: did it change meanwhile?"
            )
        if not self.dry_run:
            lines.append(f"  {self.stored:,} stored, {self.known:,} were stored before")
        lines += [f"  {count:,} rejected: {reason}" for reason, count in self.rejected.most_common(_REASONS)]
        if len(self.rejected) > _REASONS:
            more = counted(len(self.rejected) - _REASONS, "more reason")
            lines.append(f"  and {more} to reject, in report.json")
        if self.orphans:
            orphans = counted(self.orphans, "row")
            lines.append(f"  {orphans} of a session that has no row: nothing but its id is known of it")
        if self.empty_sessions:
            lines.append(f"  {counted(self.empty_sessions, 'session')} without a message: nothing to import")
        if self.notes.no_time:
            lines.append(
                f"  {counted(self.notes.no_time, 'row')} without a time: that of the session or of the file is taken"
            )
        if self.notes.replaced_characters:
            lines.append(
                f"  {counted(self.notes.replaced_characters, 'text')} had characters that PostgreSQL can't hold: U+FFFD"
            )
        if self.notes.inline_files:
            lines.append(f"  {counted(self.notes.inline_files, 'file')} inside messages: the bytes are left out")
        if self.behind:
            lines.append(
                f"  {counted(len(self.behind), 'conversation')} had messages of the bridge before: the imported ones "
                "follow them"
            )
        if self.check is not None:
            lines += self._check_lines(self.check)
        return lines

    @staticmethod
    def _check_lines(check: CheckResult) -> list[str]:
        if check.passed:
            lines = [
                f"  checked: all {check.compared:,} are in PostgreSQL, with their session, direction, text, sender and "
                "time as in the file"
            ]
        else:
            lines = [f"  checked: {check.missing:,} missing in PostgreSQL, {check.different:,} different there"]
        if check.out_of_order:
            lines.append(f"  {check.out_of_order:,} came later than what follows in the file, and stand after it")
        return lines
