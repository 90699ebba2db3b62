"""Erasure: what is known of a person, a conversation or a session goes from everywhere, and again after a restore.

The ledger lies in object storage, since a restored database does not know what was erased after its backup. It names
sessions and messages by their random ids and nothing else: whose they were is told by the rows that come back, if they
do. It is written before anything is deleted: an erasure that was killed is carried out anew, by whoever comes next.
What came after it was asked for is not meant.
"""

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, get_args
from uuid import UUID, uuid4

from uuid_utils.compat import uuid7

from chat_bridge.agents.contract import Agent, AgentError
from chat_bridge.errors import ChatBridgeError, PlaceError, StorageError
from chat_bridge.model import ConversationId, Json, MessageId, SessionId
from chat_bridge.storage import archives, erasure, leases, sessions
from chat_bridge.storage.archives import Shelf
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.erasure import Counts, Erasure, Found, HeldError, Kind
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.retention import UserKey
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import log
from chat_bridge.upkeep.ages import Ages
from chat_bridge.upkeep.archive import Archiver
from chat_bridge.upkeep.cleanup import Cleanup

LEDGER = "erasures/"
LEASE = "erasure"
LEASE_SECONDS = 60.0
EVERY_SECONDS = 60.0
WAIT_SECONDS = 1.0
IN_A_FILE = 100_000  # ids
MOST_PASSES = 5  # what moves about meanwhile is found by the next one


class LedgerError(ChatBridgeError):
    """The ledger can't be read."""


@dataclass(slots=True)
class Plan:
    """What there is to be erased. What is in `archived` sessions is known when they have their rows again."""

    sessions: list[Found] = field(default_factory=list[Found])
    messages: int = 0  # in sessions with others
    people: Sequence[Json] = ()

    @property
    def archived(self) -> Sequence[Found]:
        return [each for each in self.sessions if each.archived]

    @property
    def shared(self) -> Sequence[Found]:
        return [each for each in self.sessions if each.others]

    def require_free(self) -> None:
        """Raise HeldError if anything of it is on legal hold."""
        if held := {each.conversation_id for each in self.sessions if each.held}:
            raise HeldError(held)


