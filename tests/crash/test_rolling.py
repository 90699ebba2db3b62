"""Rolling deploys: replicas are stopped and started one after another, and old code runs beside new code on the new
schema. Nothing is lost, doubled or out of order."""

import asyncio
import itertools
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from chat_bridge.storage.migrate import schema_state
from tests.bridge import BridgeProcess, Chat, running_bridge, visiting
from tests.conftest import fresh_database
from tests.fake_telegram.client import running_telegram
from tests.fake_telegram.media import picture
from tests.needs import unavailable
from tests.observe import begun, ended, replies, rows, statuses
from tests.platforms.telegram.test_bridge import answering

PROJECT = Path(__file__).parents[2]
MIGRATIONS = "src/chat_bridge/storage/migrations/versions"
LONG = "word " * 80 + "end"  # much longer than a stop waits
WORDS = "one two three four five six seven eight nine ten"
# No lease runs out while a test lasts: what is taken over was handed over.
SETTINGS = {"BUSY_POLICY": "followup", "CHAT_BRIDGE_DRAIN_SECONDS": "0.5", "LEASE_SECONDS": "600"}


class Visitor:
    """A visitor whose requests come to all replicas in turn, as a load balancer spreads them."""

    def __init__(self, chats: Sequence[Chat]) -> None:
        self._chats = itertools.cycle(chats)
        self.sent: list[str] = []

    async def talk(self, over: asyncio.Event) -> None:
        """Send one message after another until it is over; one is always waiting while another is answered."""
        while not over.is_set():
            text = f"{len(self.sent)} {WORDS}"
            await self._send(text, str(uuid4()))
            self.sent.append(text)
            while len(replies(await self.messages())) < len(self.sent) - 1:
                await asyncio.sleep(0.02)

    async def _send(self, text: str, client_msg_id: str) -> None:
        """Send until a replica has taken it: the same message each time."""
        for chat in self._chats:
            with suppress(aiohttp.ClientError):
                status, body = await chat.post(text, client_msg_id)
                if status != 503:
                    assert status in (200, 202), body
                    return
            await asyncio.sleep(0.02)

    async def messages(self) -> list[dict[str, Any]]:
        """The whole conversation, from the next replica that answers."""
        for chat in self._chats:
            with suppress(aiohttp.ClientError):
                return await chat.messages(limit=200)
            await asyncio.sleep(0.02)
        raise AssertionError("there are no replicas")

    async def in_order(self) -> None:
        """Wait until all is answered: each message is there once, with one answer, in the order they were sent."""
        while len(replies(messages := await self.messages())) < len(self.sent):
            await asyncio.sleep(0.02)
        assert replies(messages) == self.sent
        assert statuses(messages) == [(text, "answered", None) for text in self.sent]


@asynccontextmanager
async def visiting_all(*bridges: BridgeProcess) -> AsyncGenerator[Visitor]:
    """A new visitor behind the load balancer of these replicas."""
    async with visiting(bridges[0].url) as chat, aiohttp.ClientSession() as http:
        yield Visitor([Chat(http, bridge.url, chat.conversation, chat.token) for bridge in bridges])


@asynccontextmanager
async def traffic(*bridges: BridgeProcess) -> AsyncGenerator[None]:
    """Visitors who talk meanwhile, and must find all in order at the end."""
    over = asyncio.Event()
    async with AsyncExitStack() as stack:
        visitors = [await stack.enter_async_context(visiting_all(*bridges)) for _ in range(4)]
        talks = [asyncio.create_task(visitor.talk(over)) for visitor in visitors]
        try:
            yield
            over.set()
            await asyncio.gather(*talks)
        finally:
            for talk in talks:
                talk.cancel()
            await asyncio.wait(talks)
        for visitor in visitors:
            await visitor.in_order()


async def ready(bridge: BridgeProcess) -> tuple[int, str]:
    async with aiohttp.ClientSession(bridge.url) as http, http.get("/readyz") as response:
        return response.status, (await response.json())["checks"]["migrations"]


