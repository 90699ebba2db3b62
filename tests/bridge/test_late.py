"""A worker that is late: its lease may have run out, or the store is away until it has."""

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from chat_bridge.agents.echo import EchoAgent
from chat_bridge.bridge.answer import Answerer
from chat_bridge.bridge.claim import Running
from chat_bridge.bridge.deliver import Deliverer
from chat_bridge.bridge.fetch import Fetcher
from chat_bridge.bridge.keep import Keeper, Rules
from chat_bridge.bridge.load import Loader
from chat_bridge.errors import StorageError
from chat_bridge.model import Turn, TurnOutcome
from chat_bridge.platforms.contract import Capabilities, OutboundPart, Platform, SendResult, Sent, Shown
from chat_bridge.settings import load_settings
from chat_bridge.storage.blobs import open_blobs
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from chat_bridge.storage.turns import Completed, Completion
from chat_bridge.texts import Texts
from tests.storage.dialogue import claimed, opened, said

LONG_AGO = 0.0


class Watched(Platform):
    """A platform that remembers what it was to show."""

    capabilities = Capabilities("webchat", edits=True)
    account = "main"

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.sent: list[str] = []
        self.ends: list[tuple[TurnOutcome, str | None]] = []

    async def send(self, part: OutboundPart) -> SendResult:
        self.sent.append(part.content.text)
        return Sent("1")

    async def show_partial(self, turn: Turn, text: str, preview: str | None) -> Shown:
        self.shown.append(text)
        return Shown(preview, 60.0)

    async def show_end(self, turn: Turn, outcome: TurnOutcome, text: str | None, preview: str | None) -> None:
        self.ends.append((outcome, preview))


@asynccontextmanager
async def answering(store: Store, platform: Platform) -> AsyncGenerator[Answerer]:
    """What answers turns as an echo."""
    settings, platforms = load_settings({}, None), {"webchat": platform}
    async with Hot.open(None) as hot:
        blobs = open_blobs(None, settings.data_dir, {})  # nothing is kept in it
        deliverer = Deliverer(store, hot, platforms, Loader(store, blobs), resend_unknown=False)
        keeper = Keeper(store, blobs, Rules(0, ()), None)
        fetcher = Fetcher(store, hot, platforms, keeper)
        try:
            yield Answerer(settings, store, hot, platforms, EchoAgent(0.0), deliverer, fetcher, keeper, blobs, Texts())
        finally:
            await fetcher.aclose()
            await deliverer.aclose()


@pytest.mark.parametrize(("trusted_until", "shown"), [(math.inf, ["one"]), (LONG_AGO, [])], ids=["in time", "late"])
async def test_a_turn_that_another_may_have_shows_nothing(
    database: str, trusted_until: float, shown: list[str]
) -> None:
    platform = Watched()
    async with opened(database) as store, answering(store, platform) as answerer:
        await store.receive(said("one two three"))
        await answerer.answer(Running(await claimed(store), trusted_until))
    assert platform.shown == shown
    assert platform.sent == ["one two three"], "it was still its own"


async def test_a_preview_is_left_alone_when_the_end_could_not_be_stored(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(completion: Completion, *, follow_with_new_session: bool) -> Completed | None:
        raise StorageError("away")

    platform = Watched()
    async with opened(database) as store, answering(store, platform) as answerer:
        await store.receive(said())
        turn = replace(await claimed(store), metadata={"preview": "7"})
        monkeypatch.setattr(store, "complete", fail)
        with pytest.raises(StorageError):
            await answerer.answer(Running(turn, LONG_AGO))
    assert platform.ends == [(TurnOutcome.ANSWERED, None)], "it is the next turn's to go on with"
