"""PostgreSQL: the pool, the named queries of `sql/*.sql`, and the one border where driver errors become ours."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar
from urllib.parse import parse_qsl

import asyncpg

from chat_bridge.errors import (
    SettingsError,
    SlowStatementError,
    StatementRefusedError,
    StorageError,
    UnresponsiveError,
)
from chat_bridge.storage.tls import require_files, system_trust, tls_trouble
from chat_bridge.telemetry import log

# The driver ships no types: what comes from it is Any, here and nowhere else.
Connection: TypeAlias = Any
Record: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

# How long a caller may wait. The server ends a statement before we give it up: if we have to, it hears nothing.
CONNECT_SECONDS = 5.0  # all hosts of a DSN together
ACQUIRE_SECONDS = 5.0  # for a free connection, or a new one
STATEMENT_SECONDS = 20.0
WAIT_PAUSE_SECONDS = 1.0
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

# PgBouncer refuses these too: there the operator gives them to the role.
_LIMITS = {
    "statement_timeout": "15s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "30s",
}

# Reasons that may lie in one row of many: bad or too much data, a constraint, a lock that somebody holds, a deadlock.
_ONE_ROW = re.compile("2[123]|54|55P03|40P01")
_DEADLOCK = "40P01"
_TOOK_TOO_LONG = "57014"  # query_canceled
# Reasons to connect anew: the connection broke, the server stops or starts, or it is not the primary any more.
_ANOTHER_SERVER = re.compile("08|57P0[123]|25006")


@contextmanager
def database_errors() -> Generator[None]:
    """Turn what the driver raises into StorageError, but for unique violations, which callers may expect."""
    try:
        yield
    except asyncpg.UniqueViolationError:
        raise
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        raise _translated(error) from error


def _translated(error: Exception) -> StorageError:
    if isinstance(error, TimeoutError):
        return UnresponsiveError("PostgreSQL: no answer in time")
    if isinstance(error, OSError) and (trouble := tls_trouble(error)):
        return StorageError(f"PostgreSQL: {trouble}")
    # The server's DETAIL and HINT may quote a row: only the message is passed on.
    reason = f"PostgreSQL: {(str(error) or type(error).__name__).splitlines()[0]}"
    if _state(error) == _TOOK_TOO_LONG:
        return SlowStatementError(reason)
    return StatementRefusedError(reason) if _ONE_ROW.match(_state(error)) else StorageError(reason)


def _state(error: BaseException | None) -> str:
    """The SQLSTATE of an error; empty when it did not come from the server."""
    return getattr(error, "sqlstate", None) or ""


async def win(attempt: Callable[[], Awaitable[T]]) -> T:
    """Run what fails with a unique violation or in a deadlock when another writer is first, until it doesn't. Each race
    has a winner who goes on, so that the next try sees what he did; more than a few mean something else is wrong:
    StorageError."""
    for _ in range(RACES):
        try:
            return await attempt()
        except asyncpg.UniqueViolationError:
            pass
        except StatementRefusedError as error:
            if _state(error.__cause__) != _DEADLOCK:
                raise
    raise StorageError(f"PostgreSQL: {RACES} races in a row were lost; nothing was stored")


async def _leave_clean(connection: Connection) -> None:
    # The pool's own reset is four statements at each release. Nothing of ours outlives a transaction (no SET, no
    # LISTEN, no temporary table, no session lock), so an open transaction is all there can be to clean.
    if connection.is_in_transaction():
        await connection.execute("rollback")


# The options of a DSN that the driver and PostgreSQL's programs both know. The driver passes on all others to the
# server as settings, which it refuses.
_OPTIONS = re.compile(
    "host|port|user|password|passfile|dbname|service|options|krbsrvname|gsslib|target_session_attrs"
    "|ssl(mode|cert|key|password|rootcert|crl|negotiation)|ssl_(min|max)_protocol_version"
)
# Those of libpq that change nothing here: names and time limits are our own, and texts are UTF-8.
_NEEDLESS = re.compile(
    "((fallback_)?application_name|client_encoding|connect_timeout|tcp_user_timeout|keepalives(_idle|_interval|_count)?"
    "|load_balance_hosts|sslcompression)=.*"
    "|(channel_binding|gssencmode)=(disable|prefer)|gssdelegation=0|sslcertmode=allow|sslsni=1"
)
_INSTEAD = {
    "channel_binding": "the driver can't bind a login to its TLS. A certificate proves as well who the server is: "
    "write sslmode=verify-full&sslrootcert=system, or name the file of the server's CA",
    "pgbouncer": "leave it out, and set DATABASE_PGBOUNCER=true",
    "ssl": "write sslmode=verify-full&sslrootcert=system",
}


def plain(dsn: str) -> str:
    """The DSN with nothing but what the driver and PostgreSQL's programs know. Raises SettingsError for an option that
    can't be kept."""
    place, _, query = dsn.partition("?")
    kept: list[str] = []
    said: dict[str, str] = {}
    for option in filter(None, query.split("&")):
        name, value = parse_qsl(option, keep_blank_values=True)[0]
        if name == "database":  # as the driver alone calls it
            name, option = "dbname", f"dbname={option.partition('=')[2]}"
        said[name] = value
        if _OPTIONS.fullmatch(name) and value:
            kept.append(option)
    proven = said.get("sslmode") == "verify-full" or said.get("sslrootcert") == "system"
    for name, value in said.items():
        needless = _NEEDLESS.fullmatch(f"{name}={value}") or (name == "channel_binding" and proven)
        if not needless and not _OPTIONS.fullmatch(name):
            if "@" in query:  # it may be a piece of a password
                raise SettingsError("DATABASE_URL: has an unknown option after the ?; in a password, write %3F for ?")
            instead = _INSTEAD.get(name, "leave it out; a setting of the server is written options=-cNAME%3DVALUE")
            raise SettingsError(f"DATABASE_URL: the option {name} can't be used: {instead}")
    return f"{place}?{'&'.join(kept)}" if kept else place


