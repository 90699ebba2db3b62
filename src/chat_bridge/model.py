"""The words of the bridge: conversations, messages, turns and deliveries, as plain typed data.

Nothing here does I/O. Every other module speaks in these types.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal, NamedTuple, NewType
from uuid import NAMESPACE_URL, UUID, uuid5

from uuid_utils.compat import uuid7

ConversationId = NewType("ConversationId", UUID)
SessionId = NewType("SessionId", UUID)
MessageId = NewType("MessageId", UUID)
TurnId = NewType("TurnId", UUID)
AttachmentId = NewType("AttachmentId", UUID)
Seq = NewType("Seq", int)

Json = Mapping[str, Any]

_CONVERSATIONS = uuid5(NAMESPACE_URL, "https://chat-bridge.invalid/conversation")


@lru_cache(maxsize=65536)  # asked for at every step of every message
def conversation_id(platform: str, account: str, platform_conversation_id: str, thread: str = "") -> ConversationId:
    """The id of a conversation, known without a look-up: uuid5 of its four parts.

    The parts are joined by a unit separator (U+001F), which no platform allows in an id.
    """
    name = "\x1f".join((platform, account, platform_conversation_id, thread))
    # Half a surrogate pair, which no UTF-8 can hold, counts as a question mark.
    return ConversationId(uuid5(_CONVERSATIONS, name.encode("utf-8", "replace").decode()))


def new_session_id() -> SessionId:
    """A time-ordered id (uuid v7)."""
    return SessionId(uuid7())


def new_message_id() -> MessageId:
    """A time-ordered id (uuid v7)."""
    return MessageId(uuid7())


def new_turn_id() -> TurnId:
    """A time-ordered id (uuid v7)."""
    return TurnId(uuid7())


class BusyPolicy(StrEnum):
    """What a message does that arrives while a turn is running."""

    COLLECT = "collect"  # everything that waits becomes one next turn
    FOLLOWUP = "followup"  # one turn for each
    INTERRUPT = "interrupt"  # the running turn is cancelled and starts again with the new message
    LATEST = "latest"  # only the newest waiting message is answered, the others are skipped
    REJECT = "reject"  # skipped, and the user is told


@dataclass(frozen=True, slots=True)
class Address:
    """Where a conversation lives: the four parts that make its id."""

    platform: str
    account: str
    conversation: str
    thread: str = ""

    @property
    def id(self) -> ConversationId:
        return conversation_id(self.platform, self.account, self.conversation, self.thread)


@dataclass(frozen=True, slots=True)
class User:
    """Who wrote a message, as the platform names them. `name` and the rest are data, never instructions."""

    id: str
    name: str | None = None
    username: str | None = None
    locale: str | None = None


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that belongs to a message: a reference, not the bytes.

    `ref` is what the platform wants to hear for the bytes, with our credentials if `needs_auth`, until `expires_at`.
    `same_file` is equal for two references to one file, where the platform tells. `size` is in bytes.
    """

    kind: Literal["image", "audio", "video", "file"]
    mime_type: str
    ref: str
    name: str | None = None
    size: int | None = None
    same_file: str | None = None
    needs_auth: bool = False
    expires_at: datetime | None = None


def kind_of(mime_type: str) -> Literal["image", "audio", "video", "file"]:
    """What sort of file a MIME type stands for."""
    match mime_type.partition("/")[0].lower():
        case "image":
            return "image"
        case "audio":
            return "audio"
        case "video":
            return "video"
        case _:
            return "file"


class EventKind(StrEnum):
    """What a platform told us, after normalising."""

    MESSAGE = "message"
    EDIT = "edit"
    DELETE = "delete"
    REACTION = "reaction"
    BUTTON = "button"
    MEMBERSHIP = "membership"
    STATUS = "status"
    LIFECYCLE = "lifecycle"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class InboundEvent:
    """One normalised event of a platform, as an adapter gives it to the bridge.

    `event_key` is unique per event within a conversation: a redelivery carries the same one. That of a message is the
    message's own, so that twin events of one message are caught too. `about` is the event key of the message that an
    edit, deletion, reaction or button is about. `platform_message_id` is the message's id on the platform.

    `text` is what the agent gets, without the mention of the bot; `raw_text` is what was written, where that differs.
    Of a button it is the button's value. `addressed` is true in private chats, for mentions, replies to the bot and
    commands. `group` says that the conversation has several people, so that the agent remembers the chat and not one
    person. `skip_reason`: keep it, but do not answer, for this reason. `album`: messages with the same one are sent
    together and kept as one.

    `closes`: the bot can't be heard in this conversation any more (blocked, removed). `moved_from`: the platform gave
    this conversation a new id; it had this one. `reply_handle` is what the adapter's `acknowledge` needs.
    `sent_at` is the platform's clock and never decides order.
    """

    address: Address
    event_key: str
    user: User
    text: str
    kind: EventKind = EventKind.MESSAGE
    raw_text: str | None = None
    platform_message_id: str | None = None
    about: str | None = None
    sent_at: datetime | None = None
    attachments: Sequence[Attachment] = ()
    album: str | None = None
    addressed: bool = True
    group: bool = False
    skip_reason: str | None = None
    closes: bool = False
    moved_from: str | None = None
    reply_handle: str | None = None
    metadata: Json = field(default_factory=dict[str, Any])


