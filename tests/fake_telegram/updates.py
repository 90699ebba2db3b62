"""The queue of updates, and `getUpdates`."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from tests.fake_telegram.errors import bad_request, conflict

LONGEST_POLL = 50
MOST_UPDATES = 100
NOT_BY_DEFAULT = {"chat_member", "message_reaction", "message_reaction_count"}
KINDS = {
    *("message", "edited_message", "channel_post", "edited_channel_post", "business_connection", "business_message"),
    *("edited_business_message", "deleted_business_messages", "message_reaction", "message_reaction_count"),
    *("inline_query", "chosen_inline_result", "callback_query", "shipping_query", "pre_checkout_query"),
    *("purchased_paid_media", "poll", "poll_answer", "my_chat_member", "chat_member", "chat_join_request"),
    *("chat_boost", "removed_chat_boost", "guest_message", "managed_bot"),
}


@dataclass(eq=False)
class Update:
    """One update. Those with the same `lane` are sent to a webhook one after another."""

    body: dict[str, Any]
    lane: int
    expires: float
    twice_at_once: bool = False

    @property
    def id(self) -> int:
        return self.body["update_id"]


class Updates:
    """Updates that nobody has confirmed yet. `odd` says what shall be wrong with the next ones."""

    def __init__(self, first_id: int) -> None:
        self.pending: list[Update] = []
        self.odd: list[str] = []
        self.lifetime = 24 * 3600.0
        self.next_id = first_id
        self._allowed: list[str] = []
        self._arrived = asyncio.Event()
        self._held: Update | None = None
        self._poll: asyncio.Future[str] | None = None

    @property
    def allowed(self) -> list[str]:
        """What the bot asked for last; empty for the default set."""
        return self._allowed

    def allow(self, kinds: Any) -> None:
        """Remember which kinds the bot wants; unknown ones are left out, as the real server does."""
        if kinds is None:
            return
        if not isinstance(kinds, list):
            raise bad_request("can't parse allowed updates: Expected an Array of strings")
        self._allowed = [kind for kind in kinds if kind in KINDS]

    def emit(self, kind: str, body: dict[str, Any], chat: int) -> None:
        """A new update of the world."""
        if kind in self._allowed if self._allowed else kind not in NOT_BY_DEFAULT:
            self.add({kind: body}, chat)

    def add(self, body: dict[str, Any], lane: int) -> int:
        """Queue an update, whatever is in it; gives its id."""
        body = {"update_id": self.next_id, **body}
        self.next_id = max(self.next_id, body["update_id"]) + 1
        update = Update(body, lane, time.time() + self.lifetime)
        oddity = self.odd.pop(0) if self.odd else None
        if oddity == "swap" and self._held is None:
            self._held = update  # the next one goes first
            return update.id
        update.twice_at_once = oddity == "twice_at_once"
        self.pending += [update, Update(body, lane, update.expires)] if oddity == "duplicate" else [update]
        if self._held is not None:
            self.pending.append(self._held)
            self._held = None
        self._arrived.set()
        self._arrived = asyncio.Event()
        return update.id

    def drop(self) -> None:
        """Forget all that is pending."""
        self.pending.clear()

    def forget(self, update: Update) -> None:
        """A webhook took it, or it is too old."""
        if update in self.pending:
            self.pending.remove(update)

    def expire(self) -> None:
        """Forget what is too old."""
        now = time.time()
        self.pending = [update for update in self.pending if update.expires > now]

    def arrival(self) -> Coroutine[Any, Any, bool]:
        """Wait for the next update: the one that comes after this call, not after the wait has begun."""
        return self._arrived.wait()

    def end_poll(self, reason: str) -> None:
        """End a `getUpdates` that waits, with a 409."""
        if self._poll is not None and not self._poll.done():
            self._poll.set_result(reason)

    async def get(self, offset: int, limit: int, timeout: float) -> list[dict[str, Any]]:
        """`getUpdates`: confirm what is older than `offset`, and give or await the rest."""
        self.end_poll("terminated by other getUpdates request; make sure that only one bot instance is running")
        if offset < 0:
            self.pending = self.pending[offset:]
        elif offset > 0:
            self.pending = [update for update in self.pending if update.id >= offset]
        poll = self._poll = asyncio.get_running_loop().create_future()
        try:
            await self._some(poll, min(max(timeout, 0), LONGEST_POLL))
        finally:
            if self._poll is poll:
                self._poll = None
        if poll.done():
            raise conflict(poll.result())
        limit = min(max(limit, 1), MOST_UPDATES)
        ready = self.pending[:limit]
        return [body for update in ready for body in [update.body] * (2 if update.twice_at_once else 1)]

    async def _some(self, poll: "asyncio.Future[str]", seconds: float) -> None:
        """Wait until there is an update, the time is up or the poll is ended."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        self.expire()
        while not self.pending and not poll.done() and loop.time() < until:
            arrival = asyncio.ensure_future(self.arrival())
            try:
                await asyncio.wait([arrival, poll], timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            finally:
                arrival.cancel()
            self.expire()
