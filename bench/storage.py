"""The storage against pgbench: the same rows written by minimal hand-made SQL from C.

A turn is: a user's message stored and deduplicated, a turn row, a reply, an outbox row, the session's counters kept.
pgbench writes those rows in two statements; the bridge takes three (receive, claim, complete), since an agent answers
between the second and the third. Both run on the bridge's own tables, indexes included, with default durability.
"""

import asyncio
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from uuid import UUID

import asyncpg

from chat_bridge.model import Address, InboundEvent, Turn, TurnOutcome, User, new_message_id
from chat_bridge.storage.embedded import binaries
from chat_bridge.storage.messages import Arrival
from chat_bridge.storage.store import Store
from chat_bridge.storage.turns import Completion, Wish

CONVERSATIONS = 1000
TEXT = "x" * 300
ADDRESSES = [Address("bench", "bench", str(number)) for number in range(CONVERSATIONS)]

# pgbench has a thousand conversations of its own, whose ids it can compute.
PICK = r"\set c random(0, 999)"
STORE = """
with s as (
  update sessions set next_seq = next_seq + 1, message_count = message_count + 1, last_activity = clock_timestamp(),
    last_inbound_seq = next_seq, pending_since = coalesce(pending_since, clock_timestamp())
  where conversation_id = md5(:c::text)::uuid and status = 'active'
  returning conversation_id, id, next_seq - 1 as seq
)
insert into messages (conversation_id, seq, id, session_id, direction, status, content_text, event_key, sender_id)
select conversation_id, seq, gen_random_uuid(), id, 'inbound', 'accepted', repeat('x', 300), gen_random_uuid()::text,
  'u'
from s
on conflict (conversation_id, event_key) do nothing;
"""
CLAIM = """
with s as (
  select s.* from sessions s
  where s.conversation_id = md5(:c::text)::uuid and s.status = 'active'
  for update
), t as (
  insert into turns (conversation_id, id, session_id, first_seq, last_seq, lease_until, owner, agent)
  select conversation_id, gen_random_uuid(), id, answered_seq + 1, last_inbound_seq, now() + interval '30 s', 'pgbench',
    'echo'
  from s
  on conflict (conversation_id) where status = 'running' do nothing
  returning *
)
select m.* from t join messages m on m.conversation_id = t.conversation_id and m.seq between t.first_seq and t.last_seq;
"""
COMPLETE = """
with t as (
  update turns set status = 'done', finished_at = clock_timestamp()
  where conversation_id = md5(:c::text)::uuid and status = 'running'
  returning *
), s as (
  update sessions s set next_seq = s.next_seq + 1, message_count = s.message_count + 1, answered_seq = t.last_seq,
    pending_since = null
  from t where s.conversation_id = t.conversation_id and s.id = t.session_id
  returning s.conversation_id, s.id, s.next_seq - 1 as seq, t.id as turn_id
), m as (
  insert into messages (conversation_id, seq, id, session_id, turn_id, direction, status, content_text)
  select conversation_id, seq, gen_random_uuid(), id, turn_id, 'outbound', 'stored', repeat('x', 300) from s
)
insert into deliveries (conversation_id, seq, part, idempotency_key, status)
select conversation_id, seq, 1, turn_id, 'sending' from s;
"""
# The second of pgbench's two: the turn row is written as done at once.
ANSWER = """
with s as (
  update sessions set next_seq = next_seq + 1, message_count = message_count + 1, answered_seq = next_seq - 1,
    pending_since = null
  where conversation_id = md5(:c::text)::uuid and status = 'active'
  returning conversation_id, id, next_seq - 1 as seq, gen_random_uuid() as turn_id
), t as (
  insert into turns (
    conversation_id, id, session_id, first_seq, last_seq, lease_until, owner, agent, status, finished_at
  )
  select conversation_id, turn_id, id, seq - 1, seq - 1, now(), 'pgbench', 'echo', 'done', now() from s
), m as (
  insert into messages (conversation_id, seq, id, session_id, turn_id, direction, status, content_text)
  select conversation_id, seq, gen_random_uuid(), id, turn_id, 'outbound', 'stored', repeat('x', 300) from s
)
insert into deliveries (conversation_id, seq, part, idempotency_key, status)
select conversation_id, seq, 1, turn_id, 'sending' from s;
"""
HISTORY = """
select * from messages where conversation_id = md5(:c::text)::uuid
order by seq desc limit 50;
"""
# One conversation after another, so that each step finds its work: message, then turn, then reply.
NEXT = r"\set c (:client_id * 1000 / :clients + :i % (1000 / :clients))" + "\n" + r"\set i :i + 1"

