"""Restore a backup: into a scratch database to see whether it is good, or for good.

The rows that a restore replaces are moved aside, and dropped when the restored ones have been counted and compared.
Until then every failure puts them back, if the server can be reached; if not, or if the process is killed, they stay
aside, and neither a bridge nor a migration nor another restore begins until a person has put them back.
"""

import asyncio
import secrets
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import asyncpg

from chat_bridge.backup.manifest import BackupError, Manifest, made_at, new_id
from chat_bridge.backup.programs import Running, find_pg_restore, run, with_database
from chat_bridge.backup.relay import for_programs
from chat_bridge.backup.seal import Summed, unseal
from chat_bridge.backup.tables import (
    BOOKKEEPING,
    NAME,
    Tables,
    connected,
    known_tables,
    present_tables,
    quoted,
    server_version,
    sum_up,
)
from chat_bridge.backup.vault import Vault
from chat_bridge.errors import ChatBridgeError
from chat_bridge.storage.migrate import ASIDE, compare
from chat_bridge.storage.postgres import Connection, wait_for_server

SCRATCH = "chat_bridge_verify_"
OLD_SCRATCH = timedelta(days=1)
FORBIDDEN = "42501"  # insufficient_privilege
PUT_BACK_SECONDS = 30.0  # for a server that begins anew

_HAS_ROWS = "select exists (select from {table})"
_RUNNING = """
select
  exists (select from {leases} where lease_until > clock_timestamp()) as leases,
  exists (select from {turns} where status = 'running' and lease_until > clock_timestamp()) as turns
"""
_WHOSE_ASIDE = "select obj_description(to_regnamespace($1), 'pg_namespace')"
_END = """
select pg_terminate_backend(pid, 10000) from pg_stat_activity
where datname = current_database() and (application_name = $1 or application_name = $2 and $1 = $2 || ' ' || pid)
"""


async def verify(vault: Vault, manifest: Manifest, dsn: str) -> None:
    """Restore into a database made for that on the same server, compare all tables, drop it. Raises BackupError when
    they differ."""
    name = f"{SCRATCH}{new_id(datetime.now(UTC), secrets.token_hex(4))}"
    async with connected(dsn) as server:
        await _drop_old_scratches(server)
        try:
            # Digests depend on no collation; and this one fits every encoding.
            await server.execute(f"create database {quoted(name)} template template0 encoding 'UTF8' locale 'C'")
        except asyncpg.PostgresError as error:
            if getattr(error, "sqlstate", None) != FORBIDDEN:
                raise
            raise BackupError("verify needs a role that may make a database: alter role NAME createdb") from error
        try:
            scratch = with_database(dsn, name)
            async with connected(scratch) as connection:
                await _fill(vault, manifest, scratch, connection)
        finally:
            await asyncio.shield(server.execute(f"drop database {quoted(name)} with (force)"))


async def restore(vault: Vault, manifest: Manifest, dsn: str, *, replace: bool) -> None:
    """Restore into this database. `replace`: also over rows that are there. Raises BackupError and StorageError; then
    the database is as it was, unless the message says where its rows are."""
    if not compare(manifest.revision).known:
        raise BackupError(
            f"its schema ({manifest.revision}) is newer than this program: restore it with agoric-chat-bridge "
            f"{manifest.program} or newer"
        )
    async with connected(dsn) as connection:
        tables = await present_tables(connection)
        await _require_fitting(connection, manifest, tables)
        await _require_idle(connection, tables)
        if not replace:
            await _require_empty(connection, tables)
        name = _name(connection)
        try:
            await _put_aside(connection, tables)
            await _fill(vault, manifest, dsn, connection)
            await connection.execute(f"drop schema {ASIDE} cascade")
        except BaseException as error:
            connection.terminate()  # it may be what broke, or be busy still
            try:
                await asyncio.shield(_put_back(dsn, name, tables))
            except ChatBridgeError as trouble:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise BackupError(
                    f"{reason}; and the rows that were there could not be put back ({trouble}): if there is a schema "
                    f"{ASIDE}, they are in it. docs/operate/backup.md shows how to put them back"
                ) from error
            raise


