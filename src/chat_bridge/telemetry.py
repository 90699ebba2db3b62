"""Logs and metrics: one line an event with its ids, and the Prometheus names that docs/operate/monitor.md lists."""

import logging
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any, Literal

import structlog
from prometheus_client import Counter, Gauge, Histogram, Info

from chat_bridge import tracing
from chat_bridge.model import ReceiveStatus, TurnOutcome

log: structlog.stdlib.BoundLogger = structlog.get_logger("chat_bridge")

# Of what takes as long as an agent or a person's patience; of what should be over at once.
LONG = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# The path of a message, in its order.
MESSAGES = Counter("chat_bridge_messages", "Inbound events by what became of them.", ["platform", "status"])
RECEIVE_SECONDS = Histogram(
    "chat_bridge_receive_seconds", "From an inbound event to its commit.", ["platform"], buckets=SHORT
)
TURN_WAIT_SECONDS = Histogram(
    "chat_bridge_turn_wait_seconds",
    "From the receipt of a turn's first message to the claim of the turn.",
    ["agent"],
    buckets=LONG,
)
TURNS = Counter("chat_bridge_turns", "Turns by how they ended.", ["agent", "outcome"])
TURNS_RUNNING = Gauge("chat_bridge_turns_running", "Turns that this process is answering now.")
TURNS_LIMIT = Gauge("chat_bridge_turns_limit", "Most turns that this process answers at once (MAX_TURNS).")
TURNS_LOST = Counter("chat_bridge_turns_lost", "Turns that this process gave up because their lease was gone.")
TURN_SECONDS = Histogram("chat_bridge_turn_seconds", "From the claim of a turn to its commit.", ["agent"], buckets=LONG)
FIRST_TEXT_SECONDS = Histogram(
    "chat_bridge_first_text_seconds",
    "From the receipt of a turn's first message to the agent's first text.",
    ["agent"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
AGENT_FIRST_TEXT_SECONDS = Histogram(
    "chat_bridge_agent_first_text_seconds", "From the agent's call to its first text.", ["agent"], buckets=LONG
)
AGENT_SECONDS = Histogram(
    "chat_bridge_agent_seconds",
    "From the agent's call to the end of its answer, or of the call.",
    ["agent"],
    buckets=LONG,
)
DELIVERIES = Counter("chat_bridge_deliveries", "Tries to send a part of a reply, by result.", ["platform", "status"])
SEND_SECONDS = Histogram(
    "chat_bridge_send_seconds", "How long a platform took to answer for a part of a reply.", ["platform"], buckets=SHORT
)
ATTACHMENTS = Counter(
    "chat_bridge_attachments", "Tries to fetch a file that a message has, by result.", ["platform", "status"]
)
ATTACHMENT_BYTES = Counter("chat_bridge_attachment_bytes", "Bytes of the files that were stored.", ["platform"])
EXPIRED = Counter("chat_bridge_expired", "What retention has deleted: messages, files, sessions, people.", ["kind"])
ARCHIVED = Counter("chat_bridge_archived", "What went from the tables into archives.", ["what"])
ARCHIVE_FAILURES = Counter("chat_bridge_archive_failures", "Runs of the archiver that failed; they are made again.")
RECOVERED = Counter("chat_bridge_recovered", "Work that the sweep found without a worker.", ["kind"])

# What stands in the database, the same in every process. NaN: it could not be asked.
WAITING = Gauge("chat_bridge_waiting_conversations", "Conversations with messages that wait and no turn.")
WAITING_SECONDS = Gauge("chat_bridge_waiting_oldest_seconds", "How long the longest of them has waited.")
OUTBOX = Gauge("chat_bridge_outbox_parts", "Parts of replies that are not sent yet.")
OUTBOX_SECONDS = Gauge("chat_bridge_outbox_oldest_seconds", "How long the oldest of them has been there.")
OUTBOX_OVERDUE_SECONDS = Gauge(
    "chat_bridge_outbox_overdue_seconds", "For how long nobody took the one that is due first."
)
DEAD_LETTERS = Gauge(
    "chat_bridge_dead_letters", "Dead letters: replies that were given up, messages without an answer.", ["kind"]
)
ACTIVE_SESSIONS = Gauge("chat_bridge_active_conversations", "Conversations with a message within SESSION_TTL_SECONDS.")

# What this process knows of the backups that BACKUP_EVERY_HOURS asks for.
BACKUP_NEWEST = Gauge(
    "chat_bridge_backup_newest_timestamp_seconds", "When the newest backup was made; 0: none is known."
)
BACKUP_OVERDUE = Gauge("chat_bridge_backup_overdue_seconds", "For how long a backup has been due (BACKUP_EVERY_HOURS).")

# What the process depends on, and what it turns away.
DATABASE_UP = Gauge("chat_bridge_database_reachable", "1: PostgreSQL answers.")
DATABASE_CONNECTIONS = Gauge("chat_bridge_database_connections", "Open connections to PostgreSQL.", ["state"])
DATABASE_CONNECTIONS_LIMIT = Gauge(
    "chat_bridge_database_connections_limit", "Most connections this process opens (DATABASE_POOL_SIZE)."
)
REDIS_UP = Gauge("chat_bridge_redis_reachable", "1: Redis answers.")
REDIS_ERRORS = Counter("chat_bridge_redis_errors", "Redis operations that failed; the work went on without.")
PLATFORM_UP = Gauge("chat_bridge_platform_connected", "1: the platform took our login since the start.", ["platform"])
WEBHOOKS_REFUSED = Counter("chat_bridge_webhooks_refused", "Webhook requests that were not authentic.", ["platform"])
REFUSED = Counter("chat_bridge_requests_refused", "Requests answered with 503 since too much is in progress.", ["of"])
STREAMS = Gauge("chat_bridge_event_streams", "Open event streams of web chat.")
BUILD = Info("chat_bridge_build", "The program that runs.")


def expect(agent: str, platforms: Iterable[str]) -> None:
    """Begin every counter at 0, for Prometheus can't see that one has come to 1 from nothing."""
    for outcome in TurnOutcome:
        TURNS.labels(agent, outcome.value)
    for platform in platforms:
        for received in ReceiveStatus:
            MESSAGES.labels(platform, received.value)
        for delivered in ("sent", "pending", "unknown", "failed"):
            DELIVERIES.labels(platform, delivered)
        for fetched in ("stored", "waiting", "failed"):
            ATTACHMENTS.labels(platform, fetched)
        ATTACHMENT_BYTES.labels(platform)
        WEBHOOKS_REFUSED.labels(platform)
    for kind in ("turn", "set_aside", "delivery", "attachment"):
        RECOVERED.labels(kind)
    for what in ("sessions", "messages"):
        ARCHIVED.labels(what)
    for room in ("requests", "event streams", "uploads", "downloads", "bodies", "writes"):
        REFUSED.labels(room)


def configure_logging(level: str, form: Literal["auto", "text", "json"]) -> None:
    """Send our logs and the libraries' to standard error: for people on a terminal, as JSON elsewhere."""
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if as_text else "iso", utc=not as_text),
        _with_trace,
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
    # What the one warns of is a traceback, and our own lines tell of it; the other warns each second.
    for repeating in ("asyncpg", "opentelemetry"):
        logging.getLogger(repeating).setLevel(logging.ERROR)
    # Their lines say nothing that ours don't, and an access log would hold addresses of visitors.
    for noisy in ("uvicorn.access", "uvicorn.error", "alembic", "asyncio", "aiohttp.access", "markdown_it"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _with_trace(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The trace that a line belongs to, if there is one."""
    if (trace := tracing.trace_id()) is not None:
        line["trace"] = trace
    return line


def _event_first(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What happened in front, its details after it."""
    first = {name: line.pop(name) for name in ("timestamp", "level", "event") if name in line}
    return {**first, **line}


def _console() -> structlog.dev.ConsoleRenderer:
    # The default tracebacks print local variables: texts of users, and secrets.
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
    )
