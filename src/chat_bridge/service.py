"""Builds everything, and says in which order things start and stop."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points

from fastapi import FastAPI
from pydantic import SecretStr

from chat_bridge import tracing
from chat_bridge.agents.contract import Agent
from chat_bridge.agents.echo import EchoAgent
from chat_bridge.agents.mastra import MastraAgent
from chat_bridge.backup.schedule import scheduled
from chat_bridge.bridge.answer import Answerer
from chat_bridge.bridge.claim import Workers
from chat_bridge.bridge.deliver import Deliverer
from chat_bridge.bridge.fetch import Fetcher
from chat_bridge.bridge.keep import Keeper, Rules
from chat_bridge.bridge.load import Loader
from chat_bridge.bridge.receive import Receiver
from chat_bridge.bridge.resolve import Access
from chat_bridge.bridge.rotation import session_end
from chat_bridge.bridge.scan import Scanner
from chat_bridge.bridge.send import Sender
from chat_bridge.errors import ChatBridgeError, SchemaError, SettingsError
from chat_bridge.platforms.contract import MakePlatform, Platform
from chat_bridge.platforms.telegram.adapter import Telegram
from chat_bridge.platforms.webchat import EventSink, WebChat
from chat_bridge.policies import load_policies
from chat_bridge.settings import Settings, environment
from chat_bridge.storage.blobs import open_blobs
from chat_bridge.storage.embedded import database_url, stored_secret
from chat_bridge.storage.migrate import compare, migrate, schema_state
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from chat_bridge.storage.transcripts import Transcripts
from chat_bridge.telemetry import expect, log
from chat_bridge.texts import Texts
from chat_bridge.upkeep.ages import Ages
from chat_bridge.upkeep.archive import Archiver
from chat_bridge.upkeep.attend import Attendance
from chat_bridge.upkeep.cleanup import Cleanup
from chat_bridge.upkeep.erasure import Eraser
from chat_bridge.upkeep.recovery import Sweep
from chat_bridge.upkeep.retention import Retention
from chat_bridge.web.app import create_app
from chat_bridge.web.services import Services


@dataclass(frozen=True, slots=True)
class Service:
    """A running bridge. `failed` is done when one of its loops died: the process must then stop. `drain` ends
    the turns and the event streams, before the HTTP server closes."""

    app: FastAPI
    agent: Agent
    platforms: Mapping[str, Platform]
    failed: asyncio.Future[None]
    drain: Callable[[], Awaitable[None]]


@asynccontextmanager
async def running_service(settings: Settings) -> AsyncGenerator[Service]:
    """Start: database, schema, Redis, workers, sweep, application. Stop in reverse: no new turns, running ones finish
    for a while, the rest is handed back, then the connections close, and the embedded PostgreSQL at the very end."""
    async with AsyncExitStack() as stack:
        headers = settings.otel_headers.get_secret_value() if settings.otel_headers else None
        await stack.enter_async_context(tracing.exporting(settings.otel_endpoint, headers))
        dsn = await stack.enter_async_context(database_url(settings))
        await _prepare_schema(settings, dsn)
        database = await stack.enter_async_context(
            Database.open(dsn, pool_size=settings.database_pool_size, pgbouncer=settings.database_pgbouncer)
        )
        store = Store(
            database,
            owner=f"{socket.gethostname()}:{os.getpid()}",
            lease_seconds=settings.lease_seconds,
            session_end=session_end(settings),
        )
        stack.push_async_callback(store.drain)
        policies = load_policies(settings)
        schedule = scheduled(settings, store, dsn)
        redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
        hot = await stack.enter_async_context(Hot.open(redis_url, session_ttl_seconds=settings.session_ttl_seconds))
        agent = make_agent(settings)
        stack.push_async_callback(agent.aclose)

        platforms = make_platforms(settings, hot)
        expect(agent.name, platforms)
        for platform in platforms.values():
            stack.push_async_callback(platform.aclose)
        texts = Texts(settings.language, settings.texts)
        blobs = open_blobs(settings.attachment_bucket, settings.data_dir, environment())
        resend_unknown = settings.unknown_deliveries == "resend"
        deliverer = Deliverer(store, hot, platforms, Loader(store, blobs), resend_unknown=resend_unknown)
        stack.push_async_callback(deliverer.aclose)
        keeper = Keeper(
            store,
            blobs,
            Rules(settings.attachment_max_bytes, settings.attachment_types),
            Scanner(settings.attachment_scanner) if settings.attachment_scanner else None,
        )
        fetcher = Fetcher(store, hot, platforms, keeper)
        stack.push_async_callback(fetcher.aclose)
        answerer = Answerer(settings, store, hot, platforms, agent, deliverer, fetcher, keeper, blobs, texts)
        workers = Workers(settings, store, hot, platforms, agent.name, answerer, deliverer, texts)
        sweep = Sweep(
            store,
            rescue=workers.rescue,
            redeliver=deliverer.redeliver,
            refetch=fetcher.refetch,
            apologise=workers.apologise,
            accounts=[(name, platform.account) for name, platform in platforms.items()],
            alone=settings.embedded,
        )
        receiver = Receiver(settings, store, hot, platforms, workers, fetcher, _access(settings))
        attendance = Attendance(store, platforms, receiver.receive_all, settings.lease_seconds)
        await attendance.begin()

        eraser = Eraser(store, hot, blobs, agent)

        async def schema_problem() -> str | None:
            revision = await database.fetch_one("schema_revision")
            state = compare(revision["version_num"] if revision else None)
            if not state.known and (oldest := await database.fetch_one("oldest_code")):
                state = compare(state.current, oldest["oldest_code"])
            try:
                state.require_usable()
            except SchemaError as error:
                return str(error)
            return None

        app = create_app(
            Services(
                settings=settings,
                store=store,
                hot=hot,
                receiver=receiver,
                sender=Sender(store, platforms, deliverer, texts),
                platforms=platforms,
                keeper=keeper,
                blobs=blobs,
                eraser=eraser,
                transcripts=Transcripts(database, blobs),
                platform_states=attendance.states,
                api_key=_secret(settings, settings.api_key, "api-key"),
                secret=_secret(settings, settings.secret, "secret") or "",
                schema_problem=schema_problem,
                stop_turn=lambda conversation, before: workers.stop(conversation, before, "lost"),
            )
        )
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        renewing = asyncio.create_task(workers.renew_leases(), name="renew_leases")
        sweeping = asyncio.create_task(sweep.run(), name="sweep")
        attending = asyncio.create_task(attendance.run(), name="attend")
        cleaning = asyncio.create_task(Cleanup(store, blobs).run(), name="cleanup")
        erasing = asyncio.create_task(eraser.run(), name="erasure")
        backing_up = [asyncio.create_task(schedule.run(), name="backup")] if schedule is not None else []
        retention = Retention(database, policies, hot, store.owner)
        expiring = [] if policies.keeps_all else [asyncio.create_task(retention.run(), name="retention")]
        archiver = Archiver(store, blobs, Ages(settings.archive_after_days))
        archiving = asyncio.create_task(archiver.run(), name="archive")
        loops = (renewing, sweeping, attending, cleaning, erasing, archiving, *backing_up, *expiring)
        for loop in loops:
            loop.add_done_callback(lambda task: _report(task, failed))

        async def drain(seconds: float = settings.drain_seconds) -> None:
            shared = (sweeping, attending, cleaning, erasing, archiving, *backing_up, *expiring)
            for loop in shared:
                loop.cancel()
            await asyncio.wait(shared)  # another process may do this now
            await workers.drain(seconds)
            hot.dismiss_watchers()

        try:
            yield Service(app, agent, platforms, failed, drain)
        finally:
            await drain(0)
            renewing.cancel()
            await asyncio.gather(*loops, return_exceptions=True)


def make_platforms(settings: Settings, sink: EventSink) -> Mapping[str, Platform]:
    """The platforms that the settings ask for, by name. Raises SettingsError."""
    platforms: list[Platform] = []
    if settings.webchat_enabled:
        platforms.append(WebChat(sink))
    if settings.telegram_enabled and settings.telegram_bot_token is not None:
        secret = settings.telegram_webhook_secret_token
        platforms.append(
            Telegram(
                token=settings.telegram_bot_token.get_secret_value(),
                api_base_url=settings.telegram_api_base_url,
                webhook_url=settings.telegram_webhook_url,
                webhook_secret=secret.get_secret_value() if secret else None,
                polling=settings.telegram_polling,
                wants_all=settings.telegram_groups == "always",
            )
        )
    platforms += [_adapter(name) for name in settings.platforms]
    named = {platform.capabilities.name: platform for platform in platforms}
    if len(named) < len(platforms):
        raise SettingsError("CHAT_BRIDGE_PLATFORMS names an adapter that is there already")
    return named


def _adapter(name: str) -> Platform:
    """An adapter of another package, by the name of its entry point."""
    found = {point.name: point for point in entry_points(group="chat_bridge.platforms")}
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise SettingsError(f"CHAT_BRIDGE_PLATFORMS: no installed package has an adapter {name!r}; there are: {known}")
    try:
        make: MakePlatform = found[name].load()
        platform = make(environment())
    except ChatBridgeError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the package does, its name is told
        log.exception("platform.not_made", platform=name)
        raise SettingsError(
            f"the adapter {name!r} could not be made ({type(error).__name__}); the log says why"
        ) from None
    if platform.capabilities.name != name:
        raise SettingsError(
            f"the adapter {name!r} calls itself {platform.capabilities.name!r}: the names must be equal"
        )
    return platform


def _access(settings: Settings) -> Mapping[str, Access]:
    names = settings.telegram_allow_users, settings.telegram_deny_users
    allow_users, deny_users = (frozenset(name.lower() for name in each) for each in names)
    return {
        "telegram": Access(
            groups=settings.telegram_groups,
            allow_groups=frozenset(settings.telegram_allow_groups),
            deny_groups=frozenset(settings.telegram_deny_groups),
            allow_users=allow_users,
            deny_users=deny_users,
        )
    }


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
