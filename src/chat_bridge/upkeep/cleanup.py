"""Cleanup: delete from object storage what nothing refers to any more. Of all processes one does it."""

import asyncio
from uuid import UUID

from uuid_utils.compat import uuid7

from chat_bridge.errors import PlaceError, StorageError
from chat_bridge.storage import attachments, leases
from chat_bridge.storage.attachments import object_name, thumbnail_name
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import log

LEASE = "cleanup"
LEASE_SECONDS = 600.0
CLEAN_SECONDS = 300.0
AT_ONCE = 100


class Cleanup:
    """Deletes uploads that no message took, and contents that no attachment has."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs
        self._owner = f"{store.owner}:{uuid7()}"

    async def run(self) -> None:
        """Clean for ever."""
        try:
            while True:
                try:
                    ours = await leases.take(self._store.database, LEASE, self._owner, LEASE_SECONDS)
                    if ours and (deleted := await self.once()):
                        log.info("cleanup.deleted", contents=deleted)
                except StorageError as error:
                    log.warning("cleanup.failed", reason=str(error), effect="it is tried again")
                await asyncio.sleep(CLEAN_SECONDS)
        finally:
            try:
                await leases.release(self._store.database, LEASE, self._owner)
            except StorageError as error:
                log.warning("cleanup.not_released", reason=str(error))

    async def once(self) -> int:
        """Clean up; how many contents were deleted. Raises StorageError. What was begun, or can't be deleted now, comes
        again in an hour."""
        database, deleted = self._store.database, 0
        while await attachments.expire_uploads(database, AT_ONCE):
            pass
        while await attachments.abandon(database, AT_ONCE):
            pass
        while doomed := await attachments.doom(database, AT_ONCE):
            gone: list[UUID] = []
            for content in doomed:
                # Of two who wrote it at once, one may have made a small copy that the row does not know.
                names = [object_name(content), thumbnail_name(content)]
                try:
                    await self._blobs.delete(names)
                except PlaceError as error:
                    log.warning("cleanup.not_deleted", object=names[0], reason=str(error), effect="it is tried again")
                else:
                    gone.append(content)
            await attachments.forget(database, gone)
            deleted += len(gone)
            if not gone:
                break  # the place is away
        return deleted
