"""Backups: made of one moment, compared when they come back, never half there."""

import asyncio
import errno
import io
import json
import re
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyrage
import pytest

from chat_bridge.backup import vault as vault_module
from chat_bridge.backup.manifest import BackupError, Dump, Manifest, TableSum, from_json, new_id
from chat_bridge.backup.programs import run
from chat_bridge.backup.restore import SCRATCH, restore, verify
from chat_bridge.backup.seal import Reader, Writer, library, read_key
from chat_bridge.backup.tables import known_tables
from chat_bridge.backup.vault import Vault
from chat_bridge.errors import PlaceError, SchemaError, StorageError
from chat_bridge.storage import leases
from chat_bridge.storage.migrate import ASIDE, migrate, schema_state
from chat_bridge.storage.places import Bucket, Folder, open_place
from tests.backup.stocked import TEXTS, contents, stock, vault_in
from tests.conftest import fresh_database
from tests.observe import rows
from tests.storage.dialogue import assert_consistent, chat, claimed, looking, opened, replied, said, statuses, texts

SECRET = str(pyrage.x25519.Identity.generate())
PUBLIC = str(pyrage.x25519.Identity.from_str(SECRET).to_public())


@pytest.fixture(params=["18", "15"], ids=["postgresql-18", "postgresql-15"])
def version(request: pytest.FixtureRequest) -> str:
    return request.param


async def until_scratches(dsn: str, *left: str) -> None:
    """Wait until there are no scratch databases but these: other tests on this server may be at work with theirs."""
    query = "select datname from pg_database where starts_with(datname, $1)"
    while [row["datname"] for row in await rows(dsn, query, SCRATCH)] != [*left]:
        await asyncio.sleep(0.1)


async def schemas(dsn: str) -> list[str]:
    return [row["nspname"] for row in await rows(dsn, "select nspname from pg_namespace where nspname = $1", ASIDE)]


async def test_a_backup_comes_back_as_it_was(version: str, tmp_path: Path) -> None:
    async with fresh_database(version, template=True) as old, fresh_database(version, template=False) as new:
        await stock(old)
        vault, before = vault_in(tmp_path), await contents(old)
        manifest = await vault.create(old)
        assert manifest.tables == before
        assert manifest.tables["messages"].rows == 2 * len(TEXTS) + 3
        assert manifest.dump.program == int(version), "the oldest pg_dump that will do"
        await verify(vault, manifest, old)
        await until_scratches(old)
        await restore(vault, manifest, new, replace=False)
        assert await contents(new) == before
        await assert_consistent(new)
        async with opened(new) as store:  # and the bridge goes on from there
            assert texts(await claimed(store, chat("waits"))) == ["still waiting"]
            await store.receive(said("one more", to=chat("0")))
            assert texts(await claimed(store, chat("0"))) == ["one more"]
            assert await leases.take(store.database, "poll", "another", 60.0), "leases are not restored"


