"""Retention as operators meet it: commands, and a bridge that applies it by itself."""

import asyncio
from pathlib import Path

from tests.bridge import running_bridge, visiting
from tests.observe import rows, run_command
from tests.scrape import scraped
from tests.storage.dialogue import CHAT, chat, looking, opened, replied

OLD = "update messages set created_at = created_at - interval '40 days'"


async def old_conversations(dsn: str) -> None:
    async with opened(dsn) as store:
        for to in (CHAT, chat("held")):
            await replied(store, to, "the answer")
    async with looking(dsn) as connection:
        await connection.execute("update deliveries set status = 'sent'")
        await connection.execute(OLD)
        await connection.execute("update sessions set last_activity = last_activity - interval '40 days'")


async def test_plan_and_run(database: str) -> None:
    await old_conversations(database)
    settings = {"DATABASE_URL": database, "RETENTION_DAYS": "30"}
    held = str(chat("held").id)
    assert await run_command("hold", "list", **settings) == (0, "nothing is on hold\n", "")
    assert await run_command("hold", "add", held, "--reason", "a dispute", **settings) == (
        0,
        f"{held} is on hold: nothing of it is deleted\n",
        "",
    )
    code, output, _ = await run_command("hold", "list", **settings)
    assert code == 0
    assert output.startswith(f"{held}  20")
    assert output.endswith("  webchat chat-held: a dispute\n")

    code, output, _ = await run_command("retention", "plan", **settings)
    assert code == 0
    policy, looked, *_ = output.splitlines()
    assert policy.startswith("all others: 2 messages (0.0 MB) and 0 files would go")
    assert looked == "2 conversations looked at, 1 of them on hold"
    assert len(await rows(database, "select from messages")) == 4

    code, output, _ = await run_command("retention", "run", **settings)
    assert code == 0
    assert output.splitlines() == [
        "all others: 2 messages and 0 files deleted",
        "2 conversations looked at, 1 of them on hold",
        "1 session and 0 people deleted with them",
    ]
    assert len(await rows(database, "select from messages")) == 2

    assert (await run_command("hold", "lift", held, **settings))[0] == 0
    assert await run_command("hold", "lift", held, **settings) == (1, "", f"chat-bridge: {held} is not on hold\n")
    code, output, _ = await run_command("retention", "run", **settings)
    assert output.splitlines()[0] == "all others: 2 messages and 0 files deleted"
    code, output, _ = await run_command("retention", "run", **settings)
    assert output.splitlines()[0] == "nothing deleted"


async def test_without_a_policy_nothing_is_planned(database: str, tmp_path: Path) -> None:
    code, _, errors = await run_command("retention", "run", DATABASE_URL=database)
    assert code == 1
    assert errors == (
        "chat-bridge: the settings keep everything for ever: RETENTION_DAYS, ATTACHMENT_RETENTION_DAYS, "
        "RETENTION_POLICIES\n"
    )
    file = tmp_path / "retention.toml"
    file.write_text("[[policy]]\nretention_days = 'ten'\n")
    for command in (("retention", "run"), ("serve",)):
        code, _, errors = await run_command(
            *command, DATABASE_URL=database, RETENTION_POLICIES=str(file), CHAT_BRIDGE_SECRET="s" * 32, PORT="0"
        )
        assert code == 1
        assert f"RETENTION_POLICIES: {file}: policy 1 retention_days: Input should be a valid integer" in errors
        assert "Traceback" not in errors


async def test_a_hold_of_nothing_says_so(database: str) -> None:
    code, output, _ = await run_command("hold", "add", str(CHAT.id), "--reason", "expected", DATABASE_URL=database)
    assert (code, output.splitlines()[0]) == (0, "there is nothing of this conversation now; what comes will be kept")
    code, _, errors = await run_command("hold", "add", str(CHAT.id), "--reason", " ", DATABASE_URL=database)
    assert (code, errors) == (1, "chat-bridge: --reason: say why; whoever finds the hold will want to know\n")


async def test_a_running_bridge_applies_it(database: str) -> None:
    await old_conversations(database)
    async with running_bridge(database, RETENTION_DAYS="30") as bridge, visiting(bridge.url) as visitor:
        while await rows(database, "select from sessions"):
            await asyncio.sleep(0.02)
        while not bridge.events("retention.deleted"):
            await asyncio.sleep(0.02)
        (told_of,) = bridge.events("retention.deleted")
        assert (told_of["messages"], told_of["sessions"]) == (4, 2)
        told = await scraped(bridge.url)
        assert told.value("chat_bridge_expired_total", kind="messages") == 4
        await visitor.send("still here")
        assert await visitor.until(2) == ["> still here", "still here"]