async def _fill(vault: Vault, manifest: Manifest, dsn: str, connection: Connection) -> None:
    """Restore into a database without our tables, and compare. Raises BackupError when they differ."""
    program = await asyncio.to_thread(find_pg_restore, manifest.dump.program, await server_version(connection))
    if await connection.fetchval("select to_regnamespace($1) is null", quoted(manifest.namespace)):
        await connection.execute(f"create schema {quoted(manifest.namespace)}")
    arguments = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"]

    def work(pg_restore: Running) -> None:
        if manifest.dump.encryption is not None and vault.key is None:
            raise BackupError("it is encrypted: set BACKUP_KEY or BACKUP_KEY_FILE")
        with vault.place.reading(f"{manifest.id}/{manifest.dump.name}") as source:
            summed = Summed(source=source)
            unseal(summed, pg_restore, vault.key if manifest.dump.encryption else None)
        if (summed.bytes, summed.sha256) != (manifest.dump.bytes, manifest.dump.sha256):
            raise BackupError(f"{manifest.dump.name} is not the file that was stored: its checksum differs")
        pg_restore.finish()

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    async with for_programs(dsn, connection) as reached:
        await run(program, reached, _name(connection), arguments, work, **pipes)
    restored = await present_tables(connection, manifest.namespace)
    found = await sum_up(connection, restored)
    names = sorted(found.keys() | manifest.tables.keys())
    if wrong := [name for name in names if found.get(name) != manifest.tables.get(name)]:
        raise BackupError(f"what was restored is not what was backed up: {', '.join(wrong)} differ")
    await connection.execute(f"analyze {', '.join(restored.full_name(table) for table in restored.names)}")


def _name(connection: Connection) -> str:
    return f"{NAME} {connection.get_server_pid()}"


async def _require_fitting(connection: Connection, manifest: Manifest, tables: Tables) -> None:
    if tables.namespace != manifest.namespace:
        raise BackupError(
            f"the backup's tables are in the schema {manifest.namespace}, and this database's role works in "
            f"{tables.namespace}: set the role's search_path"
        )
    if await connection.fetchval("select to_regnamespace($1) is not null", ASIDE):
        raise BackupError(
            f"an earlier restore was killed: the rows from before it are in the schema {ASIDE}. Move them back "
            "(docs/operate/backup.md shows how), or drop them: "
            f"drop schema {ASIDE} cascade"
        )


async def _require_idle(connection: Connection, tables: Tables) -> None:
    """Refuse while a bridge works on the database."""
    sessions = await connection.fetchval(
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'chat-bridge'"
    )
    if sessions:
        raise BackupError(f"a bridge is running on this database (connections: {sessions}): stop it first")
    if {"leases", "turns"} <= set(tables.names):
        names = {name: tables.full_name(name) for name in ("leases", "turns")}
        signs = await connection.fetchrow(_RUNNING.format_map(names))
        if signs["leases"] or signs["turns"]:
            what = "turns are running" if signs["turns"] else "a lease is active"
            raise BackupError(f"a bridge is running on this database, or was a moment ago ({what}): stop it and wait")


async def _require_empty(connection: Connection, tables: Tables) -> None:
    for table in tables.names:
        has_rows = await connection.fetchval(_HAS_ROWS.format(table=tables.full_name(table)))
        if has_rows and table not in BOOKKEEPING:
            raise BackupError(f"the database is not empty (there are {table}): --replace gives up what is there")


async def _put_aside(connection: Connection, tables: Tables) -> None:
    """Move the tables to a schema that bears our name. It is made also when there are none: it keeps bridges away."""
    async with connection.transaction():
        await connection.execute(f"create schema {ASIDE}")
        await connection.execute(f"comment on schema {ASIDE} is '{_name(connection)}'")
        for table in tables.names:
            await connection.execute(f"alter table {tables.full_name(table)} set schema {ASIDE}")


async def _put_back(dsn: str, name: str, tables: Tables) -> None:
    """Undo a restore, wherever it stopped. `name`: what it was known by. Raises StorageError."""
    await wait_for_server(dsn, PUT_BACK_SECONDS)
    aside = Tables(ASIDE, tables.names)
    async with connected(dsn) as connection:
        # Of a connection or a program that is gone, the server's side may still be at work.
        await connection.fetch(_END, name, NAME)
        async with connection.transaction():
            if await connection.fetchval(_WHOSE_ASIDE, ASIDE) != name:
                return  # nothing was moved, or the restore had come to its end
            for table in sorted(known_tables()):
                name_there = Tables(tables.namespace, []).full_name(table)
                await connection.execute(f"drop table if exists {name_there} cascade")  # keys may refer to it
            for table in tables.names:
                await connection.execute(f"alter table {aside.full_name(table)} set schema {quoted(tables.namespace)}")
            await connection.execute(f"drop schema {ASIDE}")


async def _drop_old_scratches(server: Connection) -> None:
    """Those of a verification that was killed."""
    names: Sequence[str] = [
        row["datname"]
        for row in await server.fetch("select datname from pg_database where starts_with(datname, $1)", SCRATCH)
    ]
    for name in names:
        made = made_at(name.removeprefix(SCRATCH))
        if made is not None and made < datetime.now(UTC) - OLD_SCRATCH:
            await server.execute(f"drop database if exists {quoted(name)} with (force)")
