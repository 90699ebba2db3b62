"""Keep: bring the bytes of a file into object storage, once for each content, if they are allowed in."""

import hashlib
import io
import mimetypes
import re
import tempfile
import unicodedata
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from chat_bridge.bridge.look import Looker
from chat_bridge.bridge.scan import Scanner, ScannerError, TooLargeToScanError
from chat_bridge.errors import ChatBridgeError
from chat_bridge.model import kind_of
from chat_bridge.storage import attachments
from chat_bridge.storage.attachments import Content, Facts
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.store import Store
from chat_bridge.storage.text import storable
from chat_bridge.telemetry import log

IN_MEMORY_BYTES = 1024 * 1024  # a larger file goes through one on disk
LONGEST_NAME = 200
# They turn the direction of the text that follows: `photo_gpj.exe` is then shown as if it ended in jpg.
_TURNS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class NotKeptError(ChatBridgeError):
    """A file is not let in: `for_good`, or perhaps later. The message says why, for people."""

    def __init__(self, reason: str, *, for_good: bool) -> None:
        super().__init__(reason)
        self.for_good = for_good


class TypeNotTakenError(NotKeptError):
    """Files of this type are not let in."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is let in: files up to `most_bytes`, of types such as `image/*`."""

    most_bytes: int
    types: Sequence[str]

    def require_size(self, size: int) -> None:
        """Raise NotKeptError for a file that is too large."""
        if size > self.most_bytes:
            raise NotKeptError(f"it is larger than {readable(self.most_bytes)}", for_good=True)


class Keeper:
    """Looks at files, has them scanned, and stores them."""

    def __init__(self, store: Store, blobs: Blobs, rules: Rules, scanner: Scanner | None) -> None:
        self._store = store
        self._blobs = blobs
        self.rules = rules
        self._scanner = scanner
        self._looker = Looker()

    async def keep(self, pieces: AsyncIterator[bytes], said: str) -> Content:
        """Store what the pieces make up, and give its content, which `attachments.stored` must name within an hour.
        `said` is the type that the sender told. Raises NotKeptError, PlaceError, StorageError, and what the iterator
        raises."""
        with cast("BinaryIO", tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)) as file:
            size, digest = 0, hashlib.sha256()
            async for piece in pieces:
                size += len(piece)
                self.rules.require_size(size)
                digest.update(piece)
                with _room():
                    file.write(piece)
            if size == 0:
                raise NotKeptError("it is empty", for_good=True)
            known = await attachments.find_content(self._store.database, digest.digest())
            if known is not None and known.written:
                await self._require_allowed(file, size, known.mime_type)
                return known
            with _room():
                facts, thumbnail = await self._looker.look(file, digest.digest(), size, said)
            await self._require_allowed(file, size, facts.mime_type)
            return await self._store_new(file, facts, thumbnail)

    async def _require_allowed(self, file: BinaryIO, size: int, mime_type: str) -> None:
        """Raise NotKeptError for a file that is not let in. One that is stored already is looked at too: the rules may
        have changed since, and what the scanner knows."""
        self._require_type(mime_type)
        if self._scanner is None:
            return
        try:
            harm = await self._scanner.harm(file)
        except TooLargeToScanError as error:
            raise NotKeptError(f"the scanner takes no file of {readable(size)}", for_good=True) from error
        except ScannerError as error:
            log.error("attachment.not_scanned", reason=str(error))
            raise NotKeptError("it can't be scanned at the moment", for_good=False) from error
        if harm is not None:
            raise NotKeptError(f"the scanner found {harm} in it", for_good=True)

    async def _store_new(self, file: BinaryIO, facts: Facts, thumbnail: bytes | None) -> Content:
        content = await attachments.begin_content(self._store.database, facts)
        if not content.written:
            if thumbnail is not None:
                await self._blobs.write(content.thumbnail_name, io.BytesIO(thumbnail))
            await self._blobs.write(content.name, file)
        return content

    def _require_type(self, mime_type: str) -> None:
        if not any(fnmatch(mime_type, allowed) for allowed in self.rules.types):
            raise TypeNotTakenError(f"files of type {mime_type} are not taken", for_good=True)


@contextmanager
def _room() -> Generator[None]:
    """What is done with a file on disk."""
    try:
        yield
    except OSError as error:
        log.error("attachment.no_room", reason=str(error))
        raise NotKeptError("there is no room for it at the moment", for_good=False) from error


def plain_name(name: str) -> str | None:
    """The name of a file without folders, and without signs that can't be seen; cut where it is too long. None if
    nothing is left."""
    last = _TURNS.sub("", re.split(r"[/\\]", storable(name))[-1])
    seen = "".join(sign for sign in last if unicodedata.category(sign) not in ("Cc", "Zl", "Zp")).strip()
    ending = PurePosixPath(seen).suffix[:20]
    if len(seen) > LONGEST_NAME:
        seen = seen[: LONGEST_NAME - len(ending)] + ending
    return seen if seen.strip(".") else None


def file_name(name: str | None, mime_type: str) -> str:
    """What a file is called where it must have a name."""
    return plain_name(name or "") or f"{kind_of(mime_type)}{mimetypes.guess_extension(mime_type) or ''}"


def readable(size: int) -> str:
    """A number of bytes, for people: `3.1 MB`."""
    for unit, factor in (("GB", 1024**3), ("MB", 1024**2), ("KB", 1024)):
        if size >= factor:
            number = size / factor
            return f"{round(number, 1) if number < 100 else round(number):g} {unit}"
    return f"{size} bytes"
