"""Trouble with a real PostgreSQL: callers hear of it in time, only those whom it concerns, and it passes by itself."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest

from chat_bridge.errors import StatementRefusedError, StorageError, UnresponsiveError
from chat_bridge.model import Receipt, ReceiveStatus
from chat_bridge.storage import postgres
from chat_bridge.storage.migrate import migrate
from chat_bridge.storage.postgres import QUERIES, Connector, Database
from chat_bridge.storage.store import Store
from tests.observe import rows
from tests.servers import OwnServer, own_server
from tests.storage.dialogue import chat, said

REPLICATED = "wal_level = replica\nmax_wal_senders = 4\n"


@asynccontextmanager
async def connected(dsn: str) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def server() -> AsyncGenerator[OwnServer]:
    """A server of the test's own, with the schema in its database `postgres`."""
    async with own_server() as server:
        await server.make(REPLICATED)
        await migrate(server.dsn("postgres"))
        yield server


@asynccontextmanager
async def opened(dsn: str, **options: Any) -> AsyncGenerator[Store]:
    async with Store.open(dsn, migrate_schema=False, **options) as store:
        yield store


async def receive_all(store: Store, *names: object) -> Sequence[Receipt | BaseException]:
    """A message in each of these conversations, all at once."""
    return await asyncio.gather(*(store.receive(said(to=chat(name))) for name in names), return_exceptions=True)


async def refused_at_last(store: Store) -> StorageError:
    """Wait until the store takes no message, and give the reason."""
    while True:
        try:
            await store.receive(said())
        except StorageError as error:
            return error


async def received_at_last(store: Store) -> None:
    """Wait until the store takes messages."""
    while True:
        try:
            await store.receive(said())
        except StorageError:
            await asyncio.sleep(0.02)
        else:
            return


# Limits


