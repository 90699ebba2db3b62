"""What an inbound event is to the bridge: a message, a command, or something to keep without answering."""

from dataclasses import replace

from chat_bridge.model import BusyPolicy, EventKind, InboundEvent
from chat_bridge.platforms.contract import Capabilities
from chat_bridge.settings import Settings
from chat_bridge.storage.messages import Arrival

COMMANDS = frozenset({"/start", "/help", "/new", "/stop", "/status"})


def resolve(event: InboundEvent, settings: Settings, capabilities: Capabilities) -> Arrival:
    """Decide how an event is stored. Nothing is dropped: what is not answered is kept with a reason."""
    policy = capabilities.busy_policy or settings.busy_policy
    if event.kind is not EventKind.MESSAGE:
        return Arrival(event, "event", skip_reason=f"kind:{event.kind}")
    if not event.addressed:
        return Arrival(event, skip_reason="not_addressed")
    if not event.text.strip() and not event.attachments:
        return Arrival(event, skip_reason="empty")
    command = command_in(event.text)
    if command is None:
        return Arrival(event, busy_policy=policy, queue_cap=settings.queue_cap)
    if command != event.text:
        event = replace(event, text=command, metadata={**event.metadata, "raw_text": event.text})
    return Arrival(event, "command")


def command_in(text: str) -> str | None:
    """The command a text gives to the bridge; `/start` may carry a parameter, the others stand alone."""
    words = text.split(maxsplit=1)
    if not words or words[0].lower() not in COMMANDS:
        return None
    word = words[0].lower()
    return word if len(words) == 1 or word == "/start" else None


def busy_policy(settings: Settings, capabilities: Capabilities) -> BusyPolicy:
    """The policy in force on a platform; a session's own is applied where its row is read."""
    return capabilities.busy_policy or settings.busy_policy
