"""Files of the agent: kept before the reply is stored, stored with it, and sent after its text."""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

import pytest

from chat_bridge.agents.contract import Agent, AgentEvent, AgentFile, AgentRequest, Approval, Finished, TextDelta
from chat_bridge.bridge import deliver
from chat_bridge.bridge.answer import Answerer
from chat_bridge.bridge.claim import Running
from chat_bridge.bridge.deliver import Deliverer
from chat_bridge.bridge.fetch import Fetcher
from chat_bridge.bridge.keep import Keeper, Rules
from chat_bridge.bridge.load import Loader
from chat_bridge.bridge.send import Sender
from chat_bridge.errors import PlaceError
from chat_bridge.explain import told
from chat_bridge.model import Attachment, Turn, TurnOutcome
from chat_bridge.platforms.contract import (
    Capabilities,
    Moved,
    OutboundPart,
    Platform,
    RetryLater,
    SendResult,
    Sent,
    Shown,
)
from chat_bridge.settings import load_settings
from chat_bridge.storage import attachments, dead_letters, sessions, turns
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.outbox import SentMessage
from chat_bridge.storage.places import Folder
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from chat_bridge.storage.story import tell_story
from chat_bridge.texts import Texts
from tests.conftest import fresh_database
from tests.fake_telegram.media import picture
from tests.observe import rows
from tests.storage.dialogue import HERE, assert_consistent, chat, claimed, opened, opened_often, said

ONE = chat("one")
TEXT = AgentFile("text/plain", b"the bytes", "a/b.txt")


async def nothing() -> None: ...


class Chat(Platform):
    """Takes files, or not, and answers as it is told; then all is well."""

    account = "main"

    def __init__(self, *answers: SendResult, files: Literal["none", "part", "read"] = "part") -> None:
        self.capabilities = Capabilities("webchat", max_text=100, edits=True, files=files)
        self.answers = list(answers)
        self.sent: list[tuple[int, str, bytes | None]] = []
        self.parts: list[OutboundPart] = []
        self.ends: list[str | None] = []
        self.on_send: Callable[[], Awaitable[None]] = nothing

    async def send(self, part: OutboundPart) -> SendResult:
        await self.on_send()
        self.parts.append(part)
        answer = self.answers.pop(0) if self.answers else Sent(str(len(self.parts)))
        if isinstance(answer, Sent):
            self.sent.append((part.part, part.content.text, part.file.content.read() if part.file else None))
        return answer

    async def show_partial(self, turn: Turn, text: str, preview: str | None) -> Shown:
        return Shown(preview, 60.0)

    async def show_end(self, turn: Turn, outcome: TurnOutcome, text: str | None, preview: str | None) -> None:
        self.ends.append(preview)


class Says(Agent):
    """Yields what the test says."""

    name = "says"

    def __init__(self) -> None:
        self.events: list[AgentEvent] = []

    async def answer(self, request: AgentRequest) -> AsyncGenerator[AgentEvent]:
        for event in self.events:
            yield event
        if not any(isinstance(event, Finished) for event in self.events):
            yield Finished()

    async def check(self) -> str | None:
        return None

    async def aclose(self) -> None: ...


class Place(Folder):
    """A folder that is away when the test says so."""

    away = False

    def writing(self, name: str) -> Any:
        if self.away:
            raise PlaceError("the bucket does not answer")
        return super().writing(name)

    def reading(self, name: str, start: int, most: int) -> Any:
        if self.away:
            raise PlaceError("the bucket does not answer")
        return super().reading(name, start, most)


