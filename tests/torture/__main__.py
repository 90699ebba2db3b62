"""`make torture`: see docs/operate/torture.md."""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.torture.adapters import KEYED
from tests.torture.check import shown_twice
from tests.torture.record import Record
from tests.torture.run import Outcome, torture

MOST_EXAMPLES = 5
STOPS = (signal.SIGINT, signal.SIGTERM)


def main() -> int:
    """Run as the arguments say; 1 when a promise is broken, 130 when it was interrupted."""
    parser = argparse.ArgumentParser(prog="make torture", description="Break everything, and look what was kept.")
    parser.add_argument("--seconds", type=float, default=60, help="how long faults come")
    parser.add_argument("--seed", default="1", help="all chance comes from it")
    parser.add_argument("--replicas", type=int, default=3, help="processes of the bridge")
    parser.add_argument("--conversations", type=int, default=10, help="on each of the two platforms")
    told = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chat-bridge-torture-"))
    print(f"seed {told.seed}; what happens is written down in {folder}", flush=True)
    try:
        outcome = asyncio.run(interruptible(folder, told))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; everything was stopped", file=sys.stderr)
        return 130
    report(outcome)
    return 0 if outcome.kept else 1


async def interruptible(folder: Path, told: argparse.Namespace) -> Outcome:
    """SIGTERM and Ctrl-C stop what was started before they end us."""
    work = asyncio.ensure_future(
        torture(
            folder,
            seconds=told.seconds,
            seed=told.seed,
            replicas=told.replicas,
            conversations=told.conversations,
            say=lambda line: print(line, flush=True),
        )
    )
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        for number in STOPS:
            loop.add_signal_handler(number, lambda: None)  # stopping takes its second
        work.cancel()

    for number in STOPS:
        loop.add_signal_handler(number, interrupt)
    return await work


def report(outcome: Outcome) -> None:
    """The table at the end."""
    record = outcome.record
    print("\nfaults survived")
    for kind, count in Counter(fault.kind for fault in record.faults).most_common():
        print(f"  {count:5}  {kind}")
    print("messages")
    for name, count in counts(record).items():
        print(f"  {count:5}  {name}")
    if record.errors:
        print("errors in the logs of the replicas")
        for event, count in record.errors.most_common():
            print(f"  {count:5}  {event}")
    print("promises")
    for promise, examples in outcome.broken.items():
        print(f"  {'BROKEN' if examples else 'ok':>6}  {promise}")
        for example in examples[:MOST_EXAMPLES]:
            print(f"          {example}")
        if len(examples) > MOST_EXAMPLES:
            print(f"          and {len(examples) - MOST_EXAMPLES} more")
    print(f"timeline: {outcome.timeline}")


def counts(record: Record) -> dict[str, int]:
    """What is worth counting."""
    statuses = Counter(message.status for message in record.messages)
    turns = Counter(turn.status for turn in record.turns)
    deliveries = Counter((reply.platform == KEYED, reply.status) for reply in record.replies)
    return {
        "acknowledged": sum(event.acknowledged is not None for event in record.events),
        "answered": sum(message.status == "accepted" and message.passed for message in record.messages),
        "failed, with a reason": statuses["failed"],
        "skipped, with a reason": statuses["skipped"],
        "turns taken from their worker": turns["superseded"],
        "sends of a known key, not shown again": sum(taken.duplicate for taken in record.taken),
        "shown twice where keys are not known": shown_twice(record),
        "replies whose arrival is unknown": deliveries[False, "unknown"] + deliveries[True, "unknown"],
        "replies given up": deliveries[False, "failed"] + deliveries[True, "failed"],
    }


if __name__ == "__main__":
    sys.exit(main())
