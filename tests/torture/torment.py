"""The tormentor: which faults come when, all from the seed, and how each is done."""

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol

import asyncpg
import redis.asyncio

from tests.torture.record import Fault
from tests.torture.stage import LEASE_SECONDS, Stage

QUIET_SECONDS = 1.2  # the mean time between two faults
WEIGHTS = {
    "SIGKILL": 5,
    "SIGSTOP": 4,
    "SIGTERM": 2,
    "Redis killed": 2,
    "Redis FLUSHALL": 2,
    "Redis SIGSTOP": 2,
    "PostgreSQL stopped at once": 2,
    "connections cut": 3,
}
OF_REPLICAS = ("SIGKILL", "SIGSTOP", "SIGTERM")
LASTING = ("SIGKILL", "SIGSTOP", "Redis killed", "Redis SIGSTOP", "PostgreSQL stopped at once")


class Held(Protocol):
    """What only one fault at a time may be done to."""

    held: asyncio.Lock


@dataclass(frozen=True)
class Plan:
    """A fault that will come: when, to which replica (if to one), and how long it lasts."""

    after: float
    kind: str
    replica: int
    seconds: float


def plans(seed: str, seconds: float, replicas: int) -> list[Plan]:
    """The faults of a run. Each kind comes once before chance decides, if the time suffices."""
    chance = Random(f"{seed}:faults")
    first = list(WEIGHTS)
    chance.shuffle(first)
    planned: list[Plan] = []
    after = 1.0
    while after < seconds:
        kind = first.pop() if first else chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        lasting = LEASE_SECONDS + chance.uniform(0.5, 2.5) if kind == "SIGSTOP" else chance.uniform(0.1, 2)
        planned.append(Plan(after, kind, chance.randrange(replicas), lasting))
        after += chance.uniform(0.2, 2 * QUIET_SECONDS)
    return planned


class Tormentor:
    """Does the planned faults. `say` is told of each as it begins."""

    def __init__(self, stage: Stage, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._say = say
        self.faults: list[Fault] = []

    async def torment(self, planned: list[Plan]) -> None:
        """All of them, at their times; returns when the last one is over. What is hit already is hit again later."""
        begun = time.monotonic()

        async def one(plan: Plan) -> None:
            await asyncio.sleep(max(0.0, begun + plan.after - time.monotonic()))
            await self._do(plan)

        async with asyncio.TaskGroup() as group:
            for plan in planned:
                group.create_task(one(plan), name=plan.kind)

    async def _do(self, plan: Plan) -> None:
        stage, replica = self._stage, self._stage.replicas[plan.replica]
        target: Held = stage.postgres
        name = "PostgreSQL"
        if plan.kind in OF_REPLICAS:
            target, name = replica, replica.name
        elif plan.kind.startswith("Redis"):
            target, name = stage.redis, "Redis"
        async with target.held:
            if target is replica and not replica.running:
                replica.start()
            at = time.time()
            lasting = f", for {plan.seconds:.1f} s" if plan.kind in LASTING else ""
            self._say(f"{plan.kind}{f' {name}' if plan.kind in OF_REPLICAS else ''}{lasting}")
            match plan.kind:
                case "SIGKILL":
                    await replica.stop()
                    await asyncio.sleep(plan.seconds)
                case "SIGSTOP":
                    replica.send(signal.SIGSTOP)
                    await asyncio.sleep(plan.seconds)
                    replica.send(signal.SIGCONT)
                case "SIGTERM":
                    await replica.stop(signal.SIGTERM)
                case "Redis killed":
                    await stage.redis.stop()
                    await asyncio.sleep(plan.seconds)
                    stage.redis.start()
                case "Redis SIGSTOP":
                    stage.redis.send(signal.SIGSTOP)
                    await asyncio.sleep(plan.seconds)
                    stage.redis.send(signal.SIGCONT)
                case "Redis FLUSHALL":
                    await self._flush()
                case "PostgreSQL stopped at once":
                    await stage.postgres.stop(at_once=True)
                    await asyncio.sleep(plan.seconds)
                    await stage.postgres.start()
                case _:
                    await self._cut(plan)
            self.faults.append(Fault(plan.kind, name, at, time.time()))

    async def _flush(self) -> None:
        async with redis.asyncio.from_url(f"unix://{self._stage.door}") as client:
            while True:
                try:
                    await client.flushall()
                    return
                except redis.asyncio.ConnectionError:  # it has just been started again
                    await asyncio.sleep(0.02)

    async def _cut(self, plan: Plan) -> None:
        """End half of all connections to PostgreSQL."""
        connection = await asyncpg.connect(self._stage.postgres.dsn, timeout=5)
        try:
            await connection.execute(
                """select pg_terminate_backend(pid) from pg_stat_activity
                where backend_type = 'client backend' and pid <> pg_backend_pid()
                    and (hashint4(pid) & 1) = $1::int""",
                round(plan.after * 1000) & 1,
            )
        finally:
            await connection.close()
