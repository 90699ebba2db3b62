"""Look: what the bytes of a file say of it, whatever its sender says."""

import asyncio
import json
import os
import re
import sys
import tempfile
from contextlib import suppress
from typing import Any, BinaryIO

import puremagic

from chat_bridge.storage.attachments import Facts
from chat_bridge.telemetry import log

HEAD_BYTES = 8192
SURE = 0.4  # how much of a signature text must have to count as something else: many begin with "BM" and are no picture
# For an image. What takes more has no thumbnail: a PNG of 48 megapixels takes a second, and 200 MB.
PROCESSOR_SECONDS = 5
MEMORY_BYTES = 256 * 1024 * 1024
LOOK_SECONDS = 20.0  # with the wait for other images
_PICTURES = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8|RIFF....WEBP", re.DOTALL)
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


class Looker:
    """Looks at files. Images are decoded in a process of their own, which can be stopped, whatever they make the
    decoder do; one at a time, since each may fill much memory."""

    def __init__(self) -> None:
        self._place = asyncio.Semaphore(1)

    async def look(self, file: BinaryIO, sha256: bytes, size: int, said: str) -> tuple[Facts, bytes | None]:
        """The facts of a file, and a small JPEG or PNG of an image. `said` is the type its sender told, which counts
        only for text, since bytes can't say what kind of text they are, and among those that they can be. Raises
        OSError if there is no room on the disk."""
        file.seek(0)
        head = file.read(HEAD_BYTES)
        if _PICTURES.match(head) and (picture := await self._picture(file)) is not None:
            mime_type, width, height, thumbnail = picture
            return Facts(sha256, size, mime_type, width, height, thumbnail is not None), thumbnail
        return Facts(sha256, size, _mime_type(head, said.partition(";")[0].strip().lower())), None

    async def _picture(self, file: BinaryIO) -> tuple[str, int, int, bytes | None] | None:
        """Type, width, height and a thumbnail; None if it is no image that is decoded here, or can't be opened within
        the limits."""
        source = file.fileno()  # what was in memory goes to the disk here
        file.flush()
        with tempfile.TemporaryFile() as seen:
            ended = None
            try:
                async with asyncio.timeout(LOOK_SECONDS), self._place:
                    ended = await _run(source, seen.fileno())
            except OSError as error:  # the time is over, or no process can be started
                log.warning("picture.not_seen", reason=str(error) or type(error).__name__)
            if ended:
                log.warning("picture.not_seen", reason=f"its process ended with {ended}")
            seen.seek(0)
            if not (line := seen.readline()):
                return None
            mime_type, width, height = json.loads(line)
            return mime_type, width, height, (seen.read() or None) if ended == 0 else None


async def _run(source: int, to: int) -> int:
    """Have a process look at an image, and give the status it ended with."""
    place = os.lseek(source, 0, os.SEEK_CUR)
    os.lseek(source, 0, os.SEEK_SET)
    command = sys.executable, "-P", "-m", "chat_bridge.bridge.picture", str(PROCESSOR_SECONDS), str(MEMORY_BYTES)
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=source,
            stdout=to,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C stops the bridge, which stops this one
        )
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    finally:
        os.lseek(source, place, os.SEEK_SET)  # the process has moved it, which the file object knows nothing of


def _mime_type(head: bytes, said: str) -> str:
    is_text = _is_text(head)
    with suppress(puremagic.PureError, ValueError):
        found: Any = puremagic.magic_string(head)  # pyright: ignore[reportUnknownMemberType]
        least = SURE if is_text else 0
        fits: list[str] = [each.mime_type for each in found if each.mime_type and each.confidence >= least]
        if head.startswith(b"PK\x03\x04"):
            # Many kinds of documents are zip files; which one is not in their first bytes.
            return said if said in fits else "application/zip"
        if fits and not fits[0].startswith("text/"):
            return said if said in fits else fits[0]
    if is_text:
        is_kind_of_text = re.fullmatch(r"text/[a-z0-9][a-z0-9.+-]{0,60}|application/json", said)
        return said if is_kind_of_text else "text/plain"
    return "application/octet-stream"


def _is_text(head: bytes) -> bool:
    if _CONTROLS.search(head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # a letter may be cut in two
    return True
