"""`make bench`: everything in one run, on an embedded PostgreSQL of its own. Options: `make bench ARGS="--quick"`."""

import argparse
import asyncio
import os
import platform
import tempfile
from pathlib import Path

import uvloop

from bench import http, storage
from chat_bridge.storage.embedded import embedded_postgres
from chat_bridge.storage.migrate import migrate
from chat_bridge.telemetry import configure_logging


async def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--quick", action="store_true", help="short rounds and 100,000 messages instead of 1,000,000")
    configure_logging("error", "text")
    quick = parser.parse_args().quick
    seconds, rounds, preloaded = (1.0, 1, 100_000) if quick else (2.0, 3, 1_000_000)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        async with embedded_postgres(Path(folder) / "postgres") as dsn:
            await migrate(dsn)
            print("\nstorage against pgbench (operations a second, medians)\n")
            await storage.measure(dsn, seconds=seconds, rounds=rounds, sizes=[0, preloaded], concurrency=[1, 16, 64])
            print("\nhistory: the last 50 of 1,000 messages against bare asyncpg\n")
            ours, bare = await storage.history_against_asyncpg(dsn, seconds=seconds, rounds=rounds)
            print(f"{ours:,.0f}/s, bare asyncpg {bare:,.0f}/s, ratio {ours / bare:.2f}")
            print("\nround trips an operation\n")
            print(", ".join(f"{name} {count:g}" for name, count in (await storage.round_trips(dsn)).items()))
            print("\nbytes a message of 300 bytes, indexes included\n")
            print(f"{await storage.bytes_per_message(dsn, 2_000 if quick else 100_000):.0f}")
            print("\nmessages accepted over HTTP by 64 callers\n")
            stored, nothing = await http.webhook(dsn, seconds=seconds, rounds=rounds)
            print(
                f"committed {stored:,.0f}/s, the same endpoint storing nothing {nothing:,.0f}/s, "
                f"ratio {stored / nothing:.2f}"
            )
            print("\nfirst token of a Mastra agent, median\n")
            bridged, direct = await http.first_token(dsn, count=20 if quick else 200)
            print(
                f"through the bridge {bridged * 1000:.1f} ms, direct {direct * 1000:.1f} ms, "
                f"added {(bridged - direct) * 1000:.1f} ms"
            )


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