class World:
    """A store, an agent, and a process that answers on a platform."""

    def __init__(self, dsn: str, store: Store, folder: Path) -> None:
        self.dsn = dsn
        self.store = store
        self.place = Place(folder)
        self.agent = Says()
        self.blobs = Blobs(self.place)
        self.keeper = Keeper(store, self.blobs, Rules(100_000, ["image/*", "text/*"]), None)

    async def begin(self, stack: AsyncExitStack, platform: Platform) -> Answerer:
        platforms = {"webchat": platform}
        hot = await stack.enter_async_context(Hot.open(None))
        self.deliverer = Deliverer(self.store, hot, platforms, Loader(self.store, self.blobs), resend_unknown=False)
        fetcher = Fetcher(self.store, hot, platforms, self.keeper)
        stack.push_async_callback(fetcher.aclose)
        stack.push_async_callback(self.deliverer.aclose)
        settings = load_settings({}, None)
        return Answerer(
            settings, self.store, hot, platforms, self.agent, self.deliverer, fetcher, self.keeper, self.blobs, Texts()
        )

    async def answer(self, platform: Platform, *events: AgentEvent) -> None:
        """The agent answers a message with these events."""
        self.agent.events = list(events)
        await self.store.receive(said(to=ONE))
        turn = await claimed(self.store, ONE)
        async with AsyncExitStack() as stack:
            answerer = await self.begin(stack, platform)
            await answerer.answer(Running(turn, math.inf))
            await self.sent_all()

    async def try_again(self, platform: Platform) -> None:
        """Time passes, and what is due is sent to its end."""
        await rows(self.dsn, "update deliveries set next_attempt_at = now() - interval '1 s'")
        async with AsyncExitStack() as stack:
            await self.begin(stack, platform)
            await self.deliverer.redeliver(HERE)
            await self.sent_all()

    async def sent_all(self) -> None:
        while self.deliverer._sending:
            await asyncio.wait(list(self.deliverer._sending))

    async def deliveries(self) -> list[tuple[int, str, str | None]]:
        found = await rows(self.dsn, "select part, status, error from deliveries order by seq, part")
        return [(row["part"], row["status"], row["error"]) for row in found]

    async def files(self) -> list[tuple[str, str | None, bool]]:
        """Status and name of the replies' files, and whether their contents count as used."""
        found = await rows(
            self.dsn,
            "select a.status, a.told ->> 'name' as name, c.id is not null and c.unused_since is null as used "
            "from attachments a left join contents c on c.id = a.content_id order by a.seq, name",
        )
        return [(row["status"], row["name"], row["used"]) for row in found]

    async def reply(self) -> tuple[str, str, int]:
        """Text, kind and number of files of the newest message."""
        newest = (await self.store.history(ONE.id))[-1]
        assert newest.direction == "outbound"
        return newest.text, newest.content_type, len(newest.attachments)

    async def outcome(self) -> str:
        return (await rows(self.dsn, "select outcome from turns order by started_at desc limit 1"))[0]["outcome"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with fresh_database("18", template=True) as dsn, opened(dsn) as store:
        yield World(dsn, store, tmp_path)
        await assert_consistent(dsn)


async def test_files_follow_the_text(world: World) -> None:
    platform, png = Chat(), picture(64, 48)
    long = "word " * 30
    await world.answer(platform, TextDelta(long), TEXT, AgentFile("text/plain", png), TextDelta("end"), TEXT)
    texts = [text for _, text, file in platform.sent if file is None]
    assert [(part, file) for part, _, file in platform.sent] == [
        (1, None), (2, None), (3, b"the bytes"), (4, png), (5, b"the bytes")
    ]  # fmt: skip
    assert " ".join(texts).split() == f"{long}end".split()
    told = [part.file for part in platform.parts if part.file]
    assert [(file.kind, file.mime_type, file.name, file.size) for file in told] == [
        ("file", "text/plain", "b.txt", 9),
        ("image", "image/png", "image.png", len(png)),  # what the bytes say
        ("file", "text/plain", "b.txt", 9),
    ]
    assert (told[1].width, told[1].height) == (64, 48)
    assert len({part.idempotency_key for part in platform.parts}) == 5
    assert await world.files() == [("stored", "b.txt", True), ("stored", "b.txt", True), ("stored", None, True)]
    assert len(await rows(world.dsn, "select from contents")) == 2
    assert await world.deliveries() == [(number, "sent", None) for number in range(1, 6)]


async def test_files_alone_are_a_reply(world: World) -> None:
    platform = Chat()
    await world.answer(platform, TEXT)
    assert platform.sent == [(1, "", b"the bytes")]
    assert await world.reply() == ("", "text", 1)
    assert await world.outcome() == "answered"


async def test_a_preview_becomes_no_file(world: World) -> None:
    platform = Chat()
    await world.store.receive(said(to=ONE))
    turn = await claimed(world.store, ONE)
    await turns.note(world.store.database, turn, {"preview": "77"})
    await turns.supersede(world.store.database, ONE.id, "its worker died")
    await world.answer(platform, TEXT)
    assert platform.parts[0].replaces is None
    assert platform.ends == ["77"], "it is taken away"


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (AgentFile("image/png", picture(4, 4) + bytes(100_000), "a.png"), "it is larger than 97.7 KB"),
        (
            AgentFile("application/zip", b"PK\x03\x04" + bytes(40), "a.png"),
            "files of type application/zip are not taken",
        ),
        (AgentFile("image/png", b"", "a.png"), "it is empty"),
    ],
)
async def test_what_is_not_let_in_is_told(world: World, file: AgentFile, reason: str) -> None:
    platform = Chat()
    await world.answer(platform, TextDelta("Look:"), file, TEXT)
    assert await world.reply() == (f"Look:\n\n(The file a.png can't be sent: {reason}.)", "text", 1)
    assert [file for _, _, file in platform.sent] == [None, b"the bytes"]