async def stop_within_a_turn(database: str, bridge: BridgeProcess, other: BridgeProcess) -> None:
    """Stop the bridge in the middle of a long answer: it hands the turn over, and the other one ends it."""
    async with visiting(bridge.url) as chat, aiohttp.ClientSession() as http:
        await chat.send(LONG)
        await begun(chat)
        (turn,) = await turns(database, chat)
        assert turn["owner"].endswith(f":{bridge.pid}")
        assert await bridge.stop(signal.SIGTERM) == 0
        messages = await Chat(http, other.url, chat.conversation, chat.token).answered()
        assert replies(messages) == [LONG]
        assert statuses(messages) == [(LONG, "answered", None)]
        assert await ended(database, chat, 2) == ["superseded", "answered"]
        _, turn = await turns(database, chat)
        assert turn["owner"].endswith(f":{other.pid}")


async def turns(database: str, chat: Chat) -> list[dict[str, Any]]:
    """The turns of a conversation, in the order they began."""
    return await rows(
        database,
        """select owner from turns join sessions on sessions.id = session_id
        where platform_conversation_id = $1 order by started_at""",
        chat.conversation,
    )


async def all_is_settled(database: str) -> None:
    """The text of every reply was delivered once, and no turn is left. Old code sends no files."""
    while await rows(database, "select from deliveries where status in ('pending', 'sending')"):
        await asyncio.sleep(0.02)
    (found,) = await rows(
        database,
        """select (select count(*) from deliveries where status = 'sent' and part = 1) as sent,
          (select count(*) from messages where direction = 'outbound') as replies,
          (select count(*) from turns where status = 'running') as running,
          (select count(*) from waiting) as waiting""",
    )
    assert found["sent"] == found["replies"]
    assert (found["running"], found["waiting"]) == (0, 0)


async def test_replicas_are_restarted_one_after_the_other(database: str, redis_url: str) -> None:
    settings = {**SETTINGS, "REDIS_URL": redis_url}
    async with running_bridge(database, **settings) as first, running_bridge(database, **settings) as second:
        async with traffic(first, second):
            for bridge, other in ((first, second), (second, first)):
                await stop_within_a_turn(database, bridge, other)
                await bridge.start()
                assert await ready(bridge) == (200, "ok")
        await all_is_settled(database)


async def test_a_replica_runs_and_restarts_on_a_newer_schema_that_allows_it(database: str) -> None:
    async with running_bridge(database, **SETTINGS) as bridge, visiting(bridge.url) as chat:
        head = (await schema_state(database)).head
        await pretend_newer(database, oldest_code=head)
        assert await ready(bridge) == (200, "ok")
        assert await bridge.stop(signal.SIGTERM) == 0
        await bridge.start()
        assert await ready(bridge) == (200, "ok")
        await chat.send("on the newer schema")
        assert replies(await chat.answered()) == ["on the newer schema"]
        await pretend_newer(database, oldest_code="9999")
        assert await ready(bridge) == (
            503,
            f"the database's schema (9999) is newer than this program ({head}) and needs the code of 9999 or later: "
            "run a newer agoric-chat-bridge, or restore the database from before the upgrade",
        )


async def pretend_newer(database: str, oldest_code: str) -> None:
    await rows(database, "update alembic_version set version_num = '9999'")
    await rows(database, "update schema_compatibility set oldest_code = $1", oldest_code)


# The code of the previous schema


