"""`chat-bridge dlq`: dead letters on the command line."""

import json
from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from chat_bridge.errors import ChatBridgeError
from chat_bridge.explain import told
from chat_bridge.model import MessageId, Seq
from chat_bridge.storage import dead_letters, messages
from chat_bridge.storage.dead_letters import NEWEST, DeadLetter
from chat_bridge.storage.store import Store
from chat_bridge.storage.story import tell_story

PAGE = 500


async def show_list(store: Store, platform: str | None, limit: int, *, as_json: bool) -> None:
    """Print dead letters, newest first."""
    found = await dead_letters.list_dead_letters(store.database, platform=platform, limit=limit)
    for letter in found:
        print(_as_json(letter) if as_json else _as_line(letter))
    if not found and not as_json:
        print("there are no dead letters")


async def show_one(store: Store, message: MessageId) -> None:
    """Print the story of a message and its text. Raises ChatBridgeError."""
    story = await tell_story(store.database, message)
    if story is None:
        raise ChatBridgeError(f"there is no message {message}")
    print("\n".join(told(story)))
    seq: int = story.message["seq"]
    for stored in await messages.history(
        store.database, story.message["conversation_id"], before=Seq(seq + 1), limit=1
    ):
        print(f"text\n{stored.text}")


async def handle(
    store: Store, what: Literal["retry", "purge"], ids: Sequence[UUID] | None, platform: str | None, *, everything: bool
) -> None:
    """Retry or purge these dead letters, or all (of a platform). Raises ChatBridgeError."""
    if bool(ids) == everything:
        raise ChatBridgeError(f"name the ids to {what}, or --all")
    if ids and platform:
        raise ChatBridgeError("--platform goes with --all")
    wanted = [MessageId(each) for each in dict.fromkeys(ids)] if ids else await _all(store, platform)
    missing = [message for message in wanted if not await _handle(store, what, message)]
    done = len(wanted) - len(missing)
    print(f"{done} will be tried again within seconds, if the bridge runs" if what == "retry" else f"{done} laid aside")
    if ids and missing:
        raise ChatBridgeError("no dead letters: " + ", ".join(str(message) for message in missing))


async def _handle(store: Store, what: Literal["retry", "purge"], message: MessageId) -> bool:
    if what == "retry":
        return await dead_letters.retry(store, message)
    return await dead_letters.purge(store.database, message)


async def _all(store: Store, platform: str | None) -> Sequence[MessageId]:
    found: dict[MessageId, None] = {}
    after = NEWEST
    while page := await dead_letters.list_dead_letters(store.database, platform=platform, after=after, limit=PAGE):
        found |= dict.fromkeys(letter.message_id for letter in page)
        after = page[-1].place
    return list(found)


def _as_line(letter: DeadLetter) -> str:
    part = f" part {letter.part}" if letter.kind == "reply" else ""
    return (
        f"{letter.message_id}  {letter.died_at:%Y-%m-%d %H:%M:%S}  {letter.address.platform:<10}  "
        f"{letter.kind}{part} {letter.status}: {letter.reason or 'no reason was given'}"
    )


def _as_json(letter: DeadLetter) -> str:
    return json.dumps(
        {
            "id": str(letter.message_id),
            "kind": letter.kind,
            "part": letter.part,
            "status": letter.status,
            "died_at": letter.died_at.isoformat(),
            "attempts": letter.attempts,
            "reason": letter.reason,
            "conversation_id": str(letter.conversation_id),
            "platform": letter.address.platform,
            "account": letter.address.account,
            "conversation": letter.address.conversation,
            "thread": letter.address.thread,
        }
    )
