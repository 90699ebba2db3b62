"""The files that an export writes: JSONL, Markdown, HTML, Parquet."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from datetime import datetime
from html import escape
from importlib import import_module
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self
from uuid import UUID

from chat_bridge.errors import ChatBridgeError
from chat_bridge.model import Session
from chat_bridge.settings import how_to_install

ROW_GROUP = 10_000  # messages of a Parquet file that are in memory
_FORMATTING = re.compile(r"<(?=[A-Za-z/!?])")  # what Markdown takes for HTML


@dataclass(frozen=True, slots=True)
class Message:
    """A message on its way out."""

    id: UUID
    seq: int
    direction: str
    content_type: str
    status: str
    text: str
    deleted: bool
    edited: bool
    created_at: datetime
    sender_id: str | None
    sender_name: str | None
    event_key: str | None
    platform_message_id: str | None
    agent_request_id: str | None
    attachments: Sequence[Mapping[str, Any]]
    metadata: Mapping[str, Any]

    def columns(self) -> dict[str, Any]:
        """Everything, by name."""
        return {name: getattr(self, name) for name in _COLUMNS}

    @property
    def author(self) -> str:
        """Who said it, for people."""
        if self.direction == "outbound":
            return "agent" if self.content_type == "text" else "bridge" if self.content_type == "notice" else "event"
        return self.sender_name or self.sender_id or "user"

    @property
    def mark(self) -> str:
        """What people should know of it."""
        marks = [word for word, is_so in (("deleted", self.deleted), ("edited", self.edited)) if is_so]
        if self.status not in ("answered", "stored"):
            marks.append(self.status)
        return f" ({', '.join(marks)})" if marks else ""

    @property
    def files(self) -> list[str]:
        """The names of its files, for people."""
        return [f"{file.get('name') or file.get('kind')} ({file.get('mime_type')})" for file in self.attachments]


_COLUMNS = [field.name for field in fields(Message)]


class Writer(Protocol):
    """Takes sessions, each followed by its messages."""

    def session(self, session: Session) -> None: ...
    def message(self, message: Message) -> None: ...


class _TextWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __enter__(self) -> Self:
        self._write(self._head())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._write(self._foot())

    def _head(self) -> str:
        return ""

    def _foot(self) -> str:
        return ""

    def _write(self, text: str) -> None:
        self._file.write(text.encode())


class Jsonl(_TextWriter):
    """One JSON object a line: a session, then its messages. `chat-bridge import jsonl` reads it."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._session: dict[str, Any] = {}

    def session(self, session: Session) -> None:
        address = session.address
        self._session = {
            "session_id": str(session.id),
            "platform": address.platform,
            "account": address.account,
            "conversation": address.conversation,
            "thread": address.thread,
        }
        self._line(
            {
                "type": "session",
                "id": session.id,
                **{name: value for name, value in self._session.items() if name != "session_id"},
                "conversation_id": session.conversation_id,
                "user_id": session.user_id,
                "status": session.status,
                "mode": session.mode,
                "created_at": session.created_at,
                "last_activity": session.last_activity,
                "parent_session_id": session.parent_session_id,
                "message_count": session.message_count,
                "metadata": session.metadata,
            }
        )

    def message(self, message: Message) -> None:
        self._line({"type": "message", **self._session, **message.columns()})

    def _line(self, value: Mapping[str, Any]) -> None:
        self._write(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain) + "\n")


class Markdown(_TextWriter):
    """A heading for each session; messages as quotations, so that none can look like another."""

    def session(self, session: Session) -> None:
        self._write(f"# {_inline(_title(session))}\n\n")
        self._write("".join(f"- {name}: {_inline(value)}\n" for name, value in _facts(session)))
        self._write("\n")

    def message(self, message: Message) -> None:
        self._write(f"**{_inline(message.author)}** {_moment(message.created_at)}{message.mark}\n\n")
        lines = [*_FORMATTING.sub(r"\\<", message.text).splitlines(), *(f"[{_inline(file)}]" for file in message.files)]
        self._write("".join(f"> {line}\n" for line in lines) + "\n")


