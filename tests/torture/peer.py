"""The chat platforms of a torture run, both ways: people write to any replica, and replies come back.

    python -m tests.torture.peer JOURNAL SEED

An event is sent until a replica answers 2xx; sometimes to two at once, sometimes again much later, sometimes together
with the next one. Replies are written down first; then some are answered late, refused, or not answered at all.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from random import Random

import aiohttp
from aiohttp import web

from tests.torture.adapters import KEYED, PLAIN
from tests.torture.journal import Journal
from tests.torture.serving import serve

REQUEST_SECONDS = 4.0
PACE_SECONDS = 2.0  # the mean pause of a person
MOST_REFUSALS = 2  # a reply is refused so often at most: how long retries pause is another test's business
MANNERS = {"well": 78, "late": 7, "500 before": 4, "500 after": 4, "cut off": 4, "429": 3}


class Peer:
    """All people, and the platform that they use."""

    def __init__(self, journal: Journal, seed: str) -> None:
        self._journal = journal
        self._seed = seed
        self._resting = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._taken: dict[str, str] = {}  # by key: the platform's id
        self._tries = Counter[str]()
        self._replicas: list[str] = []
        self._http: aiohttp.ClientSession | None = None

    # People

    async def begin(self, request: web.Request) -> web.Response:
        """Begin to talk to these replicas, in so many conversations of each platform."""
        told = await request.json()
        self._replicas = told["replicas"]
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS))
        for place in range(told["conversations"]):
            for platform in (KEYED, PLAIN):
                self._start(self._talk(platform, f"{'kp'[platform == PLAIN]}{place:02}"))
        return web.Response()

    async def say(self, request: web.Request) -> web.Response:
        """One message, to one replica: {platform, conversation, number, replica}."""
        told = await request.json()
        await self._deliver(told["platform"], told["conversation"], told["number"], [self._replicas[told["replica"]]])
        return web.Response()

    async def rest(self, request: web.Request) -> web.Response:
        """Begin nothing new, and answer when everything was acknowledged."""
        self._resting.set()
        while under_way := [task for task in self._tasks if not task.done()]:
            await asyncio.gather(*under_way)
        return web.Response()

    async def _talk(self, platform: str, conversation: str) -> None:
        chance = Random(f"{self._seed}:person:{conversation}")
        number = 0
        while not await self._rested(chance.expovariate(1 / PACE_SECONDS)):
            together = 2 if chance.random() < 0.15 else 1
            numbers = range(number + 1, number + 1 + together)
            number += together
            await asyncio.gather(*(self._deliver(platform, conversation, each, self._replicas) for each in numbers))
            if chance.random() < 0.1:
                self._start(self._deliver_again(platform, conversation, number, chance.uniform(3, 20)))

    async def _rested(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._resting.wait(), seconds)
        return self._resting.is_set()

    async def _deliver(self, platform: str, conversation: str, number: int, replicas: list[str]) -> None:
        chance = Random(f"{self._seed}:event:{conversation}:{number}")
        event = {"conversation": conversation, "key": f"event-{number}", "text": f"{conversation}#{number}"}
        self._journal.write("sent", platform=platform, **event)
        acknowledged = False
        while not acknowledged:
            at_once = 2 if len(replicas) > 1 and chance.random() < 0.1 else 1
            urls = chance.sample(replicas, at_once)
            acknowledged = any(await asyncio.gather(*(self._post(url, platform, event) for url in urls)))
            if not acknowledged:
                await asyncio.sleep(chance.uniform(0.05, 0.4))
        self._journal.write("acknowledged", platform=platform, **event)

    async def _deliver_again(self, platform: str, conversation: str, number: int, seconds: float) -> None:
        await self._rested(seconds)
        await self._deliver(platform, conversation, number, self._replicas)

    async def _post(self, url: str, platform: str, event: dict[str, str]) -> bool:
        assert self._http is not None
        try:
            async with self._http.post(f"{url}/webhooks/{platform}", json=event) as response:
                return response.ok
        except (aiohttp.ClientError, TimeoutError):
            return False

    # Replies

    async def take(self, request: web.Request) -> web.Response:
        """A reply of the bridge."""
        reply = await request.json()
        manner, seconds = self._manner(reply)
        if manner == "500 before":
            return web.Response(status=500)
        if manner == "429":
            return web.Response(status=429, headers={"Retry-After": "1"})
        duplicate = reply["platform"] == KEYED and reply["key"] in self._taken
        own_id = self._taken[reply["key"]] if duplicate else f"reply-{len(self._taken) + 1}"
        self._taken[reply["key"]] = own_id
        self._journal.write("taken", **reply, duplicate=duplicate, manner=manner)
        if manner == "late":
            await asyncio.sleep(seconds)
        elif manner == "cut off" and request.transport is not None:
            request.transport.abort()
        elif manner == "500 after":
            return web.Response(status=500)
        return web.json_response({"id": own_id, "duplicate": duplicate})

    def _manner(self, reply: dict[str, str]) -> tuple[str, float]:
        self._tries[reply["key"]] += 1
        tries = self._tries[reply["key"]]
        chance = Random(f"{self._seed}:reply:{reply['platform']}:{reply['text']}:{tries}")
        (manner,) = chance.choices(list(MANNERS), list(MANNERS.values()))
        return ("well" if tries > MOST_REFUSALS else manner), chance.uniform(0.3, 2)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.add(asyncio.create_task(work))


def main() -> None:
    journal, seed = sys.argv[1:]

    async def run() -> None:
        peer = Peer(Journal(Path(journal)), seed)
        app = web.Application()
        for place in ("begin", "say", "rest"):
            app.router.add_post(f"/{place}", getattr(peer, place))
        app.router.add_post("/replies", peer.take)
        await serve(app)

    asyncio.run(run())


if __name__ == "__main__":
    main()