class Eraser:
    """Carries out erasures."""

    def __init__(self, store: Store, hot: Hot, blobs: Blobs, agent: Agent) -> None:
        self._store = store
        self.database = store.database
        self._hot = hot
        self.blobs = blobs
        self._shelf = Shelf(blobs)
        self._agent = agent
        self._owner = f"{store.owner}:{uuid7()}"
        self._wanted = asyncio.Event()
        self._compared = False  # the ledger with the record of erasures

    async def run(self) -> None:
        """Finish erasures that were begun, for ever; and at the start those that a restore has undone."""
        while True:
            try:
                async with self._alone(wait=False) as ours:
                    if ours:
                        await self._once()
            except StorageError as error:
                log.warning("erasure.failed", reason=str(error), effect="it is tried again")
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._wanted.wait()
            self._wanted.clear()

    @asynccontextmanager
    async def _alone(self, *, wait: bool) -> AsyncGenerator[bool]:
        """While nobody else erases. Of two at one erasure, one would not know what the other has seen."""
        while not await leases.take(self.database, LEASE, self._owner, LEASE_SECONDS):
            if not wait:
                yield False
                return
            await asyncio.sleep(WAIT_SECONDS)
        renewing = asyncio.create_task(self._renew(), name="erasure.lease")
        try:
            yield True
        finally:
            renewing.cancel()
            with suppress(StorageError):  # then it runs out
                await leases.release(self.database, LEASE, self._owner)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 4)
            with suppress(StorageError):
                await leases.take(self.database, LEASE, self._owner, LEASE_SECONDS)

    async def _once(self) -> None:
        if not self._compared:
            try:
                await self._reapply()
                self._compared = True
            except ChatBridgeError as error:
                log.warning("erasure.not_reapplied", reason=str(error), effect="it is tried again")
        for each in await erasure.unfinished(self.database):
            try:
                done = await self.carry_out(each)
                event = "erasure.finished" if done.finished_at else "erasure.not_finished"
                log.info(event, erasure=str(done.id), **done.receipt)
            except HeldError as error:
                await erasure.aim(self.database, each.id, each.target, {"not_reached": [str(error)]})
            except (StorageError, PlaceError) as error:  # the others have their turn
                log.warning("erasure.failed", erasure=str(each.id), reason=str(error), effect="it is tried again")

    async def begin(self, kind: Kind, of: Json) -> Erasure:
        """Note what is to be erased: `run` does it soon. Raises StorageError."""
        wanted = await erasure.begin(self.database, uuid7(), kind, {"of": of})
        self._wanted.set()
        return wanted

    async def finish(self, wanted: Erasure) -> Erasure:
        """Carry an erasure out when nobody else is at one; perhaps somebody did meanwhile. Raises as `carry_out`."""
        async with self._alone(wait=True):
            now = await erasure.find(self.database, wanted.id)
            return wanted if now is None else now if now.finished_at else await self.carry_out(now)

    async def reapply(self) -> Sequence[Erasure]:
        """Erase again what a restored backup has brought back; which erasures that were. Raises StorageError,
        PlaceError, HeldError, LedgerError."""
        async with self._alone(wait=True):
            return await self._reapply()

    async def look(self, kind: Kind, of: Json, moment: datetime | None = None) -> Plan:
        """What there is of somebody or something from before a moment; None: now. Raises StorageError."""
        moment = moment or datetime.now(UTC)
        plan = Plan()
        async for page in self._sessions(kind, of, moment):
            plan.sessions += page
        if kind == "user":
            plan.people = await erasure.person(self.database, of["platform"], of.get("account"), of["user"])
            known = {each.id for each in plan.sessions}
            plan.sessions += [each for each in await self._archived_with(of) if each.id not in known]
        for each in plan.shared:
            where = each.conversation_id, each.id
            plan.messages += len(await erasure.messages_to_blank(self.database, *where, of["user"], moment))
        return plan

    async def _sessions(self, kind: Kind, of: Json, moment: datetime) -> AsyncGenerator[Sequence[Found]]:
        if kind == "user":
            person = of["platform"], of.get("account"), of["user"]
            async for page in erasure.sessions_of_person(self.database, *person, moment):
                yield page
        elif kind == "conversation":
            where = ConversationId(UUID(of["conversation"]))
            yield await erasure.sessions_of_conversation(self.database, where, moment)
        elif session := await sessions.get_session(self.database, SessionId(UUID(of["session"]))):
            yield await erasure.sessions_of_conversation(self.database, session.conversation_id, moment, session.id)

    async def _archived_with(self, of: Json) -> Sequence[Found]:
        """Archived sessions in which somebody wrote. Every archive is read."""
        found: dict[SessionId, None] = {}
        for archive in await archives.list_archives(self.database):
            if archive["status"] not in ("partial", "stored"):
                continue
            for stretch in await archives.blocks_of(self.database, archive["id"]):
                block = await self._shelf.read(stretch)
                theirs = {row["session"] for row in block["messages"] if row["sender_id"] == of["user"]}
                for nth, session in enumerate(block["sessions"]):
                    place = session["platform"] == of["platform"] and of.get("account") in (None, session["account"])
                    if place and nth in theirs:
                        found[session["id"]] = None
        return [each for each in await erasure.sessions_with_ids(self.database, list(found)) if each.archived]

    async def carry_out(self, wanted: Erasure) -> Erasure:
        """Erase, as far as that can be done now; the receipt tells what could not be reached yet. Only one at a time
        may do so. Raises StorageError, PlaceError and HeldError: then not all of it was deleted yet, and it is to be
        carried out again."""
        work = _Work(self.database, wanted)
        if "of" in work.left:
            await self._erase_rows(work)
            del work.left["of"]
            await work.save()
        # A process that died may have deleted rows whose conversations nobody was told of.
        for conversation in work.left.pop("conversations", []):
            await self._hot.forget_conversation(ConversationId(UUID(conversation)))
        reasons: list[str] = []
        if threads := work.left.pop("threads", []):
            work.left["threads"], reason = await self._forget(wanted.id, threads)
            if work.left["threads"]:
                reasons.append(f"what the agent remembers of {len(work.left['threads'])} sessions: {reason}")
        if packed := work.left.pop("archives", []):
            work.left["archives"] = await self._purge([UUID(each) for each in packed])
            if work.left["archives"]:
                reasons.append(f"{len(work.left['archives'])} archives in object storage")
        if contents := work.left.pop("contents", []):
            work.left["contents"] = await self._delete_objects([UUID(each) for each in contents])
            if work.left["contents"]:
                reasons.append(f"{len(work.left['contents'])} files in object storage")
        return await work.save(reasons)

    async def _erase_rows(self, work: "_Work") -> None:
        """Delete from PostgreSQL, again and again until nothing is found: a message may move to another session."""
        kind, of, moment = work.wanted.kind, work.left["of"], work.wanted.created_at
        person = of["user"] if kind == "user" else None
        people: Sequence[Json] = ()
        for _ in range(MOST_PASSES):
            plan = await self.look(kind, of, moment)
            plan.require_free()
            if plan.archived:
                await self._unpack(work, plan.archived)
                plan = await self.look(kind, of, moment)
            people = plan.people
            await self._write_ledger(work.wanted, moment, plan.sessions, person)
            # What the agent knows of the owner goes with all of its sessions, and not with one of many.
            await work.add(plan.sessions, owned=kind != "session")
            went = [await self._erase_session(work, each, person, moment) for each in plan.sessions]
            if not any(went):
                break
        keys = [(each["platform"], each["account"], each["platform_user_id"]) for each in people]
        await work.count(Counts(people=await erasure.erase_people(self.database, keys)))

    async def _erase_session(
        self,
        work: "_Work",
        found: Found,
        person: str | None,
        moment: datetime,
        ids: Sequence[MessageId] | None = None,
    ) -> bool:
        """Erase a session as a whole, or (with `ids`, or if others wrote there, or something came since) single
        messages of it. False: there was nothing any more."""
        where = found.conversation_id, found.id
        whole, next_seq = False, None
        if ids is None:
            whole, next_seq = await erasure.close_whole(self.database, *where, person, moment)
        if whole:
            if next_seq is not None:
                await self._stop(found.conversation_id, next_seq)
            counts = await erasure.erase_session(self.database, *where)
        else:
            messages = await erasure.messages_to_blank(self.database, *where, person, moment, ids)
            counts = await erasure.blank(self.database, *where, person, messages)
            if messages:
                # A turn that took one of them is not ours any more; its worker need not find out by itself.
                await self._stop(found.conversation_id, messages[-1].seq + 1)
        await work.count(counts)
        await self._hot.forget_conversation(found.conversation_id)
        return bool(counts.sessions or counts.messages)

    async def _stop(self, conversation: ConversationId, before: int) -> None:
        told = {"type": "stop", "conversation": str(conversation), "before": before, "reason": "lost", "holding": None}
        await self._hot.control(told)

    async def _write_ledger(
        self, wanted: Erasure, moment: datetime, found: Sequence[Found], person: str | None
    ) -> None:
        """In several files if there is much."""
        entries: list[tuple[str, list[str] | None]] = []
        for each in found:
            messages = None
            if each.others:
                where = each.conversation_id, each.id
                there = await erasure.messages_to_blank(self.database, *where, person, moment)
                messages = [str(message.id) for message in there]
            entries.append((str(each.id), messages))
        while entries:
            some, size = list[tuple[str, list[str] | None]](), 0
            while entries and size < IN_A_FILE:
                some.append(entries.pop())
                size += 1 + len(some[-1][1] or ())
            entry = {"version": 1, "kind": wanted.kind, "erased_at": moment.isoformat(), "sessions": some}
            await self.blobs.write(f"{LEDGER}{wanted.id}/{uuid4()}.json", io.BytesIO(json.dumps(entry).encode()))

    async def _reapply(self) -> Sequence[Erasure]:
        ledger: dict[UUID, list[str]] = {}
        for name in await self.blobs.names(LEDGER):
            # Others are what somebody was killed in the middle of, who began anew; or not ours.
            if name.endswith(".json"):
                with suppress(ValueError, IndexError):
                    ledger.setdefault(UUID(name.split("/")[1]), []).append(name)
        known = await erasure.known(self.database, list(ledger))
        again: list[Erasure] = []
        problem: ChatBridgeError | None = None
        for each in sorted(ledger.keys() - known):
            try:
                entries = [_entry(name, await self.blobs.read(name)) for name in ledger[each]]
                again.append(await self._erase_again(each, entries))
            except (LedgerError, HeldError) as error:  # the others have their turn
                problem = error
        if problem is not None:
            raise problem
        return again

    async def _erase_again(self, wanted: UUID, entries: Sequence[Mapping[str, Any]]) -> Erasure:
        kind: Kind = entries[0]["kind"]
        moment = min(datetime.fromisoformat(entry["erased_at"]) for entry in entries)
        ids: dict[SessionId, list[MessageId] | None] = {}
        for session, messages in (each for entry in entries for each in entry["sessions"]):
            ids[SessionId(UUID(session))] = messages and [MessageId(UUID(message)) for message in messages]
        # On record only at the end: until then it is begun anew.
        work = _Work(self.database, Erasure(wanted, moment, None, kind, {}, {}), recorded=False)
        found = await erasure.sessions_with_ids(self.database, list(ids))
        if held := {each.conversation_id for each in found if each.held}:
            raise HeldError(held)
        if archived := [each for each in found if each.archived]:
            await self._unpack(work, archived)
            found = await erasure.sessions_with_ids(self.database, list(ids))
        await work.add(found, owned=kind != "session")
        # The agent's memory may have come back without the rows.
        work.left["threads"] += [[str(session), None] for session in ids.keys() - {each.id for each in found}]
        people: dict[UserKey, None] = {}
        for each in found:
            theirs = await self._people(each, moment, ids[each.id]) if kind == "user" else list[UserKey]()
            people |= dict.fromkeys(theirs)
            # In a session with others only the person is not told of any more.
            person = None if ids[each.id] is None else theirs[0][2] if theirs else ""
            await self._erase_session(work, each, person, moment, ids[each.id])
        await work.count(Counts(people=await erasure.erase_people(self.database, list(people))))
        return await self.carry_out(await work.record())

    async def _people(self, found: Found, moment: datetime, ids: Sequence[MessageId] | None) -> Sequence[UserKey]:
        """Who wrote what is to be erased again: the person that it was about."""
        session = await sessions.get_session(self.database, found.id)
        if session is None:
            return []
        where = found.conversation_id, found.id
        messages = await erasure.messages_to_blank(self.database, *where, None, moment, ids)
        senders = await erasure.senders_of(self.database, found.conversation_id, messages)
        return [(session.address.platform, session.address.account, sender) for sender in senders]

    async def _unpack(self, work: "_Work", archived: Sequence[Found]) -> None:
        """Give archived sessions their rows again; their archives are to be written anew."""
        ids = [each.id for each in archived]
        packed = await erasure.archives_of(self.database, ids)
        work.left["archives"] = [*work.left.get("archives", []), *(str(each) for each in packed)]
        await work.save()
        for session in ids:
            await archives.restore(self.database, self._shelf, session)

    async def _purge(self, packed: Sequence[UUID]) -> list[str]:
        """Write archives anew without what was erased; those whose objects are still there."""
        archiver = Archiver(self._store, self.blobs, Ages(None))
        for archive in packed:
            await archiver.purge(archive)
        return [str(each) for each in await erasure.remaining_archives(self.database, packed)]

    async def _forget(
        self, wanted: UUID, threads: Sequence[tuple[str, str | None]]
    ) -> tuple[list[tuple[str, str | None]], str]:
        """Have the agent forget; what could not be reached, and why."""
        for index, (session, resource) in enumerate(threads):
            try:
                if await self._agent.forget(session, resource):
                    await erasure.note(self.database, wanted, Counts(threads=1))
            except AgentError as error:
                return list(threads[index:]), error.detail
        return [], ""

    async def _delete_objects(self, contents: Sequence[UUID]) -> list[str]:
        """Delete the bytes of files that nothing has any more; those that could not be."""
        await erasure.doom(self.database, contents)
        await Cleanup(self._store, self.blobs).once()
        return [str(each) for each in await erasure.undeleted(self.database, contents)]


