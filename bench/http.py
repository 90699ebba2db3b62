"""What the bridge adds around its store: a webhook accepted, and the way to the agent's first token."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any
from uuid import uuid4

import aiohttp
import uvicorn

from bench.bridge import API_KEY, empty
from chat_bridge.agents.contract import AgentMessage, AgentRequest, TextDelta
from chat_bridge.agents.mastra import MastraAgent
from chat_bridge.model import InboundEvent, Receipt, ReceiveStatus, Seq, new_message_id, new_session_id
from chat_bridge.service import Service, running_service
from chat_bridge.settings import Settings
from chat_bridge.web.services import Services
from tests.mastra import running_mastra


@dataclass(frozen=True, slots=True)
class StoresNothing:
    """Stands in for the receiver: the same endpoint, answered without the store."""

    async def receive(self, event: InboundEvent) -> Receipt:
        return Receipt(ReceiveStatus.ACCEPTED, event.address.id, new_session_id(), new_message_id(), Seq(1))


def bench_settings(dsn: str, **more: Any) -> Settings:
    return Settings.model_validate(
        {
            "DATABASE_URL": dsn,
            "CHAT_BRIDGE_API_KEY": API_KEY,
            "CHAT_BRIDGE_SECRET": "s" * 32,
            "WEBCHAT_RATE_CONVERSATION": 10**9,
            "CHAT_BRIDGE_LOG_LEVEL": "error",
            **more,
        }
    )


@asynccontextmanager
async def serving(service: Service) -> AsyncGenerator[int]:
    """The application over HTTP on a free port of this process."""
    server = uvicorn.Server(uvicorn.Config(service.app, port=0, log_config=None, access_log=False, lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def post_rate(port: int, callers: int, seconds: float) -> float:
    """POSTs a second by a minimal keep-alive client, so that the measured side is the server."""
    done, ends = 0, time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < ends:
            body = json.dumps({"client_msg_id": str(uuid4()), "text": "x" * 300}).encode()
            path = f"/api/v1/chat/bench-{number}-{done % 16}/messages"
            writer.write(
                f"POST {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {API_KEY}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
                + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 202"), head
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            done += 1
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return done / (time.perf_counter() - began)


async def webhook(dsn: str, *, seconds: float, rounds: int, callers: int = 64) -> tuple[float, float]:
    """Messages accepted a second: committed, and by the same endpoint storing nothing. Answers are not part of it:
    no worker is woken, so that messages only wait."""
    await empty(dsn)
    async with running_service(bench_settings(dsn, CHAT_BRIDGE_DRAIN_SECONDS=0)) as service:
        real: Services = service.app.state.services
        real.receiver._workers.wake = lambda *_: None
        stand_in = replace(real, receiver=StoresNothing())  # pyright: ignore[reportArgumentType]
        stored, nothing = [], []
        async with serving(service) as port:
            await post_rate(port, callers, 1)
            for _ in range(rounds):
                service.app.state.services = real
                stored.append(await post_rate(port, callers, seconds))
                service.app.state.services = stand_in
                nothing.append(await post_rate(port, callers, seconds))
    return median(stored), median(nothing)


async def first_token(dsn: str, *, count: int) -> tuple[float, float]:
    """Seconds to the agent's first token, medians: through the bridge (HTTP in, stored, claimed, streamed out), and by
    a direct call to the same Mastra agent. One of each in turn, each in a session of its own."""
    await empty(dsn)  # or what waits since another measurement is answered meanwhile
    async with running_mastra() as mastra:
        settings = bench_settings(dsn, MASTRA_ENDPOINT=mastra.endpoint, MASTRA_AGENT_ID="echo")
        agent = MastraAgent(mastra.endpoint, "echo", api_key=None, headers={}, timeout_ms=30_000, total_seconds=60)
        bridged, direct = [], []
        async with running_service(settings) as service, serving(service) as port, aiohttp.ClientSession() as http:
            for number in range(count):
                direct.append(await _timed(lambda: _direct(agent)))
                bridged.append(await _through(http, port, f"first-{number}"))
        await agent.aclose()
    return median(bridged[3:]), median(direct[3:])


async def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def _direct(agent: MastraAgent) -> None:
    request = AgentRequest(str(uuid4()), "bench", [AgentMessage(str(uuid4()), "hello")])
    events = agent.answer(request)
    async for event in events:
        if isinstance(event, TextDelta):
            break
    await events.aclose()


async def _through(http: aiohttp.ClientSession, port: int, conversation: str) -> float:
    url = f"http://127.0.0.1:{port}/api/v1/chat/{conversation}"
    headers = {"Authorization": f"Bearer {API_KEY}"}
    taken = 0.0
    async with http.get(f"{url}/events", headers=headers) as events:
        began = time.perf_counter()
        async with http.post(
            f"{url}/messages", json={"client_msg_id": str(uuid4()), "text": "hello"}, headers=headers
        ) as answer:
            assert answer.status == 202
        async for line in events.content:
            if line.startswith(b"event: delta"):
                taken = time.perf_counter() - began
            if line.startswith(b"data:") and b'"outbound"' in line:
                return taken
    raise AssertionError("the stream ended")
