"""Redis: the active-conversation index, rate limits, partial answers, and the events that pages and workers hear.

Everything here may be lost. A failure costs freshness, never a message: each operation then does nothing, is counted,
and the caller goes on from PostgreSQL.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, TypeAlias, TypeVar

import redis.asyncio
from redis.exceptions import RedisError

from chat_bridge.errors import SettingsError
from chat_bridge.model import ConversationId, TurnId
from chat_bridge.telemetry import REDIS_ERRORS, log

# redis-py and the in-process Redis share their methods, but no type that says so.
Client: TypeAlias = Any
Event: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

CONTROL = "chat-bridge:control"
ACTIVE = "chat-bridge:active"
PARTIAL_SECONDS = 900
CONFIRM_SECONDS = 1.0
ANSWER_SECONDS = 1.0
QUIET_SECONDS = 1.0
_QUEUE = 512  # events a slow reader may be behind before it is cut off
RESYNC: Event = {"type": "resync"}
_END: Event = {"type": "end"}


def _events(conversation: ConversationId) -> str:
    return f"chat-bridge:{{{conversation}}}:events"


def _partial(conversation: ConversationId) -> str:
    return f"chat-bridge:{{{conversation}}}:partial"


class SlowReaderError(Exception):
    """The reader of an event stream fell too far behind; it should read PostgreSQL and come again."""


class Hot:
    """What Redis does for the bridge, on a server (`url`) or in the process (no `url`)."""

    def __init__(self, client: Client, session_ttl_seconds: int) -> None:
        self._client = client
        self._ttl = session_ttl_seconds
        self._readers: dict[str, set[asyncio.Queue[Event]]] = {}
        self._subscriptions: Any = None
        self._subscribed: dict[str, asyncio.Event] = {}  # channels asked for; set when the server has confirmed
        self._subscribing = asyncio.Lock()
        self._on_control: Callable[[Event], Awaitable[None]] | None = None
        self.reachable = True
        self._quiet_until = 0.0  # after a failure nobody waits for Redis for a moment

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str | None, *, session_ttl_seconds: int = 3600) -> AsyncGenerator[Self]:
        """Connect lazily; a server that can't be reached is no error, now or later."""
        client = (
            redis.asyncio.from_url(
                url, socket_connect_timeout=ANSWER_SECONDS, socket_timeout=ANSWER_SECONDS, health_check_interval=15
            )
            if url
            else _in_process()
        )  # pyright: ignore[reportUnknownMemberType]
        hot = cls(client, session_ttl_seconds)
        listener = asyncio.create_task(hot._listen(), name="redis.listen")
        try:
            yield hot
        finally:
            listener.cancel()
            with suppress(asyncio.CancelledError):
                await listener
            if hot._subscriptions is not None:
                await hot._soft(hot._subscriptions.aclose, None)
            await hot._soft(client.aclose, None)

    def handle_control(self, handler: Callable[[Event], Awaitable[None]]) -> None:
        """Have `handler` called with what any process sends by `control`."""
        self._on_control = handler

    async def ping(self) -> bool:
        """Whether Redis answers."""

        async def ask() -> bool:
            pipeline = self._client.pipeline()
            pipeline.zcard(ACTIVE)
            await pipeline.execute()
            return True

        return await self._soft(ask, False)

    async def touch(self, conversation: ConversationId, event: Event) -> None:
        """After a commit: the conversation is active now, and whoever watches it should look."""

        async def write() -> None:
            pipeline = self._client.pipeline()
            pipeline.zadd(ACTIVE, {str(conversation): time.time()})
            pipeline.zremrangebyscore(ACTIVE, "-inf", time.time() - self._ttl)
            pipeline.publish(_events(conversation), json.dumps(event))
            await pipeline.execute()

        await self._soft(write, None)

    async def publish(self, conversation: ConversationId, event: Event) -> None:
        """Tell whoever watches a conversation."""
        await self._soft(lambda: self._client.publish(_events(conversation), json.dumps(event)), None)

    async def control(self, event: Event) -> None:
        """Tell every process of the bridge."""
        await self._soft(lambda: self._client.publish(CONTROL, json.dumps(event)), None)

    async def publish_partial(self, conversation: ConversationId, turn: TurnId, text: str, shown: int) -> None:
        """Tell the answer so far: the difference to those who saw the first `shown` characters, the whole to those
        who come later."""
        event = {"type": "delta", "turn_id": str(turn), "offset": shown, "text": text[shown:]}

        async def write() -> None:
            pipeline = self._client.pipeline()
            pipeline.set(_partial(conversation), json.dumps({"turn_id": str(turn), "text": text}), ex=PARTIAL_SECONDS)
            pipeline.publish(_events(conversation), json.dumps(event))
            await pipeline.execute()

        await self._soft(write, None)

    async def end_partial(self, conversation: ConversationId, *events: Event) -> None:
        """Forget the answer so far, and tell these events."""

        async def write() -> None:
            pipeline = self._client.pipeline()
            pipeline.delete(_partial(conversation))
            for event in events:
                pipeline.publish(_events(conversation), json.dumps(event))
            await pipeline.execute()

        await self._soft(write, None)

    async def partial(self, conversation: ConversationId) -> Event | None:
        """The answer so far of the running turn: `turn_id` and `text`."""
        text = await self._soft(lambda: self._client.get(_partial(conversation)), None)
        return None if text is None else json.loads(text)

    async def allow(self, name: str, limit: int, seconds: int = 60) -> int:
        """Count one use of `name`; 0 when it is within `limit` in this window, else the seconds until the next one.
        Without Redis everything is allowed: a limit protects, it does not decide."""
        now = time.time()
        key = f"chat-bridge:rate:{name}:{int(now // seconds)}"

        async def count() -> int:
            pipeline = self._client.pipeline()
            pipeline.hincrby(key, "uses", 1)
            pipeline.expire(key, seconds)
            return int((await pipeline.execute())[0])

        uses = await self._soft(count, 0)
        return 0 if uses <= limit else max(1, int(seconds - now % seconds))

    async def active_conversations(self) -> int:
        """How many conversations had a message within SESSION_TTL_SECONDS."""

        async def count() -> int:
            pipeline = self._client.pipeline()
            pipeline.zremrangebyscore(ACTIVE, "-inf", time.time() - self._ttl)
            pipeline.zcard(ACTIVE)
            return int((await pipeline.execute())[1])

        return await self._soft(count, 0)

    @asynccontextmanager
    async def watch(self, conversation: ConversationId) -> AsyncGenerator[AsyncIterator[Event | None]]:
        """The events of a conversation from now on; None each 15 s of silence, so that the reader looks at the truth.
        Raises SlowReaderError out of the iterator."""
        channel = _events(conversation)
        queue: asyncio.Queue[Event] = asyncio.Queue(_QUEUE)
        readers = self._readers.setdefault(channel, set())
        readers.add(queue)
        try:
            await self._follow(channel)
            yield _read(queue)
        finally:
            readers.discard(queue)
            if not readers:
                self._readers.pop(channel, None)
                await self._follow(channel)

    def dismiss_watchers(self) -> None:
        """End every `watch` of this process, after what it has not read yet."""
        for readers in self._readers.values():
            for queue in readers:
                _put(queue, _END)

    async def _follow(self, channel: str) -> None:
        """Subscribe to a channel that has readers, and wait until that is in force; leave one that has none. One at a
        time: a reader that comes while another goes must not lose its subscription. That this succeeds proves nothing
        of Redis: without a connection it is only noted for the next one."""
        if self._subscriptions is None:
            return
        try:
            async with self._subscribing:
                if channel in self._readers and channel not in self._subscribed:
                    self._subscribed[channel] = asyncio.Event()
                    await self._subscriptions.subscribe(channel)
                elif channel not in self._readers and self._subscribed.pop(channel, None) is not None:
                    await self._subscriptions.unsubscribe(channel)
            if (confirmed := self._subscribed.get(channel)) is not None:
                async with asyncio.timeout(CONFIRM_SECONDS):
                    await confirmed.wait()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)

    async def _listen(self) -> None:
        """Hand messages to readers. After a break everyone is told to look at PostgreSQL."""
        pause = 0.1
        while True:
            try:
                async with self._subscribing:
                    self._subscriptions = self._client.pubsub()
                    self._subscribed = {channel: asyncio.Event() for channel in self._readers}
                    await self._subscriptions.subscribe(CONTROL, *self._readers)
                self.reachable = True
                self._quiet_until = 0.0
                pause = 0.1
                for readers in self._readers.values():
                    for queue in readers:
                        _put(queue, RESYNC)
                while True:
                    message = await self._subscriptions.get_message(timeout=None)
                    if message is not None:
                        await self._take(message)
            except Exception as error:  # noqa: BLE001 - without this loop no event arrives any more
                self._failed(error)
                with suppress(RedisError, OSError):
                    await self._subscriptions.aclose()
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    async def _take(self, message: Event) -> None:
        channel = (message["channel"] or b"").decode(errors="replace")
        try:
            if message["type"] == "message":
                await self._hand_out(channel, json.loads(message["data"]))
            elif message["type"] == "subscribe" and channel in self._subscribed:
                self._subscribed[channel].set()
        except Exception:  # noqa: BLE001 - one bad event must not stop all that follow
            log.exception("redis.event_failed", channel=channel)

    async def _hand_out(self, channel: str, event: Event) -> None:
        if channel == CONTROL:
            if self._on_control is not None:
                await self._on_control(event)
            return
        for queue in self._readers.get(channel, ()):
            _put(queue, event)

    async def _soft(self, operation: Callable[[], Awaitable[T]], otherwise: T) -> T:
        if time.monotonic() < self._quiet_until:
            return otherwise
        try:
            result = await operation()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
            return otherwise
        self.reachable = True
        return result

    def _failed(self, error: Exception) -> None:
        REDIS_ERRORS.inc()
        if self.reachable:
            log.warning("redis.lost", reason=type(error).__name__, effect="slower, nothing is lost")
        self.reachable = False
        self._quiet_until = time.monotonic() + QUIET_SECONDS


def _in_process() -> Client:
    try:
        from burner_redis import BurnerRedis
    except ImportError:
        raise SettingsError(
            "REDIS_URL is not set and the in-process Redis is not installed: set REDIS_URL, "
            "or install it with: pip install 'agoric-chat-bridge[embedded]'"
        ) from None
    return BurnerRedis()


def _put(queue: asyncio.Queue[Event], event: Event) -> None:
    # A full queue is left full: its reader finds out when it has read that far.
    with suppress(asyncio.QueueFull):
        queue.put_nowait(event)


async def _read(queue: asyncio.Queue[Event]) -> AsyncIterator[Event | None]:
    while True:
        if queue.full():
            raise SlowReaderError
        try:
            async with asyncio.timeout(15):
                event = await queue.get()
        except TimeoutError:
            yield None
        else:
            if event is _END:
                return
            yield event
