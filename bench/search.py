"""What full text search costs, and how fast it answers: `python -m bench.search`, or with `--messages 50000` for a
quick look.

Two databases of one embedded PostgreSQL (default durability) hold the same messages, of words as common and as rare as
in a language; one of them has the index, and both take turns within each round. The texts are like Vietnamese and like
English: accents cost most.
"""

import argparse
import asyncio
import os
import platform
import random
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from statistics import median
from uuid import UUID

import asyncpg
import uvloop

from bench.storage import ADDRESSES, drive
from chat_bridge.model import Address, InboundEvent, TurnOutcome, User, new_message_id
from chat_bridge.storage.embedded import embedded_postgres
from chat_bridge.storage.messages import Arrival
from chat_bridge.storage.migrate import migrate
from chat_bridge.storage.search import SearchFilter, search
from chat_bridge.storage.search_index import search_indexes, switch_off, switch_on
from chat_bridge.storage.store import Store
from chat_bridge.storage.turns import Completion, Wish

WORDS = 45  # of a message, about 300 bytes of Vietnamese
VOCABULARY = 30_000
CALLERS = 64
DAYS = 365  # over which the messages are spread
MESSAGE = "conversation_id seq id session_id direction status content_text event_key sender_id created_at"
SESSION = "conversation_id id platform account platform_conversation_id next_seq answered_seq message_count"
SIDES = ("plain", "indexed")
SYLLABLES = {
    "vietnamese": ("b c ch d đ g h kh l m n ng nh ph qu r s t th tr v x", "a à á ả ã ạ ăn ân ê ế ô ơi ư ương in ong"),
    "english": ("b br c ch d f g h l m n p pr r s st t th tr v w", "a e i o u an en in on er ing ou ea at is"),
}


class Texts:
    """Made-up texts: word number n is as common as 1 / n."""

    def __init__(self, language: str) -> None:
        self._random = random.Random(1)
        starts, ends = (part.split() for part in SYLLABLES[language])
        pick = self._random.choice
        self.words = [
            "".join(pick(starts) + pick(ends) for _ in range(1 + number % 3)) + (str(number) if number > 100 else "")
            for number in range(VOCABULARY)
        ]
        self._weights = list(accumulate(1 / (number + 1) for number in range(VOCABULARY)))

    def make(self) -> str:
        return " ".join(self._random.choices(self.words, cum_weights=self._weights, k=WORDS))


class Ours:
    """Turns and messages through a store."""

    def __init__(self, store: Store, texts: Sequence[str]) -> None:
        self._store = store
        self._texts = texts
        self._number = 0

    async def receive(self, address: Address) -> None:
        self._number += 1
        event = InboundEvent(address, str(new_message_id()), User("u"), self._texts[self._number % len(self._texts)])
        await self._store.receive(Arrival(event))

    async def turn(self, address: Address) -> None:
        await self.receive(address)
        turn = await self._store.claim(Wish(address.id, "echo"))
        if turn is not None:
            text = self._texts[(self._number * 7) % len(self._texts)]
            await self._store.complete(Completion(turn, TurnOutcome.ANSWERED, text, new_message_id(), parts=1))


async def fill(dsn: str, texts: Texts, count: int) -> None:
    """So many messages of the last year, in a thousand conversations."""
    connection = await asyncpg.connect(dsn)
    sessions = {address.id: UUID(int=number + 1) for number, address in enumerate(ADDRESSES)}
    now, pause = time.time(), DAYS * 86_400 / count
    messages: list[tuple[object, ...]] = []
    for number in range(count):
        where, moment = ADDRESSES[number % len(ADDRESSES)], now - (count - number) * pause
        id_ = UUID(int=int(moment * 1000) << 80 | 7 << 76 | 2 << 62 | number)
        messages.append(
            (where.id, number // len(ADDRESSES) + 1, id_, sessions[where.id], "inbound", "accepted", texts.make(),
             str(number), f"u{number % 500}", datetime.fromtimestamp(moment, UTC))
        )  # fmt: skip
    await connection.copy_records_to_table("messages", columns=MESSAGE.split(), records=messages)
    last = count // len(ADDRESSES) + 1
    await connection.copy_records_to_table(
        "sessions",
        columns=SESSION.split(),
        records=[
            (where.id, sessions[where.id], where.platform, where.account, where.conversation, last + 1, last, last)
            for where in ADDRESSES
        ],
    )
    await connection.execute("vacuum analyze")
    await connection.execute("checkpoint")
    await connection.close()