class _Work:
    """An erasure on its way: what is left to do, always on record before it can't be known any more."""

    def __init__(self, database: Database, wanted: Erasure, *, recorded: bool = True) -> None:
        self.wanted = wanted
        self.left: dict[str, Any] = dict(wanted.target or {})
        self._database = database
        self._recorded = recorded
        self._counts = Counts()

    async def add(self, found: Sequence[Found], *, owned: bool) -> None:
        """These sessions are about to be erased."""
        threads = [[str(each.id), each.resource if owned and not each.others else None] for each in found]
        conversations = list(dict.fromkeys(each.conversation_id for each in found))
        contents = await erasure.contents_in(self._database, conversations)
        for name, more in (
            ("threads", threads),
            ("conversations", [str(each) for each in conversations]),
            ("contents", [str(each) for each in contents]),
        ):
            before: list[Any] = self.left.get(name, [])
            self.left[name] = before + [each for each in more if each not in before]
        await self.save()

    async def count(self, counts: Counts) -> None:
        """So much was erased."""
        if self._recorded:
            await erasure.note(self._database, self.wanted.id, counts)
        else:
            self._counts.add(counts)

    async def save(self, not_reached: Sequence[str] = ()) -> Erasure:
        """What is left now, if it is on record."""
        if self._recorded:
            left = {name: each for name, each in self.left.items() if each}
            receipt = {"not_reached": list(not_reached)} if not_reached else {}
            await erasure.aim(self._database, self.wanted.id, left or None, receipt)
        return await erasure.find(self._database, self.wanted.id) or self.wanted

    async def record(self) -> Erasure:
        """Have it on record."""
        wanted = await erasure.begin(self._database, self.wanted.id, self.wanted.kind, self.left)
        await erasure.note(self._database, wanted.id, self._counts)
        return wanted


def _entry(name: str, data: bytes) -> Mapping[str, Any]:
    """An entry of the ledger. Raises LedgerError."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        entry = json.loads(data)
        datetime.fromisoformat(entry["erased_at"])
        for session, messages in entry["sessions"]:
            for each in (session, *(messages or ())):
                UUID(each)
        if entry["version"] == 1 and entry["kind"] in get_args(Kind):
            return entry
    raise LedgerError(f"{name} is no entry of a ledger that this program knows")