async def test_a_place_that_is_away_costs_the_file_only(world: World) -> None:
    platform = Chat()
    world.place.away = True
    await world.answer(platform, TEXT)
    assert await world.reply() == ("(The file b.txt can't be sent: it could not be stored.)", "text", 0)
    assert await world.outcome() == "answered"
    assert await world.files() == []


async def test_ten_files_are_the_most(world: World) -> None:
    platform = Chat()
    await world.answer(platform, *(AgentFile("text/plain", b"%d" % number, f"{number}.txt") for number in range(30)))
    text, _, files = await world.reply()
    assert files == 10
    assert text.count("a reply has 10 files at most") == 10, "the user is not told of every one"
    assert [file for _, _, file in platform.sent if file is not None] == [b"%d" % number for number in range(10)]


async def test_a_platform_without_files_says_so_in_the_text(world: World) -> None:
    platform = Chat(files="none")
    await world.answer(platform, TEXT)
    assert platform.sent == [(1, "(There is a file, b.txt, which can't be sent in this chat.)", None)]
    assert await world.files() == [("stored", "b.txt", True)], "it is with the message all the same"


@pytest.mark.parametrize("events", [[TextDelta("look"), TEXT], [TEXT]], ids=["with a text", "alone"])
async def test_a_platform_that_reads_the_store_is_sent_no_file(world: World, events: list[AgentEvent]) -> None:
    platform = Chat(files="read")

    async def leave() -> None:
        world.place.away = True

    platform.on_send = leave
    await world.answer(platform, *events)
    assert platform.sent == [(1, "look" if len(events) > 1 else "", None)]
    assert await world.files() == [("stored", "b.txt", True)]
    assert await world.deliveries() == [(1, "sent", None)]


async def test_an_upload_does_not_hold_up_the_next_turn(world: World) -> None:
    platform, uploading, go_on = Chat(), asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        if platform.sent:
            uploading.set()
            await go_on.wait()

    platform.on_send = hang
    async with AsyncExitStack() as stack:
        answerer = await world.begin(stack, platform)
        for events in ([TextDelta("one"), TEXT], [TextDelta("two")]):
            world.agent.events = list(events)
            await world.store.receive(said(to=ONE))
            await answerer.answer(Running(await claimed(world.store, ONE), math.inf))
        await uploading.wait()
        assert [text for _, text, _ in platform.sent] == ["one"], "what follows waits for its turn"
        go_on.set()
        await world.sent_all()
    assert platform.sent == [(1, "one", None), (2, "", b"the bytes"), (1, "two", None)]


@pytest.mark.parametrize(
    ("end", "files"),
    [
        (Finished(TurnOutcome.TRUNCATED), 1),
        (Finished(TurnOutcome.APPROVAL, approval=Approval("1", "2", "tool")), 1),
        (Finished(TurnOutcome.BLOCKED), 0),
    ],
)
async def test_other_ways_to_end(world: World, end: Finished, files: int) -> None:
    platform = Chat()
    await world.answer(platform, TextDelta("Look"), TEXT, end)
    assert (await world.reply())[2] == files
    assert len([file for _, _, file in platform.sent if file]) == files
    assert await world.files() == [("stored", "b.txt", True)] * files


