"""Export: the sessions that fit a filter, one after the other, with a bounded memory."""

import os
import secrets
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from chat_bridge.errors import ChatBridgeError
from chat_bridge.model import Session
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.postgres import Database, Record
from chat_bridge.storage.sessions import SessionFilter, list_sessions
from chat_bridge.storage.text import from_jsonb
from chat_bridge.storage.transcripts import Transcripts
from chat_bridge.transfer.writers import WRITERS, Message, Writer

PAGE = 200


async def export(
    database: Database,
    blobs: Blobs | None,
    wanted: SessionFilter,
    form: str,
    output: Path | None,
    told: Callable[[int, int], None],
) -> tuple[int, int]:
    """Write sessions to a file (None: standard output): how many sessions and messages there were. `told` hears these
    numbers on the way. Archives are read from `blobs`. Raises ChatBridgeError; then there is no new file."""
    transcripts = Transcripts(database, blobs)
    count = messages = 0
    with opened(output, form) as file, WRITERS[form](file) as writer:
        async for session in _sessions(database, wanted):
            messages += await _export(transcripts, session, writer)
            count += 1
            told(count, messages)
    return count, messages


async def _sessions(database: Database, wanted: SessionFilter) -> AsyncGenerator[Session]:
    while page := await list_sessions(database, wanted, PAGE):
        for session in page:
            yield session
        wanted = replace(wanted, before=page[-1].id)


async def _export(transcripts: Transcripts, session: Session, writer: Writer) -> int:
    writer.session(session)
    count = 0
    async for row in transcripts.of_session(session):
        writer.message(as_message(row))
        count += 1
    return count


def as_message(row: Record) -> Message:
    """A message as its newest version has it, as the bridge shows it everywhere else."""
    metadata: dict[str, Any] = from_jsonb(row["metadata"]) or {}
    text: str = metadata.get("raw_text", row["content_text"])
    versions: list[Mapping[str, Any]] = metadata.get("versions") or []
    newest = versions[-1] if versions else {"text": text}
    return Message(
        id=row["id"],
        seq=row["seq"],
        direction=row["direction"],
        content_type=row["content_type"],
        status=row["status"],
        text="" if "deleted" in newest else newest["text"],
        deleted="deleted" in newest,
        edited=bool(versions),
        created_at=row["created_at"],
        sender_id=row["sender_id"],
        sender_name=row["display_name"],
        event_key=row["event_key"],
        platform_message_id=row["platform_message_id"],
        agent_request_id=row["agent_request_id"],
        attachments=from_jsonb(row["attachments"]) or [],
        metadata=metadata,
    )


@contextmanager
def opened(output: Path | None, form: str) -> Generator[BinaryIO]:
    """The file to write to, under another name until it is complete."""
    if output is None:
        if form == "parquet":
            raise ChatBridgeError("Parquet can't be written to standard output: name a file with --output")
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except OSError as error:
            # What is still in the buffer can't go anywhere: without this Python tries it once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise ChatBridgeError(f"standard output can't be written: {os.strerror(error.errno or 0)}") from error
        return
    if output.exists():
        raise ChatBridgeError(f"{output} is there already: name another file with --output")
    unfinished = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
    try:
        # It holds what people said.
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
        unfinished.rename(output)
    except OSError as error:
        raise ChatBridgeError(f"{output} can't be written: {os.strerror(error.errno or 0)}") from error
    finally:
        unfinished.unlink(missing_ok=True)
