"""Builds everything, and says in which order things start and stop."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from pydantic import SecretStr

from chat_bridge.agents.contract import Agent
from chat_bridge.agents.echo import EchoAgent
from chat_bridge.agents.mastra import MastraAgent
from chat_bridge.bridge.answer import Answerer
from chat_bridge.bridge.claim import Workers
from chat_bridge.bridge.deliver import Deliverer
from chat_bridge.bridge.receive import Receiver
from chat_bridge.errors import SchemaError
from chat_bridge.platforms.contract import Platform
from chat_bridge.platforms.webchat import WebChat
from chat_bridge.settings import Settings
from chat_bridge.storage.embedded import embedded_postgres, server_in_use, stored_secret
from chat_bridge.storage.migrate import compare, migrate, schema_state
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import log
from chat_bridge.texts import Texts
from chat_bridge.upkeep.recovery import Sweep
from chat_bridge.web.app import create_app
from chat_bridge.web.services import Services


@dataclass(frozen=True, slots=True)
class Service:
    """A running bridge. `failed` is done when one of its loops died: the process must then stop. `drain` ends
    the turns and the event streams, before the HTTP server closes."""

    app: FastAPI
    agent: Agent
    failed: asyncio.Future[None]
    drain: Callable[[], Awaitable[None]]


@asynccontextmanager
async def database_url(settings: Settings, *, beside: bool = False) -> AsyncGenerator[str]:
    """The DSN in force; with none set, of the embedded PostgreSQL, which runs meanwhile. `beside`: the one of a bridge
    that is running already will do, for a command that looks or changes something while it runs."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
    elif beside and (dsn := server_in_use(settings.data_dir)) is not None:
        yield dsn
    else:
        async with embedded_postgres(settings.data_dir) as dsn:
            yield dsn


@asynccontextmanager
async def running_service(settings: Settings) -> AsyncGenerator[Service]:
    """Start: database, schema, Redis, workers, sweep, application. Stop in reverse: no new turns, running ones finish
    for a while, the rest is handed back, then the connections close, and the embedded PostgreSQL at the very end."""
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(database_url(settings))
        await _prepare_schema(settings, dsn)
        database = await stack.enter_async_context(
            Database.open(dsn, pool_size=settings.database_pool_size, pgbouncer=settings.database_pgbouncer)
        )
        store = Store(database, owner=f"{socket.gethostname()}:{os.getpid()}", lease_seconds=settings.lease_seconds)
        stack.push_async_callback(store.drain)
        redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
        hot = await stack.enter_async_context(Hot.open(redis_url, session_ttl_seconds=settings.session_ttl_seconds))
        agent = make_agent(settings)
        stack.push_async_callback(agent.aclose)

        platforms: dict[str, Platform] = {}
        if settings.webchat_enabled:
            web = WebChat(hot)
            platforms[web.capabilities.name] = web
        texts = Texts(settings.language, settings.texts)
        deliverer = Deliverer(store, platforms)
        answerer = Answerer(settings, store, platforms, agent, deliverer, texts)
        workers = Workers(settings, store, hot, platforms, agent.name, answerer, deliverer, texts)
        sweep = Sweep(
            store,
            wake=workers.wake,
            redeliver=deliverer.redeliver,
            platforms=list(platforms),
            idempotent_platforms=[name for name, each in platforms.items() if each.capabilities.idempotent_send],
        )

        async def schema_problem() -> str | None:
            revision = await database.fetch_one("schema_revision")
            try:
                compare(revision["version_num"] if revision else None).require_usable()
            except SchemaError as error:
                return str(error)
            return None

        app = create_app(
            Services(
                settings=settings,
                store=store,
                hot=hot,
                receiver=Receiver(settings, store, hot, platforms, workers),
                api_key=_secret(settings, settings.api_key, "api-key"),
                secret=_secret(settings, settings.secret, "secret") or "",
                schema_problem=schema_problem,
                stop_turn=lambda conversation, before: workers.stop(conversation, before, "lost"),
            )
        )
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        loops = [
            asyncio.create_task(workers.renew_leases(), name="renew_leases"),
            asyncio.create_task(sweep.run(alone=settings.embedded), name="sweep"),
        ]
        for loop in loops:
            loop.add_done_callback(lambda task: _report(task, failed))

        async def drain(seconds: float = settings.drain_seconds) -> None:
            loops[1].cancel()
            await workers.drain(seconds)
            hot.dismiss_watchers()

        try:
            yield Service(app, agent, failed, drain)
        finally:
            await drain(0)
            loops[0].cancel()
            await asyncio.gather(*loops, return_exceptions=True)


def make_agent(settings: Settings) -> Agent:
    """The agent that the settings ask for: echo when none is named."""
    if settings.repeat_mode or settings.mastra_agent_id is None:
        return EchoAgent()
    return MastraAgent(
        settings.mastra_endpoint,
        settings.mastra_agent_id,
        api_key=settings.mastra_api_key.get_secret_value() if settings.mastra_api_key else None,
        headers={name: value.get_secret_value() for name, value in settings.mastra_headers.items()},
        timeout_ms=settings.mastra_timeout,
        total_seconds=settings.turn_timeout_seconds,
    )


async def _prepare_schema(settings: Settings, dsn: str) -> None:
    if settings.database_migrate:
        state = await migrate(dsn)
        log.info("schema.ready", revision=state.current)
    else:
        (await schema_state(dsn)).require_usable()


def _secret(settings: Settings, given: SecretStr | None, name: str) -> str | None:
    if given is not None:
        return given.get_secret_value()
    return stored_secret(settings.data_dir, name) if settings.embedded else None


def _report(task: asyncio.Task[None], failed: asyncio.Future[None]) -> None:
    """A loop that ends by itself leaves a half-dead process: have the whole of it stop."""
    if not task.cancelled() and not failed.done():
        error = task.exception()
        log.error("loop.died", task=task.get_name(), exc_info=error)
        failed.set_exception(error or RuntimeError(f"{task.get_name()} ended"))
