"""`make bench`: everything in one run, on an embedded PostgreSQL of its own. Options: `make bench ARGS="--quick"`."""

import argparse
import asyncio
import os
import platform
import tempfile
from pathlib import Path

import uvloop

from bench import http, load, storage
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
            print("\n64 callers that store into one conversation, against pgbench row by row\n")
            for answered, name in ((False, "nobody answers"), (True, "being answered")):
                hot = await storage.one_conversation(dsn, seconds=seconds, rounds=rounds, answered=answered)
                print(
                    f"{name}: {hot.ours:,.0f}/s, pgbench {hot.pgbench:,.0f}/s, ratio {hot.ours / hot.pgbench:.1f}; "
                    f"{hot.accepted:.0f} of 100 accepted, the others skipped as the queue was full",
                    flush=True,
                )
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
            if unmeasurable := load.missing():
                print(f"\nload on whole processes: not measured, {unmeasurable}")
                return
            await show_load(dsn, quick=quick, rounds=rounds)


async def show_load(dsn: str, *, quick: bool, rounds: int) -> None:
    """The load on whole processes."""
    turns = 1000 if quick else 5000
    print(f"\n{turns:,} turns that wait for a slow agent in one process: MB of memory\n")
    for pages in (False, True):
        waited = await load.waiting_turns(dsn, turns, pages=pages)
        print(
            f"{'an event stream open for each' if pages else 'no event streams'}: {waited.peak:.0f} at the most, "
            f"{waited.waiting:.0f} while all waited, {waited.before:.0f} before; "
            f"{waited.answered:,} of {waited.turns:,} answered; "
            f"all waited after {waited.seconds_in:.0f} s, all were answered {waited.seconds_out:.0f} s later",
            flush=True,
        )
    limits = (
        (True, f"{load.SLOTS} turns at once each, the agent takes {load.THINKING_SECONDS:g} s"),
        (False, "the agent answers at once, all share the cores of this machine"),
    )
    for thinking, name in limits:
        print(f"\ntwo replicas against one, {name}: turns a second end to end\n")
        one, two = await load.replicas(dsn, thinking=thinking, seconds=4 if quick else 8, rounds=rounds)
        for count, rate in ((1, one), (2, two)):
            print(
                f"{count}: {rate.turns:,.0f}/s; each used {rate.used:.2f} of a core, {rate.milliseconds:.1f} ms a turn "
                f"while {100 * rate.idle:.0f} % of the machine were idle"
            )
        by_time = 2 * one.milliseconds / two.milliseconds
        print(f"ratio {two.turns / one.turns:.2f}; by computing time a turn {by_time:.2f}", flush=True)


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
