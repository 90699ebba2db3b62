import pytest

from chat_bridge.agents.contract import AgentFile, AgentMessage, AgentRequest, Finished, TextDelta
from chat_bridge.agents.echo import EchoAgent
from chat_bridge.model import TurnOutcome


async def _deltas(*texts: str) -> list[str]:
    messages = [AgentMessage(id=str(number), text=text) for number, text in enumerate(texts)]
    request = AgentRequest(session="s", resource="r", messages=messages)
    *deltas, finished = [event async for event in EchoAgent(pause_seconds=0).answer(request)]
    assert finished == Finished(TurnOutcome.ANSWERED)
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    return [delta.text for delta in deltas if isinstance(delta, TextDelta)]


async def test_it_says_the_words_one_by_one() -> None:
    assert await _deltas("one two **three**") == ["one", " two", " **three**"]


@pytest.mark.parametrize("text", ["  a\n\n\tb  ", "\n", "```\nx = 1\n```\n", "xin chào 👋🏽"])
async def test_it_keeps_every_space(text: str) -> None:
    assert "".join(await _deltas(text)) == text


async def test_a_blank_line_is_between_two_messages() -> None:
    assert "".join(await _deltas("first", "second")) == "first\n\nsecond"


async def test_an_empty_message_gives_no_text() -> None:
    assert await _deltas("") == []


async def test_it_gives_files_back_after_the_text() -> None:
    files = [AgentFile("image/png", b"a"), AgentFile("text/plain", b"b", "b.txt")]
    messages = [AgentMessage("1", "one", files=files[:1]), AgentMessage("2", "two", files=files[1:])]
    request = AgentRequest(session="s", resource="r", messages=messages)
    *events, finished = [event async for event in EchoAgent(pause_seconds=0).answer(request)]
    assert events == [TextDelta("one"), TextDelta("\n\ntwo"), *files]
    assert finished == Finished()


async def test_it_is_always_there() -> None:
    agent = EchoAgent()
    assert agent.name == "echo"
    assert await agent.check() is None
    await agent.aclose()
