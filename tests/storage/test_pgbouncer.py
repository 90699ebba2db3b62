"""Behind the real PgBouncer in transaction mode: two server connections are enough for everybody."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from chat_bridge.model import Address, ReceiveStatus
from chat_bridge.storage import sessions, turns
from chat_bridge.storage.migrate import migrate
from chat_bridge.storage.server_account import server_account
from chat_bridge.storage.store import Store
from tests.bridge import running_bridge, visiting
from tests.needs import unavailable
from tests.servers import accepts_connections
from tests.storage.dialogue import (
    answer_all,
    assert_consistent,
    chat,
    claimed,
    ending,
    looking,
    opened,
    opened_often,
    said,
    statuses,
    texts,
)

SETTINGS = """
[databases]
* = host={server} port=5432

[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 2
max_client_conn = 200
logfile = {folder}/log
"""


@pytest.fixture
async def pooled(database: str) -> AsyncGenerator[str]:
    """The database's DSN through PgBouncer."""
    async with running_pgbouncer(database) as dsn:
        yield dsn


@asynccontextmanager
async def running_pgbouncer(database: str) -> AsyncGenerator[str]:
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        unavailable("pgbouncer is not installed")
    address, account = urlsplit(database), server_account()  # like PostgreSQL, it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        folder = Path(name)
        settings = SETTINGS.format(server=parse_qs(address.query)["host"][0], folder=folder)
        (folder / "settings.ini").write_text(settings)
        (folder / "users").write_text('"chat_bridge" ""\n')
        for path in (folder, *folder.iterdir()):
            os.chown(path, account.uid, account.gid)
        with (folder / "words").open("wb") as words:
            process = subprocess.Popen(
                [program, str(folder / "settings.ini")], cwd="/", stdout=words, stderr=words, **account.options
            )
        try:
            while not accepts_connections(folder / ".s.PGSQL.6432"):
                assert process.poll() is None, (folder / "words").read_text()
                await asyncio.sleep(0.01)
            yield f"postgresql://chat_bridge@{address.path}?host={folder}&port=6432"
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)


async def test_fifty_conversations_share_two_connections(pooled: str, database: str) -> None:
    async def converse(stores: list[Store], number: int) -> None:
        address = chat(number)
        for round_ in range(4):
            receipt = await stores[number % 2].receive(said(f"{round_}", to=address, key=f"{round_}"))
            assert receipt.status is ReceiveStatus.ACCEPTED
            again = await asyncio.gather(
                *(store.receive(said(f"{round_}", to=address, key=f"{round_}")) for store in stores)
            )
            assert {receipt.status for receipt in again} == {ReceiveStatus.DUPLICATE}
            turn = await claimed(stores[round_ % 2], address)
            assert texts(turn) == [f"{round_}"]
            assert await turns.renew(stores[0].database, [turn], 30) == {turn.id}
            assert await stores[round_ % 2].complete(ending(turn), follow_with_new_session=round_ == 2) is not None
        assert len(await stores[0].history(address.id)) == 8

    async with opened_often(pooled, 2, pgbouncer=True) as stores:
        await asyncio.gather(*(converse(stores, number) for number in range(50)))
        async with looking(database) as connection:
            through = await connection.fetchval(
                "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            )
    assert 1 <= through <= 2
    await assert_consistent(database)


async def test_races_are_won_by_one_behind_a_pooler_too(pooled: str, database: str) -> None:
    async with opened_often(pooled, 4, pgbouncer=True) as stores:
        address = Address("webchat", "main", "race")
        receipts = await asyncio.gather(
            *(store.receive(said("hello", to=address, key="k")) for store in stores for _ in range(5))
        )
        assert [receipt.status for receipt in receipts].count(ReceiveStatus.ACCEPTED) == 1

        async def close() -> None:
            await sessions.close_session(stores[0].database, receipts[0].session_id)

        await asyncio.gather(close(), *(store.receive(said(to=address)) for store in stores for _ in range(5)))
        await answer_all(stores[1], address)
        assert set((await statuses(stores[0], address)).values()) <= {"answered", "cancelled"}
    await assert_consistent(database)


async def test_the_claim_leaves_no_setting_behind_in_a_connection_that_others_use(pooled: str) -> None:
    async with opened(pooled, pgbouncer=True) as store, looking(pooled) as other:
        await store.receive(said(to=chat(1)))
        await claimed(store, chat(1))
        for _ in range(4):
            assert await other.fetchval("show synchronous_commit") == "on"


async def test_the_schema_is_made_through_pgbouncer(empty_database: str) -> None:
    async with running_pgbouncer(empty_database) as pooled:
        states = await asyncio.gather(*(migrate(pooled) for _ in range(5)))
        assert all(state.up_to_date for state in states)
        async with Store.open(pooled, pgbouncer=True) as store:
            await store.receive(said())


async def test_the_bridge_serves_behind_pgbouncer(pooled: str, database: str) -> None:
    async with running_bridge(pooled, DATABASE_PGBOUNCER="true") as bridge:
        async with visiting(bridge.url) as visitor:
            await asyncio.gather(*(visitor.send(f"{number}") for number in range(10)))
            messages = await visitor.answered()
            assert {message["status"] for message in messages if message["direction"] == "inbound"} == {"answered"}
            await visitor.send("/new")
            await visitor.send("one more")
            assert (await visitor.answered())[-1]["text"]
        assert await bridge.stop() == 0
    await assert_consistent(database)