async def test_a_backup_is_of_one_moment(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await stock(database)

    async def while_messages_come(*arguments: Any, **pipes: Any) -> Any:
        await stock(database, "before pg_dump")
        dump = await run(*arguments, **pipes)
        await stock(database, "before the counts")
        return dump

    monkeypatch.setattr(vault_module, "run", while_messages_come)
    before = await contents(database)
    manifest = await vault_in(tmp_path).create(database)
    assert manifest.tables == before
    assert (await contents(database))["messages"].rows == 3 * before["messages"].rows
    await verify(vault_in(tmp_path), manifest, database)


async def test_every_table_of_the_schema_is_in_it(database: str, tmp_path: Path) -> None:
    found = await rows(database, "select tablename from pg_tables where schemaname = 'public'")
    assert {row["tablename"] for row in found} == known_tables(), "a table that no backup would have"
    manifest = await vault_in(tmp_path).create(database)
    assert manifest.tables.keys() == known_tables() - {"leases"}


async def test_tables_of_others_are_left_alone(database: str, tmp_path: Path) -> None:
    old = database
    async with fresh_database("18", template=True) as new:
        await rows(old, "create table of_another as select 1 as number")
        await stock(old)
        vault = vault_in(tmp_path)
        manifest = await vault.create(old)
        await rows(new, "create table of_another as select 2 as number")
        await restore(vault, manifest, new, replace=False)
        assert await rows(new, "select number from of_another") == [{"number": 2}]


async def test_a_database_without_the_bridge_is_no_backup(empty_database: str, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="no tables of the bridge"):
        await vault_in(tmp_path).create(empty_database)
    assert list(tmp_path.iterdir()) == []


async def test_a_database_without_the_schema_of_postgresql_is_told(empty_database: str, tmp_path: Path) -> None:
    path = "&options=-csearch_path%3Dnowhere"
    with pytest.raises(BackupError, match="make it first, such as `create schema public`"):
        await vault_in(tmp_path).create(f"{empty_database}{path}")


async def test_a_backup_that_is_cancelled_at_its_end_is_gone(database: str, tmp_path: Path) -> None:
    writing, loop = asyncio.Event(), asyncio.get_running_loop()
    removed, written = threading.Event(), threading.Event()

    class Slow(Folder):
        """Writes a manifest only when it should have been removed."""

        @contextmanager
        def writing(self, name: str) -> Generator[Writer]:
            if name.endswith("manifest.json"):
                loop.call_soon_threadsafe(writing.set)
                removed.wait(0.3)
            with super().writing(name) as target:
                yield target
            if name.endswith("manifest.json"):
                written.set()

        def delete(self, names: Sequence[str]) -> None:
            super().delete(names)
            removed.set()

    creating = asyncio.create_task(Vault(Slow(tmp_path), None).create(database))
    await writing.wait()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    await asyncio.to_thread(written.wait)
    assert list(tmp_path.iterdir()) == []


async def test_a_schema_that_is_newer_is_refused(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    manifest = await vault.create(database)
    await rows(database, "update alembic_version set version_num = '9999'")
    with pytest.raises(BackupError, match=r"schema \(9999\) is newer than this program"):
        await vault.create(database)
    stored = json.loads(manifest.to_json()) | {"revision": "9999"}
    with pytest.raises(BackupError, match=r"schema \(9999\) is newer than this program: restore it with"):
        await restore(vault, from_json(json.dumps(stored).encode()), database, replace=True)


# Of which database


async def test_a_place_is_for_one_database(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    manifest = await vault.create(database)
    name = urlsplit(database).path.strip("/")
    assert manifest.database is not None
    assert re.fullmatch(rf"{name}/public on \d+", manifest.database)
    async with fresh_database("18", template=False) as other:
        await restore(vault, manifest, other, replace=False)  # it may move there
        with pytest.raises(BackupError, match=rf"the backups of another database \({manifest.database}; this one is"):
            await vault.create(other)
        assert await vault.whole() == [manifest.id]
        moved = await vault_in(tmp_path / "its own").create(other)
        assert moved.tables == manifest.tables
    await vault.create(database)


async def test_a_backup_of_an_older_program_hinders_nobody(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    manifest = await vault.create(database)
    old = json.loads(manifest.to_json())
    del old["database"]
    assert from_json(json.dumps(old).encode()) == replace(manifest, database=None)
    (tmp_path / manifest.id / "manifest.json").write_text(json.dumps(old))
    async with fresh_database("15", template=True) as other:
        assert (await vault.create(other)).database is not None


async def test_a_server_that_does_not_say_who_it_is(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    await vault.create(database)
    await rows(database, "revoke execute on function pg_control_system() from public")
    await rows(database, "create role silent login in role pg_read_all_data")
    try:
        assert (await vault.create(database.replace("chat_bridge@", "silent@"))).database is None
    finally:
        await rows(database, "drop role silent")


# Encryption


async def test_an_encrypted_backup_is_one_of_age(database: str, tmp_path: Path) -> None:
    await stock(database)
    vault = vault_in(tmp_path, PUBLIC)
    manifest = await vault.create(database)
    stored = (tmp_path / manifest.id / manifest.dump.name).read_bytes()
    assert stored.startswith(b"age-encryption.org/v1\n")
    assert b"PGDMP" not in stored
    opened_dump = io.BytesIO()
    pyrage.decrypt_io(io.BytesIO(stored), opened_dump, [pyrage.x25519.Identity.from_str(SECRET)])
    assert opened_dump.getvalue().startswith(b"PGDMP")
    await verify(vault_in(tmp_path, SECRET), manifest, database)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (None, "it is encrypted: set BACKUP_KEY"),
        (PUBLIC, "BACKUP_KEY is the public half of the key"),
        (str(pyrage.x25519.Identity.generate()), r"it can't be decrypted \(No matching keys found\)"),
    ],
    ids=["no key", "the public half", "another key"],
)
async def test_without_the_key_it_stays_closed(key: str | None, reason: str, database: str, tmp_path: Path) -> None:
    manifest = await vault_in(tmp_path, SECRET).create(database)
    with pytest.raises(BackupError, match=reason):
        await verify(vault_in(tmp_path, key), manifest, database)
    await until_scratches(database)


async def test_a_key_does_not_hinder_older_backups_without_one(database: str, tmp_path: Path) -> None:
    manifest = await vault_in(tmp_path).create(database)
    await verify(vault_in(tmp_path, SECRET), manifest, database)


def test_a_wrong_key_is_not_shown() -> None:
    with pytest.raises(BackupError, match="BACKUP_KEY is no key of age") as refused:
        read_key(f"AGE-SECRET-KEY-1{'Q' * 58}")
    assert "QQQ" not in str(refused.value)


def test_a_library_that_is_not_installed_is_told() -> None:
    with pytest.raises(
        BackupError,
        match=r"no_such_library is not installed: install the extra `backup` \(pip install '.*\[backup\]', or in",
    ):
        library("no_such_library")


# Damage


@pytest.mark.parametrize("key", [None, SECRET], ids=["plain", "encrypted"])
@pytest.mark.parametrize("damage", ["changed", "cut off", "longer", "gone"])
async def test_damage_is_found_and_costs_nothing(key: str | None, damage: str, database: str, tmp_path: Path) -> None:
    await stock(database)
    vault = vault_in(tmp_path, key)
    manifest = await vault.create(database)
    file = tmp_path / manifest.id / manifest.dump.name
    stored = file.read_bytes()
    middle = len(stored) // 2
    if damage == "gone":
        file.unlink()
    else:
        flipped = stored[:middle] + bytes([stored[middle] ^ 1]) + stored[middle + 1 :]
        file.write_bytes({"changed": flipped, "cut off": stored[:-1], "longer": stored + b"!"}[damage])
    with pytest.raises((BackupError, PlaceError)):
        await verify(vault, manifest, database)
    before = await contents(database)
    with pytest.raises((BackupError, PlaceError)):
        await restore(vault, manifest, database, replace=True)
    assert await contents(database) == before
    assert await schemas(database) == []
    await assert_consistent(database)


async def test_another_dump_under_the_name_of_this_one_is_found(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    empty = await vault.create(database)
    await stock(database)
    manifest = await vault.create(database)
    (tmp_path / manifest.id / manifest.dump.name).write_bytes((tmp_path / empty.id / empty.dump.name).read_bytes())
    with pytest.raises(BackupError, match="its checksum differs"):
        await verify(vault, manifest, database)
    mixed = json.loads(manifest.to_json()) | {"dump": json.loads(empty.to_json())["dump"]}
    with pytest.raises(BackupError, match="not what was backed up: deliveries, messages, sessions, turns, users"):
        await verify(vault, from_json(json.dumps(mixed).encode()), database)


A_DUMP = Dump("database.dump", 1, "0", 18, None)
NO_MESSAGES = Manifest(*["x"] * 6, dump=A_DUMP, tables={}).to_json()
A_MANIFEST = Manifest(*["x"] * 6, dump=A_DUMP, tables={"messages": TableSum(0, "0")}).to_json()
NO_NUMBER = A_MANIFEST.replace(b'"bytes": 1', b'"bytes": {}')


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"format": 1, "tables": 3}', b"\xff", NO_MESSAGES, NO_NUMBER])
def test_a_damaged_manifest_is_told(text: bytes) -> None:
    with pytest.raises(BackupError, match="its manifest is damaged"):
        from_json(text)


def test_a_manifest_of_a_newer_form_is_told() -> None:
    with pytest.raises(BackupError, match="a newer agoric-chat-bridge made it"):
        from_json(b'{"format": 2}')


# Restore


async def test_rows_are_replaced_only_when_that_is_said(any_database: str, tmp_path: Path) -> None:
    await stock(any_database)
    vault, before = vault_in(tmp_path), await contents(any_database)
    manifest = await vault.create(any_database)
    async with opened(any_database) as store:
        await replied(store, chat("later"))
    later = await contents(any_database)
    with pytest.raises(BackupError, match=r"not empty \(there are deliveries\): --replace gives up what is there"):
        await restore(vault, manifest, any_database, replace=False)
    assert await contents(any_database) == later
    await restore(vault, manifest, any_database, replace=True)
    assert await contents(any_database) == before
    assert await schemas(any_database) == []


async def test_a_database_whose_schema_is_newer_gets_the_old_one_back(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    manifest = await vault.create(database)
    old = json.loads(manifest.to_json())
    # What a later migration made must not be in the way of it when it runs again.
    await rows(database, "alter table moves add column note text")
    await rows(database, "insert into moves values (gen_random_uuid(), 'new', 'a note')")
    await restore(vault, manifest, database, replace=True)
    assert "note" not in (await rows(database, "select * from (select 1) one left join moves on true"))[0]
    assert (await migrate(database)).current == old["revision"]


async def test_nothing_is_restored_under_a_running_bridge(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    manifest = await vault.create(database)
    async with opened(database) as store:
        with pytest.raises(BackupError, match=r"a bridge is running on this database \(connections: \d+\)"):
            await restore(vault, manifest, database, replace=True)
        await leases.take(store.database, "sweep", "a bridge", 600.0)
    with pytest.raises(BackupError, match=r"was a moment ago \(a lease is active\): stop it and wait"):
        await restore(vault, manifest, database, replace=True)
    async with opened(database, lease_seconds=600) as store:
        await leases.release(store.database, "sweep", "a bridge")
        await store.receive(said("hello"))
        await claimed(store)
    with pytest.raises(BackupError, match=r"was a moment ago \(turns are running\): stop it and wait"):
        await restore(vault, manifest, database, replace=True)
    await rows(database, "update turns set lease_until = now()")
    await restore(vault, manifest, database, replace=True)
    async with opened(database) as store:
        assert await statuses(store) == {}


async def test_a_restore_that_is_cancelled_leaves_the_rows_there_were(database: str, tmp_path: Path) -> None:
    await stock(database)
    manifest = await vault_in(tmp_path).create(database)
    await stock(database, "later")
    before, reached = await contents(database), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow(Folder):
        """Gives all of a dump but its end, and that only when nobody wants it any more."""

        @contextmanager
        def reading(self, name: str) -> Generator[io.BytesIO]:
            with super().reading(name) as source:
                yield Halting(source.read())

    class Halting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() == 0:
                return super().read(len(self.getvalue()) - 10)
            loop.call_soon_threadsafe(reached.set)
            asyncio.run_coroutine_threadsafe(cancelled.wait(), loop).result()
            return super().read()

    cancelled = asyncio.Event()
    restoring = asyncio.create_task(restore(Vault(Slow(tmp_path), None), manifest, database, replace=True))
    await reached.wait()
    restoring.cancel()
    await asyncio.sleep(0)
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await restoring
    assert await contents(database) == before
    assert await schemas(database) == []


class Interrupted(Folder):
    """Somebody runs this SQL when a dump begins to be read."""

    def __init__(self, folder: Path, dsn: str, query: str) -> None:
        super().__init__(folder)
        self._loop = asyncio.get_running_loop()
        self._interruption = dsn, query

    @contextmanager
    def reading(self, name: str) -> Generator[Reader]:
        asyncio.run_coroutine_threadsafe(rows(*self._interruption), self._loop).result()
        with super().reading(name) as source:
            yield source


LOSE_CONNECTION = """
select pg_terminate_backend(pid, 10000) from pg_stat_activity
where datname = current_database() and application_name = 'chat-bridge backup'
"""


async def test_a_restore_that_loses_its_connection_puts_the_rows_back(database: str, tmp_path: Path) -> None:
    await stock(database)
    manifest = await vault_in(tmp_path).create(database)
    await stock(database, "later")
    before = await contents(database)
    with pytest.raises(StorageError):
        await restore(Vault(Interrupted(tmp_path, database, LOSE_CONNECTION), None), manifest, database, replace=True)
    assert await contents(database) == before
    assert await schemas(database) == []


async def test_rows_that_can_not_be_put_back_are_named(database: str, tmp_path: Path) -> None:
    manifest = await vault_in(tmp_path).create(database)
    (tmp_path / manifest.id / manifest.dump.name).write_bytes(b"PGDMP")
    place = Interrupted(tmp_path, database, f"drop table {ASIDE}.moves")
    with pytest.raises(BackupError, match=rf"its checksum differs; and the rows .* not be put back .* schema {ASIDE}"):
        await restore(Vault(place, None), manifest, database, replace=True)
    assert await schemas(database) == [ASIDE]


async def test_no_bridge_begins_while_an_empty_database_is_filled(empty_database: str, tmp_path: Path) -> None:
    async with fresh_database("15", template=True) as old:
        manifest = await vault_in(tmp_path).create(old)
    refused: list[str] = []

    class Watched(Interrupted):
        @contextmanager
        def reading(self, name: str) -> Generator[Reader]:
            with pytest.raises(SchemaError, match="is at work on this database") as told:
                asyncio.run_coroutine_threadsafe(migrate(empty_database), self._loop).result()
            refused.append(str(told.value))
            with super().reading(name) as source:
                yield source

    await restore(Vault(Watched(tmp_path, empty_database, "select"), None), manifest, empty_database, replace=False)
    assert len(refused) == 1
    assert await contents(empty_database) == manifest.tables


async def test_a_failed_restore_into_nothing_leaves_nothing(empty_database: str, tmp_path: Path) -> None:
    async with fresh_database("15", template=True) as old:
        manifest = await vault_in(tmp_path).create(old)
    file = tmp_path / manifest.id / manifest.dump.name
    file.write_bytes(file.read_bytes() + b"!")
    with pytest.raises(BackupError, match="its checksum differs"):
        await restore(vault_in(tmp_path), manifest, empty_database, replace=False)
    assert await contents(empty_database) == {}


async def test_after_a_killed_restore_a_person_decides(database: str, tmp_path: Path) -> None:
    await stock(database)
    vault, before = vault_in(tmp_path), await contents(database)
    manifest = await vault.create(database)
    async with looking(database) as connection:
        await connection.execute(f"create schema {ASIDE}")
        for table in known_tables():
            await connection.execute(f"alter table {table} set schema {ASIDE}")
        with pytest.raises(SchemaError, match=f"the rows from before it are in the schema {ASIDE}"):
            await migrate(database)  # as a bridge does that is started then
        with pytest.raises(SchemaError, match=f"the rows from before it are in the schema {ASIDE}"):
            await schema_state(database)  # and one that does not migrate
        with pytest.raises(BackupError, match=f"the rows from before it are in the schema {ASIDE}"):
            await restore(vault, manifest, database, replace=True)
        page = (Path(__file__).parents[2] / "docs" / "operate" / "backup.md").read_text(encoding="utf-8")
        (advice,) = (block.partition("```")[0] for block in page.split("```sql\n")[1:])
        await connection.execute(advice)
    assert await contents(database) == before
    await restore(vault, manifest, database, replace=True)


async def test_another_schema_of_postgresql_is_kept(tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    path = "&options=-csearch_path%3D%22My-Bridge%22"
    async with fresh_database("18", template=False) as old, fresh_database("18", template=False) as new:
        await rows(old, 'create schema "My-Bridge"')
        await migrate(f"{old}{path}")
        manifest = await vault.create(f"{old}{path}")
        assert manifest.namespace == "My-Bridge"
        await verify(vault, manifest, f"{old}{path}")
        with pytest.raises(BackupError, match="in the schema My-Bridge, and this database's role works in public"):
            await restore(vault, manifest, new, replace=False)
        await rows(new, 'create schema "My-Bridge"')
        await restore(vault, manifest, f"{new}{path}", replace=False)
        assert await contents(f"{new}{path}") == manifest.tables


async def test_verify_says_which_right_it_lacks(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    manifest = await vault.create(database)
    await rows(database, "create role backup_reader login in role pg_read_all_data")
    try:
        with pytest.raises(BackupError, match="alter role NAME createdb"):
            await verify(vault, manifest, database.replace("chat_bridge@", "backup_reader@"))
    finally:
        await rows(database, "drop role backup_reader")


async def test_the_scratch_database_of_a_killed_verification_goes(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    manifest = await vault.create(database)
    old, young = (f"{SCRATCH}{new_id(datetime.now(UTC) - timedelta(hours=hours), 'abcdef12')}" for hours in (25, 23))
    async with looking(database) as connection:
        for name in (old, young):
            await connection.execute(f'create database "{name}" template template0')
        try:
            await verify(vault, manifest, database)
            await until_scratches(database, young)
        finally:
            await connection.execute(f'drop database "{young}"')


async def test_what_pg_dump_says_is_told(database: str, tmp_path: Path) -> None:
    async with looking(database) as connection:
        await connection.execute("create role backup_writer login")
        try:
            await connection.execute("grant select on alembic_version to backup_writer")
            with pytest.raises(BackupError, match=r"pg_dump: error: .*permission denied for table"):
                await vault_in(tmp_path).create(database.replace("chat_bridge@", "backup_writer@"))
        finally:
            await connection.execute("drop owned by backup_writer")
            await connection.execute("drop role backup_writer")
    assert list(tmp_path.glob("*")) == []


async def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        await vault_in(tmp_path).create(f"postgresql://nobody@/agoric?host={tmp_path}")


# Keeping and removing


def leave(folder: Path, age: timedelta, *, whole: bool = True) -> str:
    """What a backup of that age looks like from outside."""
    backup = new_id(datetime.now(UTC) - age, "abcdef12")
    (folder / backup).mkdir()
    (folder / backup / "database.dump").touch()
    if whole:
        (folder / backup / "manifest.json").touch()
    return backup


async def test_the_newest_are_kept(tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    made = [leave(tmp_path, timedelta(days=age)) for age in range(5)]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "manifest.json").touch()
    assert await vault.whole() == made
    assert await vault.prune(keep=2) == made[2:]
    assert await vault.whole() == made[:2]
    assert await vault.prune(keep=2) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*made[:2], "notes"])


async def test_the_old_are_removed_but_never_the_newest(tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    made = [leave(tmp_path, timedelta(days=age)) for age in (10, 20, 30)]
    assert await vault.prune(older_than=timedelta(days=25)) == made[2:]
    assert await vault.prune(older_than=timedelta(days=1)) == made[1:2]
    assert await vault.whole() == made[:1]


async def test_half_ones_are_no_backups_and_go_after_a_day(tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    old, young = (leave(tmp_path, timedelta(hours=hours), whole=False) for hours in (25, 23))
    assert await vault.whole() == []
    with pytest.raises(BackupError, match="there is no backup"):
        await vault.find(None)
    assert await vault.prune(keep=1) == [old]
    assert [path.name for path in tmp_path.iterdir()] == [young]


# Object stores


async def test_a_bucket_of_s3(bucket: tuple[str, dict[str, str]], database: str) -> None:
    url, environment = bucket
    await stock(database)
    vault = Vault(open_place(url, environment), read_key(SECRET))
    first = await vault.create(database)
    second = await vault.create(database)
    assert sorted(await vault.whole()) == sorted([first.id, second.id])
    assert await vault.find(second.id) == second
    await verify(vault, first, database)
    await restore(vault, second, database, replace=True)
    newest, oldest = await vault.whole()
    assert await vault.prune(keep=1) == [oldest]
    assert sorted(vault.place.names()) == [f"{newest}/database.dump.age", f"{newest}/manifest.json"]


async def test_a_bucket_shows_only_whole_objects(bucket: tuple[str, dict[str, str]]) -> None:
    place = open_place(*bucket)
    big = b"0123456789abcdef" * (2 * 1024 * 1024)

    def write(name: str, problem: Exception | None) -> None:
        with place.writing(name) as target:
            target.write(big)
            if problem is not None:
                raise problem

    await asyncio.to_thread(write, "whole", None)
    with pytest.raises(RuntimeError):
        await asyncio.to_thread(write, "half", RuntimeError())
    assert await asyncio.to_thread(place.names) == ["whole"]
    with place.reading("whole") as source:
        found = b""
        while data := await asyncio.to_thread(source.read, 1000_003):
            found += data
    assert found == big


async def test_the_endpoint_for_s3_goes_before_the_one_for_all(
    bucket: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, environment = bucket
    address, nowhere = environment["AWS_ENDPOINT_URL"], "https://127.0.0.1:9"
    # In the process's own environment too, where the library looks.
    for name, endpoint in (("AWS_ENDPOINT_URL", nowhere), ("AWS_ENDPOINT_URL_S3", address)):
        monkeypatch.setenv(name, endpoint)
        environment[name] = endpoint
    assert await asyncio.to_thread(open_place(url, environment).names) == []


async def test_a_bucket_that_is_not_there_is_told(bucket: tuple[str, dict[str, str]]) -> None:
    place = open_place("s3://nowhere/at/all", bucket[1])
    assert isinstance(place, Bucket)
    with pytest.raises(PlaceError, match="s3://nowhere/at/all can't be used: "):
        await Vault(place, None).whole()


async def test_a_folder_that_can_not_be_used_is_told(tmp_path: Path, database: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlaceError, match=r"the folder .*file can't be used \(Not a directory\)"):
        await vault_in(tmp_path / "file").create(database)


@pytest.mark.parametrize("key", [None, PUBLIC], ids=["plain", "encrypted"])
async def test_a_full_disk_is_told_and_nothing_stays(key: str | None, database: str, tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any, /) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    class Small(Folder):
        @contextmanager
        def writing(self, name: str) -> Generator[io.BytesIO]:
            with super().writing(name):
                yield Full()

    with pytest.raises((BackupError, PlaceError), match="No space left on device"):
        await Vault(Small(tmp_path), None if key is None else read_key(key)).create(database)
    assert list(tmp_path.iterdir()) == []


async def test_only_the_owner_can_read_a_backup(tmp_path: Path, database: str) -> None:
    manifest = await vault_in(tmp_path).create(database)
    folder = tmp_path / manifest.id
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
