"""Erasures by API and command, against a running bridge, and what a visitor sees of them."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from chat_bridge.storage import retention, sessions
from chat_bridge.storage.sessions import SessionFilter
from tests.bridge import BridgeProcess, running_bridge, visiting
from tests.observe import call, conversation_id, rows, run_command
from tests.storage.dialogue import opened

PATH = "/api/v1/erasures"


async def finished(url: str, wanted: dict[str, Any]) -> dict[str, Any]:
    while True:
        status, found = await call(url, "GET", f"{PATH}/{wanted['id']}")
        assert status == 200
        if found["finished_at"]:
            return found
        await asyncio.sleep(0.02)


async def test_a_person_is_erased(bridge: BridgeProcess, database: str) -> None:
    async with visiting(bridge.url) as chat, visiting(bridge.url) as other:
        for each in (chat, other):
            await each.send("a secret")
            await each.answered()
        status, wanted = await call(
            bridge.url, "POST", PATH, json={"person": {"platform": "webchat", "user": chat.conversation}}
        )
        assert (status, wanted["kind"], wanted["finished_at"]) == (202, "user", None)
        receipt = await finished(bridge.url, wanted)
        assert {name: receipt[name] for name in ("sessions", "messages", "files", "people", "threads")} == {
            "sessions": 1,
            "messages": 2,
            "files": 0,
            "people": 1,
            "threads": 0,
        }
        assert receipt["not_reached"] == []
        assert await chat.texts() == []
        assert len(await other.texts()) == 2
        assert chat.conversation not in str(await rows(database, "select t::text from erasures t"))


async def test_a_reader_is_told_and_goes_on(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as chat:
        await chat.send("one")
        await chat.answered()
        async with chat.events(after=2) as events:
            await chat.send("two")
            while (await anext(events))[0] != "message":
                pass
            await chat.answered()
            _, wanted = await call(bridge.url, "POST", PATH, json={"conversation_id": str(conversation_id(chat))})
            await finished(bridge.url, wanted)
            seen: list[Any] = []
            while not seen or seen[-1][0] != "erased":
                seen.append(await anext(events))
            await chat.send("new")
            while True:
                name, data = await anext(events)
                if name == "message" and data["text"] == "new":
                    break
            assert data["seq"] == 1
        async with chat.events(after=4) as events:
            assert await anext(events) == ("erased", {})
            name, data = await anext(events)
            assert (name, data["seq"], data["text"]) == ("message", 1, "new")


async def test_a_reader_goes_on_after_the_newest_that_is_left(bridge: BridgeProcess, database: str) -> None:
    async with visiting(bridge.url) as chat, opened(database) as store:
        await chat.send("one")
        await chat.answered()
        (first,) = await sessions.list_sessions(
            store.database, SessionFilter(conversation_id=conversation_id(chat)), limit=2
        )
        await sessions.close_session(store.database, first.id)
        async with chat.events(after=2) as events:
            await chat.send("two")
            while (await anext(events))[0] != "message":
                pass
            await chat.answered()
            newest, _ = await sessions.list_sessions(
                store.database, SessionFilter(conversation_id=conversation_id(chat)), limit=2
            )
            await finished(bridge.url, (await call(bridge.url, "POST", PATH, json={"session_id": str(newest.id)}))[1])
            while (await anext(events))[0] != "erased":
                pass
            await chat.send("new")
            while True:
                name, data = await anext(events)
                if name == "message" and data["text"] == "new":
                    break


async def test_what_can_be_asked(bridge: BridgeProcess, database: str) -> None:
    some = str(uuid4())
    for body, status in (
        ({}, 422),
        ({"session_id": some, "conversation_id": some}, 422),
        ({"person": {"platform": "webchat"}}, 422),
        ({"session_id": some}, 404),
        ({"conversation_id": some}, 404),
    ):
        assert (await call(bridge.url, "POST", PATH, json=body))[0] == status, body
    assert (await call(bridge.url, "GET", f"{PATH}/{some}"))[0] == 404
    async with aiohttp.ClientSession(bridge.url) as http, http.post("/api/v1/erasures", json={}) as response:
        assert response.status == 401
    async with visiting(bridge.url) as chat, opened(database) as store:
        await chat.send("kept")
        await chat.answered()
        await retention.hold(store.database, conversation_id(chat), "a dispute")
        status, problem = await call(bridge.url, "POST", PATH, json={"conversation_id": str(conversation_id(chat))})
        assert (status, "legal hold" in problem["detail"]) == (409, True)
        status, wanted = await call(
            bridge.url, "POST", PATH, json={"person": {"platform": "webchat", "user": chat.conversation}}
        )
        while not (told := (await call(bridge.url, "GET", f"{PATH}/{wanted['id']}"))[1])["not_reached"]:
            await asyncio.sleep(0.02)
        assert "legal hold" in told["not_reached"][0]
        assert len(await chat.texts()) == 2


async def test_a_command_erases_what_a_bridge_serves(database: str, redis_url: str, tmp_path: Path) -> None:
    files = {"ATTACHMENT_BUCKET": str(tmp_path)}
    settings = {"DATABASE_URL": database, "REDIS_URL": redis_url, **files}
    async with running_bridge(database, REDIS_URL=redis_url, **files) as bridge, visiting(bridge.url) as chat:
        await chat.send("a secret")
        await chat.answered()
        async with chat.events() as events:
            await chat.send("again")
            while (await anext(events))[0] != "message":
                pass
            await chat.answered()
            code, output, errors = await run_command("erase", "user", "webchat", chat.conversation, **settings)
            assert (code, errors.splitlines()[-1]) == (1, "Aborted.")
            assert output.startswith("1 session, the name of the person, and what belongs to them")
            assert len(await chat.texts()) == 4
            code, output, errors = await run_command(
                "erase", "user", "webchat", chat.conversation, "--yes", BACKUP_TO="/backups", **settings
            )
            assert (code, errors) == (0, "")
            while (await anext(events))[0] != "erased":
                pass
        lines = output.splitlines()
        assert lines[1].startswith("erasure ")
        assert " of a user, finished 20" in lines[1]
        assert lines[2:] == [
            "  database, cache and search: 4 messages of 1 whole session and others, 1 person",
            "  files: 0",
            "  what the agent remembers: 0 threads",
            "backups in /backups still have it, until they are removed; after a restore it is erased again",
        ]
        shown = await run_command("erase", "show", lines[1].split()[1], **settings)
        assert shown[1].splitlines() == lines[1:5]
        assert await run_command("erase", "user", "webchat", chat.conversation, "--yes", **settings) == (
            1,
            "",
            "chat-bridge: there is nothing to erase: look at the id once more\n",
        )
        assert await run_command("erase", "reapply", **settings) == (0, "0 erasures applied again\n", "")
        await chat.send("I am back")
        assert (await chat.answered())[0]["seq"] == 1


@pytest.mark.parametrize("command", [("conversation",), ("session",)])
async def test_a_command_with_an_id_of_nothing(database: str, command: tuple[str]) -> None:
    code, _, errors = await run_command("erase", *command, str(uuid4()), "--yes", DATABASE_URL=database)
    assert (code, errors) == (1, "chat-bridge: there is nothing to erase: look at the id once more\n")
