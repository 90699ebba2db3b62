"""One run: set the stage, torment, wait until all is at rest, read the record, check it."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from tests.torture.check import check
from tests.torture.record import Record, read_record, unfinished
from tests.torture.stage import Stage, staged
from tests.torture.timeline import draw, most_tormented
from tests.torture.torment import Tormentor, plans

SETTLING_SECONDS = 120.0
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `broken` has examples for each promise that was not kept."""

    record: Record
    broken: Mapping[str, Sequence[str]]
    timeline: Path

    @property
    def kept(self) -> bool:
        return not any(self.broken.values())


async def torture(
    folder: Path, *, seconds: float, seed: str, replicas: int, conversations: int, say: Callable[[str], None]
) -> Outcome:
    """Run, and check. `folder` is empty, and keeps what was seen: journals, logs, the timeline."""
    async with staged(folder, seed, replicas) as stage:
        begun = time.monotonic()

        def tell(line: str) -> None:
            say(f"{time.monotonic() - begun:6.1f} s  {line}")

        tell(f"{replicas} replicas are ready")
        await stage.ask_peer("begin", replicas=stage.urls, conversations=conversations)
        tormentor = Tormentor(stage, tell)
        await tormentor.torment(plans(seed, seconds, replicas))
        tell("the faults are over")
        stuck = await settle(stage)
        tell("all is at rest" if not stuck else f"not at rest: {', '.join(stuck)}")
        record = await read_record(stage.postgres.dsn, stage.journals["peer"], stage.journals["agent"])
        record.faults, record.stuck = tormentor.faults, stuck
        record.owners, record.errors = stage.owners(), stage.errors()
    timeline = folder / "timeline.svg"
    timeline.write_text(draw(record, most_tormented(record)))
    return Outcome(record, check(record), timeline)


async def settle(stage: Stage) -> Sequence[str]:
    """Wait until every message was acknowledged and nothing is left to do; what still is when the time is over."""
    left: Sequence[str] = ["messages not acknowledged"]
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLING_SECONDS):
            await stage.ask_peer("rest")
            left = ["replicas not ready"]
            while left:
                await asyncio.sleep(LOOK_SECONDS)
                with suppress(OSError, asyncpg.PostgresError):
                    left = await unfinished(stage.postgres.dsn)
                    if not left and not await stage.all_ready():
                        left = ["replicas not ready"]
    return left
