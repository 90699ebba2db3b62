"""What an inbound event is to the bridge: a message, a command, or something to keep without answering."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from chat_bridge.model import BusyPolicy, EventKind, InboundEvent
from chat_bridge.platforms.contract import Capabilities
from chat_bridge.settings import Settings
from chat_bridge.storage.messages import Arrival

DECISIONS = frozenset({"/approve", "/decline"})
COMMANDS = frozenset({"/start", "/help", "/new", "/stop", "/status"}) | DECISIONS
WITH_PARAMETER = DECISIONS | {"/start"}


@dataclass(frozen=True, slots=True)
class Access:
    """Whom the bot answers on a platform. Groups by their id, people by their id or @name; an empty `allow` list
    allows all. `groups`: in groups it answers when addressed, always or never."""

    groups: Literal["mention", "always", "never"] = "mention"
    allow_groups: frozenset[str] = frozenset()
    deny_groups: frozenset[str] = frozenset()
    allow_users: frozenset[str] = frozenset()
    deny_users: frozenset[str] = frozenset()

    def names_group(self, group: str) -> bool:
        """Whether one of the lists has this id."""
        return group in self.allow_groups | self.deny_groups

    def refusal(self, event: InboundEvent) -> str | None:
        """Why this event is not answered; None: it may be."""
        user = {event.user.id, f"@{event.user.username or ''}".lower()}
        if self.deny_users & user or (self.allow_users and not self.allow_users & user):
            return "user_not_allowed"
        if not event.group:
            return None
        group = event.address.conversation
        if group in self.deny_groups or (self.allow_groups and group not in self.allow_groups):
            return "group_not_allowed"
        if self.groups == "never":
            return "groups_off"
        return None if event.addressed or self.groups == "always" else "not_addressed"


def resolve(
    event: InboundEvent, settings: Settings, capabilities: Capabilities, access: Mapping[str, Access]
) -> Arrival:
    """Decide how an event is stored. Nothing is dropped: what is not answered is kept with a reason."""
    refusal = event.skip_reason or access.get(capabilities.name, Access()).refusal(event)
    command = command_in(event.text)
    if event.kind is EventKind.BUTTON and command in DECISIONS and refusal is None:
        return _command(event, command)
    if event.kind is not EventKind.MESSAGE:
        return Arrival(event, "event", skip_reason=f"kind:{event.kind}")
    if refusal is not None:
        return Arrival(event, skip_reason=refusal)
    # A bare mention in a group means what was said before, or what it replies to.
    if not event.text.strip() and not event.attachments and not event.group:
        return Arrival(event, skip_reason="empty")
    if command is not None:
        return _command(event, command)
    return Arrival(event, busy_policy=busy_policy(settings, capabilities), queue_cap=settings.queue_cap)


def _command(event: InboundEvent, command: str) -> Arrival:
    written = event.text if event.raw_text is None else event.raw_text
    words = event.text.split(maxsplit=1)
    metadata = {**event.metadata, "parameter": words[1]} if len(words) > 1 else event.metadata
    return Arrival(replace(event, text=command, raw_text=written, metadata=metadata), "command")


def command_in(text: str) -> str | None:
    """The command a text gives to the bridge; some may carry a parameter, the others stand alone."""
    words = text.split(maxsplit=1)
    if not words or words[0].lower() not in COMMANDS:
        return None
    word = words[0].lower()
    return word if len(words) == 1 or word in WITH_PARAMETER else None


def busy_policy(settings: Settings, capabilities: Capabilities) -> BusyPolicy:
    """The policy in force on a platform; a session's own is applied where its row is read."""
    return capabilities.busy_policy or settings.busy_policy
