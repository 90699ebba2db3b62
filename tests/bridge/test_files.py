"""Fetch: whatever a platform does with its files, each gets a result, and nobody waits too long."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from chat_bridge.bridge import fetch, look
from chat_bridge.bridge.fetch import MOST_AT_ONCE, MOST_LOST, Fetcher
from chat_bridge.bridge.keep import Keeper, Rules
from chat_bridge.bridge.scan import Scanner
from chat_bridge.errors import PlaceError
from chat_bridge.model import Address, Attachment
from chat_bridge.platforms.contract import Capabilities, NoFileError, OutboundPart, Platform, SendResult, Sent
from chat_bridge.storage import attachments
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.places import Folder
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from tests.clamd import running_clamd
from tests.conftest import fresh_database
from tests.observe import rows
from tests.storage.dialogue import HERE, chat, claimed, opened, said

ONE = chat("one")
Download = Callable[[Attachment], AsyncGenerator[bytes]]


class Files(Platform):
    """A platform whose files do as the test says."""

    account = "main"

    def __init__(self, download: Download, name: str = "webchat") -> None:
        self.capabilities = Capabilities(name)
        self._download = download
        self.asked: list[str] = []
        self.open = 0

    async def send(self, part: OutboundPart) -> SendResult:
        return Sent("1")

    async def download(self, attachment: Attachment) -> AsyncGenerator[bytes]:
        self.asked.append(attachment.ref)
        self.open += 1
        try:
            async for piece in self._download(attachment):
                yield piece
        finally:
            self.open -= 1


async def good(attachment: Attachment) -> AsyncGenerator[bytes]:
    yield b"the bytes of "
    yield attachment.ref.encode()


async def hanging(attachment: Attachment) -> AsyncGenerator[bytes]:
    yield b"half"
    await asyncio.Event().wait()


def failing(*errors: Exception) -> Download:
    """Fails in these ways, one after the other; then the file comes."""
    left = list(errors)

    async def download(attachment: Attachment) -> AsyncGenerator[bytes]:
        yield b"the bytes of "
        if left:
            raise left.pop(0)
        yield attachment.ref.encode()

    return download


def file(ref: str, **more: Any) -> Attachment:
    return Attachment("file", "text/plain", ref, **more)


class World:
    """A store, and processes that fetch."""

    def __init__(self, stack: AsyncExitStack, dsn: str, store: Store, folder: Path) -> None:
        self._stack = stack
        self.dsn = dsn
        self.store = store
        self.folder = folder

    async def fetcher(self, *platforms: Platform, keeper: Keeper | None = None) -> Fetcher:
        """One more process."""
        hot = await self._stack.enter_async_context(Hot.open(None))
        keeper = keeper or Keeper(self.store, Blobs(Folder(self.folder)), Rules(10_000, ["*/*"]), None)
        fetcher = Fetcher(self.store, hot, {one.capabilities.name: one for one in platforms}, keeper)
        self._stack.push_async_callback(fetcher.aclose)
        return fetcher

    async def send(self, *files: Attachment, to: Address = ONE) -> None:
        """Somebody sends files."""
        await self.store.receive(said("look", to=to, attachments=files))

    async def files(self) -> list[tuple[str, str | None, int]]:
        """Status, reason and tries of all files."""
        found = await rows(self.dsn, "select status, error, attempts from attachments order by created_at")
        return [(row["status"], row["error"], row["attempts"]) for row in found]

    async def until(self, *statuses: str) -> list[tuple[str, str | None, int]]:
        """Wait until the files are so."""
        found = await self.files()
        while [status for status, _, _ in found] != list(statuses):
            await asyncio.sleep(0.01)
            found = await self.files()
        return found

    async def due(self) -> None:
        """Time passes: what is tried again later, or was left by a dead process, is due."""
        await rows(self.dsn, "update attachments set next_attempt_at = clock_timestamp()")


async def swept(fetcher: Fetcher) -> None:
    """A sweep, to its end."""
    await fetcher.refetch(HERE)
    while fetcher._tasks:
        await asyncio.sleep(0.01)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(fresh_database("18", template=True))
        store = await stack.enter_async_context(opened(dsn))
        yield World(stack, dsn, store, tmp_path)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FIRST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(fetch, "LOOK_SECONDS", 0.01)


async def test_a_file_is_fetched_and_its_turn_waits_for_it(world: World) -> None:
    fetcher = await world.fetcher(Files(good))
    await world.send(file("a"), file("b"))
    turn = await claimed(world.store, ONE)
    found = await fetcher.ready(turn.conversation_id, "webchat", turn.messages)
    assert [each.status for each in found.values()] == ["stored", "stored"]
    assert {path.read_bytes() for path in world.folder.rglob("*") if path.is_file()} == {
        b"the bytes of a",
        b"the bytes of b",
    }


async def test_many_wake_ups_and_processes_fetch_it_once(world: World) -> None:
    platforms = [Files(good) for _ in range(3)]
    fetchers = [await world.fetcher(each) for each in platforms]
    await world.send(*(file(str(number)) for number in range(20)))
    for fetcher in fetchers * 3:
        fetcher.wake(ONE.id, "webchat")
        await fetcher.refetch(HERE)
    await world.until(*["stored"] * 20)
    assert sorted(ref for each in platforms for ref in each.asked) == sorted(map(str, range(20)))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NoFileError("for now", for_good=False), "for now"),
        (ValueError("of the adapter"), fetch.NOT_FETCHED),
        (NotImplementedError(), fetch.NOT_FETCHED),
        (ConnectionResetError(), fetch.NOT_FETCHED),
    ],
)
async def test_what_may_pass_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.setattr(fetch, "SOON_SECONDS", -1)  # by the sweep alone
    fetcher = await world.fetcher(Files(failing(error, error)))
    await world.send(file("a"))
    for tried in (1, 2):
        await world.due()
        while (await world.files())[0][1:] != (reason, tried):
            await fetcher.refetch(HERE)  # the fetch before may still have to end
            await asyncio.sleep(0.01)
    await world.due()
    while (await world.files())[0] != ("stored", None, 3):
        await fetcher.refetch(HERE)
        await asyncio.sleep(0.01)


async def test_it_soon_tries_again_by_itself(world: World) -> None:
    platform = Files(failing(*[NoFileError("for now", for_good=False)] * 3))
    await world.send(file("a"))
    (await world.fetcher(platform)).wake(ONE.id, "webchat")
    assert await world.until("stored") == [("stored", None, 4)]


async def test_what_is_for_good_is_asked_for_once(world: World) -> None:
    platform = Files(failing(NoFileError("it is gone", for_good=True)))
    fetcher = await world.fetcher(platform)
    await world.send(file("a"))
    fetcher.wake(ONE.id, "webchat")
    assert await world.until("failed") == [("failed", "it is gone", 1)]
    await world.due()
    await swept(fetcher)
    assert platform.asked == ["a"]


async def test_what_ends_every_process_is_given_up(world: World) -> None:
    await world.send(file("a"))
    for _ in range(MOST_LOST):  # taken, and then the process is killed
        assert await attachments.take(world.store.database, HERE, 1)
        await world.due()
    platform = Files(good)
    await swept(await world.fetcher(platform))
    assert await world.files() == [("failed", fetch.NOT_FETCHED, MOST_LOST + 1)]
    assert platform.asked == []


async def test_what_a_process_leaves_at_its_end_is_due_at_once_and_not_lost(world: World) -> None:
    await world.send(file("a"))
    for tried in range(1, MOST_LOST + 2):
        platform = Files(hanging)
        fetcher = await world.fetcher(platform)
        fetcher.wake(ONE.id, "webchat")
        while not platform.open:
            await asyncio.sleep(0.01)
        await fetcher.aclose()
        assert await world.files() == [("waiting", fetch.NOT_FETCHED, tried)]
    (await world.fetcher(Files(good))).wake(ONE.id, "webchat")
    await world.until("stored")


async def test_a_picture_that_can_not_be_decoded_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "LOOK_SECONDS", 0)

    async def png(attachment: Attachment) -> AsyncGenerator[bytes]:
        yield b"\x89PNG\r\n\x1a\n and more"

    await world.send(file("a"))
    (await world.fetcher(Files(png))).wake(ONE.id, "webchat")
    assert await world.until("stored") == [("stored", None, 1)]
    (content,) = await rows(world.dsn, "select mime_type, width, has_thumbnail from contents")
    assert (content["mime_type"], content["width"], content["has_thumbnail"]) == ("image/png", None, False)


async def test_what_only_the_operator_should_know_is_in_the_log(world: World) -> None:
    error = NoFileError("not now", for_good=True, detail="the token is refused")
    await world.send(file("a"))
    with capture_logs() as lines:
        (await world.fetcher(Files(failing(error)))).wake(ONE.id, "webchat")
        assert await world.until("failed") == [("failed", "not now", 1)]
    assert ("attachment.refused", "the token is refused") in [(line["event"], line.get("reason")) for line in lines]


async def test_an_adapter_without_files_says_so(world: World) -> None:
    class Plain(Platform):
        capabilities = Capabilities("webchat")
        account = "main"

        async def send(self, part: OutboundPart) -> SendResult:
            return Sent("1")

    await world.send(file("a"))
    (await world.fetcher(Plain())).wake(ONE.id, "webchat")
    assert await world.until("failed") == [("failed", "files of this platform can't be fetched", 1)]


async def test_the_wait_that_a_platform_asks_for_is_kept(world: World) -> None:
    error = NoFileError("slow down", for_good=False, retry_after=1000)
    await world.send(file("a"))
    (await world.fetcher(Files(failing(error)))).wake(ONE.id, "webchat")
    while (await world.files())[0][1] != "slow down":
        await asyncio.sleep(0.01)
    (row,) = await rows(world.dsn, "select next_attempt_at > now() + interval '900 s' as later from attachments")
    assert row["later"]


async def test_after_a_day_or_when_the_link_is_over_it_is_given_up(world: World) -> None:
    fetcher = await world.fetcher(Files(failing(*[NoFileError("for now", for_good=False)] * 9)))
    await world.send(file("a"), file("b", expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    await rows(world.dsn, "update attachments set created_at = now() - interval '25 h' where told ->> 'ref' = 'a'")
    fetcher.wake(ONE.id, "webchat")
    assert await world.until("failed", "failed") == [("failed", "for now", 1)] * 2


async def test_what_its_sender_says_is_too_large_is_not_asked_for(world: World) -> None:
    platform = Files(good)
    await world.send(file("a", size=10_001))
    (await world.fetcher(platform)).wake(ONE.id, "webchat")
    assert await world.until("failed") == [("failed", "it is larger than 9.8 KB", 1)]
    assert platform.asked == []


async def test_a_turn_waits_for_a_file_that_hangs_only_so_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TURN_WAITS_SECONDS", 0.3)
    platform = Files(hanging)
    fetcher = await world.fetcher(platform)
    await world.send(file("a"))
    turn = await claimed(world.store, ONE)
    fetcher.wake(turn.conversation_id, "webchat")
    (found,) = (await fetcher.ready(turn.conversation_id, "webchat", turn.messages)).values()
    assert (found.status, found.error) == ("waiting", None)
    await fetcher.aclose()
    assert platform.open == 0


async def test_a_platform_that_hangs_holds_up_no_other(world: World) -> None:
    hangs, works = Files(hanging), Files(good, "slack")
    fetcher = await world.fetcher(hangs, works)
    for number in range(2 * MOST_AT_ONCE):
        await world.send(file("h"), to=chat(number))
        fetcher.wake(chat(number).id, "webchat")
    while hangs.open < MOST_AT_ONCE:
        await asyncio.sleep(0.01)
    other = Address("slack", "main", "a-chat")
    await world.send(file("s"), to=other)
    fetcher.wake(other.id, "slack")
    await world.until(*["waiting"] * 2 * MOST_AT_ONCE, "stored")
    assert hangs.open == MOST_AT_ONCE
    assert works.asked == ["s"]


async def test_a_file_that_takes_too_long_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FETCH_SECONDS", 0.1)
    platform = Files(hanging)
    fetcher = await world.fetcher(platform)
    await world.send(file("a"))
    fetcher.wake(ONE.id, "webchat")
    while (await world.files())[0][1] != "it did not come within 0.1 s":
        await asyncio.sleep(0.01)
    await fetcher.aclose()
    assert platform.open == 0


async def test_who_is_fetching_keeps_others_away_and_a_dead_one_does_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "TAKEN_SECONDS", 0.4)
    monkeypatch.setattr(fetch, "RENEW_SECONDS", 0.05)
    slow, other = Files(hanging), Files(good)
    one, two = await world.fetcher(slow), await world.fetcher(other)
    await world.send(file("a"))
    one.wake(ONE.id, "webchat")
    while not slow.open:
        await asyncio.sleep(0.01)
    until = time.monotonic() + 1
    while time.monotonic() < until:  # longer than it was taken for
        await swept(two)
        assert other.asked == []
        await asyncio.sleep(0.05)
    await one.aclose()
    while not other.asked:
        await swept(two)
    assert await world.until("stored") == [("stored", None, 2)]
    assert (len(slow.asked), len(other.asked)) == (1, 1)


async def test_a_place_that_is_away_for_a_while(world: World) -> None:
    class Away(Blobs):
        away = True

        async def write(self, name: str, source: Any) -> None:
            if self.away:
                raise PlaceError("the bucket is away")
            await super().write(name, source)

    blobs = Away(Folder(world.folder))
    fetcher = await world.fetcher(Files(good), keeper=Keeper(world.store, blobs, Rules(10_000, ["*/*"]), None))
    await world.send(file("a"))
    fetcher.wake(ONE.id, "webchat")
    while (await world.files())[0][1] != "it could not be stored":
        await asyncio.sleep(0.01)
    blobs.away = False
    await world.until("stored")


async def test_a_scanner_that_is_away_for_a_while(world: World) -> None:
    async with running_clamd() as clamd:
        await clamd.stop()
        keeper = Keeper(world.store, Blobs(Folder(world.folder)), Rules(10_000, ["*/*"]), Scanner(clamd.address))
        fetcher = await world.fetcher(Files(good), keeper=keeper)
        await world.send(file("a"))
        fetcher.wake(ONE.id, "webchat")
        while (await world.files())[0][1] != "it can't be scanned at the moment":
            await asyncio.sleep(0.01)
        assert not list(world.folder.iterdir())
        await clamd.start()
        await world.until("stored")


async def test_a_file_that_is_erased_meanwhile_is_stored_for_nobody(world: World) -> None:
    erased = asyncio.Event()

    async def download(attachment: Attachment) -> AsyncGenerator[bytes]:
        yield b"bytes"
        await erased.wait()

    platform = Files(download)
    fetcher = await world.fetcher(platform)
    await world.send(file("a"))
    fetcher.wake(ONE.id, "webchat")
    while not platform.open:
        await asyncio.sleep(0.01)
    await rows(world.dsn, "delete from attachments")
    erased.set()
    while platform.open:
        await asyncio.sleep(0.01)
    while not (found := await rows(world.dsn, "select unused_since from contents")):
        await asyncio.sleep(0.01)
    assert found[0]["unused_since"] is not None  # it will be swept away


async def test_nothing_begins_after_the_end(world: World) -> None:
    platform = Files(good)
    fetcher = await world.fetcher(platform)
    await world.send(file("a"))
    await fetcher.aclose()
    fetcher.wake(ONE.id, "webchat")
    await fetcher.refetch(HERE)
    assert platform.asked == []
