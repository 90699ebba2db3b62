"""Fundamentals, part 3: a conversation lasts, a session can be begun anew. The session is what the agent remembers.

Here the agent is one of a real Mastra server. It says how many of the user's messages it remembers.
"""

from tests.bridge import running_bridge, visiting
from tests.mastra import running_mastra
from tests.observe import rows


async def test_the_agent_remembers_until_new(database: str) -> None:
    async with (
        running_mastra() as mastra,
        running_bridge(database, MASTRA_ENDPOINT=mastra.endpoint, MASTRA_AGENT_ID="echo") as bridge,
        visiting(bridge.url) as chat,
    ):
        await chat.send("My name is An.")
        assert (await chat.until(2))[-1] == "I remember 1 of your messages. The last one: My name is An."
        await chat.send("What is my name?")
        assert (await chat.until(4))[-1] == "I remember 2 of your messages. The last one: What is my name?"

        # /new closes the session and opens another one. The page still shows everything; the agent has forgotten it.
        await chat.send("/new")
        assert (await chat.until(6))[-1].startswith("A new conversation has begun.")
        await chat.send("What is my name?")
        assert (await chat.until(8))[-1] == "I remember 1 of your messages. The last one: What is my name?"

    sessions = await rows(database, "select id, parent_session_id, status from sessions order by id")
    assert [session["status"] for session in sessions] == ["closed", "active"]
    assert sessions[1]["parent_session_id"] == sessions[0]["id"]