async def show_cost(plain: Ours, indexed: Ours, *, seconds: float, rounds: int) -> None:
    for operation, callers in (("receive", 1), ("receive", CALLERS), ("turn", 1), ("turn", CALLERS)):
        for side in (plain, indexed):
            await drive(getattr(side, operation), callers, 0.3)  # connections and prepared statements
        pairs = [
            (
                await drive(getattr(plain, operation), callers, seconds),
                await drive(getattr(indexed, operation), callers, seconds),
            )
            for _ in range(rounds)
        ]
        without, having = (median(pair[side] for pair in pairs) for side in (0, 1))
        print(
            f"{operation:<8} {callers:>3} callers  off {without:>7,.0f}/s  on {having:>7,.0f}/s  "
            f"ratio {median(pair[1] / pair[0] for pair in pairs):.2f}",
            flush=True,
        )


async def show_answers(store: Store, words: Sequence[str], times: int) -> None:
    ago = datetime.now(UTC) - timedelta(days=100)
    everywhere, here = SearchFilter(), SearchFilter(conversation=ADDRESSES[7].conversation)
    person, time_ = SearchFilter(person="u7"), SearchFilter(since=ago, until=ago + timedelta(days=10))
    common, usual, rare = words[0], words[200], words[20_000]
    for name, query, wanted in (
        ("a word of most messages", common, everywhere),
        ("a word of 1 message in 50", usual, everywhere),
        ("a rare word", rare, everywhere),
        ("a word that nobody wrote", "nobodywrotethis", everywhere),
        ("two words", f"{words[5]} {words[300]}", everywhere),
        ("a prefix", f"{usual[:4]}*", everywhere),
        ("a phrase of common words", f'"{words[0]} {words[1]}"', everywhere),
        ("the common word of a person", common, person),
        ("the common word in a conversation", common, here),
        ("the common word in ten days", common, time_),
        ("the usual word of a person", usual, person),
    ):
        took: list[float] = []
        hits = 0
        for _ in range(times):
            began = time.perf_counter()
            hits = len((await search(store.database, query, wanted, 20)).hits)
            took.append((time.perf_counter() - began) * 1000)
        print(f"{name:<36} {median(took):7.1f} ms, at most {max(took):7.1f} ms, {hits:>2} on the page", flush=True)


async def bench(server: str, language: str, count: int, *, seconds: float, rounds: int) -> None:
    print(f"\n{language}, {count:,} messages before\n")
    texts = Texts(language)
    admin = await asyncpg.connect(server)
    dsns = [re.sub(r"(?<=/)\w+(?=\?)", f"{language}_{name}", server, count=1) for name in SIDES]
    for name, dsn in zip(SIDES, dsns, strict=True):
        await admin.execute(f"create database {language}_{name}")
        await migrate(dsn)
        await fill(dsn, Texts(language), count)
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(Store.open(dsn, migrate_schema=False)) for dsn in dsns]
        began = time.perf_counter()
        await switch_on(stores[1].database, dsns[1], "simple")
        (index,) = await search_indexes(stores[1].database)
        print(f"built in {time.perf_counter() - began:.1f} s; {index.bytes / count:.0f} bytes a message\n")
        await show_answers(stores[1], texts.words, times=7)
        print()
        given = [texts.make() for _ in range(5000)]
        await show_cost(*(Ours(store, given) for store in stores), seconds=seconds, rounds=rounds)
        watcher = await asyncpg.connect(dsns[1])
        stored = await watcher.fetchval("select count(*) from messages")
        (index,) = await search_indexes(stores[1].database)
        print(f"\n{index.bytes / stored:.0f} bytes of index a message after that, of {stored:,}")
        await watcher.close()
        await switch_off(stores[1].database, dsns[1])
    for name in SIDES:
        await admin.execute(f"drop database {language}_{name}")
    await admin.close()


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.search")
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        async with embedded_postgres(Path(folder) / "postgres") as server:
            for language in SYLLABLES:
                await bench(server, language, wanted.messages, seconds=wanted.seconds, rounds=wanted.rounds)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
