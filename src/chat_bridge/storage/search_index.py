"""The index of full text search, which an operator switches on and off.

It is all there is: no column, no table, no setting, nothing in the statements that write. PostgreSQL keeps it, for
programs that know nothing of it too. Its name tells the language and the version of what is in it, so that one look at
the catalogue, made at each search, says what is in force.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from chat_bridge.errors import ChatBridgeError, StorageError
from chat_bridge.storage.postgres import Connection, Connector, Database, Record, database_errors

_ANY_NAME = "messages_search_"
NAME = f"{_ANY_NAME}1_"  # another number when DOCUMENT or SPAN changes: then the index has to be made anew
_LOCK = 0x7365_6172  # any number, the same in every process

# What a message shows: its newest version, nothing if that is a deletion. Not more of it: a tsvector may have 1 MB, and
# a message that makes a larger one could not be stored.
SHOWN = """left(
  case when messages.metadata -> 'versions' -> -1 ? 'deleted' then ''
    else coalesce(
      messages.metadata -> 'versions' -> -1 ->> 'text', messages.metadata ->> 'raw_text', messages.content_text
    ) end, 50000)"""
# Words are runs of letters and digits, whatever the server's locale thinks of other signs (in the locale C, that all
# beyond ASCII are letters): they become spaces, so that its parser finds no addresses, tags or numbers with signs.
# Accents go with the combining marks that Unicode makes of them; a few letters that it does not take apart are named.
# ASCII text, which has none of that, is passed over.
_FOLDED = r"""left(
  regexp_replace(
    case when octet_length(TEXT) = length(TEXT) then TEXT
      else regexp_replace(
        replace(replace(replace(
          translate(lower(normalize(TEXT, nfkd)), 'đĐðøØłŁıħ', 'dddoollih'), 'ß', 'ss'), 'æ', 'ae'), 'œ', 'oe'
        ),
        '[\u0300-\u036f\u00ad\u200b-\u200d\u20d0-\u20ff\ufe00-\ufe0f]+', '', 'g'
      ) end,
    '[!-/:-@[-`{-~\u0080-\u00bf\u00d7\u00f7\u055a-\u055f\u0589\u05be\u060c\u061b\u061f\u06d4\u0964\u0965'
    '\u2000-\u206f\u20a0-\u20cf\u2190-\u2bff\u2e00-\u2e7f\u3000-\u303f\ufffd\U0001f000-\U0001faff]+',
    ' ', 'g'
  ), 50000)"""


def folded(text: str) -> str:
    """SQL of a text as words without accents."""
    return _FOLDED.replace("TEXT", text)


DOCUMENT = f"to_tsvector('pg_catalog.LANGUAGE'::regconfig, {folded(SHOWN)})"
# The three days that a message is of, by the time in its id: a search goes from the newest to the oldest, and the index
# itself leaves out what is not of the days it looks at.
SPAN = "array[left(messages.id::text, 5)]"
SPAN_BITS = 108

# A search reads what waits to be sorted into the index from end to end, so little of it may wait.
_CREATE = f"""create index concurrently NAME on messages using gin ({DOCUMENT}, ({SPAN}))
with (gin_pending_list_limit = 1024)
where content_type = 'text'"""


def in_language(statement: str, language: str) -> str:
    """A statement on DOCUMENT in a language, as the name of the index has it."""
    return statement.replace("pg_catalog.LANGUAGE", f"pg_catalog.{language}")


class SearchError(ChatBridgeError):
    """What was asked can't be searched for, or was too much."""


@dataclass(frozen=True, slots=True)
class SearchIndex:
    """An index for searches. `language` None: it is of another release. Not `ready`: it is being built (`phase` and
    `share` tell how far), or that was interrupted."""

    name: str
    language: str | None
    ready: bool
    bytes: int
    building: bool
    phase: str | None
    share: float | None


async def search_indexes(database: Database) -> Sequence[SearchIndex]:
    """All there are, the one in use first."""
    return [_as_index(row) for row in await database.fetch("search_indexes", _ANY_NAME)]


def _as_index(row: Record) -> SearchIndex:
    language = row["name"].removeprefix(NAME) if row["name"].startswith(NAME) else None
    return SearchIndex(row["name"], language, row["ready"], row["bytes"], row["building"], row["phase"], row["share"])


