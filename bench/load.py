"""Load on whole processes: thousands of turns that wait for a slow agent, and two replicas against one."""

import asyncio
import os
import resource
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
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
THINKING_SECONDS = 1.0
SLOTS = 40  # fewer than half of the talkers: two processes are never without work either


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


async def replicas(dsn: str, *, thinking: bool, seconds: float, rounds: int) -> tuple[Rate, Rate]:
    """One process, then two, medians: turns end to end, from the POST to the reply on an event stream. Each caller's
    stream stays with one process while its messages go to all in turn, as behind a load balancer.

    `thinking`: the agent takes a second, and a process may have SLOTS turns under way, so that these are the limit;
    else it answers at once, and the cores are.
    """
    pairs: list[tuple[Rate, Rate]] = []
    for _ in range(rounds):
        await empty(dsn)
        async with _stage(THINKING_SECONDS if thinking else 0) as (folder, redis_url, agent), AsyncExitStack() as stack:
            agent.open.set()
            settings = _settings(dsn, redis_url, agent, **({"MAX_TURNS": str(SLOTS)} if thinking else {}))
            one = await stack.enter_async_context(bridge(folder, **settings))
            alone = await _rate([one], seconds)
            two = await stack.enter_async_context(bridge(folder, **settings))
            pairs.append((alone, await _rate([one, two], seconds)))
    return _median([pair[0] for pair in pairs]), _median([pair[1] for pair in pairs])


async def _rate(processes: list[Bridge], seconds: float) -> Rate:
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
async def _stage(agent_seconds: float = 0) -> AsyncGenerator[tuple[Path, str, Agent]]:
    with tempfile.TemporaryDirectory() as folder:
        async with own_server() as redis, Agent(agent_seconds).serving() as agent:
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
