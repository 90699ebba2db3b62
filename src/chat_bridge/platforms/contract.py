"""The contract between the bridge and a chat platform.

An adapter turns a platform's events into `InboundEvent`s and replies into calls of its API. It knows nothing of
storage: what it is given is stored already, and what it gives is stored before the platform hears that we have it.
`docs/platforms/writing-an-adapter.md` walks through one.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

from chat_bridge.errors import ChatBridgeError
from chat_bridge.model import (
    Address,
    Attachment,
    BusyPolicy,
    ConversationId,
    InboundEvent,
    MessageId,
    Seq,
    Turn,
    TurnOutcome,
)
from chat_bridge.platforms.rich_text import Rendered, plain_parts


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a platform can do, fixed per platform.

    `max_text` is the longest text of one part, in `text_unit`. `coalesce_seconds` is how long the first message waits
    for more before a turn starts. `edits`: a sent message can be changed, so that an answer can be shown as it grows,
    each `min_edit_interval` seconds at most. `typing_seconds`: how often typing must be shown again, 0 for once.
    `buttons`: replies may carry some. `files`: each of a reply's files is a `part` of its own; or it is `read` from the
    store with the reply, so that none is sent; or there are none, and the text says that there is one.
    `idempotent_send` says that sending the same part again with the same key does nothing, so that a lost answer may be
    repeated. `webhook`: it calls us, and `events` understands it.
    """

    name: str
    max_text: int | None = None
    text_unit: Literal["characters", "utf16"] = "characters"
    coalesce_seconds: float = 0.0
    edits: bool = False
    min_edit_interval: float = 0.0
    typing_seconds: float = 0.0
    buttons: bool = False
    files: Literal["none", "part", "read"] = "none"
    groups: bool = False
    threads: bool = False
    idempotent_send: bool = False
    webhook: bool = False
    busy_policy: BusyPolicy | None = None


@dataclass(frozen=True, slots=True)
class WebhookRequest:
    """What a platform sent us over HTTP. Names of headers are in lower case."""

    headers: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes


class NotAuthenticError(ChatBridgeError):
    """A webhook request does not prove that it comes from the platform."""


class NotReadyError(ChatBridgeError):
    """The platform can't be understood yet, for it could not be reached since the start; it must send again."""


class MisconfiguredError(ChatBridgeError):
    """The platform refuses what the operator set; the message says which setting and what to do."""


class UnreachableError(ChatBridgeError):
    """The platform does not answer at the moment."""


class NoFileError(ChatBridgeError):
    """A file can't be had from the platform: `for_good`, or perhaps later, after `retry_after` seconds if the platform
    wants us to wait. The message says why, for the people who talk; `detail`, for the log, is the operator's business.
    """

    def __init__(self, reason: str, *, for_good: bool, retry_after: float | None = None, detail: str = "") -> None:
        super().__init__(reason)
        self.for_good = for_good
        self.retry_after = retry_after
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Button:
    """A choice under a reply. `value` comes back as the text of a button event."""

    label: str
    value: str


@dataclass(frozen=True, slots=True)
class OutboundFile:
    """A file to send, as its bytes say: `size` in bytes, `width` and `height` of an image in pixels. `name` is never
    empty, and without folders and control characters. `content` stands at its first byte, and can be read again from
    there; the bridge closes it."""

    kind: Literal["image", "audio", "video", "file"]
    mime_type: str
    name: str
    size: int
    content: BinaryIO
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class OutboundPart:
    """One sendable part of a stored reply: of its text, then each `file`, which has no `content`. `idempotency_key` is
    the same at every try.

    `reply_to` is the platform's id of the message to quote, on the first part and in groups only. `buttons` are on the
    last part of the text only. `replaces` is the platform's id of a message that showed this answer as it grew: it
    becomes this part, so that sending again changes nothing. `unasked`: a program sent it, so it ends no answer that is
    being shown.
    """

    conversation_id: ConversationId
    address: Address
    message_id: MessageId
    seq: Seq
    part: int
    content: Rendered
    idempotency_key: str
    reply_to: str | None = None
    buttons: Sequence[Button] = ()
    replaces: str | None = None
    file: OutboundFile | None = None
    unasked: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """The platform has it, now or (`duplicate`) from an earlier try."""

    platform_message_id: str
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Not sent: the platform wants us to wait, with this conversation or with everything of this account."""

    seconds: float
    error: str
    scope: Literal["conversation", "account"] = "conversation"


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Not sent for now, for a reason that may pass. `maybe_sent`: the answer was lost, and if the part is sent again
    the user may get it twice; so not for a change of a message, which can be repeated."""

    error: str
    maybe_sent: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """Not sent: the conversation has a new id on the platform."""

    conversation: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The platform will never take it: only this part, or (`conversation`) nothing in this conversation any more.
    `error` is for the operator."""

    error: str
    scope: Literal["part", "conversation"] = "part"


@dataclass(frozen=True, slots=True)
class RefusedUs:
    """Not sent: a setting is wrong (a key, a right). It is kept until the operator has mended it."""

    error: str


SendResult = Sent | RetryAfter | RetryLater | Moved | Refused | RefusedUs


@dataclass(frozen=True, slots=True)
class Shown:
    """What came of showing an unfinished answer. `preview` is the platform's id of the message that shows it, if one
    does; the next text may come after `wait_seconds`. `again`: call then also if there is no new text."""

    preview: str | None = None
    wait_seconds: float = 0.0
    again: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `chat-bridge doctor`: what was looked at, how it is, and what to do."""

    subject: str
    status: Literal["ok", "warning", "problem"]
    text: str


