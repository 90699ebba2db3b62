"""`chat-bridge doctor`: look at everything the bridge depends on, and say what to do."""

import asyncio
import io
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

from chat_bridge.bridge.scan import Scanner, ScannerError
from chat_bridge.errors import ChatBridgeError
from chat_bridge.model import ConversationId, TurnId
from chat_bridge.platforms.contract import Finding
from chat_bridge.production import risks
from chat_bridge.service import make_agent, make_platforms
from chat_bridge.settings import Settings, environment
from chat_bridge.storage.blobs import open_blobs
from chat_bridge.storage.embedded import binaries, server_in_use
from chat_bridge.storage.migrate import schema_state
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.redis_connect import connected, redis_trouble
from chat_bridge.storage.search_index import search_indexes

CHECK_SECONDS = 30.0
CLOCK_SECONDS = 5.0
OLDEST_POSTGRESQL = 15


async def examine(settings: Settings) -> Sequence[Finding]:
    """Everything that was looked at. Changes nothing, and may run beside a bridge."""
    checks: list[tuple[str, Callable[[], Awaitable[Sequence[Finding]]]]] = [
        ("production", lambda: _production(settings)),
        ("database", lambda: _database(settings)),
        ("redis", lambda: _redis(settings)),
        ("attachments", lambda: _attachments(settings)),
        ("agent", lambda: _agent(settings)),
        ("platforms", lambda: _platforms(settings)),
    ]
    findings = await asyncio.gather(*(_in_time(subject, check) for subject, check in checks))
    return [finding for found in findings for finding in found]


async def _in_time(subject: str, check: Callable[[], Awaitable[Sequence[Finding]]]) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await check()
    except TimeoutError:
        return [Finding(subject, "problem", f"No answer within {CHECK_SECONDS:g} s: look at the network between.")]
    except ChatBridgeError as error:
        return [Finding(subject, "problem", str(error))]
    except Exception as error:  # noqa: BLE001 - the other checks count too
        return [Finding(subject, "problem", f"The check itself failed ({type(error).__name__}).")]


async def _production(settings: Settings) -> Sequence[Finding]:
    if settings.env != "production":
        return []
    broken = [Finding("production", risk.status, f"{risk}.") for risk in risks(settings)]
    return broken or [Finding("production", "ok", "No rule of CHAT_BRIDGE_ENV=production is broken.")]


async def _database(settings: Settings) -> Sequence[Finding]:
    if settings.database_url is not None:
        dsn, where = settings.database_url.get_secret_value(), "PostgreSQL"
    elif (running := server_in_use(settings.data_dir)) is not None:
        dsn, where = running, "Embedded PostgreSQL"
    else:
        binaries()  # raises what to do when the extra is not installed
        text = f"The embedded PostgreSQL starts with `chat-bridge serve`; its data is in {settings.data_dir}."
        return [Finding("database", "ok", text)]
    async with Database.open(dsn, pool_size=2, pgbouncer=settings.database_pgbouncer) as database:
        before = datetime.now(UTC)
        server = await database.fetch_one("server")
        after = datetime.now(UTC)
        unfinished = [index for index in await search_indexes(database) if not index.ready and not index.building]
    assert server is not None
    version: int = server["version"] // 10000
    if version < OLDEST_POSTGRESQL:
        text = f"{where} {version} is too old: version {OLDEST_POSTGRESQL} or newer is needed."
        return [Finding("database", "problem", text)]
    state = await schema_state(dsn)
    findings = [Finding("database", "ok", f"{where} {version} answers.")]
    if state.up_to_date:
        findings.append(Finding("schema", "ok", f"Up to date ({state.current})."))
    elif state.known and settings.database_migrate:
        findings.append(Finding("schema", "ok", "`chat-bridge serve` will bring it up to date."))
    else:
        state.require_usable()
        findings.append(Finding("schema", "ok", f"Newer than this program ({state.current}), which can still use it."))
    if unfinished:
        text = "An index was not built to its end and only costs time: run `chat-bridge search-index on`, or `off`."
        findings.append(Finding("search", "warning", text))
    apart = max((before - server["now"]).total_seconds(), (server["now"] - after).total_seconds(), 0.0)
    if apart > CLOCK_SECONDS:
        text = f"The clocks of PostgreSQL and this machine are {apart:.0f} s apart: set both by a time server."
        findings.append(Finding("clock", "warning", text))
    else:
        findings.append(Finding("clock", "ok", "PostgreSQL and this machine agree on the time."))
    return findings


async def _redis(settings: Settings) -> Sequence[Finding]:
    if settings.redis_url is None:
        async with connected(None):  # raises what to do when the extra is not installed
            pass
        return [Finding("redis", "ok", "Inside the process: right for one process; several need REDIS_URL.")]
    trouble = await redis_trouble(settings.redis_url.get_secret_value())
    if trouble is None:
        return [Finding("redis", "ok", "Answers.")]
    return [Finding("redis", "warning", f"The bridge works without, but slower: {trouble}.")]


async def _attachments(settings: Settings) -> Sequence[Finding]:
    await open_blobs(settings.attachment_bucket, settings.data_dir, environment()).check()
    if settings.attachment_bucket is None and not settings.embedded:
        text = f"Kept in {settings.data_dir / 'attachments'}: several processes need ATTACHMENT_BUCKET."
        findings = [Finding("attachments", "warning", text)]
    else:
        findings = [Finding("attachments", "ok", "Their place can be reached.")]
    if settings.attachment_scanner is not None:
        try:
            await Scanner(settings.attachment_scanner).harm(io.BytesIO(b"harmless"))
        except ScannerError as error:
            findings.append(Finding("scanner", "problem", f"{error}: files wait until it answers."))
        else:
            findings.append(Finding("scanner", "ok", "Answers."))
    return findings


async def _agent(settings: Settings) -> Sequence[Finding]:
    agent = make_agent(settings)
    try:
        problem = await agent.check()
    finally:
        await agent.aclose()
    if problem is not None:
        return [Finding("agent", "problem", problem)]
    if settings.mastra_agent_id is None and not settings.repeat_mode:
        return [
            Finding("agent", "warning", "echo repeats what it is told: set MASTRA_AGENT_ID to answer with your own.")
        ]
    return [Finding("agent", "ok", f"{agent.name} is there.")]


async def _platforms(settings: Settings) -> Sequence[Finding]:
    findings: list[Finding] = []
    if settings.telegram_bot_token is not None and not settings.telegram_enabled:
        text = "TELEGRAM_BOT_TOKEN is set, but Telegram is off: set TELEGRAM_ENABLED=true."
        findings.append(Finding("telegram", "warning", text))
    async with AsyncExitStack() as stack:
        platforms = make_platforms(settings, _NoPages())
        for platform in platforms.values():
            stack.push_async_callback(platform.aclose)
        if not platforms:
            text = "None is on: set TELEGRAM_ENABLED=true or WEBCHAT_ENABLED=true."
            findings.append(Finding("platforms", "problem", text))
        for name, platform in platforms.items():
            findings += await platform.check() or [Finding(name, "ok", "On.")]
    return findings


class _NoPages:
    """Stands where the open pages of web chat would be: a check shows nothing to anybody."""

    async def publish(self, conversation: ConversationId, event: Mapping[str, Any]) -> None: ...
    async def publish_partial(self, conversation: ConversationId, turn: TurnId, text: str, shown: int) -> None: ...
    async def end_partial(self, conversation: ConversationId, *events: Mapping[str, Any]) -> None: ...
