"""Retention: delete what the policies keep no longer. Of all processes one does it, in pieces so small that live
traffic does not wait for them, and with longer pauses between them."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from uuid_utils.compat import uuid7

from chat_bridge.errors import StorageError
from chat_bridge.model import ConversationId
from chat_bridge.policies import Lifetime, Policies
from chat_bridge.storage import leases, retention
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.retention import FIRST, Candidate, Moments, UserKey
from chat_bridge.telemetry import EXPIRED, log

LEASE = "retention"
EVERY_SECONDS = 3600.0
LEASE_SECONDS = 2 * EVERY_SECONDS  # who has it keeps it; two at once would only share the work
PAGE = 200
AT_ONCE = 20  # conversations in a piece
OF_EACH = 100  # messages of each of them
FILES_AT_ONCE = 500
ARCHIVED_AT_ONCE = 100  # sessions
PAUSE = 4  # times what a piece took: the disks and the cores are for those who talk

T = TypeVar("T")


@dataclass(slots=True)
class Effect:
    """What went, or would go: numbers by policy and thing."""

    conversations: int = 0
    held: int = 0
    messages: Counter[str] = field(default_factory=Counter[str])
    message_bytes: Counter[str] = field(default_factory=Counter[str])
    files: Counter[str] = field(default_factory=Counter[str])
    file_bytes: Counter[str] = field(default_factory=Counter[str])
    sessions: int = 0
    people: int = 0


Tell = Callable[[Effect], None]


def _tell_nobody(_effect: Effect) -> None: ...


class Retention:
    """Applies the policies. `hot`: forgets sessions that are gone; a command does without, since what Redis has lives
    for SESSION_TTL_SECONDS only."""

    def __init__(self, database: Database, policies: Policies, hot: Hot | None, owner: str) -> None:
        self._database = database
        self._policies = policies
        self._hot = hot
        self._owner = f"{owner}:{uuid7()}"

    async def run(self) -> None:
        """Apply them for ever."""
        try:
            while True:
                try:
                    if await leases.take(self._database, LEASE, self._owner, LEASE_SECONDS):
                        self._log(await self.once())
                except StorageError as error:
                    log.warning("retention.failed", reason=str(error), effect="it is tried again")
                await asyncio.sleep(EVERY_SECONDS)
        finally:
            try:
                await leases.release(self._database, LEASE, self._owner)
            except StorageError as error:
                log.warning("retention.not_released", reason=str(error))

    async def once(self, tell: Tell = _tell_nobody) -> Effect:
        """Apply them to everything. Raises StorageError: what was deleted until then is, and the next time goes on."""
        effect = Effect()
        async for page in self._pages(effect):
            alike: dict[Lifetime, list[Candidate]] = {}
            for candidate, lifetime in page:
                if not candidate.held:
                    alike.setdefault(lifetime, []).append(candidate)
            for lifetime, some in alike.items():
                await self._expire(lifetime, some, effect, tell)
        await self._expire_people(effect)
        tell(effect)
        return effect

    async def plan(self, tell: Tell = _tell_nobody) -> Effect:
        """What `once` would delete now, without deleting it. Raises StorageError."""
        effect = Effect()
        now = datetime.now(UTC)
        async for page in self._pages(effect):
            for candidate, lifetime in page:
                if candidate.held:
                    continue
                where, name = candidate.conversation_id, lifetime.policy
                moments = _moment(now, lifetime.messages), _moment(now, lifetime.attachments)
                if moments[0] is not None and candidate.oldest is not None and candidate.oldest < moments[0]:
                    messages, size = await retention.count_expired(self._database, {where: moments[0]})
                    effect.messages[name] += messages
                    effect.message_bytes[name] += size
                if moments[0] is not None and candidate.archived:
                    effect.messages[name] += await retention.count_expired_archives(self._database, where, moments[0])
                files, size = await retention.count_expired_attachments(self._database, where, moments[1], moments[0])
                effect.files[name] += files
                effect.file_bytes[name] += size
            tell(effect)
        return effect

    async def _pages(self, effect: Effect) -> AsyncGenerator[Sequence[tuple[Candidate, Lifetime]]]:
        last = FIRST
        while page := await retention.conversations_after(self._database, last, PAGE):
            last = page[-1].conversation_id
            effect.conversations += len(page)
            effect.held += sum(each.held for each in page)
            yield [(each, self._policies.of(each.platform, each.account, group=each.group)) for each in page]

    async def _expire(self, lifetime: Lifetime, some: Sequence[Candidate], effect: Effect, tell: Tell) -> None:
        now, policy = datetime.now(UTC), lifetime.policy
        if (moment := _moment(now, lifetime.messages)) is not None:
            old = {
                each.conversation_id: moment
                for each in some
                if each.oldest is None or each.oldest < moment or each.archived
            }
            await self._expire_messages(policy, old, effect, tell)
        if lifetime.attachments is not None:
            days = lifetime.attachments.days
            reason = f"files are kept for {days} day{'' if days == 1 else 's'}"
            for piece in _pieces(dict.fromkeys((each.conversation_id for each in some), now - lifetime.attachments)):
                while files := await self._piece(
                    retention.expire_attachments(self._database, piece, FILES_AT_ONCE, reason)
                ):
                    self._count(effect, policy, (), files)
                    tell(effect)

    async def _expire_messages(self, policy: str, old: Moments, effect: Effect, tell: Tell) -> None:
        for piece in _pieces(old):
            left: Moments = piece
            while left:
                gone, files = await self._piece(retention.expire_messages(self._database, left, OF_EACH))
                self._count(effect, policy, gone.values(), files)
                tell(effect)
                left = {where: piece[where] for where in gone}
            await self._drop_archives(policy, piece, effect, tell)
            await self._drop_sessions(await self._piece(retention.drop_empty_sessions(self._database, piece)), effect)

    async def _drop_archives(self, policy: str, old: Moments, effect: Effect, tell: Tell) -> None:
        while True:
            emptied, messages, files = await self._piece(
                retention.expire_archives(self._database, old, ARCHIVED_AT_ONCE)
            )
            if not emptied:
                return
            self._count(effect, policy, [messages], files)
            tell(effect)

    async def _drop_sessions(self, dropped: Sequence[ConversationId], effect: Effect) -> None:
        effect.sessions += len(dropped)
        EXPIRED.labels("sessions").inc(len(dropped))
        if self._hot is not None:
            for where in set(dropped):
                await self._hot.forget_conversation(where)

    async def _expire_people(self, effect: Effect) -> None:
        last: UserKey = ("", "", "")
        now = datetime.now(UTC)
        while page := await retention.users_after(self._database, last, PAGE):
            last = page[-1]
            old = [
                (key, moment)
                for key in page
                if (moment := _moment(now, self._policies.of_people(key[0], key[1]))) is not None
            ]
            if old:
                gone = await self._piece(retention.expire_users(self._database, old))
                effect.people += gone
                EXPIRED.labels("people").inc(gone)

    def _log(self, effect: Effect) -> None:
        numbers = {
            "messages": effect.messages.total(),
            "files": effect.files.total(),
            "sessions": effect.sessions,
            "people": effect.people,
        }
        if any(numbers.values()):
            log.info("retention.deleted", **numbers)

    def _count(self, effect: Effect, policy: str, messages: Iterable[int], files: int) -> None:
        number = sum(messages)
        effect.messages[policy] += number
        effect.files[policy] += files
        EXPIRED.labels("messages").inc(number)
        EXPIRED.labels("files").inc(files)

    async def _piece(self, work: Awaitable[T]) -> T:
        """Do a piece, then leave the database to others."""
        began = time.monotonic()
        done = await work
        await asyncio.sleep(PAUSE * (time.monotonic() - began))
        return done


def _moment(now: datetime, life: timedelta | None) -> datetime | None:
    return None if life is None else now - life


def _pieces(old: Moments) -> Iterator[Moments]:
    keys = list(old)
    for start in range(0, len(keys), AT_ONCE):
        yield {key: old[key] for key in keys[start : start + AT_ONCE]}
