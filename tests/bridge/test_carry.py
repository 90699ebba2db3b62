"""What a session that follows another one takes along."""

from collections.abc import AsyncGenerator
from datetime import datetime, timedelta

import pytest

from chat_bridge.agents.contract import (
    AgentError,
    AgentEvent,
    AgentMessage,
    AgentRequest,
    Finished,
    TextDelta,
)
from chat_bridge.agents.echo import EchoAgent
from chat_bridge.bridge import carry
from chat_bridge.model import TurnOutcome
from chat_bridge.storage.store import Store
from chat_bridge.texts import Texts
from tests.bridge import running_bridge, visiting
from tests.mastra import running_mastra
from tests.observe import rows
from tests.storage.dialogue import claimed, ending, looking, opened, said

TEXTS = Texts("en", {})
AGED = "update sessions set last_activity = last_activity - interval '2 hours'"
ASKED = TEXTS.say("summarise")


class Summing(EchoAgent):
    """Says how often it was asked for a summary; may fail."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__(0.0)
        self.fails = fails
        self.asked: list[AgentRequest] = []

    async def answer(self, request: AgentRequest) -> AsyncGenerator[AgentEvent]:
        self.asked.append(request)
        yield TextDelta(f" summary {len(self.asked)} ")
        if self.fails:
            raise AgentError(TurnOutcome.UNREACHABLE, "nobody is there")
        yield Finished()


async def following(store: Store, agent: Summing) -> AgentMessage | None:
    """What is told with the turn that waits, which then is lost."""
    turn = await claimed(store)
    request = AgentRequest(str(turn.session_id), "ada", [AgentMessage("1", "two")])
    told = await carry.summary(store.database, agent, TEXTS, turn, request)
    await store.database.fetch("supersede", turn.conversation_id, turn.id, "a test")
    return told


async def rotated(store: Store, dsn: str) -> None:
    await store.receive(said("one"))
    await store.complete(ending(await claimed(store)))
    async with looking(dsn) as connection:
        await connection.execute(AGED)
    await store.receive(said("two"))


def an_hour_ago(now: datetime) -> datetime:
    return now - timedelta(hours=1)


async def test_it_is_written_once_though_turns_are_lost(database: str) -> None:
    agent = Summing()
    async with opened(database, session_end=an_hour_ago) as store:
        await rotated(store, database)
        first, second = await following(store, agent), await following(store, agent)
        assert first == second
        assert first is not None
        assert first.text == TEXTS.say("summary", summary="summary 1")
        (asked,) = agent.asked
        assert [message.text for message in asked.messages] == [ASKED]
        (before, _) = await rows(database, "select id::text from sessions order by created_at")
        assert (asked.session, asked.resource) == (before["id"], "ada")


async def test_without_it_the_conversation_goes_on(database: str) -> None:
    agent = Summing(fails=True)
    async with opened(database, session_end=an_hour_ago) as store:
        await rotated(store, database)
        assert await following(store, agent) is None
        assert await following(store, agent) is None
        assert len(agent.asked) == 1, "it is not asked again"


@pytest.mark.parametrize("how", ["nothing was said", "an approval waits"])
async def test_what_can_not_be_summed_up(database: str, how: str) -> None:
    async with opened(database, session_end=an_hour_ago) as store:
        await rotated(store, database)
        async with looking(database) as connection:
            if how == "nothing was said":
                await connection.execute("update sessions set message_count = 0 where status = 'active'")
            else:
                await connection.execute("""update sessions set metadata = metadata || '{"approval": {"a": 1}}'""")
            await connection.execute(AGED)
            await connection.execute("update sessions set pending_since = null")
            await connection.execute("delete from waiting")
        await store.receive(said("three"))
        (newest,) = await rows(database, "select metadata from sessions where status = 'active'")
        assert "follows" not in newest["metadata"]


async def test_the_agent_takes_along_what_it_summed_up(database: str) -> None:
    settings = {"SESSION_ROTATION": "idle", "SESSION_IDLE_MINUTES": "60", "SESSION_SUMMARY": "true"}
    async with running_mastra() as mastra:
        settings |= {"MASTRA_ENDPOINT": mastra.endpoint, "MASTRA_AGENT_ID": "echo"}
        async with running_bridge(database, **settings) as bridge, visiting(bridge.url) as visitor:
            await visitor.send("I am Ada")
            await visitor.answered()
            async with looking(database) as connection:
                await connection.execute(AGED)
            await visitor.send("And now?")
            *_, answer = await visitor.answered()
            assert answer["text"] == "I remember 2 of your messages. The last one: And now?"
            summed = f"I remember 2 of your messages. The last one: {ASKED}"
            calls = [event["users"] for event in mastra.events if event["event"] == "call"]
            assert calls[1:] == [["I am Ada", ASKED], [TEXTS.say("summary", summary=summed), "And now?"]]
            await visitor.send("Third")
            *_, answer = await visitor.answered()
            assert answer["text"] == "I remember 3 of your messages. The last one: Third"
            assert len(await visitor.texts()) == 6, "nobody is shown it"
            await visitor.send("/new")
            await visitor.answered()
            await visitor.send("Fourth")
            *_, answer = await visitor.answered()
            assert answer["text"] == "I remember 1 of your messages. The last one: Fourth", "/new forgets"
