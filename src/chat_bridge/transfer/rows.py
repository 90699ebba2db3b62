"""From a row of another program to a message of ours, or the reason why it can't be one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from hashlib import sha256
from typing import Any, cast
from uuid import NAMESPACE_URL, UUID, uuid5

from chat_bridge.model import Address, Attachment, MessageId, SessionId
from chat_bridge.storage.text import storable
from chat_bridge.storage.transfer import HistoricMessage, HistoricSession
from chat_bridge.transfer.formats import DECODERS, BadRowError, Body
from chat_bridge.transfer.mapping import Mapping as TableMapping
from chat_bridge.transfer.source import Row
from chat_bridge.transfer.times import read_time

_IMPORTS = uuid5(NAMESPACE_URL, "https://chat-bridge.invalid/import")
_LONGEST = 1000  # bytes of an id; an entry of an index may have 2704
_QUOTED = 40  # characters of a row in a reason
_FILE_FIELDS = {each.name: each for each in fields(Attachment)}
_PLACE = [
    (name, f"messages.{name}", f"sessions.{name}") for name in ("platform", "account", "conversation", "thread", "user")
]
_KINDS = ("text", "command", "notice", "event")
_NOT_SAID = ("system", "developer", "tool", "function")
_CLOSED = ("closed", "archived", "ended", "inactive", "deleted")


@dataclass(slots=True)
class Notes:
    """What was changed on the way."""

    replaced_characters: int = 0
    inline_files: int = 0
    no_time: int = 0


class Converter:
    """Makes messages of a file's rows. The same row always gives the same ids."""

    def __init__(self, mapping: TableMapping, source: str, values: Mapping[str, str], fallback: datetime) -> None:
        self.notes = Notes()
        self._mapping = mapping
        self._source = source
        self._values = {"platform": "imported", "account": "default", **mapping.values, **values}
        self._fallback = fallback
        self._decode = DECODERS.get(mapping.format)
        self._session: tuple[tuple[object, ...], HistoricSession] | None = None

    def message(self, row: Row) -> HistoricMessage:
        """The message of a row. Raises BadRowError."""
        if row.get("problem") is not None:
            raise BadRowError(str(row["problem"]))
        if row["key"] is None:
            raise BadRowError("it has no id")
        session = self._session_of(row)
        body = self._body(row)
        created_at = _time(row.get("messages.created_at"))
        if created_at is None:
            self.notes.no_time += 1
        self.notes.inline_files += body.inline_files
        key = _id(row["key"], "id") or ""
        event_key = self._text(row, "messages.event_key") or f"import:{self._source}:{key}"
        if len(event_key.encode()) > _LONGEST:
            event_key = f"sha256:{sha256(event_key.encode()).hexdigest()}"
        at = created_at or session.created_at
        kept_id = _kept_v7(key)
        extra = _extra(row, "messages.metadata") | body.rest
        sender = self._text(row, "messages.sender") or session.user_id if body.direction == "inbound" else None
        if sender is not None:
            _require_short(sender, "sender")
        return HistoricMessage(
            session=session,
            key=event_key,
            id=MessageId(kept_id or _timed_id(at, f"{session.address.id}\x1f{event_key}")),
            direction=body.direction,
            text=self._storable(body.text),
            created_at=at,
            timed=created_at is not None,
            own_id=kept_id is not None,
            kind=body.kind,
            sender_id=sender,
            sender_name=self._text(row, "messages.sender_name"),
            platform_message_id=self._text(row, "messages.platform_message_id"),
            agent_request_id=self._text(row, "messages.agent_request_id"),
            attachments=body.attachments,
            metadata={"imported": extra} if extra else None,
        )

    def _body(self, row: Row) -> Body:
        text = self._text(row, "messages.text", clean=False)
        role = self._text(row, "messages.direction")
        if self._decode is not None:
            if text is None:
                raise BadRowError("it has no body")
            return self._decode(text, role)
        kind = self._text(row, "messages.kind")
        word = (role or "").lower()
        direction = self._mapping.directions.get(word)
        if direction is None and word in _NOT_SAID:
            return Body("outbound", text or "", word)
        if direction is None:
            raise BadRowError(f"its direction is {_short(role)!r}, which the mapping does not know")
        body = Body(direction, text or "", kind if kind == "event" else None)
        body.attachments = _attachments(row.get("messages.attachments"))
        if kind is not None and kind not in _KINDS:
            body.rest["kind"] = kind
        return body

    def _session_of(self, row: Row) -> HistoricSession:
        place = tuple(
            self._text(row, own) or self._text(row, of_session) or self._values.get(name)
            for name, own, of_session in _PLACE
        )
        known = row.get("sessions.id") is not None
        written = _id(row.get("messages.session"), "session")
        signature = (written, known, *place)
        if self._session is None or self._session[0] != signature:
            self._session = signature, self._new_session(row, written, place)
        return self._session[1]

    def _new_session(self, row: Row, written: str | None, place: Sequence[str | None]) -> HistoricSession:
        platform, account, conversation, thread, user = place
        conversation = conversation or written
        if conversation is None:
            raise BadRowError("it has neither a session nor a conversation")
        for name, value in (("conversation", conversation), ("thread", thread), ("user", user)):
            _require_short(value or "", name)
        address = Address(platform or "", account or "", conversation, thread or "")
        # A time that only a message has would give the session another id when that message is mended.
        began = _time(row.get("sessions.created_at"))
        name = f"{self._source}\x1f{address.id}\x1f{written or ''}"
        id_ = _kept(written) or (uuid5(_IMPORTS, name) if began is None else _timed_id(began, name))
        extra = _extra(row, "sessions.metadata")
        metadata: dict[str, Any] = {"imported": {"from": self._source, "id": written, **extra}}
        if resource := self._text(row, "sessions.resource") or self._own_resource(extra):
            metadata["resource"] = resource
        parent_name = self._text(row, "sessions.parent")
        parent = _kept(parent_name)
        if parent is None and parent_name:
            metadata["imported"]["parent"] = parent_name
        return HistoricSession(
            id=SessionId(id_),
            address=address,
            created_at=began or _time(row.get("messages.created_at")) or self._fallback,
            user_id=user,
            parent=SessionId(parent) if parent else None,
            closed=(self._text(row, "sessions.status") or "").lower() in _CLOSED,
            metadata=metadata,
        )

    def _own_resource(self, extra: Mapping[str, Any]) -> str | None:
        """Whom the agent's memory belongs to, where the metadata is the bridge's own."""
        resource = extra.get("metadata", {}).get("resource") if self._mapping.lenient else None
        return self._storable(resource) if isinstance(resource, str) else None

    def _text(self, row: Row, name: str, *, clean: bool = True) -> str | None:
        value = row.get(name)
        if value is None:
            return None
        if isinstance(value, bytes):
            value = _decoded(value, name.rpartition(".")[2])
        return self._storable(str(value)) if clean else str(value)

    def _storable(self, text: str) -> str:
        kept = storable(text)
        self.notes.replaced_characters += kept != text
        return kept


