"""What every adapter has to do, as tests. `docs/platforms/writing-an-adapter.md` tells how to run them on yours.

A `Harness` plays the platform and its users. A test class names it, and what kind of adapter it is for:

    class TestPager(PeerContract, WebhookContract):
        harness = PagerHarness

`AdapterContract` is for all adapters, `PeerContract` for those that call something which may fail, `WebhookContract`
and `PollContract` for those that get their events in one of these ways, `FileContract` for those with a `download`.
"""

import asyncio
import copy
import io
import json
import logging
import os
import re
import socket
import stat
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from PIL import Image
from structlog.testing import capture_logs

from chat_bridge.errors import StorageError
from chat_bridge.model import (
    Address,
    Attachment,
    EventKind,
    InboundEvent,
    PendingMessage,
    Seq,
    Turn,
    TurnOutcome,
    User,
    kind_of,
    new_message_id,
    new_session_id,
    new_turn_id,
)
from chat_bridge.platforms.contract import (
    Button,
    Moved,
    NoFileError,
    NotAuthenticError,
    OutboundFile,
    OutboundPart,
    Platform,
    Refused,
    RefusedUs,
    RetryAfter,
    RetryLater,
    SendResult,
    Sent,
    UnreachableError,
    WebhookRequest,
)
from chat_bridge.platforms.rich_text import Rendered

LONGEST_ID = 1000  # bytes; the store takes no longer ones
LARGEST_PIECE = 2**20
LARGE_ID = str(2**53 + 1)  # the first whole number that a double can't hold

FILE = bytes(range(256)) * 1200  # several pieces
KINDS = ("audio/ogg", "audio/mpeg", "video/mp4", "application/octet-stream")

Place = Literal["private", "group", "thread"]
Change = Literal["edit", "delete"]


class Fault(StrEnum):
    """What the platform does with the next message that it is sent."""

    REFUSED = "refused"  # it does not take this one
    GONE = "gone"  # the user has blocked us, or the conversation is no more
    WAIT = "wait"  # too many
    CREDENTIALS = "credentials"  # it does not take our key
    MOVED = "moved"  # the conversation has a new id
    SERVER_ERROR = "server_error"  # an error of its own, nothing was done
    LOST_ANSWER = "lost_answer"  # it was done, but the answer does not arrive


class FileFault(StrEnum):
    """What the platform does when it is asked for a file the next time."""

    GONE = "gone"  # it will never give it
    SERVER_ERROR = "server_error"
    CUT = "cut"  # the connection breaks in the middle
    REDIRECTION = "redirection"  # to another host
    WEB_PAGE = "web_page"  # something in between answers, with 200
    SILENCE = "silence"  # in the middle


@dataclass(frozen=True)
class Seen:
    """A message of the bot, as its users see it."""

    text: str
    reply_to: str | None = None
    buttons: tuple[str, ...] = ()
    file: bytes | None = None


class Harness(ABC):
    """A platform and its users, for one test.

    `places` are where its users can write, `changes` what they can do to a message, `faults` what `break_next` knows,
    `file_faults` what `break_next_file` does, `secrets` the texts that must never be seen anywhere. `platform` is an
    adapter that is connected.
    """

    places: ClassVar[Sequence[Place]] = ("private",)
    changes: ClassVar[Sequence[Change]] = ()
    faults: ClassVar[Sequence[Fault]] = ()
    file_faults: ClassVar[Sequence[FileFault]] = ()
    secrets: ClassVar[Sequence[str]] = ()
    platform: Platform

    @abstractmethod
    async def begin(self, stack: AsyncExitStack) -> None:
        """Start the platform; what must end with the test goes onto the stack."""

    @abstractmethod
    def make(self) -> Platform:
        """A new adapter for it, not connected yet."""

    @abstractmethod
    async def address(self, place: Place) -> Address:
        """The conversation at a place; the same at each call."""

    @abstractmethod
    async def seen(self, place: Place) -> Sequence[Seen]:
        """All messages of the bot at a place, oldest first."""

    def store(self, part: OutboundPart) -> None:  # noqa: B027 - few platforms read from there
        """The bridge has stored this part, as it does before it sends it."""

    # For PeerContract

    port: int
    """Where the platform listens on this machine."""

    def make_unreachable(self) -> Platform:
        """An adapter for a platform which is away: nobody listens there."""
        raise NotImplementedError

    async def break_next(self, fault: Fault) -> None:
        """Have the next message that is sent fail."""
        raise NotImplementedError

    async def break_next_upload(self, fault: Fault) -> None:
        """The same for the next file that is sent."""
        raise NotImplementedError

    # For WebhookContract and PollContract

    async def write(self, text: str, place: Place = "private", *, addressed: bool = True) -> Any:
        """A user writes. Of a webhook, gives the request that it leads to."""
        raise NotImplementedError

    async def change(self, how: Change, text: str) -> WebhookRequest:
        """The user edits (into `text`) or deletes what they wrote last, in private."""
        raise NotImplementedError

    def authentic(self, body: bytes) -> WebhookRequest:
        """A request with this body that proves to be the platform's."""
        raise NotImplementedError

    def forged(self, request: WebhookRequest) -> Iterator[WebhookRequest]:
        """The request in all ways in which it does not prove that; `spoiled` makes most of them."""
        raise NotImplementedError

    # For FileContract

    async def send_file(self, content: bytes) -> Attachment:
        """A user sends a file in private; gives what the event says of it."""
        raise NotImplementedError

    async def break_next_file(self, fault: FileFault) -> None:
        """Have the next download fail."""
        raise NotImplementedError


