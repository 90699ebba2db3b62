"""Traces: one from the webhook to the delivery, in OpenTelemetry's form. Off, and free, unless an endpoint is set.

A message carries its place in the trace through the store, as a W3C `traceparent` in its metadata. So the trace goes on
in whichever process takes the message up, after a restart too.
"""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from chat_bridge.errors import ChatBridgeError, SettingsError
from chat_bridge.model import Json
from chat_bridge.settings import how_to_install

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context

Kind = Literal["internal", "server", "client", "producer", "consumer"]

CARRIED = "trace"  # the name in a message's metadata
EXPORT_SECONDS = 2.0  # a stop waits for up to four batches
_NOTHING = nullcontext()


class _Traces:
    """Makes spans. What it needs is imported only when tracing is on."""

    def __init__(self, tracer: "trace.Tracer") -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api = trace
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()
        self._nowhere = Context()

    @contextmanager
    def span(
        self, name: str, kind: Kind, after: Sequence[Json] | None, attributes: Mapping[str, object]
    ) -> Generator[None]:
        """A span around a piece of work; see the function of this name."""
        before = [] if after is None else [self._came_with(metadata) for metadata in after]
        began = self._tracer.start_as_current_span(
            name,
            context=None if after is None else before[0] if before else self._nowhere,
            kind=self._api.SpanKind[kind.upper()],
            attributes=_plain(attributes),
            links=[self._api.Link(self._api.get_current_span(context).get_span_context()) for context in before[1:]],
            record_exception=False,  # with a traceback, which may show more than it should
            set_status_on_exception=False,
        )
        with began:
            try:
                yield
            except Exception as error:
                self.fail(str(error) if isinstance(error, ChatBridgeError) else type(error).__name__)
                raise

    def _came_with(self, metadata: Json) -> "Context":
        found = metadata.get(CARRIED)
        return self._propagator.extract({"traceparent": str(found)} if found else {}, context=self._nowhere)

    def note(self, attributes: Mapping[str, object]) -> None:
        self._api.get_current_span().set_attributes(_plain(attributes))

    def fail(self, reason: str) -> None:
        self._api.get_current_span().set_status(self._api.StatusCode.ERROR, reason)

    def headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        self._propagator.inject(headers)
        return headers

    def trace_id(self) -> str | None:
        span = self._api.get_current_span()
        return format(span.get_span_context().trace_id, "032x") if span.is_recording() else None


_traces: _Traces | None = None


def _plain(attributes: Mapping[str, object]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, (bool, int, float)) else str(value)
        for name, value in attributes.items()
        if value is not None
    }


@asynccontextmanager
async def exporting(endpoint: str | None, headers: str | None) -> AsyncGenerator[None]:
    """Meanwhile, send traces to the collector at `endpoint`; None: there are no traces. `headers` as in
    OTEL_EXPORTER_OTLP_HEADERS; the other variables of OpenTelemetry are read by its own library."""
    global _traces
    if endpoint is None:
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.util.re import parse_env_headers
    except ImportError:
        raise SettingsError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but what sends traces is not installed: " + how_to_install("otel")
        ) from None
    release = version("agoric-chat-bridge")
    ours = Resource(
        {
            "service.name": "agoric-chat-bridge",
            "service.version": release,
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        }
    )
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(
        f"{endpoint.rstrip('/')}/v1/traces",
        headers=parse_env_headers(headers or "", liberal=True),
        timeout=EXPORT_SECONDS,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _traces = _Traces(provider.get_tracer("chat_bridge", release))
    try:
        yield
    finally:
        _traces = None
        await asyncio.to_thread(provider.shutdown)  # sends what is left


def span(
    name: str, kind: Kind = "internal", *, after: Sequence[Json] | None = None, **attributes: object
) -> AbstractContextManager[None]:
    """A piece of work as a span: of the one around it, or with `after` of the first of the messages (their metadata)
    that it follows, with links to the others. An error that leaves it is noted."""
    if _traces is None:
        return _NOTHING
    return _traces.span(name, kind, after, {f"chat_bridge.{key}": value for key, value in attributes.items()})


def note(**attributes: object) -> None:
    """Note something with the span around this."""
    if _traces is not None:
        _traces.note({f"chat_bridge.{key}": value for key, value in attributes.items()})


def fail(reason: str) -> None:
    """The work of the span around this failed."""
    if _traces is not None:
        _traces.fail(reason)


def headers() -> dict[str, str]:
    """What tells another program which span calls it: `traceparent`, or nothing."""
    return {} if _traces is None else _traces.headers()


def carried(metadata: Json) -> Json:
    """A message's metadata, with what lets its trace go on later and elsewhere."""
    return {**metadata, CARRIED: now} if (now := headers().get("traceparent")) else metadata


def trace_of(metadata: Json) -> str | None:
    """The trace that a message came in, if there was one: of `carried`, the second field of a W3C `traceparent`."""
    return str(metadata.get(CARRIED, "")).partition("-")[2][:32] or None


def trace_id() -> str | None:
    """The trace of the span around this, unless there is none, or it is not recorded."""
    return None if _traces is None else _traces.trace_id()
