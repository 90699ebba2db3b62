"""The manifest of a backup: what is in it, so that a copy can be compared. It is written last: without one there is no
backup."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from chat_bridge.errors import ChatBridgeError

FORMAT = 1
FILE = "manifest.json"
_STAMP = "%Y%m%dT%H%M%SZ"


class BackupError(ChatBridgeError):
    """A backup could not be made, read or restored; the message says why."""


@dataclass(frozen=True, slots=True)
class Dump:
    """The file that pg_dump wrote, as it lies in its place. `program`: the major version of that pg_dump."""

    name: str
    bytes: int
    sha256: str
    program: int
    encryption: Literal["age"] | None


@dataclass(frozen=True, slots=True)
class TableSum:
    """How many rows a table has, and a sum over the hashes of their texts, which no order of rows changes."""

    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup. `namespace` is the PostgreSQL schema of the tables, `revision` that of the migrations; `database`
    says which one it is of, if the server told, and the program was new enough to ask."""

    id: str
    created_at: str
    program: str
    revision: str
    postgresql: str
    namespace: str
    dump: Dump
    tables: Mapping[str, TableSum]
    database: str | None = None

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables.values())

    def to_json(self) -> bytes:
        """As it is stored."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False).encode()


def from_json(text: bytes) -> Manifest:
    """Read a stored manifest. Raises BackupError."""
    try:
        whole: dict[str, Any] = json.loads(text)
        if whole["format"] > FORMAT:
            raise BackupError("a newer agoric-chat-bridge made it: use that one")
        tables = {name: TableSum(**table) for name, table in whole["tables"].items()}
        if not all(isinstance(number, int) for number in (whole["dump"]["bytes"], whole["tables"]["messages"]["rows"])):
            raise TypeError("no number")
        fields = ("id", "created_at", "program", "revision", "postgresql", "namespace")
        known = {name: whole[name] for name in fields}
        return Manifest(**known, dump=Dump(**whole["dump"]), tables=tables, database=whole.get("database"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackupError(f"its manifest is damaged ({type(error).__name__})") from error


def new_id(now: datetime, distinction: str) -> str:
    """The name of a backup; names sort by time."""
    return f"{now.astimezone(UTC):{_STAMP}}-{distinction}"


def made_at(backup: str) -> datetime | None:
    """When the backup of this name was made; None when it is no name of a backup."""
    if not re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", backup):
        return None
    return datetime.strptime(backup.partition("-")[0], _STAMP).replace(tzinfo=UTC)
