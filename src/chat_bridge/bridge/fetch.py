"""Fetch: bring the files of messages into object storage before the platform forgets them.

Which files are to be fetched is a row in PostgreSQL, stored with the message: a wake-up is a hint, and the sweep takes
what a dead process left behind.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

from chat_bridge.backoff import backoff
from chat_bridge.bridge.keep import Keeper, NotKeptError
from chat_bridge.errors import PlaceError, StorageError
from chat_bridge.model import ConversationId, PendingMessage
from chat_bridge.platforms.contract import NoFileError, Platform
from chat_bridge.storage import attachments
from chat_bridge.storage.attachments import StoredAttachment, Wanted
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import ATTACHMENT_BYTES, ATTACHMENTS, RECOVERED, log

MOST_AT_ONCE = 8  # of a platform: one that hangs takes no place from the others
FETCH_SECONDS = 120.0  # for one file
RENEW_SECONDS = attachments.TAKEN_SECONDS / 3
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 300.0
GIVE_UP = timedelta(hours=24)
# A file whose fetching told of no result that often may be what ends the process. The files beside it are lost with it:
# they have as many tries to come before it.
MOST_LOST = 5
SOON_SECONDS = 10.0  # a retry within this time need not wait for the sweep
NOT_FETCHED = "it could not be fetched"
TURN_WAITS_SECONDS = 30.0
LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.1, 1.0  # each time a turn has waited in vain, it waits longer


class Fetcher:
    """Fetches files of these platforms' messages."""

    def __init__(self, store: Store, hot: Hot, platforms: Mapping[str, Platform], keeper: Keeper) -> None:
        self._store = store
        self._hot = hot
        self._platforms = platforms
        self._keeper = keeper
        self._places = {name: asyncio.Semaphore(MOST_AT_ONCE) for name in platforms}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def wake(self, conversation: ConversationId, platform: str) -> None:
        """A conversation may have files to be fetched."""
        if platform in self._platforms:
            self._start(self._work(platform, conversation))

    async def refetch(self, accounts: Sequence[tuple[str, str]]) -> None:
        """Fetch what is due of these accounts, in the places that are free."""
        for platform, _ in accounts:
            if not self._places[platform].locked():
                self._start(self._work(platform))

    async def ready(
        self, conversation: ConversationId, platform: str, messages: Iterable[PendingMessage]
    ) -> Mapping[bytes, StoredAttachment]:
        """What became of the files of messages. Waits a while for those that are being fetched: after that they count
        as not there, and the turn goes on."""
        files = [file for message in messages for file in message.attachments]
        if not files:
            return {}
        deadline, pause = time.monotonic() + TURN_WAITS_SECONDS, LOOK_SECONDS
        while True:
            found = await attachments.of(self._store.database, conversation, files)
            last = datetime.now(UTC) + timedelta(seconds=deadline - time.monotonic())
            # One that failed, and is due again later than the turn waits, is as good as failed for it.
            if all(each.due is None or (each.error and each.due > last) for each in found.values()):
                return found
            if (left := deadline - time.monotonic()) <= 0:
                return found
            if not self._tasks:
                self.wake(conversation, platform)  # another process received the message, and may have died
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_LOOK_SECONDS)

    async def aclose(self) -> None:
        """Stop: what is not fetched is another process's, or of the next start."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, platform: str, conversation: ConversationId | None = None) -> None:
        """Fetch one file that is due, of a conversation or of any, and have the next one looked for meanwhile. It is
        taken when there is a place for it: until then another process may take it."""
        database = self._store.database
        async with self._places[platform]:
            if conversation is None:
                wanted = await attachments.take(database, [(platform, self._platforms[platform].account)], 1)
                RECOVERED.labels("attachment").inc(len(wanted))
            else:
                wanted = await attachments.take_in(database, conversation, 1)
            for each in wanted:
                self._start(self._work(platform, conversation))
                await self._fetch(each)

    async def _fetch(self, wanted: Wanted) -> None:
        """Fetch a file, and note what came of it."""
        if wanted.lost >= MOST_LOST:
            log.error("attachment.given_up", lost=wanted.lost, **_ids(wanted))
            await self._failed(wanted, NOT_FETCHED, for_good=True)
            return
        platform = self._platforms[wanted.address.platform]
        try:
            async with self._held(wanted), asyncio.timeout(FETCH_SECONDS):
                self._keeper.rules.require_size(wanted.attachment.size or 0)
                async with aclosing(platform.download(wanted.attachment)) as pieces:
                    content = await self._keeper.keep(pieces, wanted.attachment.mime_type)
                if not await attachments.stored(self._store.database, wanted.conversation_id, wanted.id, content):
                    log.info("attachment.not_wanted", **_ids(wanted))  # erased, or fetched by another process
                    return
        except NoFileError as error:
            if error.detail:
                log.warning("attachment.refused", reason=error.detail, **_ids(wanted))
            await self._failed(wanted, str(error), for_good=error.for_good, after=error.retry_after or 0)
        except NotKeptError as error:
            await self._failed(wanted, str(error), for_good=error.for_good)
        except TimeoutError:
            await self._failed(wanted, f"it did not come within {FETCH_SECONDS:g} s", for_good=False)
        except PlaceError as error:
            log.error("attachment.not_stored", reason=str(error), **_ids(wanted))
            await self._failed(wanted, "it could not be stored", for_good=False)
        except StorageError:
            with suppress(StorageError):  # that is no death of the process
                await self._failed(wanted, NOT_FETCHED, for_good=False)
            raise
        except asyncio.CancelledError:
            with suppress(StorageError):  # then it is due when the time is over for which it was taken
                await attachments.failed(self._store.database, wanted, NOT_FETCHED, 0)
            raise
        except Exception:  # noqa: BLE001 - whatever an adapter does, its file gets a result
            log.exception("platform.crashed", platform=wanted.address.platform)
            await self._failed(wanted, NOT_FETCHED, for_good=False)
        else:
            ATTACHMENTS.labels(wanted.address.platform, "stored").inc()
            ATTACHMENT_BYTES.labels(wanted.address.platform).inc(content.size)
            log.info("attachment.stored", size=content.size, mime_type=content.mime_type, **_ids(wanted))
            await self._tell(wanted)

    @asynccontextmanager
    async def _held(self, wanted: Wanted) -> AsyncGenerator[None]:
        """Keep others from fetching a file meanwhile; they do soon after this process has died."""

        async def renew() -> None:
            lost = False
            while not lost:
                await asyncio.sleep(RENEW_SECONDS)
                with suppress(StorageError):
                    lost = not await attachments.renew(self._store.database, wanted)

        renewing = asyncio.create_task(renew(), name="fetch.renew")
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])

    async def _failed(self, wanted: Wanted, reason: str, *, for_good: bool, after: float = 0) -> None:
        expires = wanted.attachment.expires_at
        late = datetime.now(UTC) > min(wanted.since + GIVE_UP, expires or datetime.max.replace(tzinfo=UTC))
        retry = None
        if not (for_good or late):
            retry = max(after, backoff(wanted.attempt, FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS))
        status = "failed" if retry is None else "waiting"
        ATTACHMENTS.labels(wanted.address.platform, status).inc()
        log.warning("attachment.not_fetched", status=status, reason=reason, attempt=wanted.attempt, **_ids(wanted))
        if not await attachments.failed(self._store.database, wanted, reason, retry):
            return
        if retry is None:
            await self._tell(wanted)
        elif retry <= SOON_SECONDS:
            self._start(self._again(wanted, retry))

    async def _again(self, wanted: Wanted, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._work(wanted.address.platform, wanted.conversation_id)

    async def _tell(self, wanted: Wanted) -> None:
        """Open pages show what became of a file."""
        if wanted.seq is not None:
            await self._hot.publish(wanted.conversation_id, {"type": "attachment", "seq": wanted.seq})

    def _start(self, work: Coroutine[None, None, None]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                # The row says what is left to do, and the sweep does it.
                log.warning("attachment.interrupted", reason=str(error) or type(error).__name__)

        if self._closing:
            work.close()
            return
        task = asyncio.create_task(work, name="fetch")
        self._tasks.add(task)
        task.add_done_callback(ended)


def _ids(wanted: Wanted) -> dict[str, str]:
    return {"attachment": str(wanted.id), "conversation": str(wanted.conversation_id)}
