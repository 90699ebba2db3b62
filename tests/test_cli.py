"""The command line, run as its users run it."""

import asyncio
import os
import signal
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from uuid import uuid4

import pytest

from chat_bridge.cli import main
from chat_bridge.doctor import examine
from chat_bridge.settings import load_settings
from chat_bridge.storage import embedded
from tests.bridge import API_KEY, SECRET, running_bridge, visiting
from tests.conftest import fresh_database
from tests.fake_telegram.client import running_telegram
from tests.observe import begun, run_command

VERSION = version("agoric-chat-bridge")
NEXT_AGENT = [
    "Next: connect a Mastra agent. Stop with Ctrl-C, put this into a file named .env, and start again:",
    "  MASTRA_ENDPOINT=http://localhost:4111/api",
    "  MASTRA_AGENT_ID=the-id-of-your-agent",
    "For a Telegram bot add the token that @BotFather gives you:",
    "  TELEGRAM_ENABLED=true",
    "  TELEGRAM_BOT_TOKEN=123456789:AA-your-token",
]


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="chat-bridge")
    assert command.load() is main


async def test_without_a_command_there_is_help() -> None:
    _, output, errors = await run_command()
    told = output + errors
    assert "Any chat platform in front of any agent." in told
    for command in ("serve", "doctor", "migrate", "config", "explain", "version"):
        assert command in told


async def test_version() -> None:
    assert await run_command("version") == (0, f"{VERSION}\n", "")


# serve


def banner(log: str) -> list[str]:
    """What was printed, without the log."""
    return [line for line in log.splitlines() if not line.startswith("{")]


async def test_the_first_start_tells_where_everything_is() -> None:
    async with running_bridge(CHAT_BRIDGE_API_KEY="") as bridge:
        address = bridge.url.replace("127.0.0.1", "localhost")
        data = bridge.log.parent / "data"
        assert banner(bridge.log.read_text()) == [
            f"agoric-chat-bridge {VERSION} is ready.",
            "",
            f"  Chat        {address}/chat",
            f"  API         {address}/docs",
            "  Agent       echo",
            f"  Data        {data}",
            f"  API key     in the file {data / 'api-key'}",
            "",
            *NEXT_AGENT,
        ]
        key = (data / "api-key").read_text()
        assert len(key) >= 32
        assert (data / "api-key").stat().st_mode & 0o777 == 0o600
        assert key not in bridge.log.read_text()


async def test_a_start_with_an_agent_and_a_database(database: str) -> None:
    async with running_bridge(database, REPEAT_MODE="true", WEBCHAT_ENABLED="false") as bridge:
        address = bridge.url.replace("127.0.0.1", "localhost")
        shown = banner(bridge.log.read_text())
        assert shown[2:4] == [f"  API         {address}/docs", "  Agent       echo"]
        assert shown[-1].startswith("Next: put the chat on your site;")
        assert await bridge.stop() == 0
        assert banner(bridge.log.read_text())[-1].startswith("stopping: ")


# migrate


async def test_migrate_makes_the_schema_once() -> None:
    async with fresh_database("18", template=False) as database:
        environment = {"DATABASE_URL": database}  # no CHAT_BRIDGE_SECRET: it signs nothing
        code, output, errors = await run_command("migrate", "--check", **environment)
        assert (code, output) == (1, "")
        assert errors.startswith("chat-bridge: ")
        assert "migrate" in errors
        for words in (["migrate"], ["migrate"], ["migrate", "--check"]):
            assert await run_command(*words, **environment) == (0, "the schema is up to date: 0006\n", "")


async def test_migrate_hears_sigterm_while_it_waits_for_the_database(tmp_path: Path, unused_tcp_port: int) -> None:
    # As the first process of a container it would not end without a handler.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chat_bridge", "migrate"),
        env={
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "DATABASE_URL": f"postgresql://me@127.0.0.1:{unused_tcp_port}/agoric",
            "DATABASE_WAIT_SECONDS": "60",
        },
        cwd=tmp_path,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    assert b"database.waiting" in await process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    errors = await asyncio.wait_for(process.stderr.read(), 5)
    assert await process.wait() == 1
    assert errors.decode().splitlines()[-1] == "chat-bridge: stopped by SIGTERM"


async def test_serve_does_not_migrate_when_told_not_to() -> None:
    async with fresh_database("18", template=False) as database:
        settings = {"DATABASE_URL": database, "CHAT_BRIDGE_SECRET": SECRET, "DATABASE_MIGRATE": "false", "PORT": "0"}
        code, output, errors = await run_command("serve", **settings)
    assert (code, output) == (1, "")
    assert errors.splitlines()[-1].startswith("chat-bridge: ")
    assert "Traceback" not in errors


async def test_the_schema_as_sql_needs_nothing() -> None:
    code, output, errors = await run_command("migrate", "--sql")
    assert (code, errors) == (0, "")
    assert "create table sessions (" in output.lower()
    assert "create table turns (" in output.lower()


