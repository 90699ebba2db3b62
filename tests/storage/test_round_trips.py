"""What the server hears: one statement for each operation, and nothing around it."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg

from chat_bridge.model import Turn
from chat_bridge.storage import turns
from chat_bridge.storage.postgres import QUERIES
from chat_bridge.storage.store import Store
from tests.storage.dialogue import CHAT, chat, claimed, ending, looking, opened, said, wish

# Everything that a client sent to this database, however often.
HEARD = """
select query, calls
from pg_stat_statements s join pg_database d on d.oid = s.dbid
where d.datname = current_database() and s.toplevel and query not like '%pg\\_stat\\_statements%'
"""


def beginning(query: str) -> str:
    """What names a statement in PostgreSQL's list, which leaves out comments from version 18 on."""
    return " ".join(re.sub(r"^(--.*\n)+", "", query).split())[:140].upper()


RECEIVE, CLAIM, COMPLETE, RENEW, ROTATE, HISTORY = (
    beginning(QUERIES[name]) for name in ("receive", "claim", "complete", "renew", "rotate", "history_before")
)


@asynccontextmanager
async def listening(dsn: str) -> AsyncGenerator[asyncpg.Connection]:
    """A connection that can tell what others send to this database."""
    async with looking(dsn) as connection:
        await connection.execute("create extension pg_stat_statements")
        yield connection


async def forget(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "select pg_stat_statements_reset(0, (select oid from pg_database where datname = current_database()), 0)"
    )


async def heard(connection: asyncpg.Connection) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in await connection.fetch(HEARD):
        counts[beginning(row["query"]).rstrip(";")] += row["calls"]
    return counts


async def test_every_operation_is_one_statement_and_the_pool_adds_none(any_database: str) -> None:
    async with opened(any_database, pool_size=1) as store, listening(any_database) as connection:
        await turn(store)  # connected and prepared
        await forget(connection)
        for _ in range(10):
            await turn(store)
            await store.history(CHAT.id)
        assert await heard(connection) == {RECEIVE: 10, CLAIM: 10, COMPLETE: 10, HISTORY: 10}


async def turn(store: Store) -> Turn:
    await store.receive(said())
    turn = await claimed(store)
    assert await store.complete(ending(turn)) is not None
    return turn


async def test_a_renewal_of_all_turns_is_one_statement(database: str) -> None:
    async with opened(database, pool_size=1) as store, listening(database) as connection:
        held: list[Turn] = []
        for number in range(5):
            await store.receive(said(to=chat(number)))
            held.append(await claimed(store, chat(number)))
        await turns.renew(store.database, held, 30)
        await forget(connection)
        assert len(await turns.renew(store.database, held, 30)) == 5
        assert await heard(connection) == {RENEW: 1}


async def test_many_callers_share_statements(database: str) -> None:
    async with opened(database, pool_size=2) as store, listening(database) as connection:
        await asyncio.gather(*(store.receive(said(to=chat(f"first-{number}"))) for number in range(65)))
        await forget(connection)
        await asyncio.gather(*(store.receive(said(to=chat(number))) for number in range(128)))
        assert await heard(connection) == {RECEIVE: 2}
        assert len([await store.claim(wish(chat(number))) for number in range(128)]) == 128


async def test_following_with_a_new_session_is_one_transaction(database: str) -> None:
    async with opened(database, pool_size=1) as store, listening(database) as connection:
        for _ in range(2):  # connected and prepared by the first
            await store.receive(said())
            held = await claimed(store)
            await forget(connection)
            await store.complete(ending(held), follow_with_new_session=True)
        counts = await heard(connection)
    assert counts == {"BEGIN": 1, COMPLETE: 1, ROTATE: 1, "COMMIT": 1}
