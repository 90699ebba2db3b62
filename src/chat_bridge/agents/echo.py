"""An agent that needs nothing: it says back what it was told, word by word, and gives back the files."""

import asyncio
import re
from collections.abc import AsyncGenerator

from chat_bridge.agents.contract import AgentEvent, AgentRequest, Finished, TextDelta


class EchoAgent:
    """Answers with the user's own text, so that a first run shows streaming and formatting without an account.

    `pause_seconds` is the time between two words.
    """

    name = "echo"

    def __init__(self, pause_seconds: float = 0.03) -> None:
        self._pause_seconds = pause_seconds

    async def answer(self, request: AgentRequest) -> AsyncGenerator[AgentEvent]:
        """Yield the texts of all messages, with a blank line between two, and their files; never fails."""
        text = "\n\n".join(message.text for message in request.messages)
        for index, word in enumerate(re.findall(r"\s*\S+|\s+$", text)):
            if index:
                await asyncio.sleep(self._pause_seconds)
            yield TextDelta(word)
        for message in request.messages:
            for file in message.files:
                yield file
        yield Finished()

    async def check(self) -> None:
        """It is always there."""

    async def forget(self, session: str, resource: str | None) -> bool:
        """It remembers nothing."""
        del session, resource
        return False

    async def aclose(self) -> None:
        """It holds nothing."""
