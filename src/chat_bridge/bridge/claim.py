"""Claim: one worker a conversation, woken by a message or by the sweep; the row in `turns` decides who may answer."""

import asyncio
import time
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, Literal, Protocol
from uuid import UUID

from chat_bridge import tracing
from chat_bridge.bridge.deliver import Deliverer
from chat_bridge.bridge.resolve import busy_policy
from chat_bridge.errors import StorageError
from chat_bridge.model import (
    Address,
    ConversationId,
    InboundEvent,
    Json,
    Receipt,
    Seq,
    SessionId,
    Turn,
    TurnId,
    TurnOutcome,
)
from chat_bridge.platforms.contract import Platform
from chat_bridge.settings import Settings
from chat_bridge.storage import sessions, turns
from chat_bridge.storage.outbox import Delivery
from chat_bridge.storage.redis import Event, Hot
from chat_bridge.storage.store import Store
from chat_bridge.storage.turns import Completion, SetAside, Wish
from chat_bridge.telemetry import TURN_WAIT_SECONDS, TURNS_LOST, TURNS_RUNNING, log
from chat_bridge.texts import Texts

BACKGROUND_SECONDS = 5.0  # what small things beside the turns may still take when the process stops

# Why a running turn has to stop: the user said so, a newer message takes its place, its lease is gone, we shut down.
StopReason = Literal["cancelled", "superseded", "lost", "handed_back"]


class Running:
    """A turn that this process is answering, and the way to stop it. At `trusted_until` (of `time.monotonic`) another
    process may have it, unless the lease is renewed."""

    def __init__(self, turn: Turn, trusted_until: float) -> None:
        self.turn = turn
        self.trusted_until = trusted_until
        self.stopped: StopReason | None = None
        self._call: asyncio.Task[None] | None = None

    @property
    def trusted(self) -> bool:
        return time.monotonic() < self.trusted_until

    def stop(self, reason: StopReason) -> None:
        """Cancel the agent's call; the worker then ends the turn in the way the first reason asks for."""
        if self.stopped is None:
            self.stopped = reason
            if self._call is not None:
                self._call.cancel()

    def stop_if(self, before: Seq, reason: StopReason, holding: Seq | None) -> None:
        """Stop if the turn has messages before this one, or, with `holding`, if it has that message. A command can't
        be superseded: it is not repeated, and a decision on a tool call may have been carried out."""
        if reason == "superseded" and self.turn.messages[-1].is_command:
            return
        taken = [message.seq for message in self.turn.messages]
        if (holding in taken) if holding is not None else taken[-1] < before:
            self.stop(reason)

    async def call(self, work: Coroutine[None, None, None], name: str) -> None:
        """Run the part of the turn that `stop` cancels. Returns quietly when it was stopped."""
        self._call = asyncio.create_task(work, name=name)
        if self.stopped is not None:
            self._call.cancel()
        try:
            await self._call
        except asyncio.CancelledError:
            if self.stopped is None:  # the worker itself is being cancelled
                self._call.cancel()
                raise
        finally:
            self._call = None


class Answers(Protocol):
    """What a claimed turn is given to."""

    async def answer(self, running: Running) -> None: ...


