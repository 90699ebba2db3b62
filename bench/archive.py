"""How many bytes a message has in PostgreSQL, and how many in an archive: `python -m bench.archive`, or with
`--messages 10000` for a quick look.

Whole conversations are made in the tables of an embedded PostgreSQL, with the turns and deliveries that the bridge
would have made, and then archived by the bridge's own code. The texts are like Vietnamese and like English: words as
common and as rare as in a language, but in no order, so that real ones become smaller.
"""

import argparse
import os
import platform
import random
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import NAMESPACE_OID, UUID, uuid5

import asyncpg
import uvloop

from bench.search import Texts
from chat_bridge.storage.blobs import Blobs, open_blobs
from chat_bridge.storage.embedded import embedded_postgres
from chat_bridge.storage.migrate import migrate
from chat_bridge.storage.store import Store
from chat_bridge.storage.transcripts import Transcripts
from chat_bridge.telemetry import configure_logging
from chat_bridge.upkeep.ages import Ages
from chat_bridge.upkeep.archive import Archiver

TURNS = 10  # of a session: so many questions, and as many answers
BEFORE = ("messages", "turns", "deliveries")
AFTER = ("archives", "archive_blocks", "archived_sessions")
SESSION = (
    "conversation_id id created_at last_activity message_count next_seq answered_seq last_inbound_seq status platform "
    "account platform_conversation_id user_id"
)
MESSAGE = (
    "conversation_id seq created_at sent_at id session_id turn_id direction status content_text event_key sender_id "
    "platform_message_id"
)
TURN = "conversation_id id session_id first_seq last_seq lease_until started_at finished_at status owner agent outcome"
DELIVERY = (
    "conversation_id seq part attempts next_attempt_at sent_at idempotency_key status platform_message_id give_up_at"
)


class Talk:
    """Rows of sessions, as Telegram's would be."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._random = random.Random(2)
        self._texts = texts
        self._number = 0
        self.rows: dict[str, list[tuple[object, ...]]] = {"sessions": [], "messages": [], "turns": [], "deliveries": []}

    def _id(self, at: datetime) -> UUID:
        """As uuid v7 is made."""
        milliseconds = int(at.timestamp() * 1000)
        return UUID(
            int=milliseconds << 80
            | 7 << 76
            | self._random.getrandbits(12) << 64
            | 2 << 62
            | self._random.getrandbits(62)
        )

    def _soon(self, seconds: float) -> timedelta:
        return timedelta(seconds=self._random.uniform(0.01, seconds))

    def _text(self) -> str:
        self._number += 1
        return self._texts[self._number % len(self._texts)]

    def session(self, number: int) -> None:
        chat, user = str(100_000_000 + number * 7919 % 900_000_000), str(200_000_000 + number)
        where = uuid5(NAMESPACE_OID, chat)
        began = now = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
        session = self._id(now)
        for seq in range(1, 2 * TURNS, 2):
            now += self._soon(90)
            asked, turn = now, self._id(now + self._soon(0.1))
            number_there = 1000 + seq
            self.rows["messages"].append((
                where, seq, now, now.replace(microsecond=0), self._id(now), session, None, "inbound", "accepted",
                self._text(), f"message:{chat}:{number_there}", user, str(number_there),
            ))  # fmt: skip
            now += self._soon(8)
            answer = self._id(now)
            self.rows["messages"].append((
                where, seq + 1, now, None, answer, session, turn, "outbound", "stored", self._text(), None, None, None,
            ))  # fmt: skip
            self.rows["turns"].append((
                where, turn, session, seq, seq, now + timedelta(seconds=30), asked + self._soon(0.1), now, "done",
                "bridge-7d9f8b6c4d-x2x7p:1", "mastra:support", "answered",
            ))  # fmt: skip
            self.rows["deliveries"].append((
                where, seq + 1, 1, 1, now + timedelta(seconds=30), now + self._soon(0.5), uuid5(answer, "1"), "sent",
                str(number_there + 1), now + timedelta(days=1),
            ))  # fmt: skip
        last = 2 * TURNS
        self.rows["sessions"].append((
            where, session, began, now, last, last + 1, last, last - 1, "closed", "telegram", "support_bot", chat, user,
        ))  # fmt: skip


async def fill(dsn: str, language: str, words: int, messages: int) -> int:
    """Make messages; the bytes of their texts."""
    texts = Texts(language)
    talk = Talk([" ".join(texts.make().split()[:words]) for _ in range(messages)])
    for number in range(messages // (2 * TURNS)):
        talk.session(number)
    connection = await asyncpg.connect(dsn)
    columns = {"sessions": SESSION, "messages": MESSAGE, "turns": TURN, "deliveries": DELIVERY}
    for table, rows in talk.rows.items():
        await connection.copy_records_to_table(table, columns=columns[table].split(), records=rows)
    for table in columns:
        await connection.execute(f"vacuum (analyze) {table}")
    await connection.close()
    return sum(len(row[9].encode()) for row in talk.rows["messages"] if isinstance(row[9], str))


async def sizes(dsn: str, tables: Sequence[str]) -> dict[str, int]:
    connection = await asyncpg.connect(dsn)
    found = {table: await connection.fetchval("select pg_total_relation_size($1)", table) for table in tables}
    await connection.close()
    return found


async def read(store: Store, blobs: Blobs, dsn: str, count: int = 200) -> float:
    """Seconds for a page of a session in an archive that nobody has read before, the median."""
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("select conversation_id from sessions order by md5(id::text) limit $1", count)
    await connection.close()
    times = list[float]()
    for row in rows:
        began = time.perf_counter()
        found = await Transcripts(store.database, blobs).history(row["conversation_id"])
        times.append(time.perf_counter() - began)
        assert len(found) == 2 * TURNS
    return sorted(times)[len(times) // 2]


async def measure(dsn: str, folder: Path, language: str, words: int, messages: int) -> None:
    text = await fill(dsn, language, words, messages)
    before = await sizes(dsn, BEFORE)
    async with Store.open(dsn) as store:
        blobs = open_blobs(str(folder), folder, {})
        began, cpu = time.perf_counter(), time.process_time()
        done = await Archiver(store, blobs, Ages(30), pause_seconds=0).once()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        assert done is not None
        assert done.messages == messages
        page = await read(store, blobs, dsn)
    objects = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    index = sum((await sizes(dsn, AFTER)).values())
    was, now = sum(before.values()) / messages, (objects + index) / messages
    print(
        f"| {language}, {text / messages:.0f} | {was:.0f} "
        f"({', '.join(f'{table} {size / messages:.0f}' for table, size in before.items())}) "
        f"| {now:.0f} (object {objects / messages:.0f}, rows {index / messages:.0f}) | {was / now:.1f} "
        f"| {messages / seconds:,.0f}/s, {cpu / seconds:.0%} CPU | {page * 1000:.0f} ms |",
        flush=True,
    )


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.archive")
    parser.add_argument("--messages", type=int, default=100_000)
    messages = parser.parse_args().messages
    configure_logging("error", "text")
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {messages:,} messages\n")
    print("| texts, bytes of one | bytes a message before | after | smaller | archived | a page read |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        async with embedded_postgres(Path(folder) / "postgres") as dsn:
            for language in ("vietnamese", "english"):
                for words in (10, 25, 45):
                    connection = await asyncpg.connect(dsn)
                    await connection.execute("drop schema public cascade; create schema public")
                    await connection.close()
                    await migrate(dsn)
                    with tempfile.TemporaryDirectory() as place:
                        await measure(dsn, Path(place), language, words, messages)


if __name__ == "__main__":
    uvloop.run(main())