PGBENCH = {
    "turn": f"{PICK}\n{STORE}\n{ANSWER}",
    "receive": f"{NEXT}\n{STORE}",
    "claim": f"{NEXT}\n{CLAIM}",
    "complete": f"{NEXT}\n{COMPLETE}",
    "history": f"{PICK}\n{HISTORY}",
    "hot": f"\\set c 0\n{STORE}",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: operations a second of ours and of pgbench, medians over the rounds."""

    preloaded: int
    operation: str
    callers: int
    ours: float
    pgbench: float

    @property
    def ratio(self) -> float:
        return self.ours / self.pgbench


async def prepare(dsn: str, preloaded: int) -> None:
    """The thousand conversations with an active session each, and so many messages before."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("truncate sessions, messages, turns, deliveries, users, waiting")
    await connection.execute("create temporary table conversations (n integer, conversation_id uuid)")
    await connection.executemany(
        "insert into conversations values ($1, $2), ($1, md5($1::integer::text)::uuid)",
        [(number, address.id) for number, address in enumerate(ADDRESSES)],
    )
    each = preloaded // (2 * CONVERSATIONS)
    await connection.execute(
        """insert into sessions (conversation_id, id, platform, account, platform_conversation_id, next_seq,
             answered_seq, message_count)
           select conversation_id, gen_random_uuid(), 'bench', 'bench', n, $1::bigint + 1, $1, $1 from conversations""",
        each,
    )
    await connection.execute(
        """insert into messages (conversation_id, seq, id, session_id, direction, status, content_text, event_key,
             sender_id)
           select s.conversation_id, i, gen_random_uuid(), s.id, case when i % 2 = 0 then 'inbound' else 'outbound' end,
             case when i % 2 = 0 then 'accepted' else 'stored' end, repeat('x', 300),
             case when i % 2 = 0 then gen_random_uuid()::text end, 'u'
           from generate_series(1, $1::bigint) i, sessions s""",
        each,
    )
    # Not the empty tables: the planner would believe that they stay empty.
    await connection.execute("vacuum analyze sessions" + (", messages" if preloaded else ""))
    await connection.execute("checkpoint")
    await connection.close()


def pgbench(dsn: str, operation: str, callers: int, seconds: float, count: int | None = None) -> float:
    """Run a script; transactions a second. With `count`, that many for each caller instead of a time."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(PGBENCH[operation])
        script.flush()
        Path(script.name).chmod(0o644)
        bound = ["-t", str(count)] if count else ["-T", str(max(1, round(seconds)))]
        answer = subprocess.run(
            [
                binaries() / "pgbench",
                "-n",
                "-M",
                "prepared",
                "-c",
                str(callers),
                "-j",
                str(min(2, callers)),
                *bound,
                "-D",
                "i=0",
                "-D",
                f"clients={callers}",
                "-f",
                script.name,
                dsn,
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "LD_LIBRARY_PATH": str(binaries().parent / "lib")},
        )
    found = re.search(r"tps = ([\d.]+)", answer.stdout)
    assert found is not None, answer.stderr
    return float(found[1])


def arrival(address: Address, key: str) -> Arrival:
    """A message of 300 bytes."""
    return Arrival(InboundEvent(address, key, User("u"), TEXT))


class Ours:
    """The same operations through the store."""

    def __init__(self, store: Store, turns: dict[UUID, Turn] | None = None) -> None:
        self._store = store
        self._turns = {} if turns is None else turns

    async def turn(self, address: Address) -> None:
        await self._store.receive(arrival(address, str(new_message_id())))
        await self.claim(address)
        await self.complete(address)

    async def receive(self, address: Address) -> None:
        await self._store.receive(arrival(address, str(new_message_id())))

    async def claim(self, address: Address) -> None:
        turn = await self._store.claim(Wish(address.id, "echo"))
        if turn is not None:
            self._turns[address.id] = turn

    async def complete(self, address: Address) -> None:
        if (turn := self._turns.pop(address.id, None)) is not None:
            await self._store.complete(Completion(turn, TurnOutcome.ANSWERED, TEXT, new_message_id(), parts=1))

    async def history(self, address: Address) -> None:
        await self._store.history(address.id, limit=50)


async def drive(
    operation: Callable[[Address], Awaitable[object]], callers: int, seconds: float, count: int | None = None
) -> float:
    """Run an operation by concurrent callers, each on its own share of the conversations; operations a second."""
    done = 0
    began = time.perf_counter()

    async def caller(number: int) -> None:
        nonlocal done
        share = ADDRESSES[number * CONVERSATIONS // callers : (number + 1) * CONVERSATIONS // callers]
        made = 0
        while made < count if count else time.perf_counter() - began < seconds:
            await operation(share[made % len(share)])
            made += 1
        done += made

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return done / (time.perf_counter() - began)


async def measure(dsn: str, *, seconds: float, rounds: int, sizes: list[int], concurrency: list[int]) -> list[Row]:
    """The whole table. Ours and pgbench take turns within each round."""
    rows: list[Row] = []
    for preloaded in sizes:
        await prepare(dsn, preloaded)
        for callers in concurrency:
            rates: dict[str, list[tuple[float, float]]] = {name: [] for name in PGBENCH if name != "hot"}
            async with Store.open(dsn, pool_size=10) as store:
                ours = Ours(store)
                await drive(ours.turn, callers, 0.3)  # connections and prepared statements
                await drive(ours.history, callers, 0.2)
                for _ in range(rounds):
                    for name in ("turn", "history") if preloaded else ("turn",):
                        rates[name].append(await _pair(dsn, ours, name, callers, seconds))
                    count = max(1, CONVERSATIONS // callers)
                    for name in ("receive", "claim", "complete"):
                        mine = await drive(getattr(ours, name), callers, seconds, count)
                        rates[name].append((mine, 0.0))
                    for name in ("receive", "claim", "complete"):
                        theirs = await asyncio.to_thread(pgbench, dsn, name, callers, seconds, count)
                        rates[name][-1] = (rates[name][-1][0], theirs)
            for name, pairs in rates.items():
                if pairs:
                    rows.append(Row(preloaded, name, callers, median(p[0] for p in pairs), median(p[1] for p in pairs)))
                    print_row(rows[-1])
    return rows


async def _pair(dsn: str, ours: Ours, name: str, callers: int, seconds: float) -> tuple[float, float]:
    mine = await drive(getattr(ours, name), callers, seconds)
    return mine, await asyncio.to_thread(pgbench, dsn, name, callers, seconds)


def print_row(row: Row) -> None:
    """One line of the table."""
    print(
        f"{row.preloaded:>9,}  {row.operation:<9} {row.callers:>3} callers  "
        f"{row.ours:>9,.0f}/s  pgbench {row.pgbench:>9,.0f}/s  ratio {row.ratio:5.2f}",
        flush=True,
    )


@dataclass(frozen=True, slots=True)
class Hot:
    """Messages stored a second in one conversation, ours and pgbench's, medians; and how many of ours of a hundred
    were to be answered: when the queue is full, messages are stored as skipped."""

    ours: float
    pgbench: float
    accepted: float


MOST_A_SECOND = 50_000


async def one_conversation(dsn: str, *, seconds: float, rounds: int, answered: bool) -> Hot:
    """64 callers store into a single conversation, each waiting for its commit; pgbench does it row by row, as each
    needs the session's row. `answered`: meanwhile turn after turn takes all that waits; else the queue fills."""
    found = [await _one_conversation(dsn, seconds, answered) for _ in range(rounds)]
    return Hot(*(median(getattr(each, name) for each in found) for name in ("ours", "pgbench", "accepted")))


async def _one_conversation(dsn: str, seconds: float, answered: bool) -> Hot:
    await prepare(dsn, 0)
    hot = ADDRESSES[0]
    async with Store.open(dsn, pool_size=10, migrate_schema=False) as store:
        ours = Ours(store)
        await drive(ours.turn, 1, 0.3)  # connections and prepared statements
        # Made before: pgbench makes none either.
        given = iter([arrival(hot, str(new_message_id())) for _ in range(round(MOST_A_SECOND * seconds))])
        await _analyse(dsn)  # as autovacuum does within a minute; until then any index may be taken for a key's
        answering = asyncio.create_task(_answer_all(ours, hot)) if answered else None
        mine = await drive(lambda _: store.receive(next(given)), 64, seconds)
        if answering is not None:
            answering.cancel()
            await asyncio.wait([answering])
    accepted = await _accepted(dsn, hot)
    return Hot(mine, await asyncio.to_thread(pgbench, dsn, "hot", 64, seconds), accepted)


async def _analyse(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("analyze messages")
    await connection.close()


async def _answer_all(ours: Ours, address: Address) -> None:
    while True:
        await ours.claim(address)
        await ours.complete(address)


async def _accepted(dsn: str, address: Address) -> float:
    connection = await asyncpg.connect(dsn)
    share = await connection.fetchval(
        """select 100.0 * count(*) filter (where status = 'accepted') / count(*)
           from messages where conversation_id = $1 and direction = 'inbound'""",
        address.id,
    )
    await connection.close()
    return float(share)


async def history_against_asyncpg(dsn: str, *, seconds: float, rounds: int) -> tuple[float, float]:
    """Reads a second of one caller: the store's history, and `select *` by a prepared statement of bare asyncpg."""
    await prepare(dsn, 2 * CONVERSATIONS * 1000)
    connection = await asyncpg.connect(dsn)
    statement = await connection.prepare("select * from messages where conversation_id = $1 order by seq desc limit 50")

    async def bare(address: Address) -> None:
        await statement.fetch(address.id)

    async with Store.open(dsn) as store:
        ours = Ours(store)
        await drive(ours.history, 1, 0.2)
        pairs = [(await drive(ours.history, 1, seconds), await drive(bare, 1, seconds)) for _ in range(rounds)]
    await connection.close()
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


async def round_trips(dsn: str) -> dict[str, float]:
    """Transactions that the server saw for each operation of one caller, the pool's own included: outside of explicit
    transactions each statement is one."""
    await prepare(dsn, 0)
    count = 500
    trips: dict[str, float] = {}
    turns: dict[UUID, Turn] = {}
    for name in ("receive", "claim", "complete", "history"):
        before = await _transactions(dsn)
        async with Store.open(dsn, migrate_schema=False) as store:
            await drive(getattr(Ours(store, turns), name), 1, 0, count=count)
        # A connection adds to the counters when it closes.
        trips[name] = round((await _transactions(dsn) - before) / count, 1)
    return trips


async def _transactions(dsn: str) -> int:
    watcher = await asyncpg.connect(dsn)
    while await watcher.fetchval("select count(*) from pg_stat_activity where application_name = 'chat-bridge'"):
        await asyncio.sleep(0.05)
    seen = await watcher.fetchval("select xact_commit from pg_stat_database where datname = current_database()")
    await watcher.close()
    return seen


async def bytes_per_message(dsn: str, messages: int) -> float:
    """Growth of the table `messages` and its indexes for each message, filled by turns in random conversations."""
    await prepare(dsn, 0)
    connection = await asyncpg.connect(dsn)
    before = await connection.fetchval("select pg_total_relation_size('messages')")
    async with Store.open(dsn) as store:
        await drive(Ours(store).turn, 100, 0, count=messages // 200)
    stored = await connection.fetchval("select count(*) from messages")
    size = await connection.fetchval("select pg_total_relation_size('messages')")
    await connection.close()
    return (size - before) / stored
