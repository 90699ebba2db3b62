"""What the process takes on at once: more is answered with 503 before it hurts those who are in."""

import asyncio
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chat_bridge.telemetry import REFUSED, log
from chat_bridge.web.problems import RETRY_SECONDS, Problem, problem_response

# A second or two of work: who would wait longer does better to come again. Fewer than the store's queue takes.
MOST_REQUESTS = 2000
# Each costs some tens of kilobytes while nothing happens.
MOST_STREAMS = 10_000
# An upload may hold a megabyte, a download some hundred kilobytes; and files take their time on slow lines.
MOST_UPLOADS = 100
MOST_DOWNLOADS = 1000
# Of one caller, or one could keep all others out.
MOST_UPLOADS_OF_ADDRESS = 10
MOST_UPLOADS_OF_CONVERSATION = 4
MOST_DOWNLOADS_OF_ADDRESS = 20
HELD_BYTES = 64 * 1024**2  # of all bodies together
BODY_SECONDS = 30.0  # or a few thousand senders of nothing would keep everybody out
FILE_RATE = 16 * 1024  # bytes a second that files must come in and go out with, for their time to grow with them

# Whoever watches over the process must hear of it above all when it is busy.
ALWAYS = frozenset({"/health", "/healthz", "/readyz", "/metrics"})


class Admission:
    """Answers 503 when `most_requests` are in progress. Event streams, which stay for hours, are counted apart, and so
    are files on their way in and out."""

    def __init__(self, app: ASGIApp, most_requests: int = MOST_REQUESTS, most_streams: int = MOST_STREAMS) -> None:
        self._app = app
        self._requests = _Room("requests", most_requests)
        self._streams = _Room("event streams", most_streams)
        self._uploads = _Room("uploads", MOST_UPLOADS)
        self._downloads = _Room("downloads", MOST_DOWNLOADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self._app(scope, receive, send)
            return
        room = self._room(scope["path"])
        if not room.enter():
            REFUSED.labels(room.name).inc()
            refusal = _overloaded(f"{room.most} {room.name} are in progress")
            await problem_response(refusal.status_code, refusal.detail, refusal.headers)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            room.leave()

    def _room(self, path: str) -> "_Room":
        if path.endswith("/events"):
            return self._streams
        if is_upload(path):
            return self._uploads
        return self._downloads if path.startswith("/api/v1/attachments/") else self._requests


def is_upload(path: str) -> bool:
    """Whether the body of a request is a file, which is not held in memory and may be large."""
    return path.startswith(("/api/v1/chat/", "/api/v1/sessions/")) and path.endswith("/uploads")


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


class Shares:
    """How many of a kind each of many callers has in progress."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._inside = Counter[str]()

    @contextmanager
    def place(self, who: str | None) -> Generator[None]:
        """One is in progress meanwhile; without `who` it is not counted. Raises Problem if they have too many."""
        if who is None:
            yield
            return
        if self._inside[who] >= self._most:
            detail = f"{self._most} {self._name} of yours are in progress: wait for one to end."
            raise Problem(429, detail, {"Retry-After": str(RETRY_SECONDS)})
        self._inside[who] += 1
        try:
            yield
        finally:
            self._inside[who] -= 1
            if not self._inside[who]:
                del self._inside[who]


class BodyLimit:
    """Refuses request bodies longer than `max_bytes` with 413, whether or not they say their length; any with 503 while
    those of all requests in progress hold `held_bytes`; and with 408 one that isn't whole after `seconds`.

    Uploads have a limit of their own. They go on to disk, so they are not held; and they have more time, the more they
    have brought, but never more than `seconds` for the next piece."""

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        upload_bytes: int,
        held_bytes: int = HELD_BYTES,
        seconds: float = BODY_SECONDS,
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._upload_bytes = upload_bytes
        self._held_bytes = max(held_bytes, max_bytes)
        self._seconds = seconds
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        uploads = is_upload(scope["path"])
        most = self._upload_bytes if uploads else self._max_bytes
        refusal = Problem(413, f"The body is too long: at most {most} bytes are taken.")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            await problem_response(refusal.status_code, refusal.detail)(scope, receive, send)
            return
        taken = held = 0
        now = asyncio.get_running_loop().time
        began = now()
        until: float | None = began + self._seconds

        async def counted() -> Message:
            nonlocal taken, held, until
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise Problem(408, f"The body was not whole after {now() - began:.0f} s.") from None
            size = len(message.get("body", b""))
            taken += size
            if not message.get("more_body"):
                until = None  # what comes after the body is the end of the connection, at any time
            elif uploads:
                until = min(now(), began + taken / FILE_RATE) + self._seconds
            if not uploads:
                held += size
                self._held += size
            if taken > most:
                raise refusal
            if self._held > self._held_bytes:
                REFUSED.labels("bodies").inc()
                raise _overloaded("the bodies of others fill the room there is")
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= held


def _overloaded(reason: str) -> Problem:
    return Problem(503, f"Too busy: {reason}. Please try again.", {"Retry-After": str(RETRY_SECONDS)})
