"""`chat-bridge archive`: what lies in object storage instead of tables, on the command line."""

from collections import Counter
from hashlib import sha256
from uuid import UUID

from chat_bridge.errors import ChatBridgeError, PlaceError
from chat_bridge.model import SessionId
from chat_bridge.settings import Settings
from chat_bridge.storage import archives
from chat_bridge.storage.archive_format import ArchiveError
from chat_bridge.storage.archives import Shelf, object_name
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.postgres import Record
from chat_bridge.storage.store import Store
from chat_bridge.transfer.progress import Progress, counted
from chat_bridge.upkeep.ages import Ages
from chat_bridge.upkeep.archive import Archiver


async def run(store: Store, blobs: Blobs, settings: Settings, progress: Progress) -> None:
    """Archive what is old enough now. Raises ChatBridgeError."""
    if settings.archive_after_days is None:
        raise ChatBridgeError("ARCHIVE_AFTER_DAYS is not set: nothing is archived")
    done = await Archiver(store, blobs, Ages(settings.archive_after_days), told=progress.count).once()
    progress.end()
    if done is None:
        raise ChatBridgeError("another process is archiving just now")
    print(f"{counted(done.sessions, 'session')} archived, with {counted(done.messages, 'message')}")


async def show_list(store: Store) -> None:
    """Print the archives, oldest first."""
    there = await archives.list_archives(store.database)
    for archive in there:
        print(_as_line(archive))
    if not there:
        print("there are no archives")


async def verify(store: Store, blobs: Blobs, wanted: UUID | None) -> None:
    """Read archives, and compare them with what PostgreSQL knows of them. Raises ChatBridgeError when one differs."""
    there = await _found(store, wanted)
    bad = 0
    for archive in there:
        if archive["status"] in ("writing", "deleting"):
            print(f"{archive['id']}  {archive['status']}: nothing is in it")
            continue
        try:
            await _verify(store, blobs, archive)
        except (ArchiveError, PlaceError) as error:
            # It may have been written anew, or deleted, while it was read.
            if not await archives.list_archives(store.database, archive["id"]):
                continue
            bad += 1
            print(f"{archive['id']}  BAD: {error}")
        else:
            print(f"{_as_line(archive)}  good")
    if bad:
        raise ChatBridgeError(f"{counted(bad, 'archive')} of {len(there)} can't be read as it was written")


async def _verify(store: Store, blobs: Blobs, archive: Record) -> None:
    whole, size = sha256(), 0
    async for part in blobs.stream(object_name(archive["id"])):
        whole.update(part)
        size += len(part)
    if (size, whole.digest()) != (archive["size"], archive["sha256"]):
        raise ArchiveError("the object is not what was written: its checksum differs")
    shelf, found = Shelf(blobs), Counter[tuple[UUID, int]]()
    for stretch in await archives.blocks_of(store.database, archive["id"]):
        block = await shelf.read(stretch)
        for row in block["messages"]:
            found[block["sessions"][row["session"]]["id"], stretch.number] += 1
    named = await archives.sessions_of(store.database, archive["id"])
    for (_, session), pieces in named.items():
        for piece in pieces:
            if found[session, piece.block] != piece.messages:
                raise ArchiveError(f"it does not have all messages of the session {session}")


async def restore(store: Store, blobs: Blobs, session: UUID | None, archive: UUID | None) -> None:
    """Give an archived session, or all of an archive, their rows again. Raises ChatBridgeError."""
    if (session is None) == (archive is None):
        raise ChatBridgeError("name a session, or an archive with --archive")
    wanted = [SessionId(session)] if session else []
    if archive is not None:
        await _found(store, archive)
        wanted = [each for _, each in await archives.sessions_of(store.database, archive)]
    shelf, sessions, messages = Shelf(blobs), 0, 0
    for each in wanted:
        restored = await archives.restore(store.database, shelf, each)
        if restored is not None:
            sessions, messages = sessions + 1, messages + restored
    if session and not sessions:
        raise ChatBridgeError(f"there is no archived session {session}")
    print(f"{counted(sessions, 'session')} restored, with {counted(messages, 'message')}")


async def _found(store: Store, archive: UUID | None) -> list[Record]:
    there = await archives.list_archives(store.database, archive)
    if archive is not None and not there:
        raise ChatBridgeError(f"there is no archive {archive}; `chat-bridge archive list` shows which there are")
    return list(there)


def _as_line(archive: Record) -> str:
    size = f"{(archive['size'] or 0) / 1e6:,.2f} MB"
    what = f"{counted(archive['sessions_left'], 'session')}, {counted(archive['messages_left'], 'message')}"
    return f"{archive['id']}  {archive['created_at']:%Y-%m-%d %H:%M:%S}  {archive['status']:<8}  {size}  {what}"
