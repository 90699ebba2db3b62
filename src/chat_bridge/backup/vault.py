"""The backups there are: made, listed, pruned. One is whole when its manifest is there."""

import asyncio
import secrets
import subprocess
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

from chat_bridge.backup.manifest import FILE, BackupError, Dump, Manifest, from_json, made_at, new_id
from chat_bridge.backup.programs import Program, Running, find_pg_dump, run
from chat_bridge.backup.relay import for_programs
from chat_bridge.backup.seal import Key, Summed, read_key, seal
from chat_bridge.backup.tables import (
    LEASES,
    NAME,
    Tables,
    connected,
    identity,
    present_tables,
    server_version,
    sum_up,
)
from chat_bridge.errors import PlaceError, SettingsError
from chat_bridge.settings import Settings, environment
from chat_bridge.storage.migrate import compare
from chat_bridge.storage.places import BLOCK, Place, open_place
from chat_bridge.storage.postgres import Connection

_REVISION = "select version_num from {table}"
LONGEST = timedelta(days=1)  # for making one: what has no manifest then was left behind


@dataclass(frozen=True, slots=True)
class Vault:
    """Where backups are, and the key they are encrypted with."""

    place: Place
    key: Key | None

    async def whole(self) -> Sequence[str]:
        """The names of all whole backups, the newest first. Raises BackupError."""
        return _whole(await asyncio.to_thread(self.place.names))

    async def manifest(self, backup: str) -> Manifest:
        """What is in a backup. Raises BackupError."""

        def read() -> bytes:
            text = b""
            with self.place.reading(f"{backup}/{FILE}") as source:
                while data := source.read(BLOCK):
                    text += data
            return text

        return from_json(await asyncio.to_thread(read))

    async def newest(self, dsn: str) -> str | None:
        """The name of the newest backup. Raises BackupError when it is of another database, and StorageError."""
        async with connected(dsn) as connection:
            return await self._newest(await identity(connection, await present_tables(connection)))

    async def _newest(self, database: str | None) -> str | None:
        """Where two databases had their backups, each would take the other's for its own, and remove them."""
        newest = next(iter(await self.whole()), None)
        other = None
        if newest is not None:
            with suppress(BackupError):  # its manifest is damaged: it hinders nobody
                other = (await self.manifest(newest)).database
        if database is not None and other not in (None, database):
            raise BackupError(
                f"BACKUP_TO holds the backups of another database ({other}; this one is {database}): give this one a "
                "folder or prefix of its own, a new one too if it was moved or restored here"
            )
        return newest

    async def find(self, backup: str | None) -> Manifest:
        """The backup of this name, or the newest one. Raises BackupError."""
        there = await self.whole()
        if not there:
            raise BackupError("there is no backup")
        if backup is not None and backup not in there:
            raise BackupError(f"there is no backup {backup}; `chat-bridge backup list` shows which there are")
        return await self.manifest(backup or there[0])

    async def prune(self, *, keep: int | None = None, older_than: timedelta | None = None) -> Sequence[str]:
        """Remove whole backups but the newest ones, or those that are older; the newest is never removed. What a killed
        process left half made goes too. Gives the names of all that went. Raises BackupError."""
        names, now = await asyncio.to_thread(self.place.names), datetime.now(UTC)
        whole = _whole(names)
        if keep is not None:
            gone = whole[max(keep, 1) :]
        else:
            assert older_than is not None
            gone = [backup for backup in whole[1:] if _older(backup, now - older_than)]
        halves = {name.partition("/")[0] for name in names} - set(whole)
        gone = [*gone, *sorted(half for half in halves if _older(half, now - LONGEST))]
        for backup in gone:
            files = [name for name in names if name.startswith(f"{backup}/")]
            # The manifest first: whatever happens then, what is left is no backup.
            await asyncio.to_thread(self.place.delete, sorted(files, key=lambda name: not name.endswith(FILE)))
        return gone

    async def create(self, dsn: str) -> Manifest:
        """Make a backup: the dump and the counts are of one moment. Raises BackupError and StorageError."""
        async with connected(dsn) as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            return await self._create(dsn, connection)

    async def _create(self, dsn: str, connection: Connection) -> Manifest:
        tables = await present_tables(connection)
        revision = await _revision(connection, tables)
        database = await identity(connection, tables)
        await self._newest(database)
        program = await asyncio.to_thread(find_pg_dump, await server_version(connection))
        now = await connection.fetchval("select now()")
        backup, files = new_id(now, secrets.token_hex(4)), list[str]()
        try:
            files.append(f"{backup}/database.dump{'' if self.key is None else '.age'}")
            async with for_programs(dsn, connection) as reached:
                dump = await self._dump(reached, program, await _arguments(connection, tables), files[0])
            manifest = Manifest(
                id=backup,
                created_at=now.isoformat(),
                program=version("agoric-chat-bridge"),
                revision=revision,
                postgresql=await connection.fetchval("select current_setting('server_version')"),
                namespace=tables.namespace,
                dump=dump,
                tables=await sum_up(connection, tables),
                database=database,
            )
            files.append(f"{backup}/{FILE}")
            await _written(asyncio.to_thread(self._write, files[1], manifest.to_json()))
        except BaseException:
            with suppress(BackupError, PlaceError):
                await asyncio.to_thread(self.place.delete, files[::-1])
            raise
        return manifest

    async def _dump(self, dsn: str, program: Program, arguments: Sequence[str], name: str) -> Dump:
        def work(pg_dump: Running) -> Dump:
            with self.place.writing(name) as target:
                summed = Summed(target=target)
                seal(pg_dump, summed, self.key)
                pg_dump.finish()
            encryption = None if self.key is None else "age"
            return Dump(name.partition("/")[2], summed.bytes, summed.sha256, program.version, encryption)

        return await run(program, dsn, NAME, arguments, work, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def _write(self, name: str, text: bytes) -> None:
        with self.place.writing(name) as target:
            target.write(text)


def open_vault(settings: Settings) -> Vault:
    """The vault that the settings name. Raises BackupError and SettingsError."""
    if settings.backup_to is None:
        raise SettingsError("BACKUP_TO is not set: name a folder or a bucket, such as s3://bucket/chat-bridge")
    if settings.database_pgbouncer:
        raise SettingsError(
            "backups can't go through PgBouncer: give this command the server's own address "
            "(DATABASE_URL=... DATABASE_PGBOUNCER=false)"
        )
    key = None if settings.backup_key is None else read_key(settings.backup_key.get_secret_value())
    return Vault(open_place(settings.backup_to, environment()), key)


async def _written(writing: Coroutine[Any, Any, None]) -> None:
    """Wait for a thread that writes, also when we are cancelled: what is removed meanwhile would come back."""
    task = asyncio.create_task(writing)
    try:
        await asyncio.shield(task)
    finally:
        await asyncio.wait([task])


async def _revision(connection: Connection, tables: Tables) -> str:
    if "alembic_version" not in tables.names:
        raise BackupError("the database has no tables of the bridge: there is nothing to back up")
    revision = await connection.fetchval(_REVISION.format(table=tables.full_name("alembic_version")))
    if not compare(revision).known:
        raise BackupError(
            f"the database's schema ({revision}) is newer than this program, which does not know all of its tables: "
            "make the backup with the newer agoric-chat-bridge"
        )
    return revision


async def _arguments(connection: Connection, tables: Tables) -> Sequence[str]:
    return [
        "--format=custom",
        "--compress=3",  # half the time of the usual 6, for a few more bytes in a hundred
        "--no-owner",
        "--no-privileges",
        f"--snapshot={await connection.fetchval('select pg_export_snapshot()')}",
        *(f"--table={tables.full_name(table)}" for table in tables.names),
        f"--exclude-table-data={tables.full_name(LEASES)}",
    ]


def _whole(names: Sequence[str]) -> Sequence[str]:
    backups = {backup for backup, _, file in (name.partition("/") for name in names) if file == FILE}
    return sorted((backup for backup in backups if made_at(backup)), reverse=True)


def _older(backup: str, than: datetime) -> bool:
    made = made_at(backup)
    return made is not None and made < than
