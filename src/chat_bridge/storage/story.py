"""The story of one message, for `chat-bridge explain`: what came in, who answered, what was sent, when and why."""

from collections.abc import Sequence
from dataclasses import dataclass

from chat_bridge.model import MessageId
from chat_bridge.storage.postgres import Database, Record


@dataclass(frozen=True, slots=True)
class Story:
    """The rows of a message: itself, the turns that took it (or, of a reply, wrote it), the replies and deliveries."""

    message: Record
    turns: Sequence[Record]
    replies: Sequence[Record]


async def tell_story(database: Database, message: MessageId) -> Story | None:
    """The story of a message, inbound or outbound; None when there is no such message."""
    row = await database.fetch_one("find_message", message)
    if row is None:
        return None
    conversation = row["conversation_id"]
    if row["direction"] == "inbound":
        turns = await database.fetch("turns_of_message", conversation, row["seq"])
    else:
        turns = await database.fetch("turn", conversation, row["turn_id"])
    replies = [
        reply
        for turn in turns
        for reply in await database.fetch("replies_of_turn", conversation, turn["id"], turn["first_seq"])
    ]
    return Story(row, turns, replies)
