"""What stands around the bridge in tests of its traces: a collector that speaks OTLP, and an agent like Mastra's."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

AGENT = "an-agent"


@dataclass(frozen=True)
class Span:
    """A span as it arrived; ids in hex. `where` are the attributes of the process."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    links: Sequence[tuple[str, str]]
    attributes: dict[str, Any]
    failure: str | None
    where: dict[str, Any]


@dataclass
class Collector:
    """What was sent to a collector: spans in the order of arrival, bodies as bytes, and each request's headers."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    async def until(self, name: str, count: int = 1) -> list[Span]:
        """Wait for so many spans of this name."""
        while len(found := self.named(name)) < count:
            await asyncio.sleep(0.02)
        return found

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        assert request.content_type == "application/x-protobuf"
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        for process in ExportTraceServiceRequest.FromString(body).resource_spans:
            where = _values(process.resource.attributes)
            self.spans += [_span(span, where) for scope in process.scope_spans for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")


def _span(span: Any, where: dict[str, Any]) -> Span:
    return Span(
        name=span.name,
        kind=span.kind,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        attributes=_values(span.attributes),
        failure=span.status.message if span.status.code == 2 else None,
        where=where,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@asynccontextmanager
async def collecting() -> AsyncGenerator[Collector]:
    """A collector on a port of its own."""
    collector = Collector()
    async with _serving("/v1/traces", collector.take) as collector.url:
        yield collector


@dataclass
class TracedAgent:
    """An agent that answers when `may_answer` is set, to those it knows, and keeps the headers it was sent."""

    endpoint: str = ""
    knows_us: bool = True
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    headers: list[dict[str, str]] = field(default_factory=list)

    async def called(self, count: int) -> None:
        """Wait until it was called so often."""
        while len(self.headers) < count:
            await asyncio.sleep(0.02)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        await self.may_answer.wait()
        if not self.knows_us:
            return web.Response(status=401)
        chunks = [
            {"type": "start", "runId": "run", "payload": {}},
            {"type": "text-delta", "runId": "run", "payload": {"text": "the answer"}},
            {"type": "finish", "runId": "run", "payload": {"stepResult": {"reason": "stop"}}},
        ]
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        return web.Response(text=text, content_type="text/event-stream")


@asynccontextmanager
async def traced_agent() -> AsyncGenerator[TracedAgent]:
    """An agent that looks like Mastra's, on a port of its own."""
    agent = TracedAgent()
    async with _serving(f"/api/agents/{AGENT}/stream", agent.answer) as url:
        agent.endpoint = f"{url}/api"
        yield agent


@asynccontextmanager
async def _serving(path: str, handler: Any) -> AsyncGenerator[str]:
    app = web.Application()
    app.router.add_post(path, handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
