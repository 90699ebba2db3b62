"""The recovery sweep: turns whose worker died, messages nobody is on, deliveries and files left behind.

Wake-ups are hints; this is the promise. Of all processes one sweeps an account at a time, and is silent when there is
nothing to do.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from uuid_utils.compat import uuid7

from chat_bridge.errors import StorageError
from chat_bridge.model import ConversationId
from chat_bridge.storage import leases, turns
from chat_bridge.storage.store import Store
from chat_bridge.storage.turns import SetAside
from chat_bridge.telemetry import RECOVERED, log

SWEEP_SECONDS = 5.0
LEASE_SECONDS = 2 * SWEEP_SECONDS  # then another process sweeps, or after the lease of a turn if that is shorter


class Sweep:
    """Looks for work without a worker, every few seconds: `rescue` puts a worker on a conversation, `redeliver` begins
    to send what is due and says how many that were, `refetch` to fetch files, `apologise` tells the user of a message
    that was set aside.
    `accounts` (platform, account) are served here. `alone`: no other process can use this database, so that there is
    nobody to agree with, and at the start every running turn is one of a dead process and its lease need not run out
    first."""

    def __init__(
        self,
        store: Store,
        *,
        rescue: Callable[[ConversationId, str], None],
        redeliver: Callable[[Sequence[tuple[str, str]]], Awaitable[int]],
        refetch: Callable[[Sequence[tuple[str, str]]], Awaitable[None]],
        apologise: Callable[[SetAside], None],
        accounts: Sequence[tuple[str, str]],
        alone: bool,
    ) -> None:
        self._store = store
        self._rescue = rescue
        self._redeliver = redeliver
        self._refetch = refetch
        self._apologise = apologise
        self._accounts = {f"sweep:{platform}:{account}": (platform, account) for platform, account in accounts}
        self._alone = alone
        self._seconds = min(LEASE_SECONDS, store.lease_seconds)
        self._owner = f"{store.owner}:{uuid7()}"

    async def run(self) -> None:
        """Sweep for ever."""
        first = True
        try:
            while True:
                try:
                    all_owners, first = first and self._alone, False  # later it would take our own turns away
                    await self.once(all_owners=all_owners)
                except StorageError as error:
                    log.warning("sweep.failed", reason=str(error))
                await asyncio.sleep(SWEEP_SECONDS)
        finally:
            await self._release()

    async def once(self, *, all_owners: bool = False) -> None:
        """One sweep of the accounts that no other process sweeps. Raises StorageError."""
        database = self._store.database
        accounts = await self._ours()
        if not accounts:
            return
        if lost := await turns.recover(database, accounts, all_owners=all_owners):
            RECOVERED.labels("turn").inc(len(lost))
            log.info("sweep.freed_turns", count=len(lost))
            for message in await turns.set_aside(database, lost):
                RECOVERED.labels("set_aside").inc()
                log.error(
                    "message.set_aside",
                    message=str(message.message_id),
                    reason=f"its turn was lost {turns.MOST_LOST_TURNS} times; see chat-bridge dlq",
                )
                self._apologise(message)
        for conversation, platform in await turns.find_pending(database, accounts):
            self._rescue(conversation, platform)
        if taken := await self._redeliver(accounts):
            RECOVERED.labels("delivery").inc(taken)
        await self._refetch(accounts)

    async def _ours(self) -> Sequence[tuple[str, str]]:
        if self._alone:
            return list(self._accounts.values())
        names = await leases.take_several(self._store.database, list(self._accounts), self._owner, self._seconds)
        return [account for name, account in self._accounts.items() if name in names]

    async def _release(self) -> None:
        try:
            for name in () if self._alone else self._accounts:
                await leases.release(self._store.database, name, self._owner)
        except StorageError as error:
            log.warning("sweep.not_released", reason=str(error))
