"""The schema's version: what the database has, what this program wants, and the way between them."""

import asyncio
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from chat_bridge.errors import SchemaError, StorageError
from chat_bridge.storage.postgres import Connector, database_errors
from chat_bridge.telemetry import log

T = TypeVar("T")

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


class _TablesInUseError(StorageError):
    """Others hold what a migration needs."""


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

    def upgrade(connection: Connection) -> SchemaState:
        # Transaction-scoped, so it also works behind PgBouncer, and is gone however the process ends.
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        state = _state(connection)
        if not state.known:
            state.require_usable()
            return state
        connection.execute(text(f"set local lock_timeout = {_LOCK_MILLISECONDS}"))
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return _state(connection)

    for _ in range(_LOCK_TRIES - 1):
        try:
            return await _run(dsn, upgrade)
        except _TablesInUseError as error:
            log.warning("schema.in_use", reason=str(error))
            await asyncio.sleep(_LOCK_PAUSE_SECONDS)
    return await _run(dsn, upgrade)


def compare(current: str | None, oldest_code: str | None = None) -> SchemaState:
    """The state of a database whose revision has been read. `oldest_code` matters only for a revision that is unknown
    here."""
    head, revisions = _our_revisions()
    return SchemaState(current, head, current is None or current in revisions, oldest_code)


@cache
def _our_revisions() -> tuple[str, frozenset[str]]:
    scripts = ScriptDirectory.from_config(_config())
    head = scripts.get_current_head()
    assert head is not None
    return head, frozenset(script.revision for script in scripts.walk_revisions())


async def schema_state(dsn: str) -> SchemaState:
    """Compare the database with this program; changes nothing. Raises SchemaError while a backup is restored."""
    return await _run(dsn, _state)


def migration_sql() -> str:
    """The whole schema as SQL text, for those who let somebody else run it."""
    output = io.StringIO()
    config = _config()
    config.output_buffer = output
    command.upgrade(config, "head", sql=True)
    return output.getvalue()


def _config() -> Config:
    config = Config()
    # Alembic reads its options as %-templates.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _state(connection: Connection) -> SchemaState:
    # What a bridge stores now would be dropped when the rows from before the restore are put back.
    if connection.scalar(text("select to_regnamespace(:schema) is not null"), {"schema": ASIDE}):
        raise SchemaError(
            f"`chat-bridge backup restore` is at work on this database, or was killed: the rows from before it are in "
            f"the schema {ASIDE}. Wait for its end; if it has none, docs/operate/backup.md shows how to put them back"
        )
    state = compare(_value(connection, "alembic_version", "select version_num from alembic_version"))
    if state.known:
        return state
    oldest = _value(connection, "schema_compatibility", "select oldest_code from schema_compatibility")
    return compare(state.current, oldest)


def _value(connection: Connection, table: str, query: str) -> str | None:
    """What the query on the table gives; None where there is no such table."""
    exists = connection.scalar(text("select to_regclass(:table) is not null"), {"table": table})
    return connection.scalar(text(query)) if exists else None


async def _run(dsn: str, action: Callable[[Connection], T]) -> T:
    async def connect() -> Any:
        # The DSN goes to the driver as the user wrote it; no statement cache, for PgBouncer's sake.
        return await Connector(dsn).connect(statement_cache_size=0)

    # SQLAlchemy wraps what the driver raises, so that the border of postgres.py does not see it.
    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        with database_errors():
            async with engine.begin() as connection:
                return await connection.run_sync(action)
    except DBAPIError as error:
        kind = _TablesInUseError if getattr(error.orig, "sqlstate", None) in _IN_USE else StorageError
        raise kind(f"PostgreSQL: {str(error.orig).splitlines()[0]}") from error
    finally:
        await engine.dispose()