async def test_who_lost_the_turn_leaves_no_file(world: World) -> None:
    platform = Chat()

    class Late(Says):
        async def answer(self, request: AgentRequest) -> AsyncGenerator[AgentEvent]:
            yield TEXT
            await turns.supersede(world.store.database, ONE.id, "the lease ran out")
            yield Finished()

    world.agent = Late()
    await world.answer(platform)
    assert platform.parts == []
    assert await world.files() == []
    (content,) = await rows(world.dsn, "select status, unused_since from contents")
    assert content["unused_since"] is not None
    assert content["status"] == "writing", "so that it is deleted in an hour"


async def test_a_content_that_is_gone_by_then_is_told_as_missing(world: World) -> None:
    platform = Chat()

    class Slow(Says):
        async def answer(self, request: AgentRequest) -> AsyncGenerator[AgentEvent]:
            yield TEXT
            await rows(world.dsn, "update contents set status = 'deleting'")
            yield TextDelta("done")
            yield Finished()

    world.agent = Slow()
    await world.answer(platform)
    assert await world.deliveries() == [(1, "sent", None), (2, "failed", "the file is not kept any more")]
    assert await world.files() == [("failed", "b.txt", False)]


async def test_a_file_is_sent_when_its_place_is_back(world: World) -> None:
    platform = Chat()

    async def leave() -> None:
        world.place.away = True

    platform.on_send = leave
    await world.answer(platform, TextDelta("text"), TEXT)
    ((_, _, reason),) = [each for each in await world.deliveries() if each[1] == "pending"]
    assert reason == "the file can't be read: the bucket does not answer"
    world.place.away = False
    await world.try_again(platform)
    assert platform.sent == [(1, "text", None), (2, "", b"the bytes")]


async def test_what_a_platform_answers_to_a_file_means_what_it_means_to_a_text(world: World) -> None:
    platform = Chat(Sent("1"), RetryLater("HTTP 500"), RetryLater("no answer", maybe_sent=True))
    await world.answer(platform, TextDelta("text"), TEXT, TEXT)
    assert [status for _, status, _ in await world.deliveries()] == ["sent", "pending", "pending"]
    await world.try_again(platform)
    assert [status for _, status, _ in await world.deliveries()] == ["sent", "unknown", "sent"]
    assert platform.sent == [(1, "text", None), (3, "", b"the bytes")]


async def test_a_process_that_died_while_keeping_is_followed_by_one_that_keeps(world: World, tmp_path: Path) -> None:
    platform = Chat()

    class Dying(Place):
        def writing(self, name: str) -> Any:
            raise asyncio.CancelledError  # as far as the store goes, what kill -9 does

    dying = Keeper(world.store, Blobs(Dying(tmp_path)), Rules(100_000, ["*/*"]), None)

    async def pieces() -> AsyncGenerator[bytes]:
        yield TEXT.data

    with pytest.raises(asyncio.CancelledError):
        await dying.keep(pieces(), TEXT.mime_type)
    assert [row["status"] for row in await rows(world.dsn, "select status from contents")] == ["writing"]
    await world.answer(platform, TEXT)
    assert platform.sent == [(1, "", b"the bytes")]
    assert [row["status"] for row in await rows(world.dsn, "select status from contents")] == ["stored"]


async def test_replicas_that_answer_with_the_same_files_disturb_nobody(world: World) -> None:
    files = [AgentFile("text/plain", b"%d" % number, f"{number}.txt") for number in range(5)]

    class Mixed(Says):
        async def answer(self, request: AgentRequest) -> AsyncGenerator[AgentEvent]:
            for file in files if int(request.messages[0].text) % 2 else reversed(files):
                yield file
            yield Finished()

    world.agent = Mixed()
    platform = Chat()
    async with AsyncExitStack() as stack, opened_often(world.dsn, 3) as stores:
        answering: list[Any] = []
        for number in range(12):
            world.store = stores[number % 3]
            world.keeper = Keeper(world.store, world.blobs, Rules(100_000, ["*/*"]), None)
            answerer = await world.begin(stack, platform)
            await world.store.receive(said(str(number), to=chat(number)))
            turn = await claimed(world.store, chat(number))
            answering.append(answerer.answer(Running(turn, math.inf)))
        await asyncio.gather(*answering)
        while await rows(world.dsn, "select from deliveries where status <> 'sent'"):
            await asyncio.sleep(0.01)
    assert len(platform.sent) == 60
    assert len(await world.files()) == 60
    assert {row["unused_since"] for row in await rows(world.dsn, "select unused_since from contents")} == {None}


