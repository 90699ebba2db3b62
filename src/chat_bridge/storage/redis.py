"""Redis: sessions, the active-conversation index, a lock per conversation, rate limits, partial answers, and the events
that pages and workers hear.

Everything here may be lost. A failure costs freshness, never a message: each operation then does nothing, is counted,
and the caller goes on from PostgreSQL.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, TypeAlias, TypeVar

from pydantic import TypeAdapter

from chat_bridge.model import ConversationId, Session, SessionId, TurnId
from chat_bridge.storage.redis_connect import (
    ANSWER_SECONDS,
    FAILURES,
    PATIENT_SECONDS,
    Client,
    connected,
    heard,
    place_of,
    subscriber,
)
from chat_bridge.storage.tls import tls_trouble
from chat_bridge.telemetry import REDIS_ERRORS, log

Event: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

CONTROL = "chat-bridge:control"
ACTIVE = "chat-bridge:active"
PARTIAL_SECONDS = 900
CONFIRM_SECONDS = 1.0
LOCK_SECONDS = 30
RENEW_SECONDS = 10.0
CHANGED_SECONDS = 10
QUIET_SECONDS = 1.0
_QUEUE = 512  # events a slow reader may be behind before it is cut off
RESYNC: Event = {"type": "resync"}
_END: Event = {"type": "end"}
_SESSION = TypeAdapter(Session)

# Scripts about a lock. KEYS: the lock, the knock; ARGV: our token, milliseconds.
_ACQUIRE = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then
  redis.call('set', KEYS[2], '1', 'PX', ARGV[2])
  return 0
end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('del', KEYS[2])
return 1
"""
_RELEASE = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('del', KEYS[2]) == 1 then return 1 end
redis.call('del', KEYS[1])
return 0
"""
_RENEW = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('pexpire', KEYS[2], ARGV[2])
return 1
"""
# KEYS: the session, whether it has changed a moment ago; ARGV: the session, seconds.
_KEEP = """
if redis.call('exists', KEYS[2]) == 1 then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""
# KEYS: the session; ARGV: the id of the active one, seconds. Another one is there when Redis could not be told of its
# end.
_STAY = """
local kept = redis.call('get', KEYS[1])
if not kept then return 0 end
if string.find(kept, ARGV[1], 1, true) then return redis.call('expire', KEYS[1], ARGV[2]) end
return redis.call('del', KEYS[1])
"""
# A cluster runs a script where the key is; PUBLISH goes to any node, so that one event could overtake another.
_TELL = "return redis.call('publish', KEYS[1], ARGV[1])"


def _key(conversation: ConversationId, what: str) -> str:
    # All keys of a conversation are on one node of a cluster: the braces see to that.
    return f"chat-bridge:{{{conversation}}}:{what}"


def _events(conversation: ConversationId) -> str:
    return _key(conversation, "events")


def _partial(conversation: ConversationId) -> str:
    return _key(conversation, "partial")


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
        self._token = secrets.token_hex(16)  # this process, as the holder of locks
        self._held: set[ConversationId] = set()
        self._renewed = asyncio.Event()  # no renewal is under way
        self._renewed.set()
        self.reachable = True
        self._quiet: dict[str, float] = {}  # servers that failed: nobody waits for them until this moment

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str | None, *, session_ttl_seconds: int = 3600) -> AsyncGenerator[Self]:
        """Connect lazily; a server that can't be reached is no error, now or later."""
        async with connected(url) as client:
            hot = cls(client, session_ttl_seconds)
            listener = asyncio.create_task(hot._listen(), name="redis.listen")
            renewal = asyncio.create_task(hot._renew(), name="redis.renew")
            try:
                yield hot
            finally:
                for task in (listener, renewal):
                    task.cancel()
                await asyncio.wait([listener, renewal])
                if hot._subscriptions is not None:
                    with suppress(*FAILURES):
                        await hot._subscriptions.aclose()

    def handle_control(self, handler: Callable[[Event], Awaitable[None]]) -> None:
        """Have `handler` called with what any process sends by `control`."""
        self._on_control = handler

    async def ping(self) -> bool:
        """Whether Redis answers."""
        return await self._soft(lambda: self._client.zcard(ACTIVE), None, ACTIVE) is not None

    async def touch(self, conversation: ConversationId, session: SessionId, event: Event) -> None:
        """After a commit: the conversation is active now, its active session stays kept, and whoever watches should
        look."""
        channel = _events(conversation)
        index = tell = self._client.pipeline()
        if place_of(self._client, channel) != place_of(self._client, ACTIVE):
            tell = self._client.pipeline()  # one node's trouble is not the other's
        index.zadd(ACTIVE, {str(conversation): time.time()})
        index.zremrangebyscore(ACTIVE, "-inf", time.time() - self._ttl)
        tell.eval(_STAY, 1, _key(conversation, "session"), str(session), str(self._ttl))
        tell.eval(_TELL, 1, channel, json.dumps(event))
        await self._soft(tell.execute, None, channel)
        if index is not tell:
            await self._soft(index.execute, None, ACTIVE)

    async def publish(self, conversation: ConversationId, event: Event) -> None:
        """Tell whoever watches a conversation."""
        channel = _events(conversation)
        await self._soft(lambda: self._client.eval(_TELL, 1, channel, json.dumps(event)), None, channel)

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
            pipeline.eval(_TELL, 1, _events(conversation), json.dumps(event))
            await pipeline.execute()

        await self._soft(write, None, _partial(conversation))

    async def end_partial(self, conversation: ConversationId, *events: Event) -> None:
        """Forget the answer so far, and tell these events."""

        async def write() -> None:
            pipeline = self._client.pipeline()
            pipeline.delete(_partial(conversation))
            for event in events:
                pipeline.eval(_TELL, 1, _events(conversation), json.dumps(event))
            await pipeline.execute()

        await self._soft(write, None, _partial(conversation))

    async def partial(self, conversation: ConversationId) -> Event | None:
        """The answer so far of the running turn: `turn_id` and `text`."""
        text = await self._soft(lambda: self._client.get(_partial(conversation)), None, _partial(conversation))
        return None if text is None else json.loads(text)

    async def acquire(self, conversation: ConversationId) -> bool:
        """Take the lock of a conversation, until `release`. True: it is ours, or Redis can't be asked; PostgreSQL
        decides anyway. False: another process has it, and will look again before it lets go."""
        ours = bool(await self._on_lock(_ACQUIRE, conversation, 1))
        if ours:
            self._held.add(conversation)
        return ours

    async def release(self, conversation: ConversationId) -> bool:
        """Let go of the lock. True: somebody wanted it meanwhile, so it is still ours: look again, then release it."""
        self._held.discard(conversation)
        await self._renewed.wait()  # a renewal that knows it as held would take it once more
        look_again = bool(await self._on_lock(_RELEASE, conversation, 0))
        if look_again:
            self._held.add(conversation)
        return look_again

    async def session(self, conversation: ConversationId) -> Session | None:
        """The active session as it was when it was kept: its counts, times and metadata may be old. None: look into
        PostgreSQL, which also decides whether it still is the active one."""
        key = _key(conversation, "session")
        text = await self._soft(lambda: self._client.get(key), None, key)
        try:
            return None if text is None else _SESSION.validate_json(text)
        except ValueError:  # written by another version of the bridge
            return None

    async def keep_session(self, session: Session) -> None:
        """Keep what PostgreSQL says is the active session of a conversation."""
        keys = [_key(session.conversation_id, what) for what in ("session", "changed")]
        text = _SESSION.dump_json(session).decode()
        await self._soft(lambda: self._client.eval(_KEEP, 2, *keys, text, str(self._ttl)), None, keys[0])

    async def forget_session(self, conversation: ConversationId) -> None:
        """After a commit that closed, replaced, moved or changed the session. For a moment none is kept: somebody may
        have read the old one just before."""

        async def forget() -> None:
            pipeline = self._client.pipeline()
            pipeline.set(_key(conversation, "changed"), "1", ex=CHANGED_SECONDS)
            pipeline.delete(_key(conversation, "session"))
            await pipeline.execute()

        await self._soft(forget, None, _key(conversation, "session"))

    async def forget_conversation(self, conversation: ConversationId) -> None:
        """After a commit that deleted a conversation: nothing of it stays, and whoever watches is told."""

        async def forget() -> None:
            pipeline = self._client.pipeline()
            pipeline.delete(_partial(conversation))
            pipeline.eval(_TELL, 1, _events(conversation), json.dumps({"type": "erased"}))
            await pipeline.execute()

        await self.forget_session(conversation)
        await self._soft(forget, None, _partial(conversation))
        await self._soft(lambda: self._client.zrem(ACTIVE, str(conversation)), None, ACTIVE)

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

        uses = await self._soft(count, 0, key)
        return 0 if uses <= limit else max(1, int(seconds - now % seconds))

    async def active_conversations(self) -> int:
        """How many conversations had a message within SESSION_TTL_SECONDS."""

        async def count() -> int:
            pipeline = self._client.pipeline()
            pipeline.zremrangebyscore(ACTIVE, "-inf", time.time() - self._ttl)
            pipeline.zcard(ACTIVE)
            return int((await pipeline.execute())[1])

        return await self._soft(count, 0, ACTIVE)

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
            async with asyncio.timeout(PATIENT_SECONDS), self._subscribing:
                if self._subscriptions is None:  # lost meanwhile
                    return
                if channel in self._readers and channel not in self._subscribed:
                    self._subscribed[channel] = asyncio.Event()
                    await self._subscriptions.subscribe(channel)
                elif channel not in self._readers and self._subscribed.pop(channel, None) is not None:
                    await self._subscriptions.unsubscribe(channel)
            if (confirmed := self._subscribed.get(channel)) is not None:
                async with asyncio.timeout(CONFIRM_SECONDS):
                    await confirmed.wait()
        except (
            *FAILURES,
            AttributeError,
        ) as error:  # redis-py, when the listener closes what is about to be written to
            self._failed(error)

    async def _renew(self) -> None:
        """Keep the locks that are held. One that Redis has lost is taken again; one that another process has is
        forgotten: only the turn's row in PostgreSQL gives a right."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            if held := list(self._held):
                self._renewed.clear()
                try:
                    kept = await self._soft(lambda held=held: self._renew_all(held), [])
                finally:
                    self._renewed.set()
                self._held -= {lock for lock, ours in zip(held, kept, strict=False) if ours == 0}

    async def _renew_all(self, held: Sequence[ConversationId]) -> Sequence[object]:
        """1 for each that is ours, 0 for one that is not; an error where a node of a cluster does not answer."""
        pipeline = self._client.pipeline()
        for conversation in held:
            pipeline.eval(_RENEW, *self._lock(conversation))
        return await pipeline.execute(raise_on_error=False)

    async def _on_lock(self, script: str, conversation: ConversationId, otherwise: int) -> int:
        return await self._soft(
            lambda: self._client.eval(script, *self._lock(conversation)), otherwise, _key(conversation, "lock")
        )

    def _lock(self, conversation: ConversationId) -> Sequence[Any]:
        keys = [_key(conversation, what) for what in ("lock", "knock")]
        return 2, *keys, self._token, str(LOCK_SECONDS * 1000)

    async def _listen(self) -> None:
        """Hand messages to readers. After a break everyone is told to look at PostgreSQL."""
        pause = 0.1
        while True:
            try:
                async with asyncio.timeout(PATIENT_SECONDS), self._subscribing:
                    self._subscriptions = await subscriber(self._client)
                    self._subscribed = {channel: asyncio.Event() for channel in self._readers}
                    await self._subscriptions.subscribe(CONTROL, *self._readers)
                self._well("")
                pause = 0.1
                for readers in self._readers.values():
                    for queue in readers:
                        _put(queue, RESYNC)
                while True:
                    if (message := await heard(self._client, self._subscriptions)) is not None:
                        await self._take(message)
            except Exception as error:  # noqa: BLE001 - without this loop no event arrives any more
                self._failed(error)
                broken, self._subscriptions = self._subscriptions, None
                if broken is not None:
                    with suppress(*FAILURES):
                        await broken.aclose()
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

    async def _soft(self, operation: Callable[[], Awaitable[T]], otherwise: T, key: str = "") -> T:
        """Do something with a key; without Redis, `otherwise` is the result. No key: any server can do it."""
        place = place_of(self._client, key) if key else ""
        if time.monotonic() < self._quiet.get(place, 0.0):
            return otherwise
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                result = await operation()
        except FAILURES as error:
            self._failed(error, place)
            return otherwise
        self._well(place)
        return result

    def _well(self, place: str) -> None:
        self._quiet.pop(place, None)
        self.reachable = True

    def _failed(self, error: Exception, place: str = "") -> None:
        REDIS_ERRORS.inc()
        if place not in self._quiet:
            reason = tls_trouble(error) or type(error).__name__
            log.warning("redis.lost", reason=reason, effect="slower, nothing is lost")
        self._quiet[place] = time.monotonic() + QUIET_SECONDS
        self.reachable = False


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