Deliver = Callable[[Sequence[InboundEvent]], Awaitable[None]]
"""Stores events. When it returns, they are committed; it raises StorageError when the platform must send again."""


class Platform(ABC):
    """A chat platform as the bridge sees it. Only `capabilities`, `account` and `send` must be there."""

    capabilities: Capabilities
    account: str
    """Which of our accounts on the platform (the bot's id, the phone number's id): part of every address."""

    polls: bool = False
    """Whether events come by `poll`; else by webhook, if the capabilities say so."""

    async def connect(self) -> None:
        """Make ready to take events: who are we, where shall they be sent. Called once at the start, and again while
        it raises UnreachableError. Raises MisconfiguredError, which stops the bridge."""

    def events(self, request: WebhookRequest) -> Sequence[InboundEvent]:
        """The events in a webhook request. Never fails for what is in an authentic one: what can't be understood is
        an event of kind unknown. Raises NotAuthenticError, NotReadyError."""
        raise NotImplementedError

    async def poll(self, deliver: Deliver) -> None:
        """Fetch events and deliver them, for ever; in one process of all at a time. The platform may forget an event
        only after `deliver` has returned."""
        raise NotImplementedError

    async def acknowledge(self, event: InboundEvent) -> None:
        """An event is stored: tell the platform what it wants to hear then. Best effort."""

    def render(self, text: str) -> Sequence[Rendered]:
        """An answer, in Markdown, as the parts that will be sent, in order; the same text always gives the same
        parts, and a text that is not blank at least one."""
        return plain_parts(text, self.capabilities.max_text, self.capabilities.text_unit)

    async def download(self, attachment: Attachment) -> AsyncGenerator[bytes]:
        """The bytes of a file that a message has, piece by piece. The bridge limits size and time, and closes the
        generator. Raises NoFileError."""
        raise NoFileError("files of this platform can't be fetched", for_good=True)
        yield b""  # which makes it a generator

    @abstractmethod
    async def send(self, part: OutboundPart) -> SendResult:
        """Send one part. Raises nothing for what a platform may answer."""

    async def show_typing(self, turn: Turn) -> None:
        """Show that an answer is being written; called again each `typing_seconds`. Best effort."""

    async def show_partial(self, turn: Turn, text: str, preview: str | None) -> Shown:
        """Show the answer so far (the whole text, not the difference), in `preview` if there is one. Best effort."""
        return Shown(preview, 60.0)

    async def show_end(self, turn: Turn, outcome: TurnOutcome, text: str | None, preview: str | None) -> None:
        """The turn has ended and its reply, if any, was sent. `text` is what a failed turn would have said if the
        user had not been told within the last minute. `preview` is one that became no reply. Best effort."""

    def describe(self) -> str | None:
        """Where people find the bot, for the start message."""

    async def check(self) -> Sequence[Finding]:
        """Look at the account's set-up, for `chat-bridge doctor`."""
        return ()

    async def aclose(self) -> None:
        """Give back connections."""


MakePlatform = Callable[[Mapping[str, str]], Platform]
"""What the entry point of an adapter names (group `chat_bridge.platforms`): it is given the environment variables and
what `.env` holds. Raises SettingsError."""
