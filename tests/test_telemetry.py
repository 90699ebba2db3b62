"""Metrics: a real bridge tells in them what it did and what it depends on, and the docs list them all."""

import asyncio
import math
import re
from importlib.metadata import version
from pathlib import Path

import aiohttp
import pytest

from chat_bridge.errors import UnresponsiveError
from chat_bridge.model import TurnOutcome
from chat_bridge.storage.figures import Figures
from chat_bridge.storage.postgres import Database
from chat_bridge.web import metrics
from chat_bridge.web.metrics import Watch
from tests.bridge import running_bridge, visiting
from tests.collector import AGENT, traced_agent
from tests.fake_telegram.client import running_telegram
from tests.observe import rows
from tests.scrape import Scrape, scraped
from tests.servers import own_server
from tests.storage.dialogue import opened

PAGE = Path(__file__).parents[1] / "docs" / "operate" / "monitor.md"
FIGURES = Figures(0, 0.0, 0, 0.0, 0.0, 0, 0)


async def test_the_metrics_tell_what_happened(database: str) -> None:
    async with running_telegram() as telegram:
        settings = {
            "TELEGRAM_ENABLED": "true",
            "TELEGRAM_BOT_TOKEN": telegram.token,
            "TELEGRAM_API_BASE_URL": telegram.base_url,
            "TELEGRAM_WEBHOOK_URL": "http://127.0.0.1:1",
            "MAX_TURNS": "7",
            "DATABASE_POOL_SIZE": "5",
        }
        async with running_bridge(database, **settings) as bridge, visiting(bridge.url) as chat:
            before = await scraped(bridge.url)
            await chat.send("hello")
            await chat.answered()
            while not bridge.events("reply.delivered"):
                await asyncio.sleep(0.02)
            async with aiohttp.ClientSession(bridge.url) as http, http.post("/webhooks/telegram", json={}) as refused:
                assert refused.status == 401
            after = await scraped(bridge.url)

    # A counter that Prometheus should see rise must be there before.
    assert {before.value("chat_bridge_turns_total", agent="echo", outcome=outcome) for outcome in TurnOutcome} == {0}
    assert before.value("chat_bridge_messages_total", platform="telegram", status="accepted") == 0
    assert before.value("chat_bridge_webhooks_refused_total", platform="telegram") == 0

    assert after.value("chat_bridge_messages_total", platform="webchat", status="accepted") == 1
    assert after.value("chat_bridge_turns_total", agent="echo", outcome="answered") == 1
    assert after.value("chat_bridge_deliveries_total", platform="webchat", status="sent") == 1
    assert after.value("chat_bridge_webhooks_refused_total", platform="telegram") == 1
    for name in ("turn_wait", "first_text", "agent_first_text", "agent", "turn"):
        assert after.value(f"chat_bridge_{name}_seconds_count", agent="echo") == 1
    for name in ("receive", "send"):
        assert after.value(f"chat_bridge_{name}_seconds_count", platform="webchat") == 1
    for platform in ("telegram", "webchat"):
        assert after.value("chat_bridge_platform_connected", platform=platform) == 1
    for name in ("database_reachable", "redis_reachable", "active_conversations"):
        assert after.value(f"chat_bridge_{name}") == 1
    for name in ("turns_running", "turns_lost_total", "waiting_conversations", "outbox_parts", "event_streams"):
        assert after.value(f"chat_bridge_{name}") == 0
    assert after.value("chat_bridge_dead_letters", kind="reply") == 0
    assert after.value("chat_bridge_turns_limit") == 7
    assert after.value("chat_bridge_database_connections_limit") == 5
    assert sum(after.value("chat_bridge_database_connections", state=state) for state in ("used", "idle")) >= 1
    assert after.value("chat_bridge_build_info", version=version("agoric-chat-bridge")) == 1
    assert_listed(after)


def assert_listed(scrape: Scrape) -> None:
    """The page lists every metric of ours with its labels and its kind, and no other."""
    listed = {
        name: (kind, set(labels.split(",")) if labels else set())
        for name, labels, kind in re.findall(
            r"^\| `(chat_bridge_\w+)(?:\{([\w,]+)\})?` \| (\w+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    there: dict[str, tuple[str, set[str]]] = {}
    for family in scrape.families:
        ours = [sample for sample in family.samples if not sample.name.endswith("_created")]
        if family.name.startswith("chat_bridge_") and ours:
            name = f"{family.name}_total" if family.type == "counter" else family.name
            there[name] = (family.type, set(ours[0].labels) - {"le"})
    assert listed == there


async def test_a_turn_that_was_taken_away_is_counted(database: str) -> None:
    async with traced_agent() as agent:
        settings = {"MASTRA_ENDPOINT": agent.endpoint, "MASTRA_AGENT_ID": AGENT, "LEASE_SECONDS": "3"}
        async with running_bridge(database, **settings) as bridge, visiting(bridge.url) as chat:
            await chat.send("hello")
            await agent.called(1)
            assert (await scraped(bridge.url)).value("chat_bridge_turns_running") == 1
            await rows(database, "update turns set status = 'superseded', finished_at = now()")
            while not bridge.events("turn.lost"):
                await asyncio.sleep(0.02)
            assert (await scraped(bridge.url)).value("chat_bridge_turns_lost_total") == 1
            agent.may_answer.set()
            await chat.answered()


async def test_what_a_silent_database_can_not_tell_is_not_a_number() -> None:
    async with own_server() as server:
        await server.make()
        async with running_bridge(server.dsn("postgres")) as bridge:
            with server.frozen():
                silent = await scraped(bridge.url)
            while (await scraped(bridge.url)).value("chat_bridge_database_reachable") == 0:
                await asyncio.sleep(0.05)
    assert silent.value("chat_bridge_database_reachable") == 0
    assert math.isnan(silent.value("chat_bridge_waiting_conversations"))
    assert math.isnan(silent.value("chat_bridge_dead_letters", kind="message"))


class Asked:
    """Stands for the question to the database, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        self.fails = False
        monkeypatch.setattr(metrics, "read_figures", self.answer)

    async def answer(self, _database: Database) -> Figures:
        self.times += 1
        if self.fails:
            raise UnresponsiveError("PostgreSQL: no answer in time")
        return FIGURES


async def test_who_asks_often_does_not_make_the_database_work(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(database) as store:
        asked, watch = Asked(monkeypatch), Watch(store.database)
        assert await asyncio.gather(*(watch.figures() for _ in range(5))) == [FIGURES] * 5
        assert await watch.figures() == FIGURES
        assert asked.times == 1
        monkeypatch.setattr(metrics, "KEPT_SECONDS", -1.0)
        asked.fails = True
        assert await watch.figures() is None
        assert asked.times == 2
