"""Load: bring a kept file from object storage to this machine, for a platform.

A whole copy comes before anything is sent: then trouble with object storage is never taken for the platform's, a
platform never gets a part of a file, and a second try reads it again from here.
"""

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import BinaryIO, cast

from chat_bridge.bridge.keep import IN_MEMORY_BYTES, file_name
from chat_bridge.errors import ChatBridgeError, PlaceError
from chat_bridge.model import Attachment, ConversationId, kind_of
from chat_bridge.platforms.contract import OutboundFile
from chat_bridge.storage import attachments
from chat_bridge.storage.attachments import Content
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.store import Store

LOAD_SECONDS = 60.0


class NotLoadedError(ChatBridgeError):
    """A file can't be had: `for_good`, or perhaps later. The message says why."""

    def __init__(self, reason: str, *, for_good: bool) -> None:
        super().__init__(reason)
        self.for_good = for_good


class Loader:
    """Loads files of messages."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs

    @asynccontextmanager
    async def loaded(self, conversation: ConversationId, told: Attachment) -> AsyncGenerator[OutboundFile]:
        """The file that a message of a conversation has, until the block ends. Raises NotLoadedError, StorageError."""
        found = (await attachments.of(self._store.database, conversation, [told])).get(attachments.key(told))
        if found is None or found.status != "stored" or found.content is None:
            raise NotLoadedError("the file is not kept any more", for_good=True)
        with cast("BinaryIO", tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)) as copy:
            await self._copy(found.content, copy)
            yield OutboundFile(
                kind=kind_of(found.content.mime_type),
                mime_type=found.content.mime_type,
                name=file_name(told.name, found.content.mime_type),
                size=found.content.size,
                content=copy,
                width=found.content.width,
                height=found.content.height,
            )

    async def _copy(self, content: Content, copy: BinaryIO) -> None:
        try:
            async with asyncio.timeout(LOAD_SECONDS), aclosing(self._blobs.stream(content.name)) as blocks:
                async for block in blocks:
                    copy.write(block)
            copy.seek(0)
        except PlaceError as error:
            raise NotLoadedError(f"the file can't be read: {error}", for_good=False) from error
        except TimeoutError as error:
            raise NotLoadedError(f"the file was not read within {LOAD_SECONDS:g} s", for_good=False) from error
        except OSError as error:
            raise NotLoadedError(f"there is no room for a copy of the file: {error}", for_good=False) from error
