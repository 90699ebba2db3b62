"""`chat-bridge search` and `chat-bridge search-index`: full text search on the command line."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from chat_bridge.settings import Settings
from chat_bridge.storage import search_index
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.search import Hit, Piece, SearchFilter, search
from chat_bridge.storage.search_index import SearchIndex

PAGE = 100
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


async def show(database: Database, query: str, wanted: SearchFilter, limit: int, *, as_json: bool) -> None:
    """Print messages, newest first. Raises SearchError."""
    found = 0
    while found < limit:
        page = await search(database, query, wanted, min(PAGE, limit - found))
        for hit in page.hits:
            print(_as_json(hit) if as_json else _as_line(hit))
        found += len(page.hits)
        if not page.more:
            break
        wanted = replace(wanted, before=page.hits[-1].id)
    if not found and not as_json:
        print("nothing was found")


async def switch_on(database: Database, dsn: str, language: str, settings: Settings) -> None:
    """Build the index. Raises SearchError, StorageError."""
    print(
        "building; the bridge may run meanwhile, and `chat-bridge search-index status` tells how far it is", flush=True
    )
    await search_index.switch_on(database, dsn, language, pgbouncer=settings.database_pgbouncer)
    await show_status(database)


async def switch_off(database: Database, dsn: str, settings: Settings) -> None:
    """Drop the index. Raises SearchError, StorageError."""
    await search_index.switch_off(database, dsn, pgbouncer=settings.database_pgbouncer)
    await show_status(database)


async def show_status(database: Database) -> None:
    """Print what there is."""
    there = await search_index.search_indexes(database)
    for index in there:
        print(described(index))
    if not any(index.ready and index.language for index in there):
        print("search is off")


def described(index: SearchIndex) -> str:
    """An index in words."""
    size = f"{index.bytes / 1e6:,.1f} MB"
    if index.building:
        share = "" if index.share is None else f", {index.share:.0%}"
        return f"being built: {index.language or index.name}, {size} ({index.phase}{share})"
    if not index.ready:
        return (
            f"unfinished: {index.language or index.name}, {size}. Its build was interrupted; it finds nothing and "
            "costs time at each message: `chat-bridge search-index on` builds it anew, `off` drops it"
        )
    if index.language is None:
        return f"of another release: {index.name}, {size}. `chat-bridge search-index on` builds this one's instead"
    return f"search is on: {index.language}, {size}"


def _as_line(hit: Hit) -> str:
    who = "agent" if hit.direction == "outbound" else hit.sender_name or hit.sender_id or "nobody"
    where = f"{hit.address.platform} {hit.address.conversation}{f' {hit.address.thread}' if hit.address.thread else ''}"
    return f"{hit.id}  {hit.created_at:%Y-%m-%d %H:%M:%S}  {_printable(where)}  {_printable(who)}: {_text(hit.snippet)}"


def _text(snippet: Sequence[Piece]) -> str:
    mark = sys.stdout.isatty()
    return "".join(
        f"{BOLD}{_printable(piece.text)}{PLAIN}" if piece.match and mark else _printable(piece.text)
        for piece in snippet
    )


def _printable(text: str) -> str:
    """Without signs that would move a terminal's cursor, or do worse."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _as_json(hit: Hit) -> str:
    return json.dumps(
        {
            "id": str(hit.id),
            "seq": hit.seq,
            "conversation_id": str(hit.conversation_id),
            "session_id": str(hit.session_id),
            "platform": hit.address.platform,
            "account": hit.address.account,
            "conversation": hit.address.conversation,
            "thread": hit.address.thread,
            "direction": hit.direction,
            "created_at": hit.created_at.isoformat(),
            "sender_id": hit.sender_id,
            "sender_name": hit.sender_name,
            "snippet": [piece._asdict() for piece in hit.snippet],
        }
    )