def spoiled(request: WebhookRequest, header: str) -> Iterator[WebhookRequest]:
    """The request with this header missing or wrong."""
    right = request.headers[header]
    others = {name: value for name, value in request.headers.items() if name != header}
    yield replace(request, headers=others)
    for wrong in ("", right[:-1], right + "0", right.swapcase(), f" {right}", "é", "\udcff", "\x00", "0" * 10_000):
        if wrong != right:
            yield replace(request, headers={**others, header: wrong})


def unused_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def part(address: Address, text: str, *, seq: int = 2, **more: Any) -> OutboundPart:
    """A part of a reply of one part, with a key of its own."""
    content = more.pop("content", None)
    message = new_message_id()
    return OutboundPart(
        conversation_id=address.id,
        address=address,
        message_id=message,
        seq=Seq(seq),
        part=more.pop("number", 1),
        content=content or Rendered(text),
        idempotency_key=str(message),
        **more,
    )


def file_part(address: Address, file: OutboundFile, *, seq: int = 2, number: int = 1) -> OutboundPart:
    """A part that is a file."""
    return part(address, "", file=file, seq=seq, number=number)


def outbound(mime_type: str, content: bytes, **more: Any) -> OutboundFile:
    """A file as the bridge gives it."""
    name = more.pop("name", "a file")
    return OutboundFile(kind_of(mime_type), mime_type, name, len(content), io.BytesIO(content), **more)


def turn_in(address: Address, asked: str | None = None) -> Turn:
    """A turn with one message."""
    message = PendingMessage(
        id=new_message_id(),
        seq=Seq(1),
        sender_id="1",
        sender_name="Linh",
        text="hello?",
        attachments=(),
        created_at=datetime.now(UTC),
        metadata={},
        platform_message_id=asked,
    )
    return Turn(new_turn_id(), address.id, new_session_id(), address, "1", [message], {})


PLAIN = {
    "a word": "hello",
    "many words": "word " * 5000,
    "one long word": "a" * 10_001,
    "lines": "a line of text\n" * 1500,
    "paragraphs": "A sentence. Another one!\n\n" * 600,
    "emoji": "👋🏽 " * 3000,
    "emoji of several": "👩‍👩‍👧‍👦" * 1500,
    "no spaces": "日本語。" * 3000,
    "accents": "ế" * 5000,
}
ODD = [
    *("**", "_", "`", "```", "```\n```", "> ", "# ", "- ", "[](x)", "[a](b", "![]()", "<!-- -->", "<b>", "|a|\n|-|"),
    *("\u200b", "\x00", "a\x00b", "\\", "&amp;", "1.", "\u202eabc", "~~", "***\n***", "  indented", "\tcode"),
]


def letters(text: str) -> str:
    """A text without blanks, which may be lost where it is cut."""
    return "".join(text.split())