async def switch_on(database: Database, dsn: str, language: str, *, pgbouncer: bool = False) -> None:
    """Build the index for this language while messages come in, then drop those of others, with which searches go on
    until then. What an interrupted build left behind is dropped first. Raises SearchError, StorageError."""
    async with _alone(dsn, pgbouncer) as connection:
        await _require(connection, language)
        there = await search_indexes(database)
        for index in there:
            if not index.ready:
                await _drop(connection, index.name)
        name = f"{NAME}{language}"
        if not any(index.ready and index.name == name for index in there):
            await _build(dsn, pgbouncer, name, language)
        for index in there:
            if index.ready and index.name != name:
                await _drop(connection, index.name)
        # What words are how common is not known of a new index, and may not be looked at for weeks.
        await connection.execute("analyze messages")


async def switch_off(database: Database, dsn: str, *, pgbouncer: bool = False) -> bool:
    """Drop the index; False: there was none. Raises SearchError, StorageError."""
    async with _alone(dsn, pgbouncer) as connection:
        there = await search_indexes(database)
        for index in there:
            await _drop(connection, index.name)
    return bool(there)


async def _require(connection: Connection, language: str) -> None:
    rows = await connection.fetch(
        "select cfgname from pg_ts_config where cfgnamespace = 'pg_catalog'::regnamespace order by cfgname"
    )
    known = [row["cfgname"] for row in rows]
    if language not in known:
        raise SearchError(f"PostgreSQL knows no language {language!r} here; it knows {', '.join(known)}")
    encoding = await connection.fetchval("show server_encoding")
    if encoding != "UTF8":
        raise SearchError(f"search needs a database in UTF8, and this one is in {encoding}")


async def _build(dsn: str, pgbouncer: bool, name: str, language: str) -> None:
    try:
        async with _connected(dsn, pgbouncer) as connection:
            await connection.execute(in_language(_CREATE, language).replace("NAME", name))
    except BaseException:
        # Half an index costs as much as a whole one. If it can't be dropped now, it is at the next command.
        with suppress(StorageError):
            await asyncio.shield(_drop_anew(dsn, pgbouncer, name))
        raise


async def _drop_anew(dsn: str, pgbouncer: bool, name: str) -> None:
    async with _connected(dsn, pgbouncer) as connection:
        await _drop(connection, name)


async def _drop(connection: Connection, name: str) -> None:
    quoted = '"{}"'.format(name.replace('"', '""'))
    await connection.execute(f"drop index concurrently if exists {quoted}")


@asynccontextmanager
async def _alone(dsn: str, pgbouncer: bool) -> AsyncGenerator[Connection]:
    """A connection, while no other command of this kind is at work: two would wait for each other for ever."""
    # The lock is a transaction's, for PgBouncer's sake.
    async with (
        _connected(dsn, pgbouncer) as keeper,
        keeper.transaction(isolation="read_committed"),
        _connected(dsn, pgbouncer) as connection,
    ):
        (row,) = await keeper.fetch("select pg_try_advisory_xact_lock($1) as free", _LOCK)
        # Another command has to follow, which ends the one before for good: a build waits for whoever sees old rows.
        await keeper.execute("set local idle_in_transaction_session_timeout = 0")
        # The server goes on with a build for a while when the command that began it was killed.
        if not row["free"] or await connection.fetchval(
            # Of this database: copies of one have the same oids.
            "select exists (select from pg_stat_progress_create_index "
            "where datname = current_database() and relid = to_regclass('messages')::oid)"
        ):
            raise SearchError(
                "an index of messages is being built or dropped already: `chat-bridge search-index status` tells more"
            )
        yield connection


@asynccontextmanager
async def _connected(dsn: str, pgbouncer: bool) -> AsyncGenerator[Connection]:
    """A connection without time limits; behind PgBouncer the role's own are in force."""
    unlimited = dict.fromkeys(("statement_timeout", "lock_timeout"), "0")
    settings = {"application_name": "chat-bridge search"} | ({} if pgbouncer else unlimited)
    with database_errors():
        connection = await Connector(dsn).connect(statement_cache_size=0, server_settings=settings)
        try:
            yield connection
        finally:
            await connection.close()
