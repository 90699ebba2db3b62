"""Web chat as a platform. Its clients read replies from PostgreSQL through our own API, so that "sending" one means
telling the open event streams to look."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from chat_bridge.model import Address, Attachment, ConversationId, Turn, TurnId, TurnOutcome
from chat_bridge.platforms.contract import Capabilities, NoFileError, OutboundPart, Platform, Sent, Shown

NAME = "webchat"
ACCOUNT = "default"
EDIT_SECONDS = 0.05


def address(conversation: str) -> Address:
    """The address of a web chat conversation; `conversation` is the id that its client uses."""
    return Address(NAME, ACCOUNT, conversation)


class EventSink(Protocol):
    """Where events for open pages go; losing some is allowed."""

    async def publish(self, conversation: ConversationId, event: Mapping[str, Any]) -> None: ...
    async def publish_partial(self, conversation: ConversationId, turn: TurnId, text: str, shown: int) -> None: ...
    async def end_partial(self, conversation: ConversationId, *events: Mapping[str, Any]) -> None: ...


class WebChat(Platform):
    """The adapter: see `docs/web-chat.md` for the protocol that pages speak."""

    capabilities = Capabilities(
        name=NAME, edits=True, min_edit_interval=EDIT_SECONDS, files="read", idempotent_send=True
    )
    account = ACCOUNT

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink
        self._shown: dict[TurnId, int] = {}

    async def download(self, attachment: Attachment) -> AsyncGenerator[bytes]:
        """Files are uploaded before their message, so there is nothing to fetch."""
        raise NoFileError("the upload has expired", for_good=True)
        yield b""  # makes it a generator

    async def send(self, part: OutboundPart) -> Sent:
        """The reply is stored: tell the pages to read it."""
        event = {"type": "message", "seq": part.seq}
        if part.unasked:
            await self._sink.publish(part.conversation_id, event)
        else:
            await self._sink.end_partial(part.conversation_id, event)
        return Sent(str(part.seq))

    async def show_typing(self, turn: Turn) -> None:
        """A `typing` event."""
        await self._sink.publish(turn.conversation_id, {"type": "typing", "on": True})

    async def show_partial(self, turn: Turn, text: str, preview: str | None) -> Shown:
        """A `delta` event with what is new."""
        shown = self._shown.get(turn.id, 0)
        self._shown[turn.id] = len(text)
        await self._sink.publish_partial(turn.conversation_id, turn.id, text, shown)
        return Shown(wait_seconds=EDIT_SECONDS)

    async def show_end(self, turn: Turn, outcome: TurnOutcome, text: str | None, preview: str | None) -> None:
        """An `error` event if the turn failed and said nothing, and the end of typing."""
        self._shown.pop(turn.id, None)
        events: list[Mapping[str, Any]] = [{"type": "typing", "on": False}]
        if text is not None:
            events.insert(0, {"type": "error", "turn_id": str(turn.id), "code": outcome.value, "text": text})
        await self._sink.end_partial(turn.conversation_id, *events)