def _short(text: str | None) -> str | None:
    """Text of a row for a reason, which people read and rows share."""
    return text if text is None or len(text) <= _QUOTED else f"{text[:_QUOTED]}..."


def _decoded(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadRowError(f"its {name} is not UTF-8 text") from None


def _id(value: object, name: str) -> str | None:
    if value is None:
        return None
    return storable(_decoded(value, name) if isinstance(value, bytes) else str(value))


def _require_short(value: str, name: str) -> None:
    if len(value.encode()) > _LONGEST:
        raise BadRowError(f"its {name} is longer than {_LONGEST} bytes")


def _kept(text: str | None) -> UUID | None:
    """A session's id that is a UUID is kept: the agent's memory may be under it."""
    if text is None or len(text) != 36:
        return None
    try:
        return UUID(text)
    except ValueError:
        return None


def _kept_v7(text: str) -> UUID | None:
    """A message's id is kept if it is in the order of time, as the index on ids wants them."""
    id_ = _kept(text)
    return id_ if id_ is not None and id_.version == 7 else None


def _timed_id(at: datetime, name: str) -> UUID:
    """A uuid v7 whose random part is a digest: in the order of time, and the same each time."""
    milliseconds = max(0, int(at.timestamp() * 1000)) & (2**48 - 1)
    digits = int.from_bytes(sha256(name.encode()).digest()[:10])
    return UUID(int=milliseconds << 80 | 7 << 76 | (digits >> 62 & 0xFFF) << 64 | 0b10 << 62 | digits & (2**62 - 1))


def _time(value: object) -> datetime | None:
    try:
        return read_time(value)
    except ValueError:
        raise BadRowError("its time can't be read") from None


def _extra(row: Row, name: str) -> dict[str, Any]:
    """What the metadata columns hold: one JSON object as it is, anything else by the names of the columns."""
    read: dict[str, Any] = row.get(name) or {}
    columns = {column: value for column, text in read.items() if (value := _json(text)) is not None}
    if not columns:
        return {}
    only = next(iter(columns.values()))
    return {"metadata": only if len(read) == 1 and isinstance(only, dict) else columns}


def _json(value: object) -> object:
    """What is JSON as what it means; anything else as it is."""
    if isinstance(value, bytes):
        value = _decoded(value, "metadata")
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _attachments(value: object) -> list[dict[str, Any]]:
    files = _json(value)
    if files is None or files == "":
        return []
    if not isinstance(files, list):
        raise BadRowError("its attachments are not a JSON list")
    return [_attachment(file) for file in cast("list[object]", files)]


def _attachment(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRowError("an attachment is not a JSON object")
    file = {name: each for name, each in cast("dict[str, Any]", value).items() if each is not None}
    kind, mime_type, ref = (file.get(name) for name in ("kind", "mime_type", "ref"))
    if kind not in ("image", "audio", "video", "file") or not isinstance(mime_type, str) or not isinstance(ref, str):
        raise BadRowError("an attachment needs a kind (image, audio, video, file), a mime_type and a ref")
    if file.keys() - _FILE_FIELDS.keys():
        raise BadRowError(f"an attachment has no {_short(min(file.keys() - _FILE_FIELDS.keys()))}")
    expires_at = _time(file.pop("expires_at", None))
    return file if expires_at is None else file | {"expires_at": expires_at.isoformat()}
