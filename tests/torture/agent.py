"""The agent of a torture run: it speaks what the bridge needs of Mastra's protocol, is slow, fails and hangs.

    python -m tests.torture.agent JOURNAL SEED

What it does to a call depends on the seed, the messages and how often they came. The answer names the messages.
"""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Literal
from uuid import uuid4

from aiohttp import web

from tests.torture.journal import Journal
from tests.torture.serving import serve

Manner = Literal["quick", "slow", "unavailable", "broken", "silent", "hanging"]
WEIGHTS: dict[Manner, int] = {"quick": 55, "slow": 31, "unavailable": 5, "broken": 4, "silent": 2, "hanging": 3}
HANGING_SECONDS = 30.0  # longer than the bridge waits


def manner(seed: str, text: str, attempt: int) -> tuple[Manner, float]:
    """How the agent takes this call, and how many seconds it works."""
    chance = Random(f"{seed}:agent:{text}:{attempt}")
    (chosen,) = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
    return chosen, chance.uniform(0, 0.2) if chosen == "quick" else chance.uniform(0.8, 2.2)


def answer_to(text: str) -> str:
    """The answer to messages whose texts are these words."""
    return f"answer to {text}"


class Agent:
    """Answers every call, in its manner."""

    def __init__(self, journal: Journal, seed: str) -> None:
        self._journal = journal
        self._seed = seed
        self._attempts = Counter[str]()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """One run."""
        messages = (await request.json())["messages"]
        text, ids = " ".join(message["content"] for message in messages), [message["id"] for message in messages]
        self._attempts[text] += 1
        chosen, seconds = manner(self._seed, text, self._attempts[text])
        run = str(uuid4())
        self._journal.write("begun", run=run, text=text, ids=ids, attempt=self._attempts[text], manner=chosen)
        try:
            return await self._run(request, run, text, chosen, seconds)
        finally:
            self._journal.write("ended", run=run)

    async def _run(
        self, request: web.Request, run: str, text: str, chosen: Manner, seconds: float
    ) -> web.StreamResponse:
        if chosen == "unavailable":
            return web.Response(status=503)
        if chosen == "silent":
            await asyncio.sleep(HANGING_SECONDS)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def say(kind: str, **payload: object) -> None:
            chunk = json.dumps({"type": kind, "runId": run, "payload": payload})
            await response.write(f"data: {chunk}\n\n".encode())

        await say("start")
        first, rest = answer_to(text).split(" ", 1)
        await say("text-delta", text=first)
        await asyncio.sleep(HANGING_SECONDS if chosen == "hanging" else seconds)
        if chosen == "broken":
            await say("error", error={"name": "Tortured"})
        else:
            await say("text-delta", text=f" {rest}")
            await say("finish", stepResult={"reason": "stop"})
        await response.write(b"data: [DONE]\n\n")
        return response


def main() -> None:
    journal, seed = sys.argv[1:]
    app = web.Application()
    app.router.add_post("/api/agents/torture/stream", Agent(Journal(Path(journal)), seed).stream)
    asyncio.run(serve(app))


if __name__ == "__main__":
    main()
