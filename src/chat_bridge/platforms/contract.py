"""The contract between the bridge and a chat platform."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from chat_bridge.model import Address, BusyPolicy, ConversationId, MessageId, Seq, Turn, TurnOutcome


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a platform can do, fixed per platform.

    `coalesce_seconds` is how long
    the first message waits for more before a turn starts. `idempotent_send` says that sending the same part again
    with the same key does nothing, so that a lost answer may be repeated.
    """

    name: str
    coalesce_seconds: float = 0.0
    min_edit_interval: float = 0.0
    typing_seconds: float = 0.0
    idempotent_send: bool = False
    busy_policy: BusyPolicy | None = None


@dataclass(frozen=True, slots=True)
class OutboundPart:
    """One sendable part of a stored reply. `idempotency_key` is the same at every try."""

    conversation_id: ConversationId
    address: Address
    message_id: MessageId
    seq: Seq
    part: int
    text: str
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Sent:
    """The platform has it."""

    platform_message_id: str


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Not sent for now. `maybe_sent`: the answer was lost, so the user may have it already."""

    after_seconds: float | None
    error: str
    maybe_sent: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The platform will never take it; `error` is for the operator."""

    error: str


SendResult = Sent | RetryLater | Refused


class Platform(Protocol):
    """A chat platform as the bridge sees it."""

    @property
    def capabilities(self) -> Capabilities: ...

    def split(self, text: str) -> Sequence[str]:
        """The text as the parts that will be sent, in order; the same text always gives the same parts."""
        ...

    async def send(self, part: OutboundPart) -> SendResult:
        """Send one part. Raises nothing for what a platform may answer."""
        ...

    async def show_typing(self, turn: Turn) -> None:
        """Show that an answer is being written; called again each `typing_seconds`. Best effort."""
        ...

    async def show_partial(self, turn: Turn, text: str) -> None:
        """Show the answer so far (the whole text, not the difference). Best effort."""
        ...

    async def show_end(self, turn: Turn, outcome: TurnOutcome, text: str | None) -> None:
        """The turn has ended and its reply, if any, was sent. `text` is what a failed turn would have said if the
        user had not been told within the last minute. Best effort."""
        ...
