"""Load on whole processes: thousands of turns that wait for a slow agent, and two replicas against one."""

import asyncio
import os
import resource
import signal
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import asyncpg

from bench.bridge import ANSWER, Agent, Bridge, Connection, bridge, connections, empty
from tests.redis_servers import own_server
from tests.servers import MissingError, find_redis

CALLERS = 64
TALKERS = 96  # who talk to the replicas: so many that none of them is ever without work
PATIENCE = 300.0  # seconds, for all turns to get where they should
PERIOD = 0.1  # as long as that of the quota that containers get
TICK = 0.002


def missing() -> str | None:
    """What this machine lacks for these measurements."""
    if not Path("/proc/self/status").exists():
        return "there is no /proc to read memory and times from"
    try:
        find_redis()
    except MissingError as error:
        return str(error)
    return None


@dataclass(frozen=True, slots=True)
class Waited:
    """What thousands of waiting turns took: MB of the process before, while all waited, and at the most."""

    turns: int
    answered: int
    before: float
    waiting: float
    peak: float
    seconds_in: float
    seconds_out: float


async def waiting_turns(dsn: str, turns: int, *, pages: bool) -> Waited:
    """Send a message in each of so many conversations to one process. The agent begins a run for each, and answers only
    when it has them all. `pages`: each conversation has an event stream open, too."""
    _allow_many_connections()
    await empty(dsn)
    async with _stage() as (folder, redis_url, agent):
        settings = _settings(dsn, redis_url, agent, MAX_TURNS=str(turns))
        async with bridge(folder, **settings) as process, AsyncExitStack() as open_pages:
            before = process.memory("VmRSS")
            if pages:
                for number in range(turns):
                    page = await open_pages.enter_async_context(Connection(process.port))
                    await page.listen(str(number))
            began = time.perf_counter()
            await _each(turns, process, lambda connection, number: connection.send(str(number)))
            async with asyncio.timeout(PATIENCE):
                while agent.waiting < turns:
                    await asyncio.sleep(0.05)
            all_in = time.perf_counter()
            waiting = process.memory("VmRSS")
            agent.open.set()
            async with asyncio.timeout(PATIENCE):
                while await _sent(dsn) < turns:
                    await asyncio.sleep(0.2)
            all_out = time.perf_counter()
            answered = 0

            async def look(connection: Connection, number: int) -> None:
                nonlocal answered
                said = [each["text"] for each in await connection.read(str(number)) if each["direction"] == "outbound"]
                answered += said == [ANSWER]

            peak = process.memory("VmHWM")
            await _each(turns, process, look)
    return Waited(turns, answered, before, waiting, peak, all_in - began, all_out - all_in)


@dataclass(frozen=True, slots=True)
class Rate:
    """Turns a second; milliseconds of computing that each cost the bridge; how much of a core each process used; and
    how much of the machine was idle."""

    turns: float
    milliseconds: float
    used: float
    idle: float


async def replicas(dsn: str, *, share: float | None, seconds: float, rounds: int) -> tuple[Rate, Rate]:
    """One process, then two, medians: turns end to end, from the POST to the reply on an event stream. Each caller's
    stream stays with one process while its messages go to all in turn, as behind a load balancer.

    `share`: so much of one core is what each process may compute; the kernel's clock counts it, and signals hold it
    back. Then database, agent and callers have the rest of the machine, as if the replicas had machines of their own.
    """
    pairs: list[tuple[Rate, Rate]] = []
    for _ in range(rounds):
        await empty(dsn)
        async with _stage() as (folder, redis_url, agent), AsyncExitStack() as stack:
            agent.open.set()
            settings = _settings(dsn, redis_url, agent)
            one = await stack.enter_async_context(bridge(folder, **settings))
            alone = await _rate([one], share, seconds)
            two = await stack.enter_async_context(bridge(folder, **settings))
            pairs.append((alone, await _rate([one, two], share, seconds)))
    return _median([pair[0] for pair in pairs]), _median([pair[1] for pair in pairs])


