"""The files that an agent gets as bytes: each once, and of all turns together no more than there is room for."""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from chat_bridge.agents.contract import Agent, AgentEvent, AgentRequest, Finished, TextDelta
from chat_bridge.bridge import answer
from chat_bridge.bridge.answer import Answerer
from chat_bridge.bridge.claim import Running
from chat_bridge.bridge.deliver import Deliverer
from chat_bridge.bridge.fetch import Fetcher
from chat_bridge.bridge.keep import Keeper, Rules
from chat_bridge.bridge.load import Loader
from chat_bridge.model import Attachment
from chat_bridge.platforms.contract import Capabilities, OutboundPart, Platform, SendResult, Sent
from chat_bridge.settings import load_settings
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.places import Folder
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from chat_bridge.texts import Texts
from tests.storage.dialogue import chat, claimed, opened, said


class Files(Platform):
    """A platform whose files have ten bytes."""

    capabilities = Capabilities("webchat")
    account = "main"

    async def send(self, part: OutboundPart) -> SendResult:
        return Sent("1")

    async def download(self, attachment: Attachment) -> AsyncGenerator[bytes]:
        yield uuid4().bytes[:10]


class Slow(Agent):
    """Ends its answers when the test lets it."""

    name = "slow"

    def __init__(self) -> None:
        self.asked: list[AgentRequest] = []
        self.end = asyncio.Event()

    async def answer(self, request: AgentRequest) -> AsyncGenerator[AgentEvent]:
        self.asked.append(request)
        await self.end.wait()
        yield TextDelta("seen")
        yield Finished()

    async def check(self) -> str | None:
        return None

    async def aclose(self) -> None: ...

    def got(self) -> list[list[int]]:
        """How large the files of the first turn's messages are."""
        return [[len(file.data) for file in message.files] for message in self.asked[0].messages]


@asynccontextmanager
async def answering(store: Store, folder: Path, agent: Agent) -> AsyncGenerator[Answerer]:
    settings = load_settings({"AGENT_FILE_MAX_BYTES": "15", "AGENT_FILE_TYPES": "*/*"}, None)
    platforms, blobs = {"webchat": Files()}, Blobs(Folder(folder))
    async with Hot.open(None) as hot:
        deliverer = Deliverer(store, hot, platforms, Loader(store, blobs), resend_unknown=False)
        keeper = Keeper(store, blobs, Rules(1000, ["*/*"]), None)
        fetcher = Fetcher(store, hot, platforms, keeper)
        try:
            yield Answerer(settings, store, hot, platforms, agent, deliverer, fetcher, keeper, blobs, Texts())
        finally:
            await fetcher.aclose()
            await deliverer.aclose()


def file(ref: str) -> Attachment:
    return Attachment("file", "text/plain", ref)


async def test_what_several_messages_have_is_given_and_counted_once(database: str, tmp_path: Path) -> None:
    agent = Slow()
    agent.end.set()
    async with opened(database) as store, answering(store, tmp_path, agent) as answerer:
        for _ in range(3):
            await store.receive(said("look", to=chat("once"), attachments=[file("a")]))
        await answerer.answer(Running(await claimed(store, chat("once")), math.inf))
    assert [message.text for message in agent.asked[0].messages] == ["look\n[file]"] * 3


async def test_a_file_of_several_messages_goes_with_the_newest(database: str, tmp_path: Path) -> None:
    agent = Slow()
    async with opened(database) as store, answering(store, tmp_path, agent) as answerer:
        await store.receive(said("old", to=chat("newest"), attachments=[file("b"), file("a")]))
        await store.receive(said("new", to=chat("newest"), attachments=[file("a"), file("a")]))
        turn = asyncio.create_task(answerer.answer(Running(await claimed(store, chat("newest")), math.inf)))
        while not agent.asked:
            await asyncio.sleep(0.01)
        assert agent.got() == [[], [10]], "two are more than 15 bytes"
        agent.end.set()
        await turn


async def test_files_of_all_turns_have_a_bound(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "FILES_BYTES", 25)
    agent = Slow()
    async with opened(database) as store, answering(store, tmp_path, agent) as answerer, asyncio.TaskGroup() as tasks:
        for number in range(4):
            await store.receive(said("look", to=chat(number), attachments=[file("a")]))
            tasks.create_task(answerer.answer(Running(await claimed(store, chat(number)), math.inf)))
        await store.receive(said("no file", to=chat("other")))
        tasks.create_task(answerer.answer(Running(await claimed(store, chat("other")), math.inf)))
        while len(agent.asked) < 3 or not answerer._files._queue.locked():
            await asyncio.sleep(0.01)
        with_file = [request for request in agent.asked if request.messages[0].files]
        assert (len(agent.asked), len(with_file)) == (3, 2), "two have their files, and the one without needs no room"
        with_file[0].files_sent()
        with_file[0].files_sent()
        assert not with_file[0].messages[0].files
        while len(agent.asked) < 4 or not answerer._files._queue.locked():  # the last one waits still
            await asyncio.sleep(0.01)
        agent.end.set()
    assert len(agent.asked) == 5
    assert answerer._files._left == 25
