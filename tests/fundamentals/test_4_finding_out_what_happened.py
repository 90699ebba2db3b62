"""Fundamentals, part 4: every message has a story, and `chat-bridge explain` tells it."""

import asyncio
import os
import sys
from uuid import uuid4

from tests.bridge import BridgeProcess, visiting


async def explain(database: str, message: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chat_bridge", "explain", message),
        env={"PATH": os.environ["PATH"], "DATABASE_URL": database, "WEBCHAT_ENABLED": "false"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    return told.decode()


async def test_explain_tells_who_answered_when_and_what_was_sent(bridge: BridgeProcess, database: str) -> None:
    async with visiting(bridge.url) as chat:
        accepted = await chat.send("Hello!", "my-key")
        _, reply = await chat.answered()
    story = await explain(database, accepted["id"])
    assert story.startswith(f"message {accepted['id']}: inbound text, answered\n")
    assert "  event key     my-key\n" in story
    assert ": done, answered\n" in story
    assert "  agent         echo" in story
    assert f"reply {reply['id']}: seq 2" in story
    assert "  delivery      part 1 sent, tries 1" in story

    # The id of the reply works too.
    assert (await explain(database, reply["id"])).startswith(f"message {reply['id']}: outbound text, stored\n")


async def test_there_is_no_story_without_a_message(bridge: BridgeProcess, database: str) -> None:
    unknown = str(uuid4())
    assert (await explain(database, unknown)).startswith(f"chat-bridge: there is no message {unknown}; ")
