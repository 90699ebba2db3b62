"""The schema's version: what the database has, what this program wants, and the way between them."""

import asyncio
import io
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from chat_bridge.errors import SchemaError, StatementRefusedError
from chat_bridge.storage.postgres import Connection, Connector, database_errors
from chat_bridge.telemetry import log

_SCRIPTS = Path(__file__).parent / "migrations"

# Any number will do, as long as every process takes the same one.
_MIGRATION_LOCK = 0x6368_6174

# Bridges that run meanwhile want the tables too: who waits for a migration that waits for a table waits as well, and
# may hold the very table. So it gives up before PostgreSQL sees a deadlock (after 1 s) and ends somebody's statement.
_LOCK_MILLISECONDS = 500
_LOCK_PAUSE_SECONDS = 0.5
_LOCK_TRIES = 60
_IN_USE = ("55P03", "40P01")  # lock_not_available, deadlock_detected

# The schema of PostgreSQL in which `backup restore` keeps the rows that it replaces, until it has come to its end.
ASIDE = "chat_bridge_replaced"


@dataclass(frozen=True, slots=True)
class SchemaState:
    """`current` is the database's revision (None: empty), `head` the newest one this program knows. A newer schema
    says itself which code can still use it: `oldest_code` is the `head` of the oldest one."""

    current: str | None
    head: str
    known: bool
    oldest_code: str | None = None

    @property
    def up_to_date(self) -> bool:
        return self.current == self.head

    @property
    def newer_but_usable(self) -> bool:
        """Newer code has migrated the database, in a way that this program can live with: a rolling deploy."""
        return not self.known and self.oldest_code is not None and self.oldest_code <= self.head

    @property
    def summary(self) -> str:
        """What to say of a schema that can be used."""
        if self.newer_but_usable:
            return f"the schema ({self.current}) is newer than this program ({self.head}), which can still use it"
        return f"the schema is up to date: {self.current}"

    def require_usable(self) -> None:
        """Raise SchemaError unless this program can work with the schema."""
        if self.newer_but_usable:
            return
        if not self.known:
            needed = f" and needs the code of {self.oldest_code} or later" if self.oldest_code else ""
            raise SchemaError(
                f"the database's schema ({self.current}) is newer than this program ({self.head}){needed}: "
                "run a newer agoric-chat-bridge, or restore the database from before the upgrade"
            )
        if not self.up_to_date:
            raise SchemaError(
                f"the database's schema is {self.current or 'empty'}, this program needs {self.head}: "
                "run `chat-bridge migrate`, or start with DATABASE_MIGRATE=true"
            )


async def migrate(dsn: str) -> SchemaState:
    """Bring the schema to this program's version; return the state after. Safe in many processes at once: one does
    the work, the others wait for it. A newer schema is left alone: raises SchemaError when this program
    can't use it, and while a backup is restored."""
    if (state := await schema_state(dsn)).up_to_date:
        return state
    for _ in range(_LOCK_TRIES - 1):
        try:
            return await _migrate(dsn)
        except StatementRefusedError as error:
            if getattr(error.__cause__, "sqlstate", None) not in _IN_USE:
                raise
            log.warning("schema.in_use", reason=str(error))
            await asyncio.sleep(_LOCK_PAUSE_SECONDS)
    return await _migrate(dsn)


async def _migrate(dsn: str) -> SchemaState:
    async with _transaction(dsn) as connection:
        # Transaction-scoped, so it also works behind PgBouncer, and is gone however the process ends.
        await connection.execute(f"select pg_advisory_xact_lock({_MIGRATION_LOCK})")
        state = await _state(connection)
        if not state.known:
            state.require_usable()
        elif not state.up_to_date:
            await connection.execute(f"set local lock_timeout = {_LOCK_MILLISECONDS}")
            await connection.execute(_sql(f"{state.current}:head" if state.current else "head", whole=False))
            state = await _state(connection)
        return state


def compare(current: str | None, oldest_code: str | None = None) -> SchemaState:
    """The state of a database whose revision has been read. `oldest_code` matters only for a revision that is unknown
    here."""
    revisions = _our_revisions()
    return SchemaState(current, revisions[-1], current is None or current in revisions, oldest_code)


@cache
def _our_revisions() -> list[str]:
    """In their order, which is that of their numbers."""
    return sorted(file.name.partition("_")[0] for file in (_SCRIPTS / "versions").glob("[0-9]*.py"))


async def schema_state(dsn: str) -> SchemaState:
    """Compare the database with this program; changes nothing. Raises SchemaError while a backup is restored."""
    async with _transaction(dsn) as connection:
        return await _state(connection)


def migration_sql() -> str:
    """The whole schema as SQL text, for those who let somebody else run it."""
    return _sql("head", whole=True)


def _sql(revisions: str, *, whole: bool) -> str:
    """The migrations of a range as SQL; `whole`: in a transaction of their own."""
    # Imported where it is needed, which is seldom: that takes a fifth of the time of a start.
    from alembic import command
    from alembic.config import Config

    output = io.StringIO()
    config = Config(output_buffer=output, attributes={"transactional_ddl": whole})
    # Alembic reads its options as %-templates.
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, revisions, sql=True)
    return output.getvalue()


async def _state(connection: Connection) -> SchemaState:
    # What a bridge stores now would be dropped when the rows from before the restore are put back.
    if await connection.fetchval("select to_regnamespace($1) is not null", ASIDE):
        raise SchemaError(
            f"`chat-bridge backup restore` is at work on this database, or was killed: the rows from before it are in "
            f"the schema {ASIDE}. Wait for its end; if it has none, docs/operate/backup.md shows how to put them back"
        )
    state = compare(await _value(connection, "alembic_version", "select version_num from alembic_version"))
    if state.known:
        return state
    oldest = await _value(connection, "schema_compatibility", "select oldest_code from schema_compatibility")
    return compare(state.current, oldest)


async def _value(connection: Connection, table: str, query: str) -> str | None:
    """What the query on the table gives; None where there is no such table."""
    # Not to_regclass(): a connection of a pooler may remember that there was none, until it hears that there is one.
    visible = "select count(*) > 0 from pg_class where relname = $1 and pg_table_is_visible(oid)"
    exists = await connection.fetchval(visible, table)
    return await connection.fetchval(query) if exists else None


@asynccontextmanager
async def _transaction(dsn: str) -> AsyncGenerator[Connection]:
    """A transaction on a connection of its own."""
    with database_errors():
        connection = await Connector(dsn).connect(statement_cache_size=0)  # for PgBouncer's sake
        try:
            # Whatever the server's default: what another process has just committed must be seen.
            async with connection.transaction(isolation="read_committed"):
                yield connection
        finally:
            await connection.close()
