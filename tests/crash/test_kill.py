"""The bridge is killed, stopped, cut off from its database, or can't start: nothing accepted is lost or doubled."""

import asyncio
import random
import signal
import socket
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from chat_bridge.storage.embedded import embedded_postgres
from tests.bridge import SECRET, BridgeProcess, Chat, running_bridge, visiting
from tests.needs import unavailable
from tests.observe import begun, ended, messages_in, replies, rows, run_command
from tests.servers import MissingError, accepts_connections, find_redis, processes_in

LONG = "word " * 40 + "end"  # more than a second
ENDLESS = "word " * 1000  # half a minute


async def ready(bridge: BridgeProcess) -> tuple[int, str]:
    """What /readyz says: HTTP status, and its own word for it."""
    async with aiohttp.ClientSession(bridge.url) as http, http.get("/readyz") as response:
        return response.status, (await response.json())["status"]


# kill -9


async def test_killed_while_an_answer_is_written(database: str) -> None:
    async with running_bridge(database, LEASE_SECONDS="3") as bridge, visiting(bridge.url) as chat:
        await chat.send(LONG)
        await begun(chat)
        await bridge.kill()
        await bridge.start()
        assert replies(await chat.answered()) == [LONG]
        assert await ended(database, chat, 2) == ["superseded", "answered"]


async def test_killed_with_messages_waiting(database: str) -> None:
    async with (
        running_bridge(database, LEASE_SECONDS="3", BUSY_POLICY="followup") as bridge,
        visiting(bridge.url) as chat,
    ):
        await chat.send(LONG)
        await begun(chat)
        for text in ("two", "three"):
            await chat.send(text)
        await bridge.kill()
        await bridge.start()
        assert replies(await chat.answered()) == [LONG, "two", "three"]


async def test_killed_at_any_moment(database: str) -> None:
    moments = random.Random(11)
    texts: list[str] = []
    async with (
        running_bridge(database, LEASE_SECONDS="3", BUSY_POLICY="followup") as bridge,
        visiting(bridge.url) as chat,
    ):
        for kills, longest in enumerate((0, 0.02, 0.1, 0.3)):
            if kills == 2:
                await chat.answered()  # else a message may lose its turn three times, and is set aside
            for _ in range(2):
                texts.append(f"{len(texts)} one two three")
                await chat.send(texts[-1])
            await asyncio.sleep(moments.uniform(0, longest))
            await bridge.kill()
            await bridge.start()
        messages = await chat.answered()
        # A sender that heard nothing sends again: that changes nothing.
        for message in messages:
            if message["direction"] == "inbound":
                assert (await chat.post(message["text"], message["client_msg_id"]))[0] == 200
    assert replies(messages) == texts
    sent = await rows(database, "select status, count(*) from deliveries group by status")
    assert sum(row["count"] for row in sent) == len(texts)


async def test_the_embedded_database_is_killed_with_its_bridge() -> None:
    # No other process can be using it, so nobody waits for a lease to run out.
    async with running_bridge(LEASE_SECONDS="600") as bridge, visiting(bridge.url) as chat:
        await chat.send("before")
        await chat.answered()
        await chat.send(LONG)
        await begun(chat)
        await bridge.kill()
        await bridge.start()
        assert replies(await chat.answered()) == ["before", LONG]


# A stop signal. Where a turn is handed back, its lease would last longer than a test may.


async def test_a_stop_waits_for_running_turns(database: str) -> None:
    async with running_bridge(database) as bridge, visiting(bridge.url) as chat:
        await chat.send(LONG)
        async with chat.events() as events:
            assert (await anext(events))[0] in ("message", "typing", "delta")
            stopping = asyncio.create_task(bridge.stop(signal.SIGTERM))
            seen = [data["text"] async for name, data in events if name == "message"]
            assert await stopping == 0
    assert seen[-1] == LONG  # who is listening hears the end of it
    assert await ended(database, chat, 1) == ["answered"]


async def test_a_stop_hands_long_turns_back(database: str) -> None:
    settings = {"CHAT_BRIDGE_DRAIN_SECONDS": "1", "LEASE_SECONDS": "600"}
    async with running_bridge(database, **settings) as bridge, visiting(bridge.url) as chat:
        await chat.send(ENDLESS)
        await begun(chat)
        assert await bridge.stop(signal.SIGTERM) == 0
        assert await ended(database, chat, 1) == ["superseded"]
        await bridge.start()
        await begun(chat)


async def test_a_second_stop_does_not_wait(database: str) -> None:
    settings = {"CHAT_BRIDGE_DRAIN_SECONDS": "600", "LEASE_SECONDS": "600"}
    async with running_bridge(database, **settings) as bridge, visiting(bridge.url) as chat:
        await chat.send(ENDLESS)
        await begun(chat)
        stopping = asyncio.create_task(bridge.stop())
        while "press Ctrl-C again" not in bridge.log.read_text():
            await asyncio.sleep(0.02)
        assert not stopping.done()
        assert await bridge.stop() == 0
        await stopping
        assert await ended(database, chat, 1) == ["superseded"]
        assert "Traceback" not in bridge.log.read_text()
        await bridge.start()
        await begun(chat)
        await bridge.kill()  # or it would wait for this turn too


# PostgreSQL and Redis go away


