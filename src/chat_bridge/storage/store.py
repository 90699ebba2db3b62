"""The store: every read and write of the bridge on one database, with concurrent calls sharing statements.

This is the door for programs that use the storage as a library; the bridge itself goes through it too.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Self

from chat_bridge.model import ConversationId, Receipt, ReceiveStatus, Seq, StoredMessage, Turn
from chat_bridge.storage import messages, outbox, sessions, turns
from chat_bridge.storage.batch import Batch
from chat_bridge.storage.messages import Arrival
from chat_bridge.storage.migrate import migrate
from chat_bridge.storage.outbox import Delivery, DeliveryResult
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.turns import Completed, Completion, Wish


class Store:
    """Sessions, messages, turns and deliveries of one database. `owner` names this process in the turns it holds.

    `session_end` tells for now since when nothing must have happened in a session for the conversation's next message
    to open another; None: a session goes on for ever.
    """

    def __init__(
        self,
        database: Database,
        *,
        owner: str,
        lease_seconds: float = 30.0,
        session_end: Callable[[datetime], datetime] | None = None,
    ) -> None:
        self.database = database
        self.owner = owner
        self.lease_seconds = lease_seconds
        self._session_end = session_end
        self._receive = Batch[Arrival, Receipt](
            self._receive_batch,
            key=lambda arrival: arrival.event.address.id,
            twin=lambda arrival: (arrival.event.address.id, messages.stored_key(arrival.event)),
        )
        self._claim = Batch[Wish, Turn | None](
            self._claim_batch, key=lambda wish: wish.conversation_id, twin=lambda wish: wish.conversation_id
        )
        self._complete = Batch[Completion, Completed | None](
            self._complete_batch,
            key=lambda completion: completion.turn.conversation_id,
            twin=lambda completion: completion.turn.conversation_id,
        )
        self._finish = Batch[DeliveryResult, Delivery | None](
            self._finish_batch,
            key=lambda result: result.delivery.conversation_id,
            twin=lambda result: result.delivery.conversation_id,
        )

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        dsn: str,
        *,
        owner: str = "library",
        lease_seconds: float = 30.0,
        pool_size: int = 10,
        pgbouncer: bool = False,
        migrate_schema: bool = True,
        session_end: Callable[[datetime], datetime] | None = None,
    ) -> AsyncGenerator[Self]:
        """Connect, and bring the schema up to date. Raises StorageError, SchemaError."""
        if migrate_schema:
            await migrate(dsn)
        async with Database.open(dsn, pool_size=pool_size, pgbouncer=pgbouncer) as database:
            store = cls(database, owner=owner, lease_seconds=lease_seconds, session_end=session_end)
            try:
                yield store
            finally:
                await store.drain()

    async def drain(self) -> None:
        """Wait until every statement under way has ended."""
        for batch in (self._receive, self._claim, self._complete, self._finish):
            await batch.drain()

    async def receive(self, arrival: Arrival) -> Receipt:
        """Store an inbound message; when this returns, it is committed. Raises StorageError: it was not stored, or
        nobody knows; receiving it again is always safe."""
        messages.require_storable(arrival)
        if arrival.event.album is None:
            return await self._receive.submit(arrival)
        return await self._receive_in_album(arrival)

    async def _receive_in_album(self, arrival: Arrival) -> Receipt:
        outcome = await messages.add_to_album(self.database, arrival)
        if outcome == "first":
            receipt = await self._receive.submit(messages.in_album(arrival))
            if receipt.status not in (ReceiveStatus.DUPLICATE, ReceiveStatus.CONFLICT):
                return receipt
            # Another part of the album was first after all, or the album had just gone to another session.
            outcome = await messages.add_to_album(self.database, arrival)
        return outcome if isinstance(outcome, Receipt) else await self._receive.submit(arrival)

    async def claim(self, wish: Wish) -> Turn | None:
        """Take the right to answer what waits in a conversation. None: nothing waits, or another turn is running."""
        return await self._claim.submit(wish)

    async def complete(self, completion: Completion, *, follow_with_new_session: bool = False) -> Completed | None:
        """End a turn: reply, outbox and cursor in one commit. None: the turn was not ours any more; nothing changed.

        `follow_with_new_session`: close the session with this turn and open the next one.
        """
        if not follow_with_new_session:
            return await self._complete.submit(completion)
        async with self.database.transaction() as transaction:
            (completed,) = await turns.complete(transaction, [completion])
            if completed is not None:
                turn = completion.turn
                await sessions.rotate(transaction, turn.conversation_id, turn.session_id, turn.messages[-1].seq)
            return completed

    async def finish_delivery(self, result: DeliveryResult) -> Delivery | None:
        """Record what a platform answered. The conversation's next delivery, if there is one and this one is final, is
        the caller's to send."""
        return await self._finish.submit(result)

    async def history(
        self, conversation: ConversationId, *, before: Seq | None = None, limit: int = 50
    ) -> Sequence[StoredMessage]:
        """The newest messages (or those before a seq), oldest first; without those in archives, which `Transcripts`
        has too."""
        return await messages.history(self.database, conversation, before=before, limit=limit)

    async def _receive_batch(self, arrivals: Sequence[Arrival]) -> Sequence[Receipt]:
        if self._session_end is not None:
            coming = [(arrival.event.address.id, messages.stored_key(arrival.event)) for arrival in arrivals]
            await sessions.rotate_ended(self.database, coming, self._session_end(datetime.now(UTC)))
        return await messages.receive(self.database, arrivals)

    async def _claim_batch(self, wishes: Sequence[Wish]) -> Sequence[Turn | None]:
        return await turns.claim(self.database, wishes, owner=self.owner, lease_seconds=self.lease_seconds)

    async def _complete_batch(self, completions: Sequence[Completion]) -> Sequence[Completed | None]:
        return await turns.complete(self.database, completions)

    async def _finish_batch(self, results: Sequence[DeliveryResult]) -> Sequence[Delivery | None]:
        return await outbox.finish_deliveries(self.database, results)
