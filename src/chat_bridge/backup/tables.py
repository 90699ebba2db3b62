"""The bridge's tables in a database: which there are, and what is in them."""

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache

from chat_bridge.backup.manifest import BackupError, TableSum
from chat_bridge.storage.migrate import migration_sql
from chat_bridge.storage.postgres import Connection, Connector, database_errors

NAME = "chat-bridge backup"
LEASES = "leases"  # who may do what right now: nothing to keep
BOOKKEEPING = ("alembic_version", "schema_compatibility", LEASES)  # with rows in them, a database is still empty

# A row's text must be the same wherever it is asked for; and a backup takes as long as it takes.
_SESSION = {
    "application_name": NAME,
    "bytea_output": "hex",
    "datestyle": "ISO, YMD",
    "extra_float_digits": "1",
    "idle_in_transaction_session_timeout": "0",
    "intervalstyle": "postgres",
    "lock_timeout": "30s",
    "statement_timeout": "0",
    "tcp_keepalives_idle": "60",  # a connection says nothing while a dump is made, and firewalls forget it
    "timezone": "UTC",
}

_PRESENT = """
select n.nspname as namespace, array_remove(array_agg(c.relname::text order by c.relname), null) as tables
from pg_namespace n
left join pg_class c on c.relnamespace = n.oid and c.relkind in ('r', 'p') and c.relname = any($1)
where n.nspname = coalesce(
  $2,
  (select o.nspname from pg_class b join pg_namespace o on o.oid = b.relnamespace
    where b.oid = to_regclass('alembic_version')),
  current_schema()
)
group by n.nspname
"""
_SUM = """
select count(*) as rows, coalesce(sum(hashtextextended(whole_row::text collate "C", 0)), 0) as digest
from {table} whole_row
"""


@dataclass(frozen=True, slots=True)
class Tables:
    """The bridge's tables that a database has, and the schema of PostgreSQL they are in."""

    namespace: str
    names: Sequence[str]

    def full_name(self, table: str) -> str:
        """As SQL has it."""
        return f"{quoted(self.namespace)}.{quoted(table)}"


@cache
def known_tables() -> frozenset[str]:
    """All tables that a migration of this program makes."""
    return frozenset(re.findall(r"^create table (\w+)", migration_sql(), re.IGNORECASE | re.MULTILINE))


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"{}"'.format(name.replace('"', '""'))


@asynccontextmanager
async def connected(dsn: str) -> AsyncGenerator[Connection]:
    """A connection for backups. Raises StorageError."""
    with database_errors():
        connection = await Connector(dsn).connect(statement_cache_size=0, server_settings=_SESSION)
        try:
            yield connection
        finally:
            await connection.close()


async def present_tables(connection: Connection, namespace: str | None = None) -> Tables:
    """The tables there are, in the schema that the bridge works in or in another one. Raises BackupError when there
    is no such schema."""
    row = await connection.fetchrow(_PRESENT, list(known_tables()), namespace)
    if row is None:
        raise BackupError(
            "the search_path of this database's role names no schema that is there and that the role may use: make it "
            "first, such as `create schema public`"
        )
    return Tables(row["namespace"], row["tables"])


async def sum_up(connection: Connection, tables: Tables) -> dict[str, TableSum]:
    """Count the rows and sum their hashes, each table in one pass."""
    sums: dict[str, TableSum] = {}
    for table in tables.names:
        if table != LEASES:
            row = await connection.fetchrow(_SUM.format(table=tables.full_name(table)))
            sums[table] = TableSum(row["rows"], f"{int(row['digest']) % 2**64:016x}")
    return sums


async def identity(connection: Connection, tables: Tables) -> str | None:
    """Which database this is, of all there are; None where the server tells no number of its own. A copy on another
    server is another database, and so is one that pg_upgrade made."""
    if not await connection.fetchval("select has_function_privilege('pg_control_system()', 'execute')"):
        return None
    database, server = await connection.fetchrow(
        "select current_database()::text, system_identifier::text from pg_control_system()"
    )
    return f"{database}/{tables.namespace} on {server}"


async def server_version(connection: Connection) -> int:
    """The server's major version."""
    return int(await connection.fetchval("select current_setting('server_version_num')::int / 10000"))
