"""What deleting costs live traffic: `python -m bench.retention`, or with `--messages 10000000` as in the documents.

One embedded PostgreSQL (default durability) holds the messages of a year. Callers exchange messages all the time: first
alone, then while retention deletes a month; then alone again, and so on. Without its pauses, retention shows what they
are for.
"""

import argparse
import asyncio
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import asyncpg
import uvloop

from chat_bridge.model import Address, InboundEvent, TurnOutcome, User, new_message_id
from chat_bridge.policies import Policies, Policy
from chat_bridge.storage.embedded import embedded_postgres
from chat_bridge.storage.messages import Arrival
from chat_bridge.storage.migrate import migrate
from chat_bridge.storage.store import Store
from chat_bridge.storage.turns import Completion, Wish
from chat_bridge.upkeep.retention import Retention

CALLERS = 16
OF_EACH = 500  # messages of a conversation
LIVE = [Address("bench", "main", f"live-{number}") for number in range(1000)]
DAYS = 365

FILL = """
insert into sessions (conversation_id, id, platform, account, platform_conversation_id, next_seq, message_count,
  answered_seq, last_inbound_seq, created_at)
select md5('c' || c)::uuid, md5('s' || c)::uuid, 'bench', 'main', 'c' || c, {of_each} + 1, {of_each}, {of_each},
  {of_each}, now() - interval '{days} days'
from generate_series(1, {conversations}) c;
insert into messages (conversation_id, seq, id, session_id, direction, status, content_text, event_key, sender_id,
  created_at)
select md5('c' || c)::uuid, n, gen_random_uuid(), md5('s' || c)::uuid, 'inbound', 'accepted',
  repeat('so many words ', 20), n::text, 'u' || c, now() - (1 - (n - 1) / {of_each}.0) * interval '{days} days'
from generate_series(1, {of_each}) n, generate_series(1, {conversations}) c;
"""


class Traffic(NamedTuple):
    """Turns a second, and how long the slowest hundredth took at least."""

    rate: float
    slow_ms: float


async def turn(store: Store, address: Address) -> None:
    await store.receive(Arrival(InboundEvent(address, str(new_message_id()), User("u"), "so many words " * 20)))
    claimed = await store.claim(Wish(address.id, "echo"))
    if claimed is not None:
        await store.complete(Completion(claimed, TurnOutcome.ANSWERED, "so many " * 30, new_message_id(), parts=1))


async def exchange(store: Store, until: asyncio.Event) -> Traffic:
    """Messages and their answers, until the event."""
    took: list[float] = []

    async def caller(number: int) -> None:
        while not until.is_set():
            began = time.perf_counter()
            await turn(store, LIVE[number % len(LIVE)])
            took.append(time.perf_counter() - began)
            number += CALLERS

    began = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    seconds = time.perf_counter() - began
    return Traffic(len(took) / seconds, sorted(took)[int(len(took) * 0.99)] * 1000)


async def alone(store: Store, seconds: float) -> Traffic:
    until = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, until.set)
    return await exchange(store, until)


async def beside(store: Store, retention: Retention) -> tuple[Traffic, float]:
    """While retention runs; and how many messages it deleted a second."""
    until, began = asyncio.Event(), time.perf_counter()
    traffic = asyncio.create_task(exchange(store, until))
    deleted = (await retention.once()).messages.total()
    seconds = time.perf_counter() - began
    until.set()
    return await traffic, deleted / seconds


async def bench(dsn: str, count: int, rounds: int) -> None:
    await migrate(dsn)
    admin = await asyncpg.connect(dsn)
    began = time.perf_counter()
    await admin.execute(FILL.format(conversations=count // OF_EACH, of_each=OF_EACH, days=DAYS))
    await admin.execute("vacuum analyze")
    await admin.execute("checkpoint")
    print(f"{count:,} messages of {DAYS} days written in {time.perf_counter() - began:.0f} s\n", flush=True)
    async with Store.open(dsn, migrate_schema=False, pool_size=10) as store:
        await alone(store, 5)
        ratios: list[float] = []
        for number in range(1, rounds + 1):
            before = await alone(store, 20)
            policies = Policies([Policy(retention_days=DAYS - 30 * number)])
            during, speed = await beside(store, Retention(store.database, policies, None, "bench"))
            ratios.append(during.rate / before.rate)
            print(
                f"month {number}: alone {before.rate:,.0f} turns/s, p99 {before.slow_ms:.1f} ms; while {speed:,.0f} "
                f"messages/s are deleted {during.rate:,.0f} turns/s, p99 {during.slow_ms:.1f} ms; "
                f"ratio {ratios[-1]:.2f}",
                flush=True,
            )
        print(f"\nratio {median(ratios):.2f}; {await admin.fetchval('select count(*) from messages'):,} messages left")
    await admin.close()


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.retention")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        async with embedded_postgres(Path(folder)) as dsn:
            await bench(dsn, wanted.messages, wanted.rounds)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
