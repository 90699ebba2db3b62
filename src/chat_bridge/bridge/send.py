"""Send: messages that programs send as the bot, without anybody having asked."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from chat_bridge import tracing
from chat_bridge.bridge.deliver import Deliverer, rendered
from chat_bridge.model import Attachment, Session
from chat_bridge.platforms.contract import Platform
from chat_bridge.storage import outbox
from chat_bridge.storage.outbox import SentMessage
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import log
from chat_bridge.texts import Texts


class Sender:
    """The door through which programs send messages into conversations."""

    def __init__(self, store: Store, platforms: Mapping[str, Platform], deliverer: Deliverer, texts: Texts) -> None:
        self._store = store
        self._platforms = platforms
        self._deliverer = deliverer
        self._texts = texts

    async def send(
        self, session: Session, client_msg_id: str, text: str, uploads: Sequence[Attachment]
    ) -> SentMessage | Literal["not_active", "upload_gone", "no_adapter"]:
        """Store a message (Markdown, and uploads of the conversation), once for each `client_msg_id`, and begin to send
        it. What `outbox.store_message` says; `no_adapter`: this process can't tell in how many parts the platform takes
        it. Raises StorageError: it was not stored, or nobody knows; sending it again is always safe."""
        platform = self._platforms.get(session.address.platform)
        if platform is None:
            return "no_adapter"
        way = platform.capabilities.files
        if way == "none":
            notes = [self._texts.say("file_not_here", file=file.name or file.kind) for file in uploads]
            text = "\n\n".join([text, *notes]).strip()
        parts, sent = len(await rendered(platform, text)), uploads if way == "part" else ()
        metadata: dict[str, Any] = {"unasked": True}
        if sent:
            metadata["text_parts"] = parts
        stored = await outbox.store_message(
            self._store.database,
            session,
            client_msg_id,
            text,
            uploads,
            tracing.carried(metadata),
            max(1, parts + len(sent)),
        )
        if isinstance(stored, SentMessage) and stored.status == "stored":
            log.info("message.sent", message=str(stored.message_id), conversation=str(stored.conversation_id))
            self._deliverer.send_soon(stored.conversation_id)
        return stored
