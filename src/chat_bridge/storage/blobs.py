"""The bytes of attachments in object storage: a bucket, or a folder."""

import asyncio
import re
import shutil
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

from chat_bridge.storage.places import BLOCK, Place, open_place

_OWN = "ATTACHMENT_"
_OWN_CREDENTIALS = re.compile(f"{_OWN}(AWS|GOOGLE|AZURE)_")
MOST_AT_ONCE = 16
SMALL_BLOCK = 64 * 1024  # for many slow readers at once

T = TypeVar("T")


class Blobs:
    """Objects by their names. Everything that is awaited raises PlaceError, and works beside the event loop."""

    def __init__(self, place: Place) -> None:
        self._place = place
        # Of its own: a place that hangs must not hold up what else is done in threads.
        self._threads = ThreadPoolExecutor(MOST_AT_ONCE, "blobs")

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def write(self, name: str, source: BinaryIO) -> None:
        """Write all of a file, from its beginning. When this returns it is there, safely stored."""
        await self._in_thread(self._write, name, source)

    async def read(self, name: str) -> bytes:
        """The whole object, for those that are small."""
        return await self._in_thread(lambda: b"".join(self._stream(name, 0, None, BLOCK)))

    async def names(self, under: str) -> Sequence[str]:
        """The objects in a folder, such as `erasures/`."""
        return await self._in_thread(self._place.names, under)

    async def stream(self, name: str, start: int = 0, size: int | None = None) -> AsyncGenerator[bytes]:
        """So many bytes, or all from one on, in small blocks."""
        blocks = self._stream(name, start, size, SMALL_BLOCK)
        reading: Future[bytes] | None = None
        try:
            while True:
                reading = self._threads.submit(next, blocks, b"")
                if not (block := await asyncio.wrap_future(reading)):
                    return
                yield block
        finally:
            # Who waited may be gone while the thread is still reading.
            if reading is not None:
                reading.add_done_callback(lambda _: blocks.close())

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects; those that are not there already are no error."""
        await self._in_thread(self._place.delete, names)

    async def check(self) -> None:
        """Raise PlaceError if objects can't be kept, as far as that shows without writing any."""
        await self._in_thread(self._place.check)

    def _stream(self, name: str, start: int, size: int | None, most: int) -> Generator[bytes]:
        with self._place.reading(name, start, most) as source:
            while size is None or size > 0:
                block = source.read(most if size is None else min(most, size))
                if not block:
                    return
                if size is not None:
                    size -= len(block)
                yield block

    def _write(self, name: str, source: BinaryIO) -> None:
        source.seek(0)
        with self._place.writing(name) as target:
            shutil.copyfileobj(source, target, BLOCK)


def open_blobs(bucket: str | None, data_dir: Path, environment: Mapping[str, str]) -> Blobs:
    """Where ATTACHMENT_BUCKET says, else in a folder of ours. Raises PlaceError."""
    if bucket is None:
        return Blobs(open_place(str(data_dir / "attachments"), environment))
    _, own = own_environment(environment)
    return Blobs(open_place(place_of(bucket), own))


def place_of(bucket: str) -> str:
    """What ATTACHMENT_BUCKET means: a bare name is a bucket of S3."""
    return bucket if "://" in bucket or bucket.startswith(("/", "~", ".")) else f"s3://{bucket}"


def own_environment(environment: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """The credentials of attachments, and what stands before their names.

    Those with ATTACHMENT_ are for attachments alone, as backups may lie elsewhere; where there are some, the others
    don't count."""
    own = {
        name.removeprefix(_OWN): value for name, value in environment.items() if _OWN_CREDENTIALS.match(name) and value
    }
    return (_OWN, own) if own else ("", environment)