class Workers:
    """The workers of this process."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        hot: Hot,
        platforms: Mapping[str, Platform],
        agent_name: str,
        answers: Answers,
        deliverer: Deliverer,
        texts: Texts,
    ) -> None:
        self._settings = settings
        self._store = store
        self._hot = hot
        self._platforms = platforms
        self._accounts = [(name, platform.account) for name, platform in platforms.items()]
        self._agent_name = agent_name
        self._answers = answers
        self._deliverer = deliverer
        self._texts = texts
        self._slots = asyncio.Semaphore(settings.max_turns)
        self._workers: dict[ConversationId, asyncio.Task[None]] = {}
        self._again: set[ConversationId] = set()
        self._rescued: set[ConversationId] = set()
        self._full = False  # some conversations found no place here: they wait in PostgreSQL
        self._refilling = False
        self._behind: dict[ConversationId, str] = {}  # came during a refill: those that it finds wait longer
        self._running: dict[ConversationId, Running] = {}
        # What came while a claim was under way.
        self._stops: dict[ConversationId, list[tuple[Seq, StopReason, Seq | None]]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._closing = False
        hot.handle_control(self._control)

    def wake(self, conversation: ConversationId, platform: str) -> None:
        """Something may wait in a conversation: have a worker look. Safe to call at any time, as often as you like."""
        if platform not in self._platforms:
            return
        if conversation in self._workers:
            self._again.add(conversation)
            return
        if self._refilling:
            self._behind[conversation] = platform
        elif self._full or not self._room:
            self._full = True
            self.spawn(self._pass_on(conversation, platform), "wake.pass_on")
            self._refill_if_room()
        else:
            self._start(conversation, platform)

    def rescue(self, conversation: ConversationId, platform: str) -> None:
        """As `wake`, for a conversation that nobody is on: a lock in Redis was left behind by who died."""
        if conversation in self._workers or (self._room and not self._full and not self._refilling):
            self._rescued.add(conversation)
        self.wake(conversation, platform)

    async def stop(
        self, conversation: ConversationId, before: Seq, reason: StopReason, *, holding: Seq | None = None
    ) -> None:
        """Stop the running turn of a conversation, in whichever process it is, if it began with messages before this
        one: when the word comes late, a turn of newer messages may be running. `holding`: if it has this message."""
        self._stop_here(conversation, before, reason, holding)
        await self._hot.control(
            {
                "type": "stop",
                "conversation": str(conversation),
                "before": before,
                "reason": reason,
                "holding": holding,
            }
        )

    async def refuse(self, receipt: Receipt, event: InboundEvent, reason: str) -> None:
        """Tell the user why a message will not be answered, at most once a minute."""
        metadata: dict[str, Any] = {"notice": reason}
        if event.group and event.platform_message_id is not None:
            metadata["reply_to"] = event.platform_message_id
        await self._say(event.address, receipt.session_id, reason, metadata)

    def apologise(self, message: SetAside) -> None:
        """Tell the user of a message that was set aside, at most once a minute."""
        self.spawn(self._say(message.address, message.session_id, "error", {"notice": "error"}), "apologise")

    async def _say(self, address: Address, session: SessionId, name: str, metadata: Json) -> None:
        text = self._texts.say(name)
        metadata = tracing.carried(metadata)
        parts = len(self._platforms[address.platform].render(text))
        asked_at = time.monotonic()
        said = await sessions.say(self._store.database, address.id, session, text, metadata, parts)
        if said is None:
            return
        message, seq, key = said
        if key is not None:
            delivery = Delivery(address.id, seq, 1, 1, key, message, address, text, metadata, taken_at=asked_at)
            await self._deliverer.deliver(delivery)

    def spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        """Run something small beside the caller. What it fails to do, the sweep does."""

        def done(task: asyncio.Task[None]) -> None:
            self._background.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.warning("background.failed", task=name, error=type(error).__name__, reason=str(error))

        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(done)

    async def renew_leases(self) -> None:
        """Renew the leases of all turns of this process, three times a lease, for ever. A turn that is no longer ours,
        or whose lease may have run out while the database was away, is stopped."""
        lease = self._settings.lease_seconds
        trusted_until = time.monotonic() + lease
        pause = lease / 3
        while True:
            await asyncio.sleep(pause)
            pause = lease / 3
            held = list(self._running.values())
            asked_at = time.monotonic()
            ours: set[TurnId] = set()
            try:
                if held:
                    # So that there is time for another try, on another connection.
                    async with asyncio.timeout(lease / 4):
                        ours = await turns.renew(self._store.database, [running.turn for running in held], lease)
                trusted_until = asked_at + lease
                for running in held:
                    if running.turn.id in ours:
                        running.trusted_until = trusted_until
            except (StorageError, TimeoutError) as error:
                log.warning("lease.renewal_failed", turns=len(held), reason=str(error) or "no answer in time")
                pause = lease / 12
                if time.monotonic() < trusted_until:
                    continue
            for running in held:
                if running.turn.id not in ours and self._running.get(running.turn.conversation_id) is running:
                    TURNS_LOST.inc()
                    log.warning("turn.lost", turn=str(running.turn.id), conversation=str(running.turn.conversation_id))
                    running.stop("lost")

    async def drain(self, seconds: float) -> None:
        """Take no new turns, let running ones finish for a while, then hand the rest back."""
        self._closing = True
        await _wait(self._workers.values(), seconds)
        for running in list(self._running.values()):
            running.stop("handed_back")
        await _wait(self._workers.values(), 10)
        await _wait(self._background, BACKGROUND_SECONDS)
        rest = [*self._workers.values(), *self._background]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _control(self, event: Event) -> None:
        match event.get("type"):
            case "stop":
                conversation = ConversationId(UUID(event["conversation"]))
                self._stop_here(conversation, event["before"], event["reason"], event.get("holding"))
            case "wake" if not self._closing and len(self._workers) < self._settings.max_turns:
                self.wake(ConversationId(UUID(event["conversation"])), event["platform"])
            case "hold":
                platform, account = event["account"]
                self._deliverer.hold(platform, account, event["seconds"])
            case _:
                pass

    def _stop_here(self, conversation: ConversationId, before: Seq, reason: StopReason, holding: Seq | None) -> None:
        running = self._running.get(conversation)
        if running is None:
            if conversation in self._workers:
                self._stops.setdefault(conversation, []).append((before, reason, holding))
        else:
            running.stop_if(before, reason, holding)

    def _start(self, conversation: ConversationId, platform: str) -> None:
        task = asyncio.create_task(self._work(conversation, self._platforms[platform]), name=f"worker:{conversation}")
        self._workers[conversation] = task

    async def _work(self, conversation: ConversationId, platform: Platform) -> None:
        try:
            await self._coalesce(platform)
            async with self._slots:
                await self._answer_all(conversation, platform)
        except StorageError as error:
            # The messages are safe; the sweep wakes another worker for them.
            log.warning("worker.failed", conversation=str(conversation), reason=str(error))
        except Exception:  # noqa: BLE001 - one conversation must not stop the others
            log.exception("worker.crashed", conversation=str(conversation))
        finally:
            del self._workers[conversation]
            self._rescued.discard(conversation)
            self._stops.pop(conversation, None)
            if conversation in self._again:
                self._again.discard(conversation)
                self.wake(conversation, platform.capabilities.name)
            self._refill_if_room()

    async def _answer_all(self, conversation: ConversationId, platform: Platform) -> None:
        """Answer until nothing waits. A lock in Redis saves the database from many who want one conversation: who can't
        have it knocks, and its holder looks again before it lets go."""
        rescued = conversation in self._rescued
        self._rescued.discard(conversation)
        if not rescued and not await self._hot.acquire(conversation):
            return
        knocked = True
        try:
            while knocked and not self._closing:
                while not self._closing and await self._take_turn(conversation, platform):
                    await self._coalesce(platform)
                knocked = await self._hot.release(conversation)
        finally:
            while knocked:  # the worker failed, or the process stops
                knocked = await self._hot.release(conversation)
            if self._closing:
                await self._pass_on(conversation, platform.capabilities.name)

    @property
    def _room(self) -> int:
        """How many more workers there may be: as many as may answer, and as many again that wait for one to end."""
        return 0 if self._closing else 2 * self._settings.max_turns - len(self._workers)

    async def _pass_on(self, conversation: ConversationId, platform: str) -> None:
        """Have another process look at a conversation."""
        await self._hot.control({"type": "wake", "conversation": str(conversation), "platform": platform})

    def _refill_if_room(self) -> None:
        # While there are still some who wait for one to end.
        if self._full and not self._refilling and 2 * self._room > self._settings.max_turns:
            self._refilling = True
            self.spawn(self._refill(), "workers.refill")

    async def _refill(self) -> None:
        """Take up conversations that found no place here before, longest first. Until all have one, nobody who comes
        later gets one before them."""
        most = 2 * self._settings.max_turns  # some of them have a worker already
        try:
            found = await turns.find_pending(self._store.database, self._accounts, most)
        except StorageError:
            self._behind.clear()  # for the sweep: to begin again at once would go on as fast as the database fails
            raise
        finally:
            self._refilling = False
        new, room = [each for each in found if each[0] not in self._workers], self._room
        for conversation, platform in new[:room]:
            self._start(conversation, platform)
        self._full = len(new) > room or len(found) == most
        behind, self._behind = self._behind, {}
        for conversation, platform in behind.items():
            self.wake(conversation, platform)

    async def _coalesce(self, platform: Platform) -> None:
        own = self._settings.coalesce_seconds
        seconds = platform.capabilities.coalesce_seconds if own is None else own
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def _take_turn(self, conversation: ConversationId, platform: Platform) -> bool:
        self._again.discard(conversation)
        policy = busy_policy(self._settings, platform.capabilities)
        trusted_until = time.monotonic() + self._settings.lease_seconds
        turn = await self._store.claim(Wish(conversation, self._agent_name, policy))
        if turn is None:
            return False
        running = Running(turn, trusted_until)
        self._running[conversation] = running
        if self._closing:
            running.stop("handed_back")
        for stop in self._stops.pop(conversation, ()):
            running.stop_if(*stop)
        TURN_WAIT_SECONDS.labels(self._agent_name).observe(
            max(0.0, time.time() - turn.messages[0].created_at.timestamp())
        )
        TURNS_RUNNING.inc()
        try:
            await self._answers.answer(running)
        except StorageError:
            raise
        except Exception as error:
            # The next worker would fail in the same way, again and again: the turn ends here.
            await self._store.complete(Completion(turn, TurnOutcome.ERROR, error=type(error).__name__))
            raise
        finally:
            TURNS_RUNNING.dec()
            del self._running[conversation]
        return True


async def _wait(tasks: Collection[asyncio.Task[None]], seconds: float) -> None:
    if tasks:
        await asyncio.wait(list(tasks), timeout=seconds)
