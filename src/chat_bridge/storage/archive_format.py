"""The format of archives, which docs/operate/archive.md describes: it can be read without this program.

An object is a stream of zstd: first a skippable frame with a JSON object about it, then the blocks, each a frame of its
own with a line of JSON: tables by columns, so that nothing is repeated and like lies beside like.
"""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import accumulate
from typing import Any, Literal, TypeAlias
from uuid import UUID

import zstandard

from chat_bridge.errors import StorageError

FORMAT = 1
LEVEL = 19
_SKIPPABLE = 0x184D2A50
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Row: TypeAlias = Mapping[str, Any]
Block: TypeAlias = Mapping[str, Sequence[Row]]
_Kind: TypeAlias = Literal["id", "time", "number", "text"]

# The columns of the tables, but for those that only tell when something will be tried again, and with which key: all is
# over. `session` is the place of a row's session in the block's `sessions`.
TABLES: Mapping[str, Mapping[str, _Kind]] = {
    "sessions": {
        "id": "id", "conversation_id": "id", "parent_session_id": "id", "platform": "text", "account": "text",
        "platform_conversation_id": "text", "thread": "text", "user_id": "text", "mode": "text", "created_at": "time",
        "last_activity": "time", "metadata": "text",
    },
    "messages": {
        "session": "number", "seq": "number", "created_at": "time", "sent_at": "time", "id": "id", "turn_id": "id",
        "direction": "text", "status": "text", "content_type": "text", "content_text": "text", "event_key": "text",
        "sender_id": "text", "platform_message_id": "text", "agent_request_id": "text", "attachments": "text",
        "metadata": "text",
    },
    "turns": {
        "session": "number", "id": "id", "first_seq": "number", "last_seq": "number", "started_at": "time",
        "finished_at": "time", "status": "text", "owner": "text", "agent": "text", "outcome": "text",
        "agent_request_id": "text", "error": "text", "usage": "text",
    },
    "deliveries": {
        "session": "number", "seq": "number", "part": "number", "attempts": "number", "failures": "number",
        "sent_at": "time", "status": "text", "platform_message_id": "text", "error": "text",
    },
}  # fmt: skip


class ArchiveError(StorageError):
    """What is archived can't be read, now or ever; the message says why."""


def header(archive: UUID, created_at: datetime) -> bytes:
    """The beginning of an object."""
    about = {
        "format": FORMAT,
        "archive": str(archive),
        "created_at": created_at.isoformat(),
        "program": f"agoric-chat-bridge {version('agoric-chat-bridge')}",
        "about": "closed sessions; each block is a zstd frame with a line of JSON, see docs/operate/archive.md",
    }
    text = json.dumps(about).encode()
    return struct.pack("<II", _SKIPPABLE, len(text)) + text


def encode(block: Block) -> bytes:
    """A block as it is stored. Raises ArchiveError if it would not be read as it is."""
    try:
        tables = {table: _columns(kinds, block[table]) for table, kinds in TABLES.items()}
    except (TypeError, ValueError, OverflowError) as error:  # such as a time that is infinite
        raise ArchiveError(f"a row has what no archive can hold ({type(error).__name__})") from error
    text = json.dumps({"format": FORMAT, **tables}, ensure_ascii=False, separators=(",", ":"))
    data = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(f"{text}\n".encode())
    if decode(data) != {table: [dict(row) for row in block[table]] for table in TABLES}:
        raise ArchiveError("a block of an archive does not read as it was written; nothing was archived")
    return data


def decode(data: bytes) -> Block:
    """Read a block. Raises ArchiveError."""
    try:
        whole = json.loads(zstandard.ZstdDecompressor().decompress(data))
        if whole["format"] > FORMAT:
            raise ArchiveError("a newer agoric-chat-bridge wrote this archive: use that one")
        return {table: _rows(kinds, whole[table]) for table, kinds in TABLES.items()}
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ArchiveError(f"a block of an archive is damaged ({type(error).__name__})") from error


def _columns(kinds: Mapping[str, _Kind], rows: Sequence[Row]) -> Mapping[str, Any]:
    columns: dict[str, Any] = {"rows": len(rows)}
    for name, kind in kinds.items():
        values = [row[name] for row in rows]
        if any(value is not None for value in values):  # one that is empty is left out
            columns[name] = _WRITE[kind](values)
    return columns


def _rows(kinds: Mapping[str, _Kind], columns: Mapping[str, Any]) -> Sequence[Row]:
    count: int = columns["rows"]
    values = [_READ[kind](columns[name]) if name in columns else [None] * count for name, kind in kinds.items()]
    return [dict(zip(kinds, row, strict=True)) for row in zip(*values, strict=True)]


def _differences(values: Sequence[int | None]) -> Sequence[int | None]:
    """Each but the first as what it is more than the one before, which is short."""
    before, found = 0, list[int | None]()
    for value in values:
        found.append(None if value is None else value - before)
        before = before if value is None else value
    return found


def _sums(values: Sequence[int | None]) -> Sequence[int | None]:
    sums = accumulate(value or 0 for value in values)
    return [None if value is None else total for value, total in zip(values, sums, strict=True)]


_WRITE: Mapping[_Kind, Callable[[Sequence[Any]], Sequence[Any]]] = {
    "id": lambda values: [value and value.hex for value in values],
    "number": _differences,
    "text": lambda values: values,
    "time": lambda values: _differences([value and (value - _EPOCH) // _MICROSECOND for value in values]),
}
_READ: Mapping[_Kind, Callable[[Sequence[Any]], Sequence[Any]]] = {
    "id": lambda values: [value and UUID(value) for value in values],
    "number": _sums,
    "text": lambda values: values,
    "time": lambda values: [None if value is None else _EPOCH + value * _MICROSECOND for value in _sums(values)],
}
