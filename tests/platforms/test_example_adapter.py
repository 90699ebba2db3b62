"""The example of docs/platforms/writing-an-adapter.md, installed as a user would, in a running bridge."""

import asyncio
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import aiohttp
import pytest

from chat_bridge.model import EventKind, InboundEvent
from chat_bridge.platforms.contract import Platform, SendResult
from tests.bridge import BridgeProcess, running_bridge
from tests.observe import rows, run_command
from tests.platforms.contract import GARBAGE, variations
from tests.platforms.test_contract import (
    EXAMPLE,
    PAGER_SECRET,
    Receiver,
    entry,
    events_body,
    receiving,
    signed,
    unused_port,
)

GUIDE = EXAMPLE.parent / "writing-an-adapter.md"
PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the installed example."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--target", folder, EXAMPLE],
        env={"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "HOME": str(folder)},
        check=True,
    )
    return str(folder)


@asynccontextmanager
async def bridging(installed: str, database: str, url: str, **settings: str) -> AsyncGenerator[BridgeProcess]:
    """A bridge with the example and the echo agent."""
    pager = {"PYTHONPATH": installed, "CHAT_BRIDGE_PLATFORMS": "pager", "PAGER_URL": url, "PAGER_SECRET": PAGER_SECRET}
    async with running_bridge(database, **pager, **settings) as bridge:
        yield bridge


class Pagers:
    """The pager system on both sides of a bridge."""

    def __init__(self, http: aiohttp.ClientSession, bridge: BridgeProcess, receiver: Receiver, database: str) -> None:
        self._http = http
        self.bridge = bridge
        self.receiver = receiver
        self.database = database

    async def tell(self, *entries: dict[str, Any]) -> int:
        """Send events; gives the status of the answer."""
        body = events_body(*entries)
        return await self.post(body, signed(body))

    async def post(self, body: bytes, headers: dict[str, str]) -> int:
        """Send anything."""
        async with self._http.post(f"{self.bridge.url}/webhooks/pager", data=body, headers=headers) as response:
            await response.read()
            return response.status

    async def done(self, count: int) -> None:
        """Wait until so many turns have ended and nothing is left to send."""
        query = """select (select count(*) from turns where status <> 'running') as ended,
            (select count(*) from deliveries where status in ('pending', 'sending')) as unsent"""
        while (await rows(self.database, query))[0] != {"ended": count, "unsent": 0}:
            await asyncio.sleep(0.02)

    async def kept(self) -> list[tuple[str, str | None]]:
        """The status of each event in the store, and why it is not answered."""
        query = """select status, metadata ->> 'reason' as reason from messages where direction = 'inbound'
            order by created_at, seq"""
        return [(row["status"], row["reason"]) for row in await rows(self.database, query)]


@pytest.fixture
async def stack() -> AsyncGenerator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def pagers(stack: AsyncExitStack, installed: str, database: str, **settings: str) -> Pagers:
    """A receiver and a bridge, for as long as the stack."""
    receiver = await stack.enter_async_context(receiving())
    bridge = await stack.enter_async_context(bridging(installed, database, receiver.url, **settings))
    http = await stack.enter_async_context(aiohttp.ClientSession())
    return Pagers(http, bridge, receiver, database)


async def test_a_message_is_answered_once_however_often_it_comes(
    stack: AsyncExitStack, installed: str, database: str
) -> None:
    pager = await pagers(stack, installed, database)
    message = entry(9007199254740993, "xin chào 👋🏽")
    assert await pager.tell(message) == 200
    assert await pager.receiver.until(1) == ["xin chào 👋🏽"]
    (request,) = pager.receiver.requests
    assert re.fullmatch(r"[0-9a-f-]{36}", request["Idempotency-Key"])
    assert await pager.tell(message) == 200
    assert await pager.tell(message, message) == 200
    assert await pager.tell() == 200
    assert await pager.tell(entry(2, "the next")) == 200
    assert await pager.receiver.until(2) == ["xin chào 👋🏽", "the next"]
    await pager.done(2)
    assert len(pager.receiver.requests) == 2
    assert await pager.kept() == [("accepted", None)] * 2
    (sent, _) = await rows(database, "select platform_message_id, attempts from deliveries order by seq")
    assert sent == {"platform_message_id": "p0", "attempts": 1}


async def test_events_of_a_batch_go_to_their_conversations(
    stack: AsyncExitStack, installed: str, database: str
) -> None:
    pager = await pagers(stack, installed, database)
    aside = entry(3, "by the way", 502, group=True, mentioned=False)
    question = entry(4, "and you?", 502, group=True, mentioned=True)
    assert await pager.tell(entry(1, "hello"), entry(2, "hi", 503), aside, question, {"type": "call", "id": 5}) == 200
    await pager.receiver.until(3)
    await pager.done(3)
    said = {each["conversation"]: (each["text"], each["reply_to"]) for each in pager.receiver.messages}
    assert said == {"501": ("hello", None), "503": ("hi", None), "502": ("by the way\n\nand you?", "4")}
    assert sorted(await pager.kept(), key=str) == [
        *([("accepted", None)] * 3),
        ("skipped", "kind:unknown"),
        ("skipped", "not_addressed"),
    ]


async def test_only_signed_requests_are_taken(stack: AsyncExitStack, installed: str, database: str) -> None:
    pager = await pagers(stack, installed, database)
    body = events_body(entry(1, "hello"))
    for headers in ({}, signed(body + b" "), signed(body, secret="another-secret"), signed(body, stamp="1700000000")):
        assert await pager.post(body, headers) == 401
    assert await pager.post(b"not JSON", signed(b"not JSON")) == 200
    assert await pager.kept() == [("skipped", "kind:unknown")]
    assert len(pager.bridge.events("webhook.refused")) == 4
    assert PAGER_SECRET not in pager.bridge.log.read_text()


