"""Import and export of 1,000,000 messages: `python -m bench.transfer`, or with `--rows 100000` for a quick look.

The file is one of the OpenAI Agents SDK (10 messages of 300 characters a session), the database an embedded PostgreSQL
of its own with default durability. What is measured is what the commands do, the check after the import included.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import uvloop

from chat_bridge.storage.embedded import embedded_postgres
from chat_bridge.storage.migrate import migrate
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.sessions import SessionFilter
from chat_bridge.transfer.export import export
from chat_bridge.transfer.load import Import, Wish

SCHEMA = """
create table agent_sessions (session_id text primary key, created_at timestamp, updated_at timestamp);
create table agent_messages (
  id integer primary key autoincrement, session_id text not null, message_data text not null, created_at timestamp
);
create index idx_agent_messages_session_id on agent_messages (session_id, id);
"""
PER_SESSION = 10


def make_file(file: Path, rows: int) -> None:
    """A file as the SDK writes it."""
    bodies = [json.dumps({"role": role, "content": "x" * 300}) for role in ("user", "assistant")]
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(SCHEMA)
        connection.executemany(
            "insert into agent_sessions values (?, datetime(1700000000 + ?, 'unixepoch'), null)",
            ((f"user-{number}", number) for number in range(rows // PER_SESSION)),
        )
        connection.executemany(
            "insert into agent_messages (session_id, message_data, created_at) "
            "values (?, ?, datetime(1700000000 + ?, 'unixepoch'))",
            ((f"user-{number % (rows // PER_SESSION)}", bodies[number // (rows // PER_SESSION) % 2], number)
             for number in range(rows)),
        )  # fmt: skip
        connection.commit()


class Watch:
    """Tells how long each stage took."""

    def __init__(self) -> None:
        self._what, self._began, self._busy = "", time.perf_counter(), time.process_time()

    def told(self, what: str, *_: int) -> None:
        if what != self._what:
            self.lap()
            self._what = what

    def lap(self) -> None:
        now, busy = time.perf_counter(), time.process_time()
        if self._what:
            print(f"  {self._what:<10} {now - self._began:6.1f} s, {busy - self._busy:.1f} s of it computing in Python")
        self._began, self._busy = now, busy


async def run_import(database: Database, file: Path, folder: Path) -> None:
    watch = Watch()
    began = time.perf_counter()
    report = await Import(Wish("sqlite", file, folder), watch.told).run(database)
    watch.lap()
    seconds = time.perf_counter() - began
    assert report.complete, report.lines()
    print(f"{report.stored:,} stored, {report.known:,} known: {seconds:.1f} s, {report.read / seconds:,.0f} rows/s")


async def run_export(database: Database, form: str, folder: Path) -> None:
    output = folder / f"export.{form}"
    began = time.perf_counter()
    _, messages = await export(database, None, SessionFilter(), form, output, lambda *_: None)
    seconds = time.perf_counter() - began
    size = output.stat().st_size / 1e6
    print(f"export {form:<9} {seconds:6.1f} s, {messages / seconds:,.0f} messages/s, {size:,.0f} MB")
    output.unlink()


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.transfer")
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}, {rows:,} rows"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "sessions.sqlite"
        make_file(file, rows)
        print(f"the file has {file.stat().st_size / 1e6:,.0f} MB\n")
        async with embedded_postgres(folder / "postgres") as dsn:
            await migrate(dsn)
            async with Database.open(dsn, pool_size=1) as database:
                await run_import(database, file, folder / "first")
                await run_import(database, file, folder / "second")
                for form in ("jsonl", "markdown", "html", "parquet"):
                    await run_export(database, form, folder)
    print(f"most memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