async def test_files_are_found_after_a_move(world: World) -> None:
    platform = Chat(Sent("1"), Moved("elsewhere"))
    await world.answer(platform, TextDelta("text"), TEXT)
    await world.try_again(platform)
    assert [(part.address.conversation, part.file is not None) for part in platform.parts] == [
        (ONE.conversation, False),
        (ONE.conversation, True),
        ("elsewhere", True),
    ]
    assert platform.sent[-1] == (2, "", b"the bytes")


async def test_an_upload_that_takes_long_is_nobody_elses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "RENEW_SECONDS", 0.01)
    platform = Chat()
    due = "select part from deliveries where part = 2 and next_attempt_at > clock_timestamp() + interval '20 s'"

    async def uploading() -> None:
        if platform.sent:  # the file
            await rows(world.dsn, "update deliveries set next_attempt_at = now() - interval '1 s'")
            while not await rows(world.dsn, due):
                await asyncio.sleep(0.01)

    platform.on_send = uploading
    await world.answer(platform, TextDelta("text"), TEXT)
    assert await world.deliveries() == [(1, "sent", None), (2, "sent", None)]


async def test_a_dead_letter_of_a_file_is_sent_again(world: World) -> None:
    platform = Chat(Sent("1"), RetryLater("no answer", maybe_sent=True))
    await world.answer(platform, TextDelta("text"), TEXT)
    (letter,) = await dead_letters.list_dead_letters(world.store.database)
    assert (letter.part, letter.status) == (2, "unknown")
    story = await tell_story(world.store.database, letter.message_id)
    assert story is not None
    delivered = [line.split(", tries")[0].split(maxsplit=1)[1] for line in told(story) if "  delivery" in line]
    assert delivered == ["part 1 sent", "part 2 (b.txt) unknown"]
    assert await dead_letters.retry(world.store, letter.message_id)
    await world.try_again(platform)
    assert platform.sent[-1] == (2, "", b"the bytes")


# What programs send


async def uploaded(world: World, name: str) -> Attachment:
    async def pieces() -> AsyncGenerator[bytes]:
        yield name.encode()

    told = Attachment("file", "text/plain", "", name)
    upload = await attachments.add_upload(world.store.database, ONE.id, told)
    content = await world.keeper.keep(pieces(), "text/plain")
    assert await attachments.stored(world.store.database, ONE.id, upload, content)
    return Attachment("file", "text/plain", attachments.upload_ref(upload), name)


NOTE = "(There is a file, a.txt, which can't be sent in this chat.)"


@pytest.mark.parametrize(
    ("way", "text", "parts"),
    [
        ("part", "look", [(1, "look", None), (2, "", b"a.txt")]),
        ("part", "", [(1, "", b"a.txt")]),
        ("read", "look", [(1, "look", None)]),
        ("read", "", [(1, "", None)]),
        ("none", "look", [(1, f"look\n\n{NOTE}", None)]),
        ("none", "", [(1, NOTE, None)]),
    ],
)
async def test_files_go_as_those_of_replies_do(
    world: World, way: Literal["none", "part", "read"], text: str, parts: list[tuple[int, str, bytes | None]]
) -> None:
    platform, file = Chat(files=way), await uploaded(world, "a.txt")
    receipt = await world.store.receive(said(to=ONE))
    session = await sessions.get_session(world.store.database, receipt.session_id)
    assert session is not None
    async with AsyncExitStack() as stack:
        await world.begin(stack, platform)
        sender = Sender(world.store, {"webchat": platform}, world.deliverer, Texts())
        first = await sender.send(session, "1", text, [file])
        assert isinstance(first, SentMessage)
        again = await sender.send(session, "1", text, [file])
        assert again == SentMessage("duplicate", *first[1:])
        while await rows(world.dsn, "select from deliveries where status <> 'sent'"):
            await asyncio.sleep(0.01)
    assert platform.sent == parts
    assert await world.files() == [("stored", "a.txt", True)], "it is with the message all the same"
