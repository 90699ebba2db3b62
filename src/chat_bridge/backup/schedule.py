"""Backups by themselves, every so many hours: one process makes them, and when it dies another does."""

import asyncio
import time
from contextlib import suppress
from datetime import timedelta

from uuid_utils.compat import uuid7

from chat_bridge.backup.manifest import BackupError, made_at
from chat_bridge.backup.vault import Vault, open_vault
from chat_bridge.errors import ChatBridgeError, PlaceError, StorageError
from chat_bridge.settings import Settings
from chat_bridge.storage import leases
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import BACKUP_NEWEST, BACKUP_OVERDUE, log

LEASE = "backup"
LEASE_SECONDS = 60.0
TRY_AGAIN_SECONDS = 600.0
LOOK_SECONDS = 3600.0  # at the latest, since somebody may have removed backups


class Schedule:
    """Keeps the vault filled: its newest backup is never older than `every`, and it holds `keep` of them."""

    def __init__(self, store: Store, dsn: str, vault: Vault, every: timedelta, keep: int) -> None:
        self._store = store
        self._dsn = dsn
        self._vault = vault
        self._every = every
        self._keep = keep
        self._owner = f"{store.owner}:{uuid7()}"
        self._due = time.time()  # until we know better: one that never succeeds is overdue too
        BACKUP_OVERDUE.set_function(lambda: max(time.time() - self._due, 0.0))

    async def run(self) -> None:
        """Make backups for ever."""
        while True:
            try:
                pause = await self.once()
            except Exception as error:  # noqa: BLE001 - a backup must not stop the bridge
                reason = str(error) if isinstance(error, ChatBridgeError) else type(error).__name__
                log.error("backup.failed", reason=reason, effect="it is tried again")
                pause = TRY_AGAIN_SECONDS
            await asyncio.sleep(pause)

    async def once(self) -> float:
        """Make a backup if one is due and nobody else is at it; how many seconds there are until the next look. Raises
        BackupError and StorageError."""
        if (seconds := await self._until_due()) > 0:
            return min(seconds, LOOK_SECONDS)
        if not await leases.take(self._store.database, LEASE, self._owner, LEASE_SECONDS):
            return LEASE_SECONDS
        try:
            if await self._until_due() <= 0:  # another one may have been quicker
                await self._make_one()
        finally:
            with suppress(StorageError):  # then it runs out by itself
                await leases.release(self._store.database, LEASE, self._owner)
        return min(max(await self._until_due(), 0.0), LOOK_SECONDS)

    async def _until_due(self) -> float:
        newest = await self._vault.newest(self._dsn)
        made = made_at(newest) if newest is not None else None
        if made is None:
            BACKUP_NEWEST.set(0)
            self._due = min(self._due, time.time())
        else:
            BACKUP_NEWEST.set(made.timestamp())
            self._due = (made + self._every).timestamp()
        return self._due - time.time()

    async def _make_one(self) -> None:
        making = asyncio.create_task(self._vault.create(self._dsn), name="backup")
        try:
            await self._hold(making)
        finally:
            making.cancel()
            await asyncio.wait([making])
        manifest = await making
        log.info("backup.made", backup=manifest.id, rows=manifest.rows, bytes=manifest.dump.bytes)
        try:
            if gone := await self._vault.prune(keep=self._keep):
                log.info("backup.pruned", backups=gone)
        except (BackupError, PlaceError) as error:
            log.error("backup.prune_failed", reason=str(error), effect="it is tried again after the next backup")

    async def _hold(self, making: asyncio.Task[object]) -> None:
        """Renew the lease until the backup is made. Raises BackupError when it is lost: another one makes it then; and
        StorageError when PostgreSQL could not be asked until it had run out."""
        renewed = time.monotonic()
        while not (await asyncio.wait([making], timeout=LEASE_SECONDS / 3))[0]:
            asked = time.monotonic()
            try:
                if not await leases.take(self._store.database, LEASE, self._owner, LEASE_SECONDS):
                    raise BackupError("the lease is another process's now")
                renewed = asked
            except StorageError:
                if time.monotonic() - renewed > LEASE_SECONDS:
                    raise


def scheduled(settings: Settings, store: Store, dsn: str) -> Schedule | None:
    """The schedule that the settings ask for, if any. Raises BackupError and SettingsError."""
    if settings.backup_every_hours is None:
        return None
    every = timedelta(hours=settings.backup_every_hours)
    return Schedule(store, dsn, open_vault(settings), every, settings.backup_keep)