class Html(_TextWriter):
    """One page without scripts, which loads nothing from elsewhere."""

    _begun = False

    def session(self, session: Session) -> None:
        facts = "".join(f"<dt>{name}<dd>{escape(value)}" for name, value in _facts(session))
        end = "</section>\n" if self._begun else ""
        self._begun = True
        self._write(f"{end}<section>\n<h2>{escape(_title(session))}</h2>\n<dl>{facts}</dl>\n")

    def message(self, message: Message) -> None:
        files = "".join(f'<p class="file">{escape(file)}</p>' for file in message.files)
        self._write(
            f'<article class="{message.direction}"><header>{escape(message.author)} '
            f"<time>{_moment(message.created_at)}</time>{message.mark}</header>"
            f'<div dir="auto">{escape(message.text)}</div>{files}</article>\n'
        )

    def _head(self) -> str:
        return (
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Sessions</title>\n'
            '<meta name="viewport" content="width=device-width">\n<style>\n'
            "body { font: 16px/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem }\n"
            "article { border-left: 4px solid #888; margin: 1rem 0; padding: 0 1rem }\n"
            "article.outbound { border-color: #06c }\n"
            "article div { white-space: pre-wrap; overflow-wrap: anywhere }\n"
            "header, dl { color: #666; font-size: 0.875rem }\n"
            "dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem } dd { margin: 0 }\n"
            "</style>\n"
        )

    def _foot(self) -> str:
        return "</section>\n</html>\n" if self._begun else "</html>\n"


class Parquet:
    """One row a message, with its session's place; JSON in text columns."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            arrow: Any = import_module("pyarrow")
            parquet: Any = import_module("pyarrow.parquet")
        except ImportError:
            raise ChatBridgeError(f"Parquet needs one more package: {how_to_install('parquet')}") from None
        self._table: Any = arrow.Table
        time, text = arrow.timestamp("us", "UTC"), arrow.string()
        names = [
            *("platform", "account", "conversation", "thread", "conversation_id", "session_id", "session_status"),
            *("user_id", "id", "direction", "content_type", "status", "text", "sender_id", "sender_name", "event_key"),
            *("platform_message_id", "agent_request_id", "attachments", "metadata"),
        ]
        columns: dict[str, Any] = dict.fromkeys(names, text) | {"seq": arrow.int64(), "created_at": time}
        columns |= {"deleted": arrow.bool_(), "edited": arrow.bool_()}
        self._schema: Any = arrow.schema(list(columns.items()))
        self._writer: Any = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._session: dict[str, Any] = {}
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()

    def session(self, session: Session) -> None:
        self._session = {
            "platform": session.address.platform,
            "account": session.address.account,
            "conversation": session.address.conversation,
            "thread": session.address.thread,
            "conversation_id": str(session.conversation_id),
            "session_id": str(session.id),
            "session_status": session.status,
            "user_id": session.user_id,
        }

    def message(self, message: Message) -> None:
        row = message.columns() | {"id": str(message.id)}
        for name in ("attachments", "metadata"):
            row[name] = json.dumps(row[name], ensure_ascii=False) if row[name] else None
        self._rows.append({**self._session, **row})
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._table.from_pylist(self._rows, self._schema))
            self._rows = []


class _OpenWriter(Writer, AbstractContextManager["_OpenWriter"], Protocol):
    pass


WRITERS: Mapping[str, Callable[[BinaryIO], _OpenWriter]] = {
    "jsonl": Jsonl,
    "markdown": Markdown,
    "html": Html,
    "parquet": Parquet,
}


def _title(session: Session) -> str:
    address = session.address
    return f"{address.platform} {address.conversation}{f' / {address.thread}' if address.thread else ''}"


def _facts(session: Session) -> list[tuple[str, str]]:
    return [
        ("Session", f"{session.id} ({session.status})"),
        ("Account", session.address.account),
        ("User", session.user_id or "unknown"),
        ("From", f"{_moment(session.created_at)} to {_moment(session.last_activity)}"),
        ("Messages", str(session.message_count)),
    ]


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"


def _inline(text: str) -> str:
    """Text that is one line of Markdown, and nothing but text."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