class ReceiveStatus(StrEnum):
    """What became of a received message. All of them are stored, or were before."""

    ACCEPTED = "accepted"  # will be answered
    SKIPPED = "skipped"  # stored with a reason, not answered
    RECORDED = "recorded"  # kept with a message that was stored before: its edit, its deletion, more of its album
    DUPLICATE = "duplicate"  # stored before; nothing was changed
    CONFLICT = "conflict"  # the same event key was stored before with another text


class Receipt(NamedTuple):  # one for each message: see StoredMessage
    """The outcome of receiving one message. `busy_policy` is the one in force for it; a duplicate has none."""

    status: ReceiveStatus
    conversation_id: ConversationId
    session_id: SessionId
    message_id: MessageId
    seq: Seq
    reason: str | None = None
    busy_policy: BusyPolicy | None = None


@dataclass(frozen=True, slots=True)
class PendingMessage:
    """A stored inbound message that waits for its answer."""

    id: MessageId
    seq: Seq
    sender_id: str
    sender_name: str | None
    text: str
    attachments: Sequence[Attachment]
    created_at: datetime
    metadata: Json
    platform_message_id: str | None = None
    is_command: bool = False
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """A claimed turn: the right, held by the row in `turns`, to answer these messages of this conversation."""

    id: TurnId
    conversation_id: ConversationId
    session_id: SessionId
    address: Address
    user_id: str | None  # who began the session
    messages: Sequence[PendingMessage]
    metadata: Json  # the session's

    @property
    def group(self) -> bool:
        """Whether several people write here."""
        return bool(self.messages[-1].metadata.get("group"))


class StoredMessage(NamedTuple):  # many are made at once, and a tuple is made five times as fast as a dataclass
    """A message as it is kept, for reading. `status` is what became of it: of an inbound one pending, answered,
    skipped, failed or cancelled; of an outbound one stored."""

    id: MessageId
    conversation_id: ConversationId
    seq: Seq
    session_id: SessionId
    direction: Literal["inbound", "outbound"]
    status: Literal["pending", "answered", "skipped", "failed", "cancelled", "stored"]
    content_type: str
    text: str
    event_key: str | None  # of an inbound one, or of one that a program sent
    sender_id: str | None
    created_at: datetime
    attachments: Sequence[Attachment]
    metadata: Json


@dataclass(frozen=True, slots=True)
class Session:
    """One stretch of a conversation: what the agent remembers."""

    id: SessionId
    conversation_id: ConversationId
    address: Address
    user_id: str | None
    status: Literal["active", "closed", "archived"]
    mode: Literal["agent", "human"]
    created_at: datetime
    last_activity: datetime
    parent_session_id: SessionId | None
    message_count: int
    pending_since: datetime | None
    metadata: Json


class TurnOutcome(StrEnum):
    """How a turn ended. Recorded in `turns.outcome`; each has its own user-facing text."""

    ANSWERED = "answered"
    TRUNCATED = "truncated"  # the agent stopped at its length limit; the text so far was sent
    EMPTY = "empty"
    BLOCKED = "blocked"  # a guard of the agent refused
    APPROVAL = "approval"  # the agent waits for somebody to approve a tool call
    UNREACHABLE = "unreachable"
    UNAUTHORIZED = "unauthorized"  # the agent refused our credentials
    NOT_FOUND = "not_found"  # no such agent
    TIMEOUT = "timeout"
    ERROR = "error"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"

    @property
    def turn_status(self) -> Literal["done", "failed", "cancelled", "superseded"]:
        match self:
            case TurnOutcome.CANCELLED:
                return "cancelled"
            case TurnOutcome.SUPERSEDED:
                return "superseded"
            case (
                TurnOutcome.ANSWERED
                | TurnOutcome.TRUNCATED
                | TurnOutcome.EMPTY
                | TurnOutcome.BLOCKED
                | TurnOutcome.APPROVAL
            ):
                return "done"
            case _:
                return "failed"