class AdapterContract:
    """For every adapter."""

    harness: ClassVar[type[Harness]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each place, fault or change that the harness knows."""
        known: dict[str, Sequence[str]]
        known = {"place": self.harness.places, "fault": self.harness.faults, "change": self.harness.changes}
        known["file_fault"] = self.harness.file_faults
        for name, values in known.items():
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values)

    @pytest.fixture
    async def world(self) -> AsyncGenerator[Harness]:
        """The platform of one test."""
        async with AsyncExitStack() as stack:
            world = self.harness()
            await world.begin(stack)
            world.platform = world.make()
            stack.push_async_callback(world.platform.aclose)
            await world.platform.connect()
            yield world

    # What it says of itself

    async def test_its_capabilities_are_what_it_does(self, world: Harness) -> None:
        platform, own = world.platform, type(world.platform)
        can = platform.capabilities
        assert re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", can.name)
        assert platform.account
        assert isinstance(platform.account, str)
        assert can.max_text is None or can.max_text >= 2
        assert can.groups is ("group" in self.harness.places)
        assert can.threads is ("thread" in self.harness.places)
        assert can.edits is (own.show_partial is not Platform.show_partial)
        assert can.min_edit_interval > 0 or not can.edits
        assert can.typing_seconds == 0 or own.show_typing is not Platform.show_typing
        assert (can.webhook and not platform.polls) is isinstance(self, WebhookContract)
        assert platform.polls is isinstance(self, PollContract)

    async def test_its_addresses_are_its_own(self, world: Harness, place: Place) -> None:
        address = await world.address(place)
        assert (address.platform, address.account) == (world.platform.capabilities.name, world.platform.account)
        assert address == await world.address(place)
        assert bool(address.thread) is (place == "thread")

    async def test_a_check_finds_nothing_wrong(self, world: Harness) -> None:
        findings = await world.platform.check()
        assert {finding.status for finding in findings} <= {"ok"}
        assert all(finding.subject and finding.text for finding in findings)

    async def test_it_can_be_closed_twice_and_unused(self, world: Harness) -> None:
        await world.make().aclose()
        await world.platform.aclose()
        await world.platform.aclose()

    async def test_a_file_that_nobody_sent_can_not_be_had(self, world: Harness) -> None:
        can_fetch = type(world.platform).download is not Platform.download
        assert can_fetch or not self.harness.file_faults
        for ref in ("", "nonsense", "../../etc/passwd", "\x00", "http://127.0.0.1:1/", "x" * 10_000):
            with pytest.raises(NoFileError) as caught:
                await downloaded(world.platform, Attachment("file", "text/plain", ref))
            assert str(caught.value)
            assert caught.value.for_good or can_fetch

    # Rendering

    async def test_a_text_is_cut_without_loss(self, world: Harness) -> None:
        for name, text in PLAIN.items():
            parts = self.rendered(world, text)
            assert letters("".join(each.text for each in parts)) == letters(text), name

    async def test_a_text_that_is_not_blank_has_parts(self, world: Harness) -> None:
        for text in ODD:
            assert self.rendered(world, text), text

    async def test_a_text_of_the_longest_length_is_one_part(self, world: Harness) -> None:
        most = world.platform.capabilities.max_text or 10_000
        assert len(self.rendered(world, "a" * most)) == 1

    @staticmethod
    def rendered(world: Harness, text: str) -> Sequence[Rendered]:
        """The parts, each of which has been looked at."""
        parts, can = world.platform.render(text), world.platform.capabilities
        assert list(parts) == list(world.platform.render(text)) == list(world.make().render(text))
        for each in parts:
            units = (
                len(each.text.encode("utf-16-le", "surrogatepass")) // 2 if can.text_unit == "utf16" else len(each.text)
            )
            assert can.max_text is None or units <= can.max_text
            assert each.text.strip()
            assert all(0 <= span.offset < span.end <= len(each.text) for span in each.spans)
        return parts

    # Sending

    async def send(self, world: Harness, message: OutboundPart) -> SendResult:
        """Store it and send it, as the bridge does."""
        world.store(message)
        return await world.platform.send(message)

    async def test_a_reply_arrives_where_it_belongs(self, world: Harness, place: Place) -> None:
        result = await self.send(world, part(await world.address(place), "xin chào 👋🏽"))
        assert isinstance(result, Sent)
        assert isinstance(result.platform_message_id, str)
        assert result.platform_message_id
        assert not result.duplicate
        for each in self.harness.places:
            assert [seen.text for seen in await world.seen(each)] == (["xin chào 👋🏽"] if each == place else [])

    async def test_every_part_of_a_long_answer_arrives(self, world: Harness) -> None:
        address, text = await world.address("private"), PLAIN["paragraphs"]
        parts = world.platform.render(text)
        for number, content in enumerate(parts, 1):
            message = part(address, "", content=content, number=number, seq=number)
            assert isinstance(await self.send(world, message), Sent)
        seen = await world.seen("private")
        assert [each.text for each in seen] == [each.text for each in parts]

    async def test_only_in_groups_a_reply_quotes(self, world: Harness, place: Place) -> None:
        address = await world.address(place)
        asked = None if place == "private" else await self.asked(world, place)
        assert isinstance(await self.send(world, part(address, "yes", reply_to=asked)), Sent)
        assert await world.seen(place) == [Seen("yes", reply_to=asked)]

    @staticmethod
    async def asked(world: Harness, place: Place) -> str:
        """The id of a message that somebody wrote."""
        (event,) = world.platform.events(await world.write("hello?", place))
        assert event.platform_message_id
        return event.platform_message_id

    async def test_buttons_arrive_if_it_has_some(self, world: Harness) -> None:
        buttons = (Button("Approve", "/approve 1"), Button("Decline", "/decline 1"))
        assert isinstance(await self.send(world, part(await world.address("private"), "Sure?", buttons=buttons)), Sent)
        labels = ("Approve", "Decline") if world.platform.capabilities.buttons else ()
        assert await world.seen("private") == [Seen("Sure?", buttons=labels)]

    async def test_the_same_again_is_seen_once_if_it_says_so(self, world: Harness) -> None:
        message = part(await world.address("private"), "once")
        results = [await self.send(world, message) for _ in range(3)]
        assert all(isinstance(result, Sent) for result in results)
        idempotent = world.platform.capabilities.idempotent_send
        assert len(await world.seen("private")) == (1 if idempotent else 3)
        names = {result.platform_message_id for result in results if isinstance(result, Sent)}
        assert len(names) == (1 if idempotent else 3)

    async def test_files_arrive_as_they_are_and_in_their_order(self, world: Harness, place: Place) -> None:
        if world.platform.capabilities.files != "part":
            return  # it is sent none
        address = await world.address(place)
        png = io.BytesIO()
        Image.new("RGB", (64, 48)).save(png, "PNG")
        contents = ["xin chào".encode(), png.getvalue(), *[FILE] * len(KINDS)]
        files = [
            outbound("text/plain", contents[0], name='tệp "1".txt'),
            outbound("image/png", contents[1], width=64, height=48),
            *(outbound(mime_type, FILE) for mime_type in KINDS),
        ]
        assert isinstance(await self.send(world, part(address, "look", seq=1)), Sent)
        for number, file in enumerate(files, 2):
            sent = await self.send(world, file_part(address, file, seq=number, number=number))
            assert isinstance(sent, Sent)
            assert sent.platform_message_id
        seen = await world.seen(place)
        assert [each.text for each in seen] == ["look"] + [""] * len(files)
        arrived = [each.file == content for each, content in zip(seen, [None, *contents], strict=True)]
        assert arrived == [True] * len(seen)

    # Showing

    async def test_a_preview_becomes_the_reply(self, world: Harness, place: Place) -> None:
        address = await world.address(place)
        turn, preview = turn_in(address), None
        await world.platform.show_typing(turn)
        for text in ("", " ", "h", "half", "half", "half of"):
            shown = await world.platform.show_partial(turn, text, preview)
            assert shown.wait_seconds > 0
            preview = shown.preview
        message = part(address, "half of it", replaces=preview)
        for _ in range(2 if preview else 1):
            assert isinstance(await self.send(world, message), Sent)
        await world.platform.show_end(turn, TurnOutcome.ANSWERED, None, None)
        assert [seen.text for seen in await world.seen(place)] == ["half of it"]

    async def test_a_preview_that_becomes_no_reply_goes(self, world: Harness, place: Place) -> None:
        turn = turn_in(await world.address(place))
        shown = await world.platform.show_partial(turn, "half", None)
        await world.platform.show_end(turn, TurnOutcome.ERROR, "Sorry", shown.preview)
        assert await world.seen(place) == []


EXPECTED: Mapping[Fault, Callable[[SendResult], bool]] = {
    Fault.REFUSED: lambda result: isinstance(result, Refused) and result.scope == "part",
    Fault.GONE: lambda result: isinstance(result, Refused) and result.scope == "conversation",
    Fault.WAIT: lambda result: isinstance(result, RetryAfter) and 0 < result.seconds <= 24 * 3600,
    Fault.CREDENTIALS: lambda result: isinstance(result, RefusedUs),
    Fault.MOVED: lambda result: isinstance(result, Moved) and bool(result.conversation),
    Fault.SERVER_ERROR: lambda result: isinstance(result, RetryLater),
    Fault.LOST_ANSWER: lambda result: isinstance(result, RetryLater) and result.maybe_sent,
}


class PeerContract(AdapterContract):
    """For an adapter that calls something which may fail."""

    @pytest.fixture
    async def lonely(self, world: Harness) -> AsyncGenerator[Platform]:
        """An adapter whose platform is away."""
        platform = world.make_unreachable()
        yield platform
        await platform.aclose()

    async def test_a_failed_send_says_what_it_means(self, world: Harness, fault: Fault) -> None:
        await world.break_next(fault)
        result = await self.send(world, part(await world.address("private"), "hello"))
        assert EXPECTED[fault](result), result
        assert len(await world.seen("private")) == (1 if fault is Fault.LOST_ANSWER else 0)

    async def test_a_file_that_was_not_sent_says_what_it_means(self, world: Harness, fault: Fault) -> None:
        if world.platform.capabilities.files != "part":
            return  # it is sent none
        address, file = await world.address("private"), outbound("application/zip", FILE)
        await world.break_next_upload(fault)
        result = await self.send(world, file_part(address, file))
        assert EXPECTED[fault](result), result
        there = fault is Fault.LOST_ANSWER
        assert len(await world.seen("private")) == there
        if not isinstance(result, RetryAfter):  # the same file, which was read already
            assert isinstance(await self.send(world, file_part(address, file)), Sent)
            assert [each.file == FILE for each in await world.seen("private")] == [True] * (1 + there)

    @pytest.mark.parametrize("passing", [Fault.SERVER_ERROR, Fault.LOST_ANSWER])
    async def test_what_failed_for_a_while_can_be_sent_again(self, world: Harness, passing: Fault) -> None:
        message = part(await world.address("private"), "hello")
        await world.break_next(passing)
        await self.send(world, message)
        assert isinstance(await self.send(world, message), Sent)
        twice = passing is Fault.LOST_ANSWER and not world.platform.capabilities.idempotent_send
        assert len(await world.seen("private")) == (2 if twice else 1)

    async def test_without_a_connection_nothing_was_sent(self, world: Harness, lonely: Platform) -> None:
        result = await lonely.send(part(await world.address("private"), "hello"))
        assert isinstance(result, RetryLater)
        assert not result.maybe_sent
        assert result.error

    async def test_what_only_shows_never_fails(self, world: Harness, lonely: Platform, place: Place) -> None:
        address = await world.address(place)
        turn = turn_in(address, asked="7")
        await lonely.show_typing(turn)
        shown = await lonely.show_partial(turn, "half", None)
        assert shown.wait_seconds > 0
        await lonely.show_partial(turn, "half of", "7")
        await lonely.show_end(turn, TurnOutcome.ERROR, "Sorry", "7")
        await lonely.acknowledge(
            InboundEvent(
                address, "1", User("1"), "/yes", EventKind.BUTTON, platform_message_id="7", reply_handle="handle"
            )
        )

    async def test_a_platform_that_is_away_is_a_problem_to_the_doctor(self, lonely: Platform) -> None:
        findings = await lonely.check()
        assert "problem" in [finding.status for finding in findings]
        assert all(finding.subject and finding.text for finding in findings)

    async def test_a_platform_that_is_away_stops_no_start(self, lonely: Platform) -> None:
        with suppress(UnreachableError):
            await lonely.connect()

    async def test_no_connection_stays_open(self, world: Harness) -> None:
        message = part(await world.address("private"), "hello")
        before = connections_to(world.port)
        platform = world.make()
        await platform.connect()
        await platform.send(message)
        assert connections_to(world.port) > before
        await platform.aclose()
        assert connections_to(world.port) == before

    async def test_no_secret_is_told(self, world: Harness, lonely: Platform, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        address = await world.address("private")
        turn, told = turn_in(address), [repr(world.platform), repr(lonely)]
        with capture_logs() as lines:
            for fault in self.harness.faults:
                await world.break_next(fault)
                told.append(repr(await self.send(world, part(address, "hello"))))
            told.append(repr(await lonely.send(part(address, "hello"))))
            for platform in (world.platform, lonely):
                told.append(repr(await platform.check()))
                told.append(repr(await platform.show_partial(turn, "half", None)))
                await platform.show_typing(turn)
                await platform.show_end(turn, TurnOutcome.ERROR, None, "7")
            try:
                await lonely.connect()
            except UnreachableError as error:
                told.append(f"{error!r} {error.__cause__!r}")
        everything = "\n".join([*told, *map(str, lines), caplog.text])
        assert self.harness.secrets
        assert not [secret for secret in self.harness.secrets if secret in everything]


class FileContract(PeerContract):
    """For an adapter whose users can send files."""

    async def test_a_file_comes_as_it_was_sent(self, world: Harness) -> None:
        attachment = await world.send_file(FILE)
        json.dumps(asdict(attachment) | {"expires_at": None})
        assert attachment.ref
        assert attachment.size in (None, len(FILE))
        for platform in (world.platform, world.platform, world.make()):  # again, and in another process
            pieces = [piece async for piece in platform.download(attachment)]
            assert b"".join(pieces) == FILE
            assert max(map(len, pieces)) <= LARGEST_PIECE
            await platform.aclose()

    async def test_a_download_that_fails_says_so_and_can_be_tried_again(
        self, world: Harness, file_fault: FileFault
    ) -> None:
        attachment = await world.send_file(FILE)
        await world.break_next_file(file_fault)
        with pytest.raises(NoFileError) as caught:
            await downloaded(world.platform, attachment)
        assert caught.value.for_good is (file_fault is FileFault.GONE)
        assert str(caught.value)
        assert await downloaded(world.platform, attachment) == FILE

    async def test_a_file_of_a_platform_that_is_away_may_come_later(self, world: Harness, lonely: Platform) -> None:
        with pytest.raises(NoFileError) as caught:
            await downloaded(lonely, await world.send_file(FILE))
        assert not caught.value.for_good

    async def test_a_download_that_is_left_leaves_no_connection(self, world: Harness) -> None:
        attachment = await world.send_file(FILE)
        before = connections_to(world.port)
        platform = world.make()
        async with aclosing(platform.download(attachment)) as pieces:
            assert await anext(pieces)
        unread = platform.download(attachment)
        await unread.aclose()
        assert await downloaded(platform, attachment) == FILE
        await platform.aclose()
        assert connections_to(world.port) == before

    async def test_no_secret_is_told_of_files(
        self, world: Harness, lonely: Platform, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        attachment, told = await world.send_file(FILE), list[str]()
        with capture_logs() as lines:
            for fault in self.harness.file_faults:
                await world.break_next_file(fault)
                with pytest.raises(NoFileError) as caught:
                    await downloaded(world.platform, attachment)
                told.append(f"{caught.value!r} {caught.value.detail} {caught.value.__cause__!r}")
            with pytest.raises(NoFileError) as caught:
                await downloaded(lonely, attachment)
            told.append(f"{caught.value!r} {caught.value.detail} {caught.value.__cause__!r}")
        everything = "\n".join([*told, *map(str, lines), caplog.text])
        assert not [secret for secret in self.harness.secrets if secret in everything]


async def downloaded(platform: Platform, attachment: Attachment) -> bytes:
    """All of a file, read as the bridge reads it."""
    async with aclosing(platform.download(attachment)) as pieces:
        return b"".join([piece async for piece in pieces])


def connections_to(port: int) -> int:
    """How many sockets of this process are connected to a port of this machine."""
    found = 0
    for path in list(Path("/dev/fd").iterdir()):
        with suppress(OSError):
            number = int(path.name)
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as copy:
                    found += copy.getpeername()[1:2] == (port,)
    return found


GARBAGE = [
    *(b"", b" ", b"\x00", b"\xff\xfe", b"null", b"true", b"0", b"-1e999", b'"text"', b"[]", b"[null]", b"[[]]", b"{}"),
    *(b"NaN", b"9" * 5000, b'{"a":', b"{]", b"[" * 100_000, b'{"a":' * 100_000, b"\xef\xbb\xbf[]", b"<html></html>"),
    b'{"id": ' + b"9" * 5000 + b"}",
]
VALUES: Sequence[Any] = [
    *(None, True, False, 0, -1, 2**63, 10**400, 1.5, float("nan"), float("inf"), "", " ", "x" * 5000, "\x00", "\ud800"),
    *("\x1f", [], [None], [[]], {}, {"": None}, {"id": {}}, "9999999999999999999"),
]


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is something in nested JSON, but for the whole."""
    if path:
        yield path
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from paths(value[key], (*path, key))


def variations(content: Any) -> Iterator[Any]:
    """JSON with one thing missing, or being something else."""
    for *way, last in paths(content):
        for value in [*VALUES, "missing"]:
            changed = copy.deepcopy(content)
            place = changed
            for key in way:
                place = place[key]
            if value == "missing":
                del place[last]
            else:
                place[last] = value
            yield changed


def with_news(value: Any) -> Any:
    """JSON with a field in each object that nobody knows yet."""
    if isinstance(value, dict):
        news = {"brand_new": {"id": 1, "text": "new", "type": "new"}, "brand_new_flag": True}
        return {name: with_news(each) for name, each in value.items()} | news
    return [with_news(each) for each in value] if isinstance(value, list) else value


def understood(events: Sequence[InboundEvent]) -> Sequence[InboundEvent]:
    """The events without what is only kept for people to look at."""
    return [replace(event, metadata={}) for event in events]


def check_storable(event: InboundEvent) -> None:
    """What the store would refuse would come again for ever."""
    assert isinstance(event.event_key, str)
    assert event.event_key
    ids = (event.address.conversation, event.address.thread, event.user.id)
    assert all(isinstance(each, str) and len(each.encode("utf-8", "replace")) <= LONGEST_ID for each in ids)
    assert event.address.conversation
    assert event.user.id
    texts = (event.text, event.raw_text, event.user.name, event.user.username, event.user.locale, event.about)
    assert all(
        each is None or isinstance(each, str) for each in (*texts, event.platform_message_id, event.reply_handle)
    )
    json.dumps(event.metadata, allow_nan=False)


class WebhookContract(AdapterContract):
    """For an adapter that the platform calls."""

    async def test_what_somebody_writes_is_an_event(self, world: Harness, place: Place) -> None:
        (event,) = world.platform.events(await world.write("xin chào 👋🏽", place))
        check_storable(event)
        assert (event.kind, event.text) == (EventKind.MESSAGE, "xin chào 👋🏽")
        assert event.address == await world.address(place)
        assert event.platform_message_id
        assert (event.group, event.addressed) == (place != "private", True)
        assert (event.skip_reason, event.closes, event.moved_from) == (None, False, None)

    async def test_in_groups_it_knows_what_is_not_for_the_bot(self, world: Harness, place: Place) -> None:
        (event,) = world.platform.events(await world.write("by the way", place, addressed=False))
        assert event.addressed is (place == "private")

    async def test_a_redelivery_has_the_same_keys(self, world: Harness, place: Place) -> None:
        request = await world.write("hello", place)
        events = world.platform.events(request)
        assert world.platform.events(request) == events
        another = world.make()  # as in another process, or after a restart
        try:
            await another.connect()
            assert another.events(request) == events
        finally:
            await another.aclose()

    async def test_every_message_has_its_own_key(self, world: Harness) -> None:
        requests = [await world.write("hello") for _ in range(3)]
        events = [event for request in requests for event in world.platform.events(request)]
        assert len(events) == 3
        assert len({event.event_key for event in events}) == 3
        assert len({event.platform_message_id for event in events}) == 3
        assert len({event.address for event in events}) == 1

    async def test_a_change_names_the_message_it_is_about(self, world: Harness, change: Change) -> None:
        (message,) = world.platform.events(await world.write("hello"))
        request = await world.change(change, "goodbye")
        (event,) = world.platform.events(request)
        check_storable(event)
        assert event.kind is EventKind(change)
        assert event.about == message.event_key
        assert event.event_key != message.event_key
        assert event.address == message.address
        assert event.text == ("goodbye" if change == "edit" else "")
        assert world.platform.events(request) == [event]

    async def test_what_is_forged_is_refused(self, world: Harness) -> None:
        request = await world.write("hello")
        forgeries = list(world.forged(request))
        assert forgeries
        for forgery in forgeries:
            with pytest.raises(NotAuthenticError) as caught:
                world.platform.events(forgery)
            assert not [secret for secret in self.harness.secrets if secret in str(caught.value)]
        assert world.platform.events(request)

    async def test_what_is_no_event_is_kept_as_unknown(self, world: Harness) -> None:
        keys: set[str] = set()
        for body in GARBAGE:
            events = world.platform.events(world.authentic(body))
            assert {event.kind for event in events} == {EventKind.UNKNOWN}, body[:100]
            for event in events:
                check_storable(event)
            assert events == world.platform.events(world.authentic(body))
            keys |= {event.event_key for event in events}
        assert len(keys) == len(GARBAGE)

    async def test_whatever_a_field_holds_it_does_not_fail(self, world: Harness, place: Place) -> None:
        request = await world.write("hello", place)
        tried = 0
        for content in variations(json.loads(request.body)):
            for event in world.platform.events(world.authentic(json.dumps(content).encode())):
                check_storable(event)
                tried += 1
        assert tried > len(VALUES)

    async def test_new_fields_change_nothing(self, world: Harness, place: Place) -> None:
        request = await world.write("hello", place)
        news = json.dumps(with_news(json.loads(request.body))).encode()
        assert understood(world.platform.events(world.authentic(news))) == understood(world.platform.events(request))

    async def test_large_ids_stay_exact(self, world: Harness) -> None:
        request = await world.write("hello")
        (event,) = world.platform.events(request)
        body = request.body.replace(event.user.id.encode(), LARGE_ID.encode())
        (large,) = world.platform.events(world.authentic(body))
        assert large.user.id == LARGE_ID
        assert large.kind is EventKind.MESSAGE


class PollContract(AdapterContract):
    """For an adapter that asks the platform."""

    @staticmethod
    async def asked(world: Harness, place: Place) -> str:
        await world.write("hello?", place)
        event = (await polled(world.platform, "hello?"))[-1]
        assert event.platform_message_id
        return event.platform_message_id

    async def test_what_was_not_stored_comes_again(self, world: Harness, place: Place) -> None:
        await world.write("one", place)
        await world.write("two", place)
        *first, last = await polled(world.platform, "two", failures=1)
        assert [event.text for event in first if event.kind is EventKind.MESSAGE][-1] == "one"
        for event in (*first, last):
            check_storable(event)
        assert last.address == await world.address(place)
        # It was not asked for more, so nothing is forgotten yet, and another process gets the same.
        assert last in await polled(world.platform, "two")


async def polled(platform: Platform, text: str, *, failures: int = 0) -> Sequence[InboundEvent]:
    """What a poll gives until there is a message with this text. So many times at first it can't be stored; then the
    same has to come again."""
    refused: list[list[InboundEvent]] = []
    taken: list[InboundEvent] = []
    arrived = asyncio.Event()

    async def deliver(events: Sequence[InboundEvent]) -> None:
        if len(refused) < failures:
            refused.append(list(events))
            raise StorageError("PostgreSQL is away")
        taken.extend(events)
        if text in [event.text for event in events]:
            arrived.set()
            await asyncio.Event().wait()  # a stop at this moment

    polling = asyncio.create_task(platform.poll(deliver))
    waiting = asyncio.create_task(arrived.wait())
    try:
        await asyncio.wait([polling, waiting], return_when=asyncio.FIRST_COMPLETED)
        assert not polling.done(), "a poll goes on for ever"
    finally:
        for task in (polling, waiting):
            task.cancel()
        await asyncio.wait([polling, waiting])
    for events in refused:
        assert taken[: len(events)] == events
    return taken
