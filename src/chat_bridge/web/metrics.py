"""What Prometheus reads: the counts of this process, and what stands in the database, asked for now and then."""

import asyncio
import math
import time
from importlib.metadata import version

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from chat_bridge.errors import StorageError
from chat_bridge.storage.figures import Figures, read_figures
from chat_bridge.storage.postgres import Database
from chat_bridge.telemetry import (
    ACTIVE_SESSIONS,
    BUILD,
    DATABASE_CONNECTIONS,
    DATABASE_CONNECTIONS_LIMIT,
    DATABASE_UP,
    DEAD_LETTERS,
    OUTBOX,
    OUTBOX_OVERDUE_SECONDS,
    OUTBOX_SECONDS,
    PLATFORM_UP,
    REDIS_UP,
    TURNS_LIMIT,
    WAITING,
    WAITING_SECONDS,
)
from chat_bridge.web.services import Services

KEPT_SECONDS = 10.0  # figures of the database, so that nobody can make it work by asking often
PATIENCE_SECONDS = 2.0  # Prometheus waits no longer than 10 s for all there is to say


class Watch:
    """Figures of the database, not older than KEPT_SECONDS; one question at a time, and nobody waits long for it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asking: asyncio.Task[Figures | None] | None = None
        self._asked_at = -math.inf

    async def figures(self) -> Figures | None:
        """None: the database does not answer."""
        if self._asking is None or (self._asking.done() and time.monotonic() > self._asked_at + KEPT_SECONDS):
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(self._ask(), name="figures")
        asking = self._asking
        await asyncio.wait([asking], timeout=PATIENCE_SECONDS)
        return asking.result() if asking.done() else None

    async def _ask(self) -> Figures | None:
        try:
            return await read_figures(self._database)
        except StorageError:
            return None


def add_metrics(app: FastAPI, services: Services) -> None:
    """Have the app answer to Prometheus at /metrics."""
    watch = Watch(services.store.database)
    BUILD.info({"version": version("agoric-chat-bridge")})
    TURNS_LIMIT.set(services.settings.max_turns)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        _tell_figures(await watch.figures())
        ACTIVE_SESSIONS.set(await services.hot.active_conversations())
        _tell_process(services)
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _tell_figures(figures: Figures | None) -> None:
    DATABASE_UP.set(figures is not None)
    WAITING.set(math.nan if figures is None else figures.waiting)
    WAITING_SECONDS.set(math.nan if figures is None else figures.waiting_seconds)
    OUTBOX.set(math.nan if figures is None else figures.outbox)
    OUTBOX_SECONDS.set(math.nan if figures is None else figures.outbox_seconds)
    OUTBOX_OVERDUE_SECONDS.set(math.nan if figures is None else figures.overdue_seconds)
    DEAD_LETTERS.labels("reply").set(math.nan if figures is None else figures.dead_replies)
    DEAD_LETTERS.labels("message").set(math.nan if figures is None else figures.dead_messages)


def _tell_process(used: Services) -> None:
    REDIS_UP.set(used.hot.reachable)
    for name, state in used.platform_states.items():
        PLATFORM_UP.labels(name).set(state == "ok")
    pool = used.store.database.pool_use()
    DATABASE_CONNECTIONS.labels("used").set(pool.used)
    DATABASE_CONNECTIONS.labels("idle").set(pool.idle)
    DATABASE_CONNECTIONS_LIMIT.set(pool.limit)