# config


async def test_config_shows_no_secret() -> None:
    code, output, errors = await run_command(
        "config",
        DATABASE_URL="postgresql://agoric:dsn-password@db/agoric",
        REDIS_URL="redis://:redis-password@cache:6379/0",
        CHAT_BRIDGE_SECRET=SECRET,
        CHAT_BRIDGE_API_KEY=API_KEY,
        MASTRA_API_KEY="mastra-key",
        MASTRA_HEADERS='{"X-Key": "header-key"}',
        BUSY_POLICY="latest",
    )
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert "BUSY_POLICY=latest" in lines
    assert "PORT=3000" in lines
    assert "DATABASE_URL=postgresql://agoric:********@db/agoric" in lines
    assert 'MASTRA_HEADERS={"X-Key": "********"}' in lines
    for secret in ("dsn-password", "redis-password", SECRET, API_KEY, "mastra-key", "header-key"):
        assert secret not in output


@pytest.mark.parametrize("command", ["config", "migrate", "explain"])
async def test_wrong_settings_are_one_message(command: str) -> None:
    words = [command, str(uuid4())] if command == "explain" else [command]
    code, output, errors = await run_command(*words, PORT="-1", DATABASE_URL="mysql://root:pass@db/x")
    assert (code, output) == (1, "")
    assert errors.startswith("chat-bridge: the settings can't be used; nothing was started:\n")
    assert "PORT: must be 0 or more" in errors
    assert "DATABASE_URL: must begin with postgres:// or postgresql://" in errors
    assert "pass" not in errors.replace("PASSWORD", "")


# explain (an answered message and its reply: tests/fundamentals)


async def test_explain_beside_a_running_bridge() -> None:
    async with running_bridge(QUEUE_CAP="2", CHAT_BRIDGE_SECRET=SECRET) as bridge, visiting(bridge.url) as chat:
        running = await chat.send("word " * 1000)
        await begun(chat)
        waits = await chat.send("waits")
        skipped = await chat.send("too many")

        async def explain(message: str) -> str:
            code, output, errors = await run_command(
                "explain", message, CHAT_BRIDGE_DATA_DIR=str(bridge.log.parent / "data")
            )
            assert (code, errors) == (0, "")
            return output

        story = await explain(running["id"])
        assert story.startswith(f"message {running['id']}: inbound text, waiting for its answer\n")
        assert ": running\n" in story
        assert "  ended         not yet\n" in story

        story = await explain(waits["id"])
        assert "inbound text, waiting for its answer\n" in story
        assert story.endswith("no turn has taken it yet\n")

        story = await explain(skipped["id"])
        assert "inbound text, skipped (queue_full)\n" in story
        assert story.endswith("no turn has taken it\n")
        await chat.send("/stop")
        await chat.answered()

        story = await explain(running["id"])
        assert "inbound text, cancelled (cancelled)\n" in story
        assert ": cancelled, cancelled\n" in story


async def test_explain_a_failure(database: str) -> None:
    away = {"MASTRA_ENDPOINT": "http://127.0.0.1:1/api", "MASTRA_AGENT_ID": "x", "TURN_TIMEOUT_SECONDS": "1"}
    async with running_bridge(database, **away) as bridge, visiting(bridge.url) as chat:
        sent = await chat.send("hello")
        _, notice = await chat.answered()
    environment = {"DATABASE_URL": database, "WEBCHAT_ENABLED": "false"}
    _, story, _ = await run_command("explain", sent["id"], **environment)
    assert "inbound text, failed (unreachable)\n" in story
    assert ": failed, unreachable\n" in story
    assert "  agent         mastra:x, request not named\n" in story
    assert "  reason        no connection to Mastra (ClientConnectorError)\n" in story
    assert f"reply {notice['id']}: seq 2" in story
    assert "hello" not in story


async def test_explain_needs_an_id(database: str) -> None:
    code, output, errors = await run_command("explain", "nonsense", DATABASE_URL=database, WEBCHAT_ENABLED="false")
    assert (code, output) == (2, "")
    assert errors.startswith("Usage: ")
    assert "Traceback" not in errors


# doctor


def told(output: str) -> dict[str, tuple[str, str]]:
    """What doctor says of each subject: how it is, and its words."""
    lines = [line.split(maxsplit=2) for line in output.splitlines()]
    return {subject: (status, text) for status, subject, text in lines}