async def _rate(processes: list[Bridge], share: float | None, seconds: float) -> Rate:
    done = 0
    begun: set[int] = set()

    async def caller(number: int) -> None:
        nonlocal done
        conversation, ports = f"caller-{number}-of-{len(processes)}", [process.port for process in processes]
        async with connections([ports[number % len(ports)], *ports]) as (page, *senders):
            await page.listen(conversation)
            turn = number
            while True:
                await senders[turn % len(senders)].send(conversation)
                await page.reply()
                done += 1
                turn += 1
                if turn - number > len(processes):
                    begun.add(number)

    async with AsyncExitStack() as stack:
        if share is not None:
            for process in processes:
                await stack.enter_async_context(_held_to(process, share))
        callers = [asyncio.create_task(caller(number)) for number in range(TALKERS)]
        try:
            async with asyncio.timeout(PATIENCE):
                while len(begun) < TALKERS:  # some turns at first are slower
                    await _measured(callers, 0.1)
            first, began, idle = done, time.perf_counter(), _idle_seconds()
            computed = sum(process.cpu_seconds() for process in processes)
            await _measured(callers, seconds)
            taken, turns = time.perf_counter() - began, done - first
            computed = sum(process.cpu_seconds() for process in processes) - computed
            idle = (_idle_seconds() - idle) / taken / (os.cpu_count() or 1)
        finally:
            for task in callers:
                task.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
    return Rate(turns / taken, computed / turns * 1000, computed / taken / len(processes), idle)


async def _measured(callers: list[asyncio.Task[None]], seconds: float) -> None:
    """Let the callers work; one that ends has failed."""
    ended, _ = await asyncio.wait(callers, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()


@asynccontextmanager
async def _held_to(process: Bridge, share: float) -> AsyncGenerator[None]:
    """Meanwhile let a process compute for this share of one core's time, as a container with a quota may."""

    async def hold() -> None:
        limit, ends = process.cpu_seconds(), time.perf_counter()
        while True:
            # What was used too much in one period is missing in the next; what was not used is gone.
            limit = min(limit, process.cpu_seconds()) + share * PERIOD
            ends += PERIOD
            os.kill(process.pid, signal.SIGCONT)
            while process.cpu_seconds() < limit and time.perf_counter() < ends:
                await asyncio.sleep(TICK)
            if process.cpu_seconds() >= limit:
                os.kill(process.pid, signal.SIGSTOP)
                await asyncio.sleep(ends - time.perf_counter())

    holding = asyncio.create_task(hold())
    try:
        yield
    finally:
        holding.cancel()
        await asyncio.wait([holding])
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)


@asynccontextmanager
async def _stage() -> AsyncGenerator[tuple[Path, str, Agent]]:
    with tempfile.TemporaryDirectory() as folder:
        async with own_server() as redis, Agent().serving() as agent:
            await redis.start()
            yield Path(folder), redis.url, agent


def _settings(dsn: str, redis_url: str, agent: Agent, **more: str) -> dict[str, str]:
    return {"DATABASE_URL": dsn, "REDIS_URL": redis_url, "MASTRA_ENDPOINT": agent.endpoint, **more}


async def _each(count: int, process: Bridge, work: Callable[[Connection, int], Awaitable[None]]) -> None:
    """Do something in each conversation, by a few callers."""
    numbers = iter(range(count))

    async def caller() -> None:
        async with Connection(process.port) as connection:
            for number in numbers:
                await work(connection, number)

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())


async def _sent(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    count = await connection.fetchval("select count(*) from deliveries where status = 'sent'")
    await connection.close()
    return count


def _idle_seconds() -> float:
    """Seconds that the cores of this machine had nothing to do."""
    return int(Path("/proc/stat").read_text().split()[4]) / os.sysconf("SC_CLK_TCK")


def _median(rates: list[Rate]) -> Rate:
    return Rate(*(median(getattr(rate, name) for rate in rates) for name in ("turns", "milliseconds", "used", "idle")))


def _allow_many_connections() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
