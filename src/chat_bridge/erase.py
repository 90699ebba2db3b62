"""`chat-bridge erase`: on the command line."""

from collections.abc import Sequence
from uuid import UUID

import typer

from chat_bridge.errors import ChatBridgeError
from chat_bridge.model import Json
from chat_bridge.storage import erasure
from chat_bridge.storage.erasure import Erasure, Kind
from chat_bridge.storage.postgres import Database
from chat_bridge.transfer.progress import counted
from chat_bridge.upkeep.erasure import Eraser, Plan


async def erase(eraser: Eraser, kind: Kind, of: Json, *, sure: bool, backups: str | None) -> None:
    """Show what there is, ask, erase it, and print the receipt. Raises ChatBridgeError."""
    plan = await eraser.look(kind, of)
    if not (plan.sessions or plan.people):
        raise ChatBridgeError("there is nothing to erase: look at the id once more")
    plan.require_free()
    print(_planned(plan))
    if not sure and not typer.confirm("Erase it for good?"):
        raise ChatBridgeError("nothing was erased")
    done = await eraser.finish(await eraser.begin(kind, of))
    print("\n".join(receipt(done)))
    if backups is not None:
        print(f"backups in {backups} still have it, until they are removed; after a restore it is erased again")
    if done.finished_at is None:
        raise ChatBridgeError("not all of it could be reached; `serve` tries it again each minute")


async def reapply(eraser: Eraser) -> None:
    """Erase again what a restored backup has brought back. Raises ChatBridgeError."""
    again = await eraser.reapply()
    for each in again:
        print("\n".join(receipt(each)))
    print(f"{counted(len(again), 'erasure')} applied again")


async def show(database: Database, wanted: UUID) -> None:
    """Print a receipt. Raises ChatBridgeError."""
    found = await erasure.find(database, wanted)
    if found is None:
        raise ChatBridgeError(f"there is no erasure {wanted}")
    print("\n".join(receipt(found)))


def receipt(done: Erasure) -> Sequence[str]:
    """What was erased, in words."""
    count = {name: done.receipt.get(name, 0) for name in ("sessions", "messages", "files", "people", "threads")}
    state = f"finished {done.finished_at:%Y-%m-%d %H:%M:%S}" if done.finished_at else "not finished"
    return [
        f"erasure {done.id} of a {done.kind}, {state}",
        f"  database, cache and search: {counted(count['messages'], 'message')} of "
        f"{counted(count['sessions'], 'whole session')} and others, {count['people']} "
        f"{'person' if count['people'] == 1 else 'people'}",
        f"  files: {count['files']}",
        f"  what the agent remembers: {counted(count['threads'], 'thread')}",
        *(f"  not reached yet: {each}" for each in done.receipt.get("not_reached", ())),
    ]


def _planned(plan: Plan) -> str:
    whole = [each for each in plan.sessions if not each.others and not each.archived]
    parts = [counted(len(whole), "session")]
    if plan.shared:
        parts.append(f"{counted(plan.messages, 'message')} in {counted(len(plan.shared), 'session')} with others")
    if plan.archived:
        parts.append(counted(len(plan.archived), "archived session"))
    if plan.people:
        parts.append("the name of the person")
    return f"{', '.join(parts)}, and what belongs to them"
