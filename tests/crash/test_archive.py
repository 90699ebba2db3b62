"""Archives as operators and visitors see them: `chat-bridge archive`, a bridge that archives by itself, and one that is
killed meanwhile."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from tests.bridge import BridgeProcess, Chat, running_bridge, visiting
from tests.observe import call, messages_in, replies, rows, run_command, session_of
from tests.scrape import scraped
from tests.storage.dialogue import assert_consistent, chat, claimed, ending, opened, said

SESSIONS = 60


async def ended(database: str, bridge: BridgeProcess, chat: Chat, text: str) -> str:
    """A session that was closed long ago; its id."""
    await chat.send(text)
    await chat.answered()
    session = await session_of(bridge.url, chat)
    status, _ = await call(bridge.url, "POST", f"/api/v1/sessions/{session['id']}/close")
    assert status == 200
    await age(database)
    return session["id"]


async def age(database: str) -> None:
    await rows(
        database,
        "update sessions set created_at = created_at - interval '1 year', "
        "last_activity = last_activity - interval '1 year' where status = 'closed'",
    )


async def archive(environment: dict[str, str], *words: str) -> Sequence[str]:
    code, output, errors = await run_command("archive", *words, **environment)
    assert (code, "archive." in errors) == (0, False), errors
    return output.splitlines()


async def test_visitors_and_operators_do_not_see_the_difference(database: str, tmp_path: Path) -> None:
    place = {"ATTACHMENT_BUCKET": str(tmp_path / "files")}
    command = {**place, "DATABASE_URL": database, "ARCHIVE_AFTER_DAYS": "30"}
    async with running_bridge(database, **place) as bridge, visiting(bridge.url) as chat:
        assert await archive(command, "list") == ["there are no archives"]
        session = await ended(database, bridge, chat, "hello")
        await chat.send("hello again")
        seen = await chat.answered()

        async def exported() -> list[dict[str, Any]]:
            code, output, _ = await run_command("export", "jsonl", **place, DATABASE_URL=database)
            assert code == 0
            return [line for line in map(json.loads, output.splitlines()) if line["type"] == "message"]

        of_session = await call(bridge.url, "GET", f"/api/v1/sessions/{session}/messages")
        written = await exported()
        assert len(written) == 4

        assert await archive(command, "run") == ["1 session archived, with 2 messages"]
        assert await archive(command, "run") == ["0 sessions archived, with 0 messages"]
        (line,) = await archive(command, "list")
        name, _, _, status, *_ = line.split()
        assert (status, line.endswith("  1 session, 2 messages")) == ("stored", True)
        assert (await archive(command, "verify", name))[0].endswith("  good")

        assert await chat.messages() == seen
        assert await chat.messages(after=0, limit=3) == seen[:3]
        assert await chat.messages(before=3) == seen[:2]
        assert await call(bridge.url, "GET", f"/api/v1/sessions/{session}/messages") == of_session
        _, found = await call(bridge.url, "GET", f"/api/v1/sessions/{session}")
        assert (found["status"], found["message_count"]) == ("archived", 2)
        assert await exported() == written
        async with chat.events(after=0) as events:
            assert [message["text"] async for message in messages_in(events, 4)] == [each["text"] for each in seen]

        (path,) = (tmp_path / "files").rglob("archives/*/*")
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        code, output, errors = await run_command("archive", "verify", **command)
        assert (code, "BAD" in output, "1 archive of 1 can't be read" in errors) == (1, True, True)
        async with running_bridge(database, **place) as fresh:
            url = f"{fresh.url}/api/v1/chat/{chat.conversation}/messages"
            headers = {"Authorization": f"Bearer {chat.token}"}
            async with aiohttp.ClientSession(headers=headers) as http, http.get(url) as response:
                assert response.status == 503
                assert "archive" in (await response.json())["detail"]
            async with aiohttp.ClientSession(headers=headers) as http, http.get(f"{url}?limit=1") as response:
                assert response.status == 200, "what is in PostgreSQL can still be read"
        code, output, errors = await run_command("export", "jsonl", **place, DATABASE_URL=database)
        assert (code, "damaged" in errors) == (1, True)
        path.write_bytes(data)

        assert await archive(command, "restore", session) == ["1 session restored, with 2 messages"]
        code, _, errors = await run_command("archive", "restore", session, **command)
        assert (code, f"there is no archived session {session}" in errors) == (1, True)
        assert await chat.messages() == seen
        assert await rows(database, "select from archived_sessions") == []
        await assert_consistent(database)


async def test_what_is_wrong_is_said(database: str, tmp_path: Path) -> None:
    place = {"ATTACHMENT_BUCKET": str(tmp_path), "DATABASE_URL": database}
    nobody = "00000000-0000-0000-0000-000000000000"
    for words, settings, reason in (
        (["run"], {}, "ARCHIVE_AFTER_DAYS is not set"),
        (["run"], {"ARCHIVE_AFTER_DAYS": "7"}, "must be 8 or more"),
        (["verify", nobody], {}, f"there is no archive {nobody}"),
        (["restore", nobody], {}, f"there is no archived session {nobody}"),
        (["restore", "--archive", nobody], {}, f"there is no archive {nobody}"),
        (["restore"], {}, "name a session, or an archive"),
    ):
        code, _, errors = await run_command("archive", *words, **place, **settings)
        assert (code, reason in errors) == (1, True), errors
    await rows(database, "insert into leases values ('archive', 'another', now() + interval '1 minute')")
    code, _, errors = await run_command("archive", "run", **place, ARCHIVE_AFTER_DAYS="8")
    assert (code, "another process is archiving" in errors) == (1, True)


async def test_a_bridge_archives_by_itself(database: str, tmp_path: Path) -> None:
    place = {"ATTACHMENT_BUCKET": str(tmp_path / "files")}
    async with running_bridge(database, **place) as bridge, visiting(bridge.url) as chat:
        await ended(database, bridge, chat, "hello")
        seen = await chat.messages()
    async with running_bridge(database, **place, ARCHIVE_AFTER_DAYS="8") as bridge:
        while (await scraped(bridge.url)).value("chat_bridge_archived_total", what="messages") < 2:
            await asyncio.sleep(0.05)
        assert (await scraped(bridge.url)).value("chat_bridge_archived_total", what="sessions") == 1
        assert await rows(database, "select from messages") == []
        headers = {"Authorization": f"Bearer {chat.token}"}
        url = f"{bridge.url}/api/v1/chat/{chat.conversation}/messages"
        async with aiohttp.ClientSession(headers=headers) as http, http.get(url) as response:
            assert replies((await response.json())["messages"]) == replies(seen)
        assert await bridge.stop(signal.SIGTERM) == 0


async def test_killed_while_it_archives(database: str, tmp_path: Path) -> None:
    async with opened(database) as store:
        for n in range(SESSIONS):
            await store.receive(said(f"message {n} " + "word " * 500, to=chat(n)))
            assert await store.complete(ending(await claimed(store, chat(n)))) is not None
    await rows(database, "update deliveries set status = 'sent'")
    await rows(database, "update sessions set status = 'closed'")
    await age(database)
    kept = await rows(database, "select seq, id, content_text from messages order by id")

    # Small steps, and many of them.
    program = (
        "import sys; from chat_bridge.upkeep import archive as a;"
        "a.MESSAGES_AT_ONCE = 2; a.SESSIONS = 25; a.PAUSE_SECONDS = 0.02;"
        "from chat_bridge.cli import main; sys.argv = ['chat-bridge', 'archive', 'run']; main()"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": database,
        "ATTACHMENT_BUCKET": str(tmp_path / "files"),
        "ARCHIVE_AFTER_DAYS": "30",
    }
    progress = "select count(*) from archives union all select count(*) from archived_sessions"
    deaths = 0
    while await rows(database, "select from sessions where status = 'closed'"):
        await rows(database, "delete from leases")
        before = await rows(database, progress)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, env=environment, stdout=asyncio.subprocess.DEVNULL
        )
        # Odd ones die as soon as there is a new archive, even ones in the middle of its sessions.
        place, more = (0, 0) if deaths % 2 else (1, 10)
        while process.returncode is None:
            now = await rows(database, progress)
            if now[place]["count"] > before[place]["count"] + more and deaths < 8:
                process.kill()
                deaths += 1
                break
            await asyncio.sleep(0.001)
        await process.wait()
    assert deaths >= 3

    command = {**environment}
    for _ in range(3):
        await rows(database, "delete from leases")
        await rows(database, "update archives set changed_at = changed_at - interval '25 hours'")
        await archive(command, "run")
    there = await rows(database, "select id, status, messages from archives")
    assert {row["status"] for row in there} == {"stored"}
    assert sum(row["messages"] for row in there) == len(kept)
    files = {path.name for path in (tmp_path / "files").rglob("archives/*/*")}
    assert files == {row["id"].hex for row in there}
    for row in there:
        code, _, errors = await run_command("archive", "restore", "--archive", str(row["id"]), **command)
        assert (code, errors) == (0, "")
    assert await rows(database, "select seq, id, content_text from messages order by id") == kept
    await assert_consistent(database)
