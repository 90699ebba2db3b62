"""Uploads that no message has yet: a conversation keeps the newest of them."""

from chat_bridge.model import AttachmentId, ConversationId
from chat_bridge.storage.postgres import Database


async def forget_old(
    database: Database, conversation: ConversationId, most_files: int, most_bytes: int, largest: int
) -> int:
    """Forget the oldest that are too many, or too large together, how many those were. `largest` is what one counts
    that is coming in without its size."""
    row = await database.fetch_one("forget_old_uploads", conversation, largest, most_files, most_bytes)
    assert row is not None
    return row["forgotten"]


async def forget(database: Database, conversation: ConversationId, upload: AttachmentId) -> bool:
    """Forget one. False: there is none, or a message has it."""
    return await database.fetch_one("forget_upload", conversation, upload) is not None
