"""Receive: store an inbound event, then let the rest of the path know. When `receive` returns, it is committed."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from chat_bridge import tracing
from chat_bridge.bridge.claim import Workers
from chat_bridge.bridge.fetch import Fetcher
from chat_bridge.bridge.resolve import Access, resolve
from chat_bridge.model import Address, BusyPolicy, ConversationId, EventKind, InboundEvent, Receipt, ReceiveStatus, Seq
from chat_bridge.platforms.contract import Platform
from chat_bridge.settings import Settings
from chat_bridge.storage import messages, sessions
from chat_bridge.storage.messages import Arrival
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import MESSAGES, RECEIVE_SECONDS, log

MAX_SEQ = 2**63 - 1


class Receiver:
    """The door through which every platform's events come in."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        hot: Hot,
        platforms: Mapping[str, Platform],
        workers: Workers,
        fetcher: Fetcher,
        access: Mapping[str, Access],
    ) -> None:
        self._settings = settings
        self._store = store
        self._hot = hot
        self._platforms = platforms
        self._workers = workers
        self._fetcher = fetcher
        self._access = access

    async def receive_all(self, events: Sequence[InboundEvent]) -> None:
        """Store events, those of a conversation in their order, and tell the platform so where it wants to know.
        Raises StorageError when one could not be stored: the platform must send them again."""
        moved = {_old_address(event): event.address for event in events if event.moved_from is not None}
        conversations: dict[Address, list[InboundEvent]] = {}
        for event in events:
            # What was said under the old id comes before the move.
            conversations.setdefault(moved.get(event.address, event.address), []).append(event)
        outcomes = await asyncio.gather(*map(self._receive_in_order, conversations.values()), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def _receive_in_order(self, events: Sequence[InboundEvent]) -> None:
        for event in events:
            if event.moved_from is not None:
                # First of all: the delivery of an answer meets the move too, and must not come between.
                await self._move(event)
        for event in events:
            await self.receive(event)
            if event.reply_handle is not None:
                platform = self._platforms[event.address.platform]
                self._workers.spawn(platform.acknowledge(event), "receive.acknowledge")

    async def receive(self, event: InboundEvent) -> Receipt:
        """Store one event and start what follows from it. Raises StorageError: the sender must try again."""
        platform = event.address.platform
        with tracing.span(f"receive {platform}", "consumer", event=event.kind), RECEIVE_SECONDS.labels(platform).time():
            return await self._receive(replace(event, metadata=tracing.carried(event.metadata)))

    async def _receive(self, event: InboundEvent) -> Receipt:
        if event.moved_from is not None:
            await self._move(event)
        elif event.group and (new := await sessions.moved_to(self._store.database, event.address)) is not None:
            # A late redelivery. Its id on the platform means another message there.
            event = replace(event, address=new, platform_message_id=None)
        if event.kind in (EventKind.EDIT, EventKind.DELETE) and (receipt := await self._edit(event)) is not None:
            self._tell(event, receipt)
            return receipt
        capabilities = self._platforms[event.address.platform].capabilities
        arrival = resolve(event, self._settings, capabilities, self._access)
        receipt = await self._store.receive(arrival)
        if event.closes:
            await self._close(event.address, receipt)
        self._tell(event, receipt)
        if receipt.status in (ReceiveStatus.ACCEPTED, ReceiveStatus.SKIPPED, ReceiveStatus.RECORDED):
            # After the commit and off the path of the acknowledgement.
            self._workers.spawn(self._after(arrival, receipt), "receive.after")
        return receipt

    def _tell(self, event: InboundEvent, receipt: Receipt) -> None:
        MESSAGES.labels(event.address.platform, receipt.status.value).inc()
        tracing.note(
            status=receipt.status,
            reason=receipt.reason,
            message=receipt.message_id,
            conversation=receipt.conversation_id,
            session=receipt.session_id,
        )
        log.info(
            "message.received",
            status=receipt.status.value,
            message=str(receipt.message_id),
            conversation=str(receipt.conversation_id),
            session=str(receipt.session_id),
            seq=receipt.seq,
            platform=event.address.platform,
            **({"kind": event.kind.value} if event.kind is not EventKind.MESSAGE else {}),
            **({"reason": receipt.reason} if receipt.reason else {}),
            **({"text": event.text} if self._settings.log_message_text else {}),
        )

    async def _after(self, arrival: Arrival, receipt: Receipt) -> None:
        conversation, address = receipt.conversation_id, arrival.event.address
        if arrival.event.attachments:
            self._fetcher.wake(conversation, address.platform)
        if receipt.status is ReceiveStatus.ACCEPTED:
            command = arrival.event.text if arrival.content_type == "command" else None
            if command == "/stop":
                await self._workers.stop(conversation, receipt.seq, "cancelled")
            elif command is None and receipt.busy_policy is BusyPolicy.INTERRUPT:
                await self._workers.stop(conversation, receipt.seq, "superseded")
            self._workers.wake(conversation, address.platform)
        elif receipt.reason in ("busy", "queue_full") and receipt.status is ReceiveStatus.SKIPPED:
            await self._workers.refuse(receipt, arrival.event, receipt.reason)
        await self._hot.touch(conversation, receipt.session_id, {"type": "message", "seq": receipt.seq})

    async def _edit(self, event: InboundEvent) -> Receipt | None:
        """Record an edit or deletion with its message. A turn that has the message, but no answer yet, begins again."""
        edited = await messages.edit(self._store.database, event)
        if edited is None:
            return None
        conversation = event.address.id
        if event.attachments and edited.changed:
            self._fetcher.wake(conversation, event.address.platform)
        # What changes all the time, as a shared position does, must not hold up its answer.
        if edited.changed and edited.waiting and not event.metadata.get("live"):
            await self._workers.stop(conversation, Seq(edited.seq + 1), "superseded", holding=edited.seq)
            self._workers.wake(conversation, event.address.platform)
        status = ReceiveStatus.RECORDED if edited.changed else ReceiveStatus.DUPLICATE
        return Receipt(status, conversation, edited.session_id, edited.message_id, edited.seq)

    async def _move(self, event: InboundEvent) -> None:
        old, new = _old_address(event), event.address
        if not await sessions.move(self._store.database, old, new):
            return
        for where in (old.id, new.id):
            await self._hot.forget_session(where)
        log.info("conversation.moved", conversation=str(old.id), to=str(new.id))
        if self._access.get(new.platform, Access()).names_group(old.conversation):
            log.warning("access.group_moved", old=old.conversation, new=new.conversation, effect="put in the new id")
        await self._workers.stop(old.id, Seq(MAX_SEQ), "lost")
        for where in (new.id, old.id):  # where the new id was in use already, what waits stays
            self._workers.wake(where, new.platform)

    async def _close(self, address: Address, receipt: Receipt) -> None:
        """Close what the bot can't be heard in any more: a chat with all its threads. A late redelivery closes
        nothing, for the chat may have gone on since."""
        newest = await self._store.history(receipt.conversation_id, limit=1)
        if newest and newest[-1].seq > receipt.seq:
            return
        for session, conversation in await sessions.active_in(self._store.database, address):
            await sessions.close_session(self._store.database, session)
            await self._hot.forget_session(conversation)
            log.info("session.closed", session=str(session), conversation=str(conversation), reason="unreachable")
            await self._stop_work(conversation)

    async def _stop_work(self, conversation: ConversationId) -> None:
        for newest in await self._store.history(conversation, limit=1):
            await self._workers.stop(conversation, Seq(newest.seq + 1), "lost")


def _old_address(event: InboundEvent) -> Address:
    return replace(event.address, conversation=event.moved_from or event.address.conversation)
