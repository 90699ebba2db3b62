"""The recovery sweep: turns whose worker died, messages nobody is on, deliveries left behind.

Wake-ups are hints; this is the promise. It is silent when there is nothing to do.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from chat_bridge.errors import StorageError
from chat_bridge.model import ConversationId
from chat_bridge.storage import turns
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import RECOVERED, log

SWEEP_SECONDS = 5.0


class Sweep:
    """Looks for work without a worker, every few seconds: `wake` puts a worker on a conversation, `redeliver` begins to
    send what is due and says how many that were. `accounts` (platform, account) are served here."""

    def __init__(
        self,
        store: Store,
        *,
        wake: Callable[[ConversationId, str], None],
        redeliver: Callable[[], Awaitable[int]],
        accounts: Sequence[tuple[str, str]],
    ) -> None:
        self._store = store
        self._wake = wake
        self._redeliver = redeliver
        self._accounts = accounts

    async def run(self, *, alone: bool) -> None:
        """Sweep for ever. `alone`: no other process can use this database, so that at the start every running turn is
        one of a dead process and its lease need not run out first."""
        while True:
            try:
                all_owners, alone = alone, False  # a second time it would take our own turns away
                await self.once(all_owners=all_owners)
            except StorageError as error:
                log.warning("sweep.failed", reason=str(error))
            await asyncio.sleep(SWEEP_SECONDS)

    async def once(self, *, all_owners: bool = False) -> None:
        """One sweep. Raises StorageError."""
        freed = await turns.recover(self._store.database, all_owners=all_owners)
        if freed:
            RECOVERED.labels("turn").inc(len(freed))
            log.info("sweep.freed_turns", count=len(freed))
        for conversation, platform in await turns.find_pending(self._store.database, self._accounts):
            self._wake(conversation, platform)
        if taken := await self._redeliver():
            RECOVERED.labels("delivery").inc(taken)
