"""`chat-bridge export-person`: all that is kept of one person, to give it to them."""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from uuid import UUID

from chat_bridge.errors import ChatBridgeError, PlaceError
from chat_bridge.model import Attachment, ConversationId, Json, Session
from chat_bridge.storage import attachments, erasure, sessions
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.erasure import Found
from chat_bridge.storage.messages import attachment
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.transcripts import Transcripts
from chat_bridge.transfer.export import as_message, opened
from chat_bridge.transfer.writers import WRITERS, Message, Writer
from chat_bridge.upkeep.erasure import Eraser


class _File(NamedTuple):
    conversation: ConversationId
    told: Attachment


class Exported(NamedTuple):
    """How much was written; `missing` names files that can't be had."""

    sessions: int
    messages: int
    files: int
    missing: Sequence[str]


async def export_person(eraser: Eraser, of: Json, output: Path, told: Callable[[int, int], None]) -> Exported:
    """Write a ZIP: `person.json`, `messages.jsonl` as `export jsonl` writes it, and `files/`. It has what `erase user`
    would erase; of sessions with others only what the person wrote and the answers to it. Raises ChatBridgeError; then
    there is no new file."""
    database, blobs = eraser.database, eraser.blobs
    plan = await eraser.look("user", of)
    known = await erasure.person(database, of["platform"], of.get("account"), of["user"])
    if not (plan.sessions or known):
        raise ChatBridgeError("nothing is kept of this person: look at the id once more")
    count, messages, files = 0, 0, dict[_File, None]()
    with opened(output, "zip") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("person.json", json.dumps(known, indent=2, ensure_ascii=False))
        with (
            archive.open("messages.jsonl", "w", force_zip64=True) as lines,
            WRITERS["jsonl"](cast("BinaryIO", lines)) as writer,
        ):
            picking = _Picking(database, Transcripts(database, blobs), of["user"])
            for found in plan.sessions:
                number = await picking.write(found, writer, files)
                count, messages = count + bool(number), messages + number
                told(count, messages)
        written, missing = await _write_files(database, blobs, archive, list(files))
    return Exported(count, messages, written, missing)


class _Picking:
    """Picks the messages of a person."""

    def __init__(self, database: Database, transcripts: Transcripts, user: str) -> None:
        self._database = database
        self._transcripts = transcripts
        self._user = user

    async def write(self, found: Found, writer: Writer, files: dict[_File, None]) -> int:
        """Write a session with those; how many they are."""
        session = await sessions.get_session(self._database, found.id)
        if session is None:
            return 0
        alone = await self._alone(session)
        where = found.conversation_id, found.id
        theirs = await erasure.messages_to_blank(self._database, *where, self._user, datetime.now(UTC))
        ids = {message.id for message in theirs}
        count = 0
        async for row in self._transcripts.of_session(session):
            message = as_message(row)
            if alone or message.id in ids or message.sender_id == self._user:
                if not count:
                    writer.session(session)
                writer.message(message)
                files |= dict.fromkeys(_files(session.conversation_id, message))
                count += 1
        return count

    async def _alone(self, session: Session) -> bool:
        async for row in self._transcripts.of_session(session):
            if row["direction"] == "inbound" and row["content_type"] != "event" and row["sender_id"] != self._user:
                return False
        return True


def _files(conversation: ConversationId, message: Message) -> Sequence[_File]:
    versions: Sequence[Mapping[str, Any]] = message.metadata.get("versions") or []
    told = [*message.attachments, *(file for version in versions for file in version.get("attachments", ()))]
    return [_File(conversation, attachment(each)) for each in told]


async def _write_files(
    database: Database, blobs: Blobs, archive: zipfile.ZipFile, files: Sequence[_File]
) -> tuple[int, Sequence[str]]:
    written: set[UUID] = set()
    missing: list[str] = []
    for conversation, told in files:
        name = told.name or told.kind
        for stored in (await attachments.of(database, conversation, [told])).values():
            if stored.content is None or stored.status != "stored":
                missing.append(f"{name}: {stored.error or 'it is not here yet'}")
            elif stored.id not in written:
                written.add(stored.id)
                try:
                    # Its name is a stranger's: no folders, and nothing that a system takes for something else.
                    safe = "".join(sign if sign.isalnum() or sign in ".- _" else "_" for sign in name)[-100:].strip(
                        ". "
                    )
                    with archive.open(f"files/{stored.id} {safe}", "w", force_zip64=True) as target:
                        async for block in blobs.stream(stored.content.name):
                            target.write(block)
                except PlaceError as error:
                    raise ChatBridgeError(f"{name}: {error}") from error
    return len(written), missing
