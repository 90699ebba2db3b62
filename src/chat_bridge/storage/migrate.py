"""The schema's version: what the database has, what this program wants, and the way between them."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from chat_bridge.errors import SchemaError, StorageError
from chat_bridge.storage.postgres import database_errors

T = TypeVar("T")

# Any number will do, as long as every process takes the same one.
_MIGRATION_LOCK = 0x6368_6174


@dataclass(frozen=True, slots=True)
class SchemaState:
    """`current` is the database's revision (None: empty), `head` the newest one this program knows."""

    current: str | None
    head: str
    known: bool

    @property
    def up_to_date(self) -> bool:
        return self.current == self.head

    def require_usable(self) -> None:
        """Raise SchemaError unless the schema is the one this program was written for."""
        if not self.known:
            raise SchemaError(
                f"the database's schema ({self.current}) is newer than this program ({self.head}): "
                "run a newer agoric-chat-bridge, or restore the database from before the upgrade"
            )
        if not self.up_to_date:
            raise SchemaError(
                f"the database's schema is {self.current or 'empty'}, this program needs {self.head}: "
                "run `chat-bridge migrate`, or start with DATABASE_MIGRATE=true"
            )


async def migrate(dsn: str) -> SchemaState:
    """Bring the schema to this program's version; return the state after. Safe in many processes at once: one does
    the work, the others wait for it. Raises SchemaError when the schema is newer than this program."""

    def upgrade(connection: Connection) -> SchemaState:
        # Transaction-scoped, so it also works behind PgBouncer, and is gone however the process ends.
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        state = _state(connection)
        if not state.known:
            state.require_usable()
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return _state(connection)

    return await _run(dsn, upgrade)


def compare(current: str | None) -> SchemaState:
    """The state of a database whose revision is known."""
    head, revisions = _our_revisions()
    return SchemaState(current, head, current is None or current in revisions)


@cache
def _our_revisions() -> tuple[str, frozenset[str]]:
    scripts = ScriptDirectory.from_config(_config())
    head = scripts.get_current_head()
    assert head is not None
    return head, frozenset(script.revision for script in scripts.walk_revisions())


async def schema_state(dsn: str) -> SchemaState:
    """Compare the database with this program; changes nothing."""
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
    exists = connection.scalar(text("select to_regclass('alembic_version') is not null"))
    current = connection.scalar(text("select version_num from alembic_version")) if exists else None
    return compare(current)


async def _run(dsn: str, action: Callable[[Connection], T]) -> T:
    async def connect() -> Any:
        # The DSN goes to the driver as the user wrote it; no statement cache, for PgBouncer's sake.
        return await asyncpg.connect(dsn, timeout=10, statement_cache_size=0)

    # SQLAlchemy wraps what the driver raises, so that the border of postgres.py does not see it.
    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        with database_errors():
            async with engine.begin() as connection:
                return await connection.run_sync(action)
    except DBAPIError as error:
        raise StorageError(f"PostgreSQL: {str(error.orig).splitlines()[0]}") from error
    finally:
        await engine.dispose()