async def test_without_postgresql_nothing_is_acknowledged() -> None:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        async with embedded_postgres(folder) as dsn:
            bridge = await stack.enter_async_context(running_bridge(dsn, LEASE_SECONDS="3", BUSY_POLICY="followup"))
            chat = await stack.enter_async_context(visiting(bridge.url))
            await chat.send("before")
            await chat.answered()
            await chat.send(LONG)
            await begun(chat)
        # PostgreSQL has stopped, in the middle of an answer.
        for _ in range(2):
            assert await unanswerable(bridge, chat, "during") == {
                "type": "about:blank",
                "title": "Service Unavailable",
                "status": 503,
                "detail": "The message store can't be reached; nothing was stored. Please try again.",
            }
        assert await ready(bridge) == (503, "unavailable")
        async with embedded_postgres(folder):
            await until_ready(bridge, (200, "ok"))
            await chat.send("during", "again")
            assert replies(await chat.answered()) == ["before", LONG, "during"]
            assert await bridge.stop() == 0
            assert '"level": "error"' not in bridge.log.read_text()


async def unanswerable(bridge: BridgeProcess, chat: Chat, text: str) -> dict[str, Any]:
    """Send a message that can't be stored now: the problem details."""
    headers = {"Authorization": f"Bearer {chat.token}"}
    body = {"client_msg_id": "again", "text": text}
    async with (
        aiohttp.ClientSession(bridge.url, headers=headers) as http,
        http.post(f"/api/v1/chat/{chat.conversation}/messages", json=body) as response,
    ):
        assert response.content_type == "application/problem+json"
        assert int(response.headers["Retry-After"]) > 0
        return await response.json()


async def until_ready(bridge: BridgeProcess, wanted: tuple[int, str]) -> None:
    while await ready(bridge) != wanted:
        await asyncio.sleep(0.05)


async def test_without_redis_the_chat_goes_on(database: str, tmp_path: Path) -> None:
    redis = await start_redis(tmp_path)
    try:
        async with (
            running_bridge(database, REDIS_URL=f"unix://{tmp_path}/redis") as bridge,
            visiting(bridge.url) as chat,
            chat.events() as events,
        ):
            await until_ready(bridge, (200, "ok"))
            await chat.send("before")
            await chat.answered()
            redis.kill()
            redis.wait()
            await until_ready(bridge, (200, "degraded"))
            await chat.send("without redis")
            assert replies(await chat.answered()) == ["before", "without redis"]
            redis = await start_redis(tmp_path)
            # Who was listening all the time has missed nothing.
            seen = [data["text"] async for data in messages_in(events, 4)]
            assert seen == ["before", "before", "without redis", "without redis"]
            await until_ready(bridge, (200, "ok"))
            assert '"level": "error"' not in bridge.log.read_text()
    finally:
        redis.kill()
        redis.wait()


async def start_redis(folder: Path) -> subprocess.Popen[bytes]:
    try:
        program = find_redis()
    except MissingError as error:
        unavailable(str(error))
    door = folder / "redis"
    process = subprocess.Popen(
        [program, "--port", "0", "--unixsocket", str(door), "--save", "", "--logfile", str(folder / "redis.log")],
        cwd=folder,
    )
    while not accepts_connections(door):
        assert process.poll() is None
        await asyncio.sleep(0.02)
    return process


# Starts that can't be


async def test_a_data_folder_has_one_process() -> None:
    async with running_bridge() as bridge:
        data = bridge.log.parent / "data"
        code, output, errors = await run_command("serve", CHAT_BRIDGE_DATA_DIR=str(data), PORT="0")
        assert code == 1
        assert output == ""
        assert errors.startswith(f"chat-bridge: the data folder {data} is in use by process {bridge.pid}: ")
        assert len(errors.splitlines()) == 1
        # The first one goes on.
        async with visiting(bridge.url) as chat:
            await chat.send("hello")
            await chat.answered()


async def test_a_port_has_one_process(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, output, errors = await run_command("serve", CHAT_BRIDGE_DATA_DIR=str(tmp_path), PORT=str(port))
    assert code == 1
    assert output == ""
    assert errors == (
        f"chat-bridge: can't listen on 127.0.0.1 port {port} (Address already in use): "
        "stop what uses it, or choose another with PORT and CHAT_BRIDGE_HOST\n"
    )
    assert processes_in(tmp_path) == []


async def test_wrong_settings_start_nothing(tmp_path: Path) -> None:
    wrong = {"PORT": "http", "LEASE_SECONDS": "1", "CHAT_BRIDGE_API_KEY": "s3cret"}
    code, output, errors = await run_command("serve", CHAT_BRIDGE_DATA_DIR=str(tmp_path / "data"), **wrong)
    assert code == 1
    assert output == ""
    assert errors.startswith("chat-bridge: the settings can't be used; nothing was started:\n")
    assert "PORT: must be a whole number" in errors
    assert "LEASE_SECONDS: must be 3" in errors
    assert "CHAT_BRIDGE_API_KEY: must have 16 characters or more" in errors
    assert "s3cret" not in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "data").exists()


async def test_no_database_at_that_address() -> None:
    code, output, errors = await run_command(
        "serve",
        DATABASE_URL="postgresql://agoric:p4ssword@127.0.0.1:1/agoric",
        CHAT_BRIDGE_SECRET=SECRET,
        PORT="0",
    )
    assert code == 1
    assert output == ""
    assert "chat-bridge: PostgreSQL: " in errors
    assert "p4ssword" not in errors
    assert "Traceback" not in errors
