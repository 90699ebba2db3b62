"""What the process takes on at once: more is answered with 503 before it hurts those who are in."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chat_bridge.telemetry import REFUSED, log
from chat_bridge.web.problems import RETRY_SECONDS, Problem, problem_response

# A second or two of work: who would wait longer does better to come again. Fewer than the store's queue takes.
MOST_REQUESTS = 2000
# Each costs some tens of kilobytes while nothing happens.
MOST_STREAMS = 10_000
HELD_BYTES = 64 * 1024**2  # of all bodies together
BODY_SECONDS = 30.0  # or a few thousand senders of nothing would keep everybody out

# Whoever watches over the process must hear of it above all when it is busy.
ALWAYS = frozenset({"/health", "/healthz", "/readyz", "/metrics"})


class Admission:
    """Answers 503 when `most_requests` are in progress. Event streams, which stay for hours, are counted apart."""

    def __init__(self, app: ASGIApp, most_requests: int = MOST_REQUESTS, most_streams: int = MOST_STREAMS) -> None:
        self._app = app
        self._requests = _Room("requests", most_requests)
        self._streams = _Room("event streams", most_streams)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self._app(scope, receive, send)
            return
        room = self._streams if scope["path"].endswith("/events") else self._requests
        if not room.enter():
            REFUSED.labels(room.name).inc()
            refusal = _overloaded(f"{room.most} {room.name} are in progress")
            await problem_response(refusal.status_code, refusal.detail, refusal.headers)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            room.leave()


class _Room:
    """How many are in. The first one who finds it full is logged, not the thousands that follow."""

    def __init__(self, name: str, most: int) -> None:
        self.name = name
        self.most = most
        self._inside = 0
        self._full = False

    def enter(self) -> bool:
        if self._inside >= self.most:
            if not self._full:
                log.warning("requests.refused", reason=f"{self.most} {self.name} are in progress")
            self._full = True
            return False
        self._inside += 1
        return True

    def leave(self) -> None:
        self._inside -= 1
        self._full = self._full and self._inside > self.most // 2


class BodyLimit:
    """Refuses request bodies longer than `max_bytes` with 413, whether or not they say their length; any with 503 while
    those of all requests in progress hold `held_bytes`; and with 408 one that isn't whole after `seconds`."""

    def __init__(
        self, app: ASGIApp, max_bytes: int, held_bytes: int = HELD_BYTES, seconds: float = BODY_SECONDS
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._held_bytes = max(held_bytes, max_bytes)
        self._seconds = seconds
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = Problem(413, f"The body is too long: at most {self._max_bytes} bytes are taken.")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            await problem_response(refusal.status_code, refusal.detail)(scope, receive, send)
            return
        taken = 0
        until: float | None = asyncio.get_running_loop().time() + self._seconds

        async def counted() -> Message:
            nonlocal taken, until
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise Problem(408, f"The body was not whole after {self._seconds:g} s.") from None
            if not message.get("more_body"):
                until = None  # what comes after the body is the end of the connection, at any time
            size = len(message.get("body", b""))
            taken += size
            self._held += size
            if taken > self._max_bytes:
                raise refusal
            if self._held > self._held_bytes:
                REFUSED.labels("bodies").inc()
                raise _overloaded("the bodies of others fill the room there is")
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= taken


def _overloaded(reason: str) -> Problem:
    return Problem(503, f"Too busy: {reason}. Please try again.", {"Retry-After": str(RETRY_SECONDS)})