_NOT_NOW = (asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched)


class Connector:
    """Connects to the first host of a DSN that will have us, beginning with the one that had us last.

    The driver knows DSNs of several hosts, but a first one that is silent, as a machine without power is, would take
    all of its time.
    """

    def __init__(self, dsn: str) -> None:
        dsn = plain(dsn)
        require_files("DATABASE_URL", dsn, ("sslrootcert", "sslcert", "sslkey", "sslcrl"))
        trust = system_trust(dsn)
        self._tls = {} if trust is None else {"ssl": trust}
        before, hosts, after = re.split(r"(?<=//)((?:[^@/?#]*@)?[^/?#]*)", dsn, maxsplit=1)
        account, at, names = hosts.rpartition("@")
        self._dsns = [f"{before}{account}{at}{name}{after}" for name in names.split(",")]

    async def connect(self, *_dsn: str, **options: Any) -> Connection:
        """Connect, as `asyncpg.connect` does."""
        seconds = CONNECT_SECONDS / len(self._dsns)
        problem: Exception | None = None
        for dsn in self._dsns:
            try:
                connection = await asyncpg.connect(dsn, timeout=seconds, **self._tls, **options)
            except (OSError, asyncpg.PostgresConnectionError, *_NOT_NOW) as error:
                problem = error
            else:
                self._dsns = [dsn, *(other for other in self._dsns if other != dsn)]
                return connection
        assert problem is not None
        raise problem


async def wait_for_server(dsn: str, seconds: float) -> None:
    """Return when PostgreSQL takes connections, or refuses ours for a reason that time does not mend, or when so many
    seconds are over: what is wrong then, who needs it will hear."""
    connector, deadline = Connector(dsn), time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            connection = await connector.connect(statement_cache_size=0)
        except (OSError, asyncpg.PostgresConnectionError, *_NOT_NOW) as error:
            if tls_trouble(error):
                return
            log.info("database.waiting", reason=str(error) or type(error).__name__)
            await asyncio.sleep(WAIT_PAUSE_SECONDS)
        except asyncpg.PostgresError:
            return
        else:
            await connection.close()
            return


class PoolUse(NamedTuple):
    """The connections that are open, and how many may be."""

    used: int
    idle: int
    limit: int


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
                connect=Connector(dsn).connect,
                min_size=1,
                max_size=pool_size,
                command_timeout=STATEMENT_SECONDS,
                statement_cache_size=0 if pgbouncer else 100,
                server_settings={"application_name": "chat-bridge"} | ({} if pgbouncer else _PLANNING | _LIMITS),
                reset=_leave_clean,
            )
        try:
            yield cls(pool, pgbouncer)
        finally:
            await pool.close()

    async def fetch(self, query: str, *arguments: object) -> Sequence[Record]:
        """Run a named query and give its rows."""
        async with self._connection() as connection:
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
        async with self._connection() as connection, connection.transaction():
            yield Transaction(connection)

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator["Transaction"]:
        """Several named queries that read the same moment."""
        async with self._connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            yield Transaction(connection)

    def pool_use(self) -> PoolUse:
        """How much of the pool is in use now."""
        idle = self._pool.get_idle_size()
        return PoolUse(self._pool.get_size() - idle, idle, self._pool.get_max_size())

    async def ping(self) -> None:
        """One round trip. Raises StorageError."""
        async with self._connection() as connection:
            await connection.fetchval("select 1", timeout=ACQUIRE_SECONDS)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Connection]:
        """A connection of the pool. When it turns out that its server is gone, or is not the primary any more, all of
        them are made anew as they are needed. That one more can't be had says nothing of those there are."""
        with database_errors():
            connection = await self._acquire()
            try:
                yield connection
            except asyncio.CancelledError:
                connection.terminate()  # else its release waits until the server has heard that it is to stop
                raise
            except (asyncpg.PostgresError, OSError) as error:
                if isinstance(error, TimeoutError):
                    connection.terminate()  # to ask a silent server to stop would take as long again
                if isinstance(error, OSError) or _ANOTHER_SERVER.match(_state(error)):
                    await self._pool.expire_connections()
                raise
            finally:
                await self._pool.release(connection)

    async def _acquire(self) -> Connection:
        try:
            async with asyncio.timeout(ACQUIRE_SECONDS):  # the pool's own timeout costs a task each time
                return await self._pool.acquire()
        except TimeoutError:
            raise UnresponsiveError(f"PostgreSQL: no connection could be had in {ACQUIRE_SECONDS:g} s") from None


class Transaction:
    """Named queries inside one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def fetch(self, query: str, *arguments: object) -> Sequence[Record]:
        """Run a named query and give its rows."""
        return await self._connection.fetch(QUERIES[query], *arguments)

    async def run(self, statement: str, *arguments: object) -> Sequence[Record]:
        """Run a statement that depends on what the database has, and give its rows."""
        return await self._connection.fetch(statement, *arguments)

    async def copy(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Append rows to a table with COPY, the fastest way in."""
        await self._connection.copy_records_to_table(table, columns=columns, records=rows)
