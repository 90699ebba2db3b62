"""What the tests of the storage say to a store, and how they look behind it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

import asyncpg

from chat_bridge.model import Address, BusyPolicy, InboundEvent, Turn, TurnOutcome, User, new_message_id
from chat_bridge.storage.messages import Arrival
from chat_bridge.storage.outbox import Delivery
from chat_bridge.storage.store import Store
from chat_bridge.storage.turns import Completion, Wish

CHAT = Address("webchat", "main", "a-chat")
HERE = [("webchat", "main")]  # the accounts that are served
ACCOUNTS = [(platform, account) for account in ("main", "other") for platform in ("webchat", "slack")]
ADA = User("ada", "Ada", "ada_l", "en")

_keys = count(1)


def chat(name: object) -> Address:
    """A conversation of its own."""
    return Address("webchat", "main", f"chat-{name}")


def said(text: str = "hello", *, to: Address = CHAT, key: str | None = None, user: User = ADA, **more: Any) -> Arrival:
    """A message of a user; every one has a key of its own unless given. `more` is the Arrival's, or the event's."""
    own = {name: more.pop(name) for name in ("content_type", "skip_reason", "busy_policy", "queue_cap") if name in more}
    event = InboundEvent(to, f"key-{next(_keys)}" if key is None else key, user, text, **more)
    return Arrival(event, **own)


def command(text: str, *, to: Address = CHAT) -> Arrival:
    return said(text, to=to, content_type="command")


def wish(to: Address = CHAT, policy: BusyPolicy = BusyPolicy.COLLECT, most: int = 1000) -> Wish:
    return Wish(to.id, "echo", policy, most)


def ending(
    turn: Turn, text: str = "the answer", outcome: TurnOutcome = TurnOutcome.ANSWERED, **more: Any
) -> Completion:
    """The end of a turn, with a reply in one part."""
    return Completion(turn, outcome, text, **{"message_id": new_message_id(), "parts": 1, **more})


async def claimed(store: Store, to: Address = CHAT, policy: BusyPolicy = BusyPolicy.COLLECT) -> Turn:
    """A turn that must be had."""
    turn = await store.claim(wish(to, policy))
    assert turn is not None
    return turn


async def replied(
    store: Store, to: Address = CHAT, text: str = "the answer", parts: int = 1, **more: Any
) -> Delivery | None:
    """Answer a message of a user; the delivery that is to be sent now, as the process that answered has it."""
    await store.receive(said(to=to))
    completion = ending(await claimed(store, to), text, parts=parts, **more)
    done = await store.complete(completion)
    assert done is not None
    assert done.seq is not None
    assert completion.message_id is not None
    if done.send_key is None:
        return None
    return Delivery(
        to.id,
        done.seq,
        1,
        1,
        done.send_key,
        completion.message_id,
        to,
        text,
        completion.metadata or {},
        completion.preview,
    )


async def answer_all(store: Store, to: Address = CHAT) -> None:
    """Answer until nothing waits."""
    while (turn := await store.claim(wish(to))) is not None:
        assert await store.complete(ending(turn)) is not None


def texts(turn: Turn) -> list[str]:
    return [message.text for message in turn.messages]


async def statuses(store: Store, to: Address = CHAT) -> dict[str, str]:
    """What became of each inbound message, by its text."""
    return {
        message.text: message.status
        for message in await store.history(to.id, limit=1000)
        if message.direction == "inbound"
    }


@asynccontextmanager
async def opened(dsn: str, **options: Any) -> AsyncGenerator[Store]:
    """A store on a database that has its schema."""
    async with Store.open(dsn, migrate_schema=False, **options) as store:
        yield store


@asynccontextmanager
async def opened_often(dsn: str, number: int, **options: Any) -> AsyncGenerator[list[Store]]:
    """Several stores on one database, as several processes have them."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(opened(dsn, owner=f"store-{n}", **options)) for n in range(number)]


@asynccontextmanager
async def looking(dsn: str) -> AsyncGenerator[asyncpg.Connection]:
    """A connection of the test's own."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def waiters(connection: asyncpg.Connection, number: int) -> None:
    """Wait until this many statements wait for a lock. Those that wait for one row get it in the order they came."""
    while (
        await connection.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        < number
    ):
        await asyncio.sleep(0.005)


@asynccontextmanager
async def holding_sessions(dsn: str, to: Address = CHAT) -> AsyncGenerator[asyncpg.Connection]:
    """Hold a conversation's sessions, so that all who want them queue up behind; what the block gives can look on."""
    async with looking(dsn) as holder, looking(dsn) as connection, holder.transaction():
        await holder.execute("select from sessions where conversation_id = $1 for update", to.id)
        yield connection


async def make_due(connection: asyncpg.Connection) -> None:
    """Let the time pass after which deliveries are tried again, and their senders taken for dead."""
    await connection.execute("update deliveries set next_attempt_at = now() - interval '1 s'")


