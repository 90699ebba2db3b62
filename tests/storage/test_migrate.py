"""Migrations: from nothing to the newest schema, from anywhere at once, and never by a program that is too old."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

import chat_bridge
from chat_bridge.errors import SchemaError, StorageError
from chat_bridge.storage.migrate import migrate, schema_state
from tests.bridge import SECRET, running_bridge
from tests.needs import unavailable
from tests.storage.dialogue import looking, opened, said

HEAD = "0006"
NEWER = "9999"


async def run(*arguments: str, environment: Mapping[str, str]) -> tuple[int, str, str]:
    """A program's exit code, what it printed, and what it complained of."""
    child = await asyncio.create_subprocess_exec(
        *arguments,
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    printed, complaints = await child.communicate()
    assert child.returncode is not None
    return child.returncode, printed.decode(), complaints.decode()


async def chat_bridge_command(*arguments: str, database: str, **settings: str) -> tuple[int, str, str]:
    environment = {"DATABASE_URL": database, "CHAT_BRIDGE_SECRET": SECRET, "PORT": "0", **settings}
    return await run(sys.executable, "-m", "chat_bridge", *arguments, environment=environment)


CATALOGUE = """
select 'column', table_name, column_name, data_type, is_nullable || coalesce(column_default, '')
from information_schema.columns where table_schema = 'public'
union all select 'index', tablename, indexname, indexdef, '' from pg_indexes where schemaname = 'public'
union all select 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), ''
from pg_constraint where connamespace = 'public'::regnamespace
union all select 'option', relname, array_to_string(reloptions, ','), relkind::text, ''
from pg_class where relnamespace = 'public'::regnamespace
order by 1, 2, 3, 4
"""


async def catalogue(database: str) -> list[tuple[str, ...]]:
    async with looking(database) as connection:
        return [tuple(row) for row in await connection.fetch(CATALOGUE)]


@pytest.fixture
async def emptied_database(database: str) -> str:
    """An empty database on PostgreSQL 18: for what is the same on every version."""
    async with looking(database) as connection:
        await connection.execute(
            "drop schema public cascade; create schema public; grant usage on schema public to public"
        )
    return database


WAITING = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"


async def pretend_newer(database: str, oldest_code: str = NEWER) -> None:
    """As if newer code had migrated the database, so that only code from `oldest_code` on can use it."""
    async with looking(database) as connection:
        await connection.execute("update alembic_version set version_num = $1", NEWER)
        await connection.execute("update schema_compatibility set oldest_code = $1", oldest_code)


async def test_an_empty_database_gets_the_schema_and_a_second_run_changes_nothing(empty_database: str) -> None:
    before = await schema_state(empty_database)
    assert (before.current, before.head, before.known, before.up_to_date) == (None, HEAD, True, False)
    with pytest.raises(SchemaError, match="chat-bridge migrate"):
        before.require_usable()
    assert (await migrate(empty_database)).up_to_date
    made = await catalogue(empty_database)
    assert {table for kind, table, *_ in made if kind == "column"} >= {"sessions", "messages", "turns", "deliveries"}
    assert (await migrate(empty_database)).up_to_date
    assert await catalogue(empty_database) == made
    (await schema_state(empty_database)).require_usable()
    async with opened(empty_database) as store:
        await store.receive(said())


async def test_five_processes_migrate_at_once(emptied_database: str) -> None:
    results = await asyncio.gather(*(chat_bridge_command("migrate", database=emptied_database) for _ in range(5)))
    assert results == [(0, f"the schema is up to date: {HEAD}\n", "")] * 5
    async with opened(emptied_database) as store:
        await store.receive(said())


async def test_check_tells_and_changes_nothing(emptied_database: str) -> None:
    code, printed, complaints = await chat_bridge_command("migrate", "--check", database=emptied_database)
    assert (code, printed) == (1, "")
    assert complaints.startswith("chat-bridge: the database's schema is empty")
    assert await catalogue(emptied_database) == []
    assert (await chat_bridge_command("migrate", database=emptied_database))[0] == 0
    code, printed, complaints = await chat_bridge_command("migrate", "--check", database=emptied_database)
    assert (code, printed, complaints) == (0, f"the schema is up to date: {HEAD}\n", "")


async def test_psql_makes_the_same_schema_from_the_printed_sql(empty_database: str, tmp_path: Path) -> None:
    psql = shutil.which("psql")
    if psql is None:
        unavailable("psql is not installed")
    code, printed, _ = await chat_bridge_command("migrate", "--sql", database="")
    assert code == 0
    script = tmp_path / "schema.sql"
    script.write_text(printed)
    code, _, complaints = await run(
        psql, "-X", "-v", "ON_ERROR_STOP=1", "-q", "-f", str(script), empty_database, environment={}
    )
    assert (code, complaints) == (0, "")
    by_psql = await catalogue(empty_database)
    assert (await schema_state(empty_database)).up_to_date
    async with looking(empty_database) as connection:
        await connection.execute("drop schema public cascade; create schema public")
    await migrate(empty_database)
    assert await catalogue(empty_database) == by_psql


@pytest.mark.parametrize(
    ("arguments", "itself"),
    [("migrate", "true"), ("migrate --check", "true"), ("serve", "true"), ("serve", "false")],
)
async def test_a_schema_newer_than_the_program_is_left_alone(database: str, arguments: str, itself: str) -> None:
    await pretend_newer(database)
    before = await catalogue(database)
    code, printed, complaints = await chat_bridge_command(
        *arguments.split(), database=database, DATABASE_MIGRATE=itself
    )
    assert code == 1
    assert "is ready" not in printed
    assert f"the database's schema ({NEWER}) is newer than this program ({HEAD})" in complaints
    assert "Traceback" not in complaints
    assert await catalogue(database) == before


@pytest.mark.parametrize(
    ("oldest_code", "usable"), [("0001", True), (HEAD, True), ("0999", False), ("1000", False), (NEWER, False)]
)
async def test_a_newer_schema_says_which_code_can_use_it(any_database: str, oldest_code: str, usable: bool) -> None:
    await pretend_newer(any_database, oldest_code)
    state = await schema_state(any_database)
    assert (state.current, state.known, state.up_to_date, state.newer_but_usable) == (NEWER, False, False, usable)
    before = await catalogue(any_database)
    if usable:
        state.require_usable()
        assert await migrate(any_database) == state
    else:
        with pytest.raises(
            SchemaError, match=rf"\({NEWER}\) .* \({HEAD}\) and needs the code of {oldest_code} or later"
        ):
            state.require_usable()
        with pytest.raises(SchemaError, match="run a newer agoric-chat-bridge"):
            await migrate(any_database)
    assert await catalogue(any_database) == before
    assert await schema_state(any_database) == state


async def test_a_newer_schema_that_says_nothing_is_not_used(any_database: str) -> None:
    await pretend_newer(any_database)
    async with looking(any_database) as connection:
        await connection.execute("drop table schema_compatibility")
    with pytest.raises(SchemaError, match=rf"\({NEWER}\) is newer than this program \({HEAD}\): run a newer"):
        await migrate(any_database)


async def test_the_newest_migration_says_which_code_can_use_its_schema(any_database: str) -> None:
    async with looking(any_database) as connection:
        (oldest,) = await connection.fetch("select oldest_code from schema_compatibility")
    assert re.fullmatch(r"\d{4}", oldest["oldest_code"])
    assert oldest["oldest_code"] <= HEAD


@pytest.mark.parametrize("arguments", ["migrate", "migrate --check"])
async def test_commands_say_that_the_schema_is_newer_but_usable(database: str, arguments: str) -> None:
    await pretend_newer(database, HEAD)
    code, printed, complaints = await chat_bridge_command(*arguments.split(), database=database)
    assert (code, complaints) == (0, "")
    assert printed == f"the schema ({NEWER}) is newer than this program ({HEAD}), which can still use it\n"


async def test_doctor_says_that_the_schema_is_newer(database: str) -> None:
    await pretend_newer(database, HEAD)
    _, printed, _ = await chat_bridge_command("doctor", database=database)
    assert f"Newer than this program ({NEWER}), which can still use it." in printed
    await pretend_newer(database, NEWER)
    code, printed, _ = await chat_bridge_command("doctor", database=database)
    assert code == 1
    assert f"the database's schema ({NEWER}) is newer than this program ({HEAD}) and needs" in printed


async def test_serve_can_leave_the_schema_to_others(emptied_database: str) -> None:
    code, _, complaints = await chat_bridge_command("serve", database=emptied_database, DATABASE_MIGRATE="false")
    assert code == 1
    assert "run `chat-bridge migrate`, or start with DATABASE_MIGRATE=true" in complaints
    assert await catalogue(emptied_database) == []
    assert (await chat_bridge_command("migrate", database=emptied_database))[0] == 0
    async with running_bridge(emptied_database, DATABASE_MIGRATE="false") as bridge:
        assert await bridge.stop() == 0


async def test_a_per_cent_sign_in_the_path_of_the_program_is_no_problem(emptied_database: str, tmp_path: Path) -> None:
    place = tmp_path / "100%(here)s %d"
    shutil.copytree(Path(chat_bridge.__file__).parent, place / "chat_bridge")
    environment = {"DATABASE_URL": emptied_database, "PYTHONPATH": str(place), "CHAT_BRIDGE_SECRET": SECRET}
    where = await run(sys.executable, "-c", "import chat_bridge; print(chat_bridge.__file__)", environment=environment)
    assert str(place) in where[1], "the copy is what runs"
    result = await run(sys.executable, "-m", "chat_bridge", "migrate", environment=environment)
    assert result == (0, f"the schema is up to date: {HEAD}\n", "")


async def test_a_migration_that_may_not_be_made_says_so_in_one_line(emptied_database: str) -> None:
    async with looking(emptied_database) as connection:
        name = f"reader_{await connection.fetchval('select current_database()')}"
        await connection.execute(f"create role {name} login; revoke create on schema public from public")
    try:
        address = urlsplit(emptied_database)
        socket = parse_qs(address.query)["host"][0]
        with pytest.raises(StorageError, match="permission denied for schema public"):
            await migrate(f"postgresql://{name}@{address.path}?host={socket}&port=5432")
    finally:
        async with looking(emptied_database) as connection:
            await connection.execute(f"drop role {name}")


async def test_a_database_that_is_not_there_is_a_storage_error(database: str) -> None:
    for action in (migrate, schema_state):
        with pytest.raises(StorageError, match="does not exist"):
            await action(database.replace("/test_", "/no_such_test_"))


async def test_half_a_migration_leaves_nothing(emptied_database: str) -> None:
    async with looking(emptied_database) as connection:
        await connection.execute("create table users (in_the_way int)")
    with pytest.raises(StorageError, match='"users" already exists'):
        await migrate(emptied_database)
    async with looking(emptied_database) as connection:
        tables = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
        assert [row["tablename"] for row in tables] == ["users"]
        with pytest.raises(asyncpg.UndefinedTableError):
            await connection.fetch("select from sessions")


async def test_a_migration_ends_nobodys_statement(empty_database: str) -> None:
    async with looking(empty_database) as connection:
        # Of two who wait for each other, PostgreSQL ends the one who looks first: that would be us.
        await connection.execute("set deadlock_timeout = '700ms'")
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("create table users (in_the_way int)")
        migrating = asyncio.create_task(migrate(empty_database))
        async with looking(empty_database) as other:
            while not await other.fetchval(WAITING):
                await asyncio.sleep(0.02)
        # The migration has made this table and waits for us; now we wait for it. It gives way.
        await connection.execute("create table alembic_version (in_the_way int)")
        await transaction.rollback()
        assert (await migrating).up_to_date