@pytest.fixture
def old_code(tmp_path: Path) -> Path:
    """The folder of the source as it was before the newest migration, from git."""
    git = shutil.which("git")
    if git is None:
        unavailable("git is not installed")

    def ask(*words: str) -> bytes:
        asked = subprocess.run([git, *words], cwd=PROJECT, capture_output=True, check=False)
        if asked.returncode:
            unavailable(f"git has no older source: {asked.stderr.decode().strip()}")
        return asked.stdout

    if not (PROJECT / ".git").exists():
        unavailable("the older source is in the git history, which is not here")
    newest = max((PROJECT / MIGRATIONS).glob("[0-9]*.py")).name
    added = ask("log", "--diff-filter=A", "--format=%H", "-1", "--", f"{MIGRATIONS}/{newest}").decode().strip()
    # While the newest migration is not committed, the code before it is the last commit.
    archive = ask("archive", f"{added}^" if added else "HEAD", "src")
    subprocess.run(["tar", "-x", "-C", tmp_path], input=archive, check=True)
    return tmp_path / "src"


async def test_old_and_new_code_run_on_the_new_schema_together(old_code: Path, redis_url: str) -> None:
    settings = {**SETTINGS, "REDIS_URL": redis_url}
    of_old = {**settings, "PYTHONPATH": str(old_code)}
    asked = [sys.executable, "-c", "import chat_bridge; print(chat_bridge.__file__)"]
    place = subprocess.run(asked, env=of_old, capture_output=True, text=True, check=True).stdout
    assert place.startswith(str(old_code)), "the old code is what runs"
    async with (
        fresh_database("18", template=False) as database,
        running_bridge(database, **of_old) as old,
        AsyncExitStack() as stack,
    ):
        assert not (await schema_state(database)).up_to_date, "the old code made the old schema"
        async with traffic(old):
            new = await stack.enter_async_context(running_bridge(database, **settings))
            assert (await schema_state(database)).up_to_date, "the new code migrated it while the old one ran"
        async with traffic(old, new):
            for bridge in (old, new):
                async with visiting(bridge.url) as chat:
                    await chat.send("hello")
                    assert replies(await chat.answered()) == ["hello"]
            await stop_within_a_turn(database, old, new)
        await all_is_settled(database)


async def test_photos_meet_old_and_new_code(old_code: Path, redis_url: str, tmp_path: Path) -> None:
    # Who fetches the bot's messages changes when a lease ends.
    settings = {**SETTINGS, "LEASE_SECONDS": "3", "REDIS_URL": redis_url, "ATTACHMENT_BUCKET": str(tmp_path / "files")}
    async with (
        fresh_database("18", template=False) as database,
        running_telegram() as telegram,
        answering(database, telegram, **settings, PYTHONPATH=str(old_code)) as old,
    ):
        chat = await telegram.private(await telegram.user("Linh"))

        async def answered(number: int) -> list[str]:
            return [(reply.text or "").splitlines()[0] for reply in await chat.until_said(number)]

        await chat.say("1", media="photo", content=picture(40, 30))
        assert await answered(1) == ["1"]
        async with answering(database, telegram, **settings) as new:
            # Either may answer them.
            for number in range(2, 8):
                await chat.say(str(number), media="photo", content=picture(40 + number, 30))
            assert await answered(7) == list("1234567")

            # What the new code has received, the old code answers.
            assert await old.stop(signal.SIGTERM) == 0
            await chat.say(LONG)
            for number in (9, 10):
                await chat.say(str(number), media="photo", content=picture(40 + number, 30))
            await telegram.until_confirmed()
            await old.start()
            assert await new.stop(signal.SIGTERM) == 0
            assert (await answered(10))[8:] == ["9", "10"]

            # And the other way round.
            await chat.say("11", media="photo", content=picture(60, 30))
            await answered(11)
            assert await old.stop(signal.SIGTERM) == 0
            await new.start()
            await chat.say("12", media="photo", content=picture(61, 30))
            assert (await answered(12))[10:] == ["11", "12"]
            while await rows(database, "select from attachments where status = 'waiting'"):
                await asyncio.sleep(0.02)
        found = await rows(
            database,
            "select m.content_text as text from attachments a join messages m using (conversation_id, seq) "
            "where a.status = 'stored' and m.direction = 'inbound' order by seq",
        )
        assert [row["text"] for row in found][-3:] == ["10", "11", "12"]
        await all_is_settled(database)