async def tell_deadlocks_soon(dsn: str) -> None:
    """Have connections that are opened from now on look for a deadlock after 20 ms, not 1 s."""
    async with looking(dsn) as connection:
        await connection.execute("""do $$ begin
            execute format('alter database %I set deadlock_timeout = 20', current_database()); end $$""")


async def deadlocks(dsn: str) -> int:
    """How many there were. The connections that may have met them must be closed: only then is their count told."""
    async with looking(dsn) as connection:
        while await connection.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        ):
            await asyncio.sleep(0.01)
        return await connection.fetchval("select deadlocks from pg_stat_database where datname = current_database()")


# Each finds rows that must not be.
NEVER = {
    "a session counts its messages wrongly": """
        select s.id from sessions s where s.message_count <>
          (select count(*) from messages m where m.conversation_id = s.conversation_id and m.session_id = s.id)
          + (select coalesce(sum(a.messages), 0) from archived_sessions a
            where a.conversation_id = s.conversation_id and a.session_id = s.id)""",
    "a session is in an archive and is not": """
        select s.id from sessions s where (s.status = 'archived') <> exists
          (select from archived_sessions a where a.conversation_id = s.conversation_id and a.session_id = s.id)""",
    "a message has no session": """
        select m.id from messages m where not exists
          (select from sessions s where s.conversation_id = m.conversation_id and s.id = m.session_id)""",
    "a message waits where nobody looks for it": """
        select m.id from messages m
        join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
        where m.direction = 'inbound' and m.status = 'accepted' and m.seq > s.answered_seq
          and s.pending_since is null""",
    "a session waits for nothing": """
        select s.id from sessions s where s.pending_since is not null and not exists
          (select from messages m where m.conversation_id = s.conversation_id and m.session_id = s.id
            and m.direction = 'inbound' and m.status = 'accepted' and m.seq > s.answered_seq)""",
    "a closed session waits": """
        select id from sessions
        where status = 'closed' and (pending_since is not null or last_inbound_seq > answered_seq)
        union all select session_id from waiting w join sessions s on s.id = w.session_id where s.status = 'closed'""",
    "the sweep does not find what waits, or finds what does not": """
        select s.id from sessions s full join waiting w on w.session_id = s.id
        where (s.pending_since is null) = (w.session_id is not null) or s.id is null""",
    "the next seq is taken": """
        select m.id from messages m join sessions s on s.conversation_id = m.conversation_id and s.status = 'active'
        where m.seq >= s.next_seq""",
    "two sessions are active": """
        select conversation_id from sessions where status = 'active' group by conversation_id having count(*) > 1""",
    "two turns are running": """
        select conversation_id from turns where status = 'running' group by conversation_id having count(*) > 1""",
    "a message was answered twice": """
        select a.id from turns a join turns b on b.conversation_id = a.conversation_id and b.id > a.id
        where a.status in ('done', 'failed', 'cancelled') and b.status in ('done', 'failed', 'cancelled')
          and a.first_seq <= b.last_seq and b.first_seq <= a.last_seq""",
    "a delivery was begun before the one ahead of it had ended": """
        select d.conversation_id, d.seq, d.part, d.status from deliveries d
        join deliveries b on b.conversation_id = d.conversation_id and (b.seq, b.part) < (d.seq, d.part)
        where b.status in ('pending', 'sending') and (d.status <> 'pending' or d.attempts > 0)""",
    "a delivery has no message in its conversation": """
        select d.conversation_id, d.seq from deliveries d where not exists
          (select from messages m where m.conversation_id = d.conversation_id and m.seq = d.seq
            and m.direction = 'outbound')""",
    "a turn runs, or ran, in a session of another conversation": """
        select t.id from turns t where not exists
          (select from sessions s where s.conversation_id = t.conversation_id and s.id = t.session_id)""",
    "a turn is over and is not": """
        select id from turns where (status = 'running') <> (finished_at is null)""",
    "a session is its own ancestor": """
        with recursive up as (
          select s.id as start, s.parent_session_id as above from sessions s where s.parent_session_id is not null
          union select up.start, s.parent_session_id from up join sessions s on s.id = up.above
          where s.parent_session_id is not null
        ) select start from up where above = start""",
    "an album holds a part twice, or one that is a message of its own": """
        select m.id from messages m cross join jsonb_array_elements_text(m.metadata -> 'parts') p(key)
        group by m.conversation_id, m.id, p.key having count(*) > 1
        union all
        select m.id from messages m cross join jsonb_array_elements_text(m.metadata -> 'parts') p(key)
        join messages o on o.conversation_id = m.conversation_id and o.event_key = p.key""",
}


async def assert_consistent(dsn: str) -> None:
    """Look for every contradiction between the rows of a database."""
    async with looking(dsn) as connection:
        assert await contradictions(connection) == {}


async def contradictions(connection: asyncpg.Connection) -> dict[str, list[asyncpg.Record]]:
    found = {what: await connection.fetch(query) for what, query in NEVER.items()}
    return {what: rows for what, rows in found.items() if rows}