async def test_whatever_a_signed_request_holds_is_taken(stack: AsyncExitStack, installed: str, database: str) -> None:
    pager = await pagers(stack, installed, database)
    one = {"events": [entry(1, "hello", group=True, mentioned=True, message=1)]}
    bodies = [*GARBAGE, *(json.dumps(content).encode() for content in variations(one))]
    for body in bodies:
        assert await pager.post(body, signed(body)) == 200, body[:200]
    assert await pager.tell(entry(2, "the last", 504)) == 200
    while "504" not in [message["conversation"] for message in pager.receiver.messages]:
        await pager.receiver.until(len(pager.receiver.messages) + 1)
    assert not [line for line in pager.bridge.log.read_text().splitlines() if '"level": "error"' in line]
    assert PAGER_SECRET not in pager.bridge.log.read_text()


async def test_an_answer_is_to_the_edited_text(stack: AsyncExitStack, installed: str, database: str) -> None:
    pager = await pagers(stack, installed, database, COALESCE_SECONDS="2")
    assert await pager.tell(entry(1, "helo")) == 200
    assert await pager.tell(entry(2, "hello") | {"type": "edit", "message": 1}) == 200
    assert await pager.receiver.until(1) == ["hello"]
    assert await pager.kept() == [("accepted", None)]


async def test_what_was_deleted_is_not_answered(stack: AsyncExitStack, installed: str, database: str) -> None:
    pager = await pagers(stack, installed, database, COALESCE_SECONDS="2")
    assert await pager.tell(entry(1, "oops"), entry(2, "") | {"type": "delete", "message": 1}) == 200
    await pager.done(1)
    assert await pager.tell(entry(3, "hello")) == 200
    assert await pager.receiver.until(1) == ["hello"]


async def test_a_failed_send_is_repeated_with_its_key(stack: AsyncExitStack, installed: str, database: str) -> None:
    pager = await pagers(stack, installed, database)
    pager.receiver.next_answers += [503, None, 429]
    assert await pager.tell(entry(1, "hello")) == 200
    await pager.done(1)
    assert [message["text"] for message in pager.receiver.messages] == ["hello"]
    keys = [request["Idempotency-Key"] for request in pager.receiver.requests]
    assert len(keys) >= 4  # more where a sender was so slow that another took over
    assert len(set(keys)) == 1
    (delivery,) = await rows(database, "select status, attempts from deliveries")
    assert delivery["status"] == "sent"
    assert delivery["attempts"] >= len(keys)


async def test_an_answer_that_is_never_taken_fails(stack: AsyncExitStack, installed: str, database: str) -> None:
    pager = await pagers(stack, installed, database)
    pager.receiver.next_answers += [422]
    assert await pager.tell(entry(1, "hello")) == 200
    await pager.done(1)
    assert await rows(database, "select status, error from deliveries") == [{"status": "failed", "error": "HTTP 422"}]


# Mistakes in the settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"CHAT_BRIDGE_PLATFORMS": "beeper"}, "no installed package has an adapter 'beeper'; there are: pager"),
        ({"PAGER_URL": ""}, "set PAGER_URL to where replies go"),
        ({"PAGER_SECRET": "short"}, "PAGER_SECRET to 16 characters or more"),
    ],
)
async def test_a_mistake_in_the_settings_is_explained(
    installed: str, database: str, settings: dict[str, str], told: str
) -> None:
    pager = {"CHAT_BRIDGE_PLATFORMS": "pager", "PAGER_URL": "http://127.0.0.1:1/in", "PAGER_SECRET": PAGER_SECRET}
    common = {"DATABASE_URL": database, "WEBCHAT_ENABLED": "false", "PORT": "0", "PYTHONPATH": installed}
    code, output, errors = await run_command("serve", **common, **(pager | settings))
    assert code not in (0, None)
    assert told in output + errors
    assert "Traceback" not in output + errors
    assert PAGER_SECRET not in output + errors


async def test_the_doctor_looks_at_it(installed: str, database: str) -> None:
    common = {"DATABASE_URL": database, "WEBCHAT_ENABLED": "false", "PYTHONPATH": installed}
    pager = {"CHAT_BRIDGE_PLATFORMS": "pager", "PAGER_SECRET": PAGER_SECRET}
    async with receiving() as receiver:
        _, well, _ = await run_command("doctor", **common, **pager, PAGER_URL=receiver.url)
    away = f"http://127.0.0.1:{unused_port()}"
    code, ill, _ = await run_command("doctor", **common, **pager, PAGER_URL=away)
    assert "PAGER_URL answers." in well
    assert "PAGER_URL: no connection" in ill
    assert code != 0


# The guide


def test_the_guide_shows_the_whole_code() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    (module,) = (EXAMPLE / "src").rglob("*.py")
    assert re.sub(r"\n{3,}", "\n\n", "\n".join(blocks)) == re.sub(r"\n{3,}", "\n\n", module.read_text())


def test_the_guide_shows_how_to_package_it() -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert block == (EXAMPLE / "pyproject.toml").read_text()


def test_the_guide_tells_of_everything_an_adapter_can_say() -> None:
    guide = GUIDE.read_text()
    fields = [each.name for each in dataclasses.fields(InboundEvent)]
    results = [each.__name__ for each in get_args(SendResult)]
    for name in (*fields, *results):
        assert f"\n| `{name}` |" in guide, name
    for kind in EventKind:
        assert f"`{kind.name}`" in guide, kind
    methods = [name for name, value in vars(Platform).items() if callable(value) and not name.startswith("_")]
    assert "show_end" in methods
    for name in methods:
        assert f"`{name}`" in guide, name
