"""`chat-bridge retention` and `chat-bridge hold`: the life of data on the command line."""

import sys
from collections.abc import Callable

from chat_bridge.errors import ChatBridgeError
from chat_bridge.model import ConversationId
from chat_bridge.policies import Policies, load_policies
from chat_bridge.settings import Settings
from chat_bridge.storage import retention
from chat_bridge.storage.postgres import Database
from chat_bridge.transfer.progress import Progress, counted
from chat_bridge.upkeep.retention import Effect, Retention

NOTHING_SET = "the settings keep everything for ever: RETENTION_DAYS, ATTACHMENT_RETENTION_DAYS, RETENTION_POLICIES"


async def show_plan(database: Database, settings: Settings) -> None:
    """Print what would go. Raises ChatBridgeError."""
    progress = Progress(sys.stderr)
    effect = await Retention(database, _policies(settings), None, "plan").plan(_telling(progress))
    progress.end()
    print("\n".join(_lines(effect, "would go")))
    print("people of whom nothing was heard, and sessions of which nothing is left, go too")


async def run_now(database: Database, settings: Settings) -> None:
    """Delete it. Raises ChatBridgeError."""
    progress = Progress(sys.stderr)
    effect = await Retention(database, _policies(settings), None, "retention").once(_telling(progress))
    progress.end()
    print("\n".join(_lines(effect, "deleted")))
    print(f"{counted(effect.sessions, 'session')} and {_people(effect.people)} deleted with them")


async def add_hold(database: Database, conversation: ConversationId, reason: str) -> None:
    """Put a conversation on hold. Raises ChatBridgeError."""
    if not reason.strip():
        raise ChatBridgeError("--reason: say why; whoever finds the hold will want to know")
    await retention.hold(database, conversation, reason.strip())
    if not any(each.address for each in await retention.holds(database) if each.conversation_id == conversation):
        print("there is nothing of this conversation now; what comes will be kept")
    print(f"{conversation} is on hold: nothing of it is deleted")


async def lift_hold(database: Database, conversation: ConversationId) -> None:
    """Lift a hold. Raises ChatBridgeError."""
    if not await retention.lift_hold(database, conversation):
        raise ChatBridgeError(f"{conversation} is not on hold")
    print(f"{conversation} is not on hold any more")


async def list_holds(database: Database) -> None:
    """Print all holds."""
    there = await retention.holds(database)
    for each in there:
        where = f"{each.address.platform} {each.address.conversation}" if each.address else "nothing is there"
        print(f"{each.conversation_id}  {each.since:%Y-%m-%d}  {where}: {each.reason}")
    if not there:
        print("nothing is on hold")


def _policies(settings: Settings) -> Policies:
    policies = load_policies(settings)
    if policies.keeps_all:
        raise ChatBridgeError(NOTHING_SET)
    return policies


def _telling(progress: Progress) -> Callable[[Effect], None]:
    return lambda effect: progress.count(effect.conversations, effect.messages.total(), "conversation")


def _lines(effect: Effect, what: str) -> list[str]:
    lines: list[str] = []
    for policy in sorted(policy for policy, number in (effect.messages + effect.files).items() if number):
        sizes = effect.message_bytes[policy], effect.file_bytes[policy]
        messages, files = (f" ({size / 1e6:,.1f} MB)" if size else "" for size in sizes)
        lines.append(
            f"{policy}: {counted(effect.messages[policy], 'message')}{messages} and "
            f"{counted(effect.files[policy], 'file')}{files} {what}"
        )
    held = f", {effect.held:,} of them on hold" if effect.held else ""
    return [*(lines or [f"nothing {what}"]), f"{counted(effect.conversations, 'conversation')} looked at{held}"]


def _people(number: int) -> str:
    return f"{number:,} {'person' if number == 1 else 'people'}"