async def test_doctor_finds_nothing_wrong(database: str, redis_url: str, tmp_path: Path) -> None:
    environment = {
        "DATABASE_URL": database,
        "REDIS_URL": redis_url,
        "CHAT_BRIDGE_SECRET": SECRET,
        "REPEAT_MODE": "true",
        "ATTACHMENT_BUCKET": str(tmp_path / "attachments"),
    }
    code, output, errors = await run_command("doctor", **environment)
    assert (code, errors) == (0, "")
    assert told(output) == {
        "database": ("ok", "PostgreSQL 18 answers."),
        "schema": ("ok", "Up to date (0006)."),
        "clock": ("ok", "PostgreSQL and this machine agree on the time."),
        "redis": ("ok", "Answers."),
        "attachments": ("ok", "Their place can be reached."),
        "agent": ("ok", "echo is there."),
        "webchat": ("ok", "On."),
    }


async def test_doctor_says_what_to_do(unused_tcp_port: int) -> None:
    nowhere = f"127.0.0.1:{unused_tcp_port}"
    code, output, errors = await run_command(
        "doctor",
        DATABASE_URL=f"postgresql://agoric:hush@{nowhere}/agoric",
        REDIS_URL=f"redis://:hush@{nowhere}/0",
        CHAT_BRIDGE_SECRET=SECRET,
        MASTRA_ENDPOINT=f"http://{nowhere}/api",
        MASTRA_AGENT_ID="weather",
        TELEGRAM_BOT_TOKEN="1:hush",
        WEBCHAT_ENABLED="false",
        ATTACHMENT_SCANNER=nowhere,
    )
    assert (code, errors) == (1, "")
    assert "hush" not in output
    subjects = [line.split()[:2] for line in output.splitlines()]
    assert subjects == [
        ["problem", "database"],
        ["warning", "redis"],
        ["warning", "attachments"],
        ["problem", "scanner"],
        ["problem", "agent"],
        ["warning", "telegram"],
        ["problem", "platforms"],
    ]
    assert "TELEGRAM_ENABLED=true" in output
    assert "correct MASTRA_ENDPOINT" in output


async def test_doctor_knows_the_embedded_database_beside_a_bridge_and_without() -> None:
    async with running_bridge() as bridge:
        data = str(bridge.log.parent / "data")
        code, output, _ = await run_command("doctor", CHAT_BRIDGE_DATA_DIR=data)
        assert told(output)["database"] == ("ok", "Embedded PostgreSQL 18 answers.")
        assert code == 0
        await bridge.stop()
        _, output, _ = await run_command("doctor", CHAT_BRIDGE_DATA_DIR=data)
        assert told(output)["database"][1].startswith("The embedded PostgreSQL starts with `chat-bridge serve`")


async def test_doctor_looks_at_the_schema() -> None:
    async with fresh_database("15", template=False) as database:
        environment = {"DATABASE_URL": database, "CHAT_BRIDGE_SECRET": SECRET}
        _, output, _ = await run_command("doctor", **environment)
        assert told(output)["schema"] == ("ok", "`chat-bridge serve` will bring it up to date.")
        code, output, _ = await run_command("doctor", **environment, DATABASE_MIGRATE="false")
        assert code == 1
        assert "run `chat-bridge migrate`" in told(output)["database"][1]


async def test_doctor_says_when_the_embedded_servers_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "burner_redis", None)
    found = {
        finding.subject: finding for finding in await examine(load_settings({"CHAT_BRIDGE_DATA_DIR": str(tmp_path)}))
    }
    for subject in ("database", "redis"):
        assert found[subject].status == "problem"
        assert "pip install 'agoric-chat-bridge[embedded]'" in found[subject].text


async def test_doctor_looks_at_telegram() -> None:
    async with running_telegram() as telegram:
        environment = {
            "TELEGRAM_ENABLED": "true",
            "TELEGRAM_BOT_TOKEN": telegram.token,
            "TELEGRAM_API_BASE_URL": telegram.base_url,
            "CHAT_BRIDGE_DATA_DIR": "/nonexistent/data",
        }
        code, output, _ = await run_command("doctor", **environment)
        assert code == 0
        assert "It belongs to the bot @bridge_bot (id 7000000001)." in output
        assert "privacy mode" in output
        code, output, _ = await run_command("doctor", **{**environment, "TELEGRAM_BOT_TOKEN": "7000000001:wrong"})
        assert code == 1
        assert "Telegram refuses TELEGRAM_BOT_TOKEN" in output


async def test_serve_does_not_start_with_a_token_that_telegram_refuses(database: str) -> None:
    async with running_telegram() as telegram:
        code, output, errors = await run_command(
            "serve",
            DATABASE_URL=database,
            CHAT_BRIDGE_SECRET=SECRET,
            PORT="0",
            TELEGRAM_ENABLED="true",
            TELEGRAM_BOT_TOKEN="7000000001:wrong-and-secret",
            TELEGRAM_API_BASE_URL=telegram.base_url,
        )
    assert (code, output) == (1, "")
    last = errors.splitlines()[-1]
    assert last == "chat-bridge: Telegram refuses TELEGRAM_BOT_TOKEN: copy it again from @BotFather"
    assert "wrong-and-secret" not in errors
    assert "Traceback" not in errors
