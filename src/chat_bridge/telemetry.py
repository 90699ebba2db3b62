"""Logs and metrics: one line an event with its ids, and the Prometheus names that docs/operations.md lists."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog
from prometheus_client import Counter, Gauge, Histogram

log: structlog.stdlib.BoundLogger = structlog.get_logger("chat_bridge")

MESSAGES = Counter("chat_bridge_messages", "Inbound events by what became of them.", ["platform", "status"])
TURNS = Counter("chat_bridge_turns", "Turns by how they ended.", ["agent", "outcome"])
TURNS_RUNNING = Gauge("chat_bridge_turns_running", "Turns that this process is answering now.")
TURN_SECONDS = Histogram(
    "chat_bridge_turn_seconds",
    "From the claim of a turn to its commit.",
    ["agent"],
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
)
FIRST_TEXT_SECONDS = Histogram(
    "chat_bridge_first_text_seconds",
    "From the receipt of a turn's first message to the agent's first text.",
    ["agent"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
DELIVERIES = Counter("chat_bridge_deliveries", "Tries to send a part of a reply, by result.", ["platform", "status"])
RECOVERED = Counter("chat_bridge_recovered", "Work that the sweep found without a worker.", ["kind"])
STREAMS = Gauge("chat_bridge_event_streams", "Open event streams of web chat.")
REFUSED = Counter("chat_bridge_requests_refused", "Requests answered with 503 since too much is in progress.", ["of"])
REDIS_ERRORS = Counter("chat_bridge_redis_errors", "Redis operations that failed; the work went on without.")
ACTIVE_SESSIONS = Gauge("chat_bridge_active_conversations", "Conversations with a message within SESSION_TTL_SECONDS.")


def configure_logging(level: str, form: Literal["auto", "text", "json"]) -> None:
    """Send our logs and the libraries' to standard error: for people on a terminal, as JSON elsewhere."""
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if as_text else "iso", utc=not as_text),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(
                    [_console()]
                    if as_text
                    else [structlog.processors.format_exc_info, _event_first, structlog.processors.JSONRenderer()]
                ),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Its warning of a lost connection is a traceback; our own lines tell of it in one.
    logging.getLogger("asyncpg").setLevel(logging.ERROR)
    # Their lines say nothing that ours don't, and an access log would hold addresses of visitors.
    for noisy in ("uvicorn.access", "uvicorn.error", "alembic", "asyncio", "aiohttp.access", "markdown_it"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _event_first(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What happened in front, its details after it."""
    first = {name: line.pop(name) for name in ("timestamp", "level", "event") if name in line}
    return {**first, **line}


def _console() -> structlog.dev.ConsoleRenderer:
    # The default tracebacks print local variables: texts of users, and secrets.
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
    )
