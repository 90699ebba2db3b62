"""PostgreSQL: the pool, the named queries of `sql/*.sql`, and the one border where driver errors become ours."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar

import asyncpg

from chat_bridge.errors import StorageError

# The driver ships no types: what comes from it is Any, here and nowhere else.
Connection: TypeAlias = Any
Record: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

CONNECT_SECONDS = 10
STATEMENT_SECONDS = 60
RACES = 10


def _load_queries() -> dict[str, str]:
    queries: dict[str, str] = {}
    for file in sorted((Path(__file__).parent / "sql").glob("*.sql")):
        blocks = re.split(r"^-- name: (\w+)\n", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for name, body in zip(blocks[1::2], blocks[2::2], strict=True):
            assert name not in queries, name
            queries[name] = f"-- {name}\n{body.strip().removesuffix(';')}"
    return queries


QUERIES = _load_queries()
"""Every statement the bridge runs, by name. Each begins with a comment of its name, so that logs show it."""


# Each statement is planned once a connection: the server would otherwise plan the long ones anew at each call, which
# takes longer than running them. One plan has to fit tables of any size, also if it was made while they were empty:
# every table is read by an index, for one row of the batch after another. PgBouncer refuses these parameters.
_PLANNING = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}


@contextmanager
def database_errors() -> Generator[None]:
    """Turn what the driver raises into StorageError, but for unique violations, which callers may expect."""
    try:
        yield
    except asyncpg.UniqueViolationError:
        raise
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        # The server's DETAIL and HINT may quote a row: only the message is passed on.
        reason = str(error) or type(error).__name__
        raise StorageError(f"PostgreSQL: {reason.splitlines()[0]}") from error


async def win(attempt: Callable[[], Awaitable[T]]) -> T:
    """Run what fails with a unique violation when another writer is first, until it doesn't. Each race has a winner
    that is committed, so that the next try sees it; more than a few mean something else is wrong: StorageError."""
    for _ in range(RACES):
        with suppress(asyncpg.UniqueViolationError):
            return await attempt()
    raise StorageError(f"PostgreSQL: {RACES} races in a row were lost; nothing was stored")


async def _leave_clean(connection: Connection) -> None:
    # The pool's own reset is four statements at each release. Nothing of ours outlives a transaction (no SET, no
    # LISTEN, no temporary table, no session lock), so an open transaction is all there can be to clean.
    if connection.is_in_transaction():
        await connection.execute("rollback")


class Database:
    """A pool of connections that runs named queries."""

    def __init__(self, pool: asyncpg.Pool, pgbouncer: bool) -> None:
        self._pool = pool
        self._pgbouncer = pgbouncer

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, *, pool_size: int = 10, pgbouncer: bool = False) -> AsyncGenerator[Self]:
        """Connect. `pgbouncer`: for a pooler in transaction mode, which keeps no prepared statements between
        transactions: each statement then costs more round trips. Raises StorageError when the server can't be had."""
        with database_errors():
            pool = await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=pool_size,
                timeout=CONNECT_SECONDS,
                command_timeout=STATEMENT_SECONDS,
                statement_cache_size=0 if pgbouncer else 100,
                server_settings={"application_name": "chat-bridge"} | ({} if pgbouncer else _PLANNING),
                reset=_leave_clean,
            )
        try:
            yield cls(pool, pgbouncer)
        finally:
            await pool.close()

    async def fetch(self, query: str, *arguments: object) -> Sequence[Record]:
        """Run a named query and give its rows."""
        with database_errors():
            async with self._pool.acquire() as connection:
                if not self._pgbouncer:
                    return await connection.fetch(QUERIES[query], *arguments)
                # Preparing and executing must meet the same server connection: a transaction holds it.
                async with connection.transaction():
                    return await connection.fetch(QUERIES[query], *arguments)

    async def fetch_one(self, query: str, *arguments: object) -> Record | None:
        """The first row of a named query, or None."""
        rows = await self.fetch(query, *arguments)
        return rows[0] if rows else None

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator["Transaction"]:
        """Several named queries, all or nothing."""
        with database_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                yield Transaction(connection)

    async def ping(self) -> None:
        """One round trip. Raises StorageError."""
        with database_errors():
            await self._pool.fetchval("select 1")


class Transaction:
    """Named queries inside one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def fetch(self, query: str, *arguments: object) -> Sequence[Record]:
        """Run a named query and give its rows."""
        return await self._connection.fetch(QUERIES[query], *arguments)
