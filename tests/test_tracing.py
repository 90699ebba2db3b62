"""Traces, as a real OpenTelemetry collector gets them from a real bridge."""

import asyncio
import json
import socket
import subprocess
import sys

import pytest

from chat_bridge import tracing
from chat_bridge.errors import SettingsError
from tests.bridge import running_bridge, visiting
from tests.collector import AGENT, Collector, TracedAgent, collecting, traced_agent
from tests.fake_telegram.client import running_telegram
from tests.observe import rows, run_command

WORDS = "a text that only its reader should read"
SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5


def settings_of(collector: Collector, agent: TracedAgent, **more: str) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "MASTRA_ENDPOINT": agent.endpoint,
        "MASTRA_AGENT_ID": AGENT,
        "COALESCE_SECONDS": "0",
        "LEASE_SECONDS": "3",
        **more,
    }


async def test_one_trace_leads_from_the_webhook_to_the_delivery(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    async with collecting() as collector, traced_agent() as agent, running_telegram() as telegram:
        chat = await telegram.private(await telegram.user("Linh"))
        settings = settings_of(
            collector,
            agent,
            OTEL_EXPORTER_OTLP_HEADERS="api-key=of%20the%20collector",
            TELEGRAM_ENABLED="true",
            TELEGRAM_BOT_TOKEN=telegram.token,
            TELEGRAM_API_BASE_URL=telegram.base_url,
            TELEGRAM_WEBHOOK_URL=f"http://127.0.0.1:{port}",
            PORT=port,
        )
        agent.may_answer.set()
        async with running_bridge(database, **settings) as bridge:
            await telegram.settings(retry_scale=0.01)
            await telegram.fault("sendMessage", "too_many_requests")
            await chat.say(WORDS)
            await chat.until_replies(1)
            while not bridge.events("reply.delivered"):
                await asyncio.sleep(0.02)
            assert await bridge.stop() == 0  # what was not sent yet is sent now
            log = [json.loads(line) for line in bridge.log.read_text().splitlines() if line.startswith("{")]

    webhook, receive, turn, call, failed, sent = (
        span
        for name in ("webhook telegram", "receive telegram", "turn", f"agent mastra:{AGENT}", "deliver telegram")
        for span in collector.named(name)
    )
    assert {span.trace for span in collector.spans} == {webhook.trace}
    assert [span.kind for span in (webhook, receive, turn, call, sent)] == [
        SERVER,
        CONSUMER,
        CONSUMER,
        CLIENT,
        PRODUCER,
    ]
    assert webhook.parent == ""
    assert receive.parent == webhook.id
    assert turn.parent == receive.id
    assert call.parent == failed.parent == sent.parent == turn.id
    assert agent.headers[0]["traceparent"].split("-")[:3] == ["00", call.trace, call.id]
    assert receive.attributes["chat_bridge.status"] == "accepted"
    assert receive.attributes["chat_bridge.message"] == turn.attributes["chat_bridge.message"]
    assert turn.attributes["chat_bridge.outcome"] == "answered"
    assert [(try_.attributes["chat_bridge.attempt"], bool(try_.failure)) for try_ in (failed, sent)] == [
        (1, True),
        (2, False),
    ]
    assert turn.where["service.name"] == "agoric-chat-bridge"
    assert collector.headers[0]["api-key"] == "of the collector"

    told = {line["event"]: line.get("trace") for line in log}
    for event in ("message.received", "turn.claimed", "turn.completed", "reply.delivered"):
        assert told[event] == webhook.trace
    assert told["schema.ready"] is None
    (stored,) = await rows(database, "select id from messages where direction = 'inbound'")
    code, story, _ = await run_command("explain", str(stored["id"]), DATABASE_URL=database)
    assert (code, f"  trace         {webhook.trace}\n" in story) == (0, True)
    sent_out = b"".join(collector.bodies)
    assert WORDS.encode() not in sent_out
    assert b"the answer" not in sent_out


async def test_a_trace_goes_on_in_the_process_that_takes_over(database: str) -> None:
    async with collecting() as collector, traced_agent() as agent:
        settings = settings_of(collector, agent, OTEL_BSP_SCHEDULE_DELAY="50", OTEL_SERVICE_NAME="ours")
        async with running_bridge(database, **settings) as bridge, visiting(bridge.url) as chat:
            await chat.send("hello")
            await agent.called(1)
            (receive,) = await collector.until("receive webchat")
            await bridge.kill()
            agent.may_answer.set()
            await bridge.start()
            await chat.until(2)
            (deliver,) = await collector.until("deliver webchat")
            (turn,) = await collector.until("turn")
    assert turn.trace == deliver.trace == receive.trace
    assert turn.parent == receive.id
    assert deliver.parent == turn.id
    assert turn.where["service.name"] == receive.where["service.name"] == "ours"
    assert turn.where["service.instance.id"] != receive.where["service.instance.id"]


async def test_a_turn_is_linked_to_all_its_messages_and_says_why_it_failed(database: str) -> None:
    async with collecting() as collector, traced_agent() as agent:
        settings = settings_of(collector, agent, OTEL_BSP_SCHEDULE_DELAY="50")
        async with running_bridge(database, **settings) as bridge, visiting(bridge.url) as chat:
            await chat.send("one")
            await agent.called(1)
            for text in ("two", "three"):
                await chat.send(text)
            agent.may_answer.set()
            await chat.answered()
            _, turn = await collector.until("turn", 2)
            agent.knows_us = False
            await chat.send("four")
            failed = (await collector.until("turn", 3))[2]
            call = (await collector.until(f"agent mastra:{AGENT}", 3))[2]
            received = {span.attributes["chat_bridge.message"]: span for span in collector.named("receive webchat")}
            two, three = [
                received[message["id"]] for message in await chat.messages() if message["text"] in ("two", "three")
            ]
    assert (turn.trace, turn.parent) == (two.trace, two.id)
    assert turn.links == [(three.trace, three.id)]
    assert len({span.trace for span in collector.named("receive webchat")}) == 4
    assert failed.attributes["chat_bridge.outcome"] == "unauthorized"
    assert failed.failure
    assert failed.failure == call.failure


async def test_without_an_endpoint_there_is_nothing_of_it(database: str) -> None:
    async with traced_agent() as agent:
        agent.may_answer.set()
        settings = {"MASTRA_ENDPOINT": agent.endpoint, "MASTRA_AGENT_ID": AGENT}
        async with running_bridge(database, **settings) as bridge, visiting(bridge.url) as chat:
            await chat.send("hello")
            await chat.answered()
            assert "trace" not in bridge.events("turn.completed")[0]
    assert "traceparent" not in {name.lower() for name in agent.headers[0]}
    assert await rows(database, "select from messages where metadata ? 'trace'") == []


def test_without_an_endpoint_the_exporter_is_not_even_loaded() -> None:
    code = "import chat_bridge.serve, sys; sys.exit('opentelemetry.exporter' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_without_a_collector_nothing_fails() -> None:
    async with tracing.exporting("http://127.0.0.1:1", None):
        with tracing.span("work"):
            tracing.note(done=True)
            assert tracing.trace_id() is not None
    assert tracing.trace_id() is None


async def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"pip install 'agoric-chat-bridge\[otel\]'"):
        async with tracing.exporting("http://127.0.0.1:1", None):
            pass
