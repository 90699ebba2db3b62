"""What the bridge logs: events with their ids, never a secret, and texts of users only when asked to."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

from tests.bridge import API_KEY, SECRET, BridgeProcess, running_bridge, visiting
from tests.observe import call

WORDS = "a text that nobody but its writer should read"


def logged(bridge: BridgeProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bridge.log.read_text().splitlines() if line.startswith("{")]


async def test_each_line_has_an_event_and_its_ids(database: str) -> None:
    async with running_bridge(database) as bridge, visiting(bridge.url) as chat:
        accepted = await chat.send(WORDS)
        _, reply = await chat.answered()
        while not bridge.events("reply.delivered"):
            await asyncio.sleep(0.02)
        lines = logged(bridge)
        text = bridge.log.read_text()
    assert all(line.keys() >= {"event", "level", "timestamp"} for line in lines)
    story = {line["event"]: line for line in lines}
    assert list(story)[-4:] == ["message.received", "turn.claimed", "turn.completed", "reply.delivered"]
    for event in ("message.received", "turn.claimed", "turn.completed"):
        assert story[event]["message"] == accepted["id"]
        assert story[event]["conversation"] == accepted["conversation_id"]
    assert story["turn.claimed"]["turn"] == story["turn.completed"]["turn"]
    assert story["turn.completed"]["outcome"] == "answered"
    assert story["reply.delivered"]["message"] == reply["id"]
    assert WORDS not in text


async def test_texts_of_users_are_logged_when_asked_to(database: str) -> None:
    async with running_bridge(database, CHAT_BRIDGE_LOG_MESSAGE_TEXT="true") as bridge, visiting(bridge.url) as chat:
        await chat.send(WORDS)
        await chat.answered()
        assert [line["text"] for line in bridge.events("message.received")] == [WORDS]


async def test_no_secret_is_logged(database: str) -> None:
    secrets = {
        "DATABASE_URL": database.replace("//chat_bridge@", "//chat_bridge:dsn-password@"),
        "REDIS_URL": "redis://:redis-password@127.0.0.1:1/0",
        "MASTRA_ENDPOINT": "http://127.0.0.1:1/api",
        "MASTRA_AGENT_ID": "agent",
        "MASTRA_API_KEY": "mastra-key",
        "MASTRA_HEADERS": '{"X-Key": "header-key"}',
        "TURN_TIMEOUT_SECONDS": "1",
        "CHAT_BRIDGE_LOG_LEVEL": "debug",
    }
    async with running_bridge(**secrets) as bridge, visiting(bridge.url) as chat:
        await chat.send(WORDS)
        await chat.answered()
        assert (await chat.post(" "))[0] == 422
        assert (await call(bridge.url, "GET", "/api/v1/sessions"))[0] == 200
        async with aiohttp.ClientSession(bridge.url) as http:
            wrong = {"Authorization": "Bearer wrong-key-of-somebody"}
            async with http.get("/api/v1/sessions?key=in-the-url", headers=wrong) as response:
                assert response.status == 401
        assert await bridge.stop() == 0
        text = bridge.log.read_text()
        lines = {line["event"] for line in logged(bridge)}
    assert {"redis.lost", "turn.completed"} <= lines
    passwords = ["dsn-password", "redis-password", "mastra-key", "header-key", "wrong-key-of-somebody", "in-the-url"]
    for secret in [*passwords, API_KEY, SECRET, chat.token, WORDS]:
        assert secret not in text


def test_on_a_terminal_the_log_is_text() -> None:
    ours, terminal = os.openpty()
    with tempfile.TemporaryDirectory(prefix="bridge-") as folder:
        environment = {"PATH": os.environ["PATH"], "CHAT_BRIDGE_DATA_DIR": str(Path(folder) / "data"), "PORT": "0"}
        process = subprocess.Popen(
            [sys.executable, "-m", "chat_bridge", "serve"],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        seen = read_until(ours, "MASTRA_AGENT_ID=")
        process.send_signal(signal.SIGINT)
        seen += read_until(ours, None)
        assert process.wait() == 0
    os.close(ours)
    assert "schema.ready" in seen
    assert "is ready." in seen
    assert "stopping: " in seen
    assert '{"' not in seen


def read_until(terminal: int, words: str | None) -> str:
    """What a terminal shows, until it has shown these words, or to its end."""
    seen = b""
    while words is None or words.encode() not in seen:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # how Linux says that the other side is closed
            break
        if not piece:
            break
        seen += piece
    return seen.decode()


def test_a_traceback_shows_no_local_variables() -> None:
    program = """
from chat_bridge.telemetry import configure_logging, log
configure_logging("info", "text")
def handle(message):
    return 1 / 0
try:
    handle("a private text")
except ZeroDivisionError:
    log.exception("it.crashed")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "ZeroDivisionError" in done.stderr
    # The line that called it stands in the traceback as source; the value of the variable must not.
    assert done.stderr.count("a private text") == done.stderr.count('handle("a private text")')
