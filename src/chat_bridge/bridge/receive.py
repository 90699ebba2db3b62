"""Receive: store an inbound event, then let the rest of the path know. When `receive` returns, it is committed."""

from collections.abc import Mapping

from chat_bridge.bridge.claim import Workers
from chat_bridge.bridge.resolve import resolve
from chat_bridge.model import BusyPolicy, InboundEvent, Receipt, ReceiveStatus
from chat_bridge.platforms.contract import Platform
from chat_bridge.settings import Settings
from chat_bridge.storage.messages import Arrival
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import MESSAGES, log


class Receiver:
    """The door through which every platform's events come in."""

    def __init__(
        self, settings: Settings, store: Store, hot: Hot, platforms: Mapping[str, Platform], workers: Workers
    ) -> None:
        self._settings = settings
        self._store = store
        self._hot = hot
        self._platforms = platforms
        self._workers = workers

    async def receive(self, event: InboundEvent) -> Receipt:
        """Store one event and start what follows from it. Raises StorageError: the sender must try again."""
        capabilities = self._platforms[event.address.platform].capabilities
        arrival = resolve(event, self._settings, capabilities)
        receipt = await self._store.receive(arrival)
        MESSAGES.labels(event.address.platform, receipt.status.value).inc()
        log.info(
            "message.received",
            status=receipt.status.value,
            message=str(receipt.message_id),
            conversation=str(receipt.conversation_id),
            session=str(receipt.session_id),
            seq=receipt.seq,
            platform=event.address.platform,
            **({"reason": receipt.reason} if receipt.reason else {}),
            **({"text": event.text} if self._settings.log_message_text else {}),
        )
        if receipt.status in (ReceiveStatus.ACCEPTED, ReceiveStatus.SKIPPED):
            # After the commit and off the path of the acknowledgement.
            self._workers.spawn(self._after(arrival, receipt), "receive.after")
        return receipt

    async def _after(self, arrival: Arrival, receipt: Receipt) -> None:
        conversation, address = receipt.conversation_id, arrival.event.address
        if receipt.status is ReceiveStatus.ACCEPTED:
            command = arrival.event.text if arrival.content_type == "command" else None
            if command == "/stop":
                await self._workers.stop(conversation, receipt.seq, "cancelled")
            elif command is None and receipt.busy_policy is BusyPolicy.INTERRUPT:
                await self._workers.stop(conversation, receipt.seq, "superseded")
            self._workers.wake(conversation, address.platform)
        elif receipt.reason in ("busy", "queue_full"):
            await self._workers.refuse(receipt, address, receipt.reason)
        await self._hot.touch(conversation, {"type": "message", "seq": receipt.seq})