async def test_our_connections_have_limits(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    monkeypatch.setitem(QUERIES, "limits", " union all ".join(f"select current_setting('{name}')" for name in names))
    async with opened(database) as store:
        assert [row[0] for row in await store.database.fetch("limits")] == ["15s", "5s", "30s"]


async def test_a_migration_may_take_its_time(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgres._LIMITS, "statement_timeout", "1ms")
    monkeypatch.setattr(postgres, "STATEMENT_SECONDS", 0.001)
    assert (await migrate(empty_database)).up_to_date


async def test_a_statement_that_takes_too_long_is_ended_by_the_server(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres._LIMITS, "statement_timeout", "100ms")
    monkeypatch.setitem(QUERIES, "sleep", "select pg_sleep(600)")
    async with opened(database, pool_size=1) as store:
        with pytest.raises(StorageError, match="statement timeout"):
            await store.database.fetch("sleep")
        await store.receive(said())


async def test_a_held_row_fails_the_messages_of_its_conversation_only(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres._LIMITS, "lock_timeout", "200ms")
    async with opened(database) as store, connected(database) as operator:
        await receive_all(store, *range(4))
        async with operator.transaction():
            held = chat(2).id
            assert await operator.execute("select 1 from sessions where conversation_id = $1 for update", held)
            results = await receive_all(store, *range(9))
        assert isinstance(results.pop(2), StatementRefusedError)
        assert all(isinstance(result, Receipt) for result in results)
        (now,) = await receive_all(store, 2)
        assert isinstance(now, Receipt)
        found = await rows(database, "select count(*) from messages where conversation_id = $1", held)
    assert found == [{"count": 2}], "what was refused was not stored"


async def test_a_full_pool_says_so_in_time(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "ACQUIRE_SECONDS", 0.1)
    async with opened(database, pool_size=1) as store:
        async with store.database.transaction():
            with pytest.raises(UnresponsiveError, match="no connection could be had"):
                await store.receive(said())
        await store.receive(said())


# The server


async def test_too_many_connections(server: OwnServer) -> None:
    async with connected(server.dsn("postgres")) as admin:
        await admin.execute("create role few login connection limit 2")
        await admin.execute("grant all on all tables in schema public to few")
        dsn = server.dsn("postgres").replace("chat_bridge@", "few@")
        async with opened(dsn) as store, AsyncExitStack() as others:
            await store.receive(said())
            await others.enter_async_context(connected(dsn))
            async with store.database.transaction():
                with pytest.raises(StorageError, match="too many connections"):
                    await store.receive(said())
            await store.receive(said())  # the one we have still serves
            await others.aclose()
            async with store.database.transaction():
                await received_at_last(store)


async def test_a_restart_at_once(server: OwnServer) -> None:
    async with opened(server.dsn("postgres")) as store:
        first = said()
        await store.receive(first)
        await server.stop()
        with pytest.raises(StorageError):
            await store.receive(said())
        await server.start()
        await received_at_last(store)
        assert (await store.receive(first)).status is ReceiveStatus.DUPLICATE


async def test_a_server_that_is_silent(server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONNECT_SECONDS", "ACQUIRE_SECONDS", "STATEMENT_SECONDS"):
        monkeypatch.setattr(postgres, name, 0.3)
    async with opened(server.dsn("postgres"), pool_size=3) as store:
        await receive_all(store, *range(10))
        with server.frozen():
            for _ in range(2):  # statements under way; then new connections
                results = await receive_all(store, *range(300))
                assert {type(result) for result in results} == {UnresponsiveError}
            with pytest.raises(StorageError):
                await store.database.ping()
        await received_at_last(store)


async def test_a_statement_for_a_frozen_server_can_be_cancelled(
    server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(QUERIES, "sleep", "select pg_sleep(10)")
    async with opened(server.dsn("postgres"), pool_size=1) as store:
        asking = asyncio.create_task(store.database.fetch("sleep"))
        running = "select from pg_stat_activity where state = 'active' and query = 'select pg_sleep(10)'"
        while not await rows(server.dsn("postgres"), running):
            await asyncio.sleep(0.01)
        with server.frozen():
            asking.cancel()
            async with asyncio.timeout(10):
                await asyncio.wait([asking])
        assert asking.cancelled()
        await store.receive(said())


async def test_a_primary_that_is_read_only_for_a_while(server: OwnServer) -> None:
    async with connected(server.dsn("postgres")) as admin, opened(server.dsn("postgres")) as store:
        await store.receive(said())
        await admin.execute("alter system set default_transaction_read_only = on")
        await admin.execute("select pg_reload_conf()")
        assert "read-only transaction" in str(await refused_at_last(store))
        assert await store.history(chat(0).id) == [], "reading goes on"
        await admin.execute("set default_transaction_read_only = off")
        await admin.execute("alter system reset default_transaction_read_only")
        await admin.execute("select pg_reload_conf()")
        await received_at_last(store)


# Fail-over


@pytest.mark.parametrize("retired", [False, True], ids=["the primary dies", "the primary is read-only"])
async def test_fail_over_to_a_replica(server: OwnServer, retired: bool) -> None:
    async with own_server() as replica:
        await replica.make_replica(server)
        hosts = f"postgresql://chat_bridge@{server.host},{replica.host}/postgres?target_session_attrs=read-write"
        async with opened(hosts) as store:
            before = said()
            await receive_all(store, *range(20))
            await store.receive(before)
            await caught_up(server, replica)
            if retired:
                await read_only(server)
            else:
                await server.stop()
            await refused_at_last(store)
            await rows(replica.dsn("postgres"), "select pg_promote()")
            await received_at_last(store)
            assert (await store.receive(before)).status is ReceiveStatus.DUPLICATE
            assert all(isinstance(result, Receipt) for result in await receive_all(store, *range(20)))
        there = await rows(replica.dsn("postgres"), "select count(*) from messages")
        assert there[0]["count"] >= 42


async def caught_up(server: OwnServer, replica: OwnServer) -> None:
    (now,) = await rows(server.dsn("postgres"), "select pg_current_wal_flush_lsn()::text as place")
    question = "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn as there"
    while not (await rows(replica.dsn("postgres"), question, now["place"]))[0]["there"]:
        await asyncio.sleep(0.02)


async def read_only(server: OwnServer) -> None:
    """As an operator does before a planned fail-over."""
    async with connected(server.dsn("postgres")) as admin:
        await admin.execute("alter system set default_transaction_read_only = on")
        await admin.execute("select pg_reload_conf()")


async def test_a_silent_first_host_is_passed_over(server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "CONNECT_SECONDS", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        hosts = f"127.0.0.1:{port},{server.host}"
        connector = Connector(f"postgresql://chat_bridge:p%40ss@{hosts}/postgres?sslmode=disable")
        for _ in range(2):
            connection = await connector.connect()
            assert await connection.fetchval("select 1") == 1
            await connection.close()
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # the second time it was not even asked
            silent.accept()


async def test_a_first_host_that_hangs_up_is_passed_over(server: OwnServer) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as broken:
        hosts = f"127.0.0.1:{broken.sockets[0].getsockname()[1]},{server.host}"
        connector = Connector(f"postgresql://chat_bridge:p%40ss@{hosts}/postgres?sslmode=disable")
        connection = await connector.connect()
        assert await connection.fetchval("select 1") == 1
        await connection.close()


async def test_no_host_at_all() -> None:
    with pytest.raises(StorageError):
        async with Database.open("postgresql://chat_bridge@127.0.0.1:1,127.0.0.1:2/postgres"):
            pass
