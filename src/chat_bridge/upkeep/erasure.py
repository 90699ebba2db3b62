"""Erasure: what is known of a person, a conversation or a session goes from everywhere, and again after a restore.

The ledger lies in object storage, since a restored database does not know what was erased after its backup. It names
sessions and messages by their random ids, and people by digests that nobody can trace back (`storage.erasure.Person`).
It is written before anything is deleted: an erasure that was killed is carried out anew, by whoever comes next.
"""

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from uuid_utils.compat import uuid7

from chat_bridge.agents.contract import Agent, AgentError
from chat_bridge.errors import ChatBridgeError, PlaceError, StorageError
from chat_bridge.model import ConversationId, Json, SessionId
from chat_bridge.storage import archives, erasure, leases, sessions
from chat_bridge.storage.archives import Shelf
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.erasure import Counts, Erasure, Found, Kind, Person, Place
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.retention import UserKey
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import log
from chat_bridge.upkeep.ages import Ages
from chat_bridge.upkeep.archive import Archiver
from chat_bridge.upkeep.cleanup import Cleanup

LEDGER = "erasures/"
LEASE = "erasure"
LEASE_SECONDS = 300.0
EVERY_SECONDS = 60.0
IN_A_FILE = 100_000  # ids
NEWEST = 2**63 - 1


class HeldError(ChatBridgeError):
    """What is to be erased is on legal hold."""


@dataclass(slots=True)
class Plan:
    """What there is to be erased: sessions as a whole, messages in sessions with others, people. What is in `archived`
    sessions is known when they have their rows again."""

    sessions: list[Found] = field(default_factory=list[Found])
    shared: list[Found] = field(default_factory=list[Found])
    messages: list[Place] = field(default_factory=list[Place])
    people: Sequence[Person] = ()
    archived: list[SessionId] = field(default_factory=list[SessionId])
    held: set[ConversationId] = field(default_factory=set[ConversationId])

    def require_free(self) -> None:
        """Raise HeldError if anything of it is on legal hold."""
        if self.held:
            names = ", ".join(str(each) for each in sorted(self.held))
            raise HeldError(f"on legal hold: {names}. Lift that first (`chat-bridge hold`)")


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
                if await leases.take(self.database, LEASE, self._owner, LEASE_SECONDS):
                    try:
                        await self._once()
                    finally:
                        await leases.release(self.database, LEASE, self._owner)
            except (StorageError, PlaceError) as error:
                log.warning("erasure.failed", reason=str(error), effect="it is tried again")
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._wanted.wait()
            self._wanted.clear()

    async def begin(self, kind: Kind, of: Json) -> Erasure:
        """Note what is to be erased: `run` does it soon. Raises StorageError."""
        wanted = await erasure.begin(self.database, uuid7(), kind, {"of": of})
        self._wanted.set()
        return wanted

    async def _once(self) -> None:
        if not self._compared:
            await self.reapply()
            self._compared = True
        for each in await erasure.unfinished(self.database):
            try:
                await self.carry_out(each)
            except HeldError as error:
                await erasure.aim(self.database, each.id, each.target, {"not_reached": [str(error)]})

    async def look(self, kind: Kind, of: Json) -> Plan:
        """What there is of somebody or something. Raises StorageError."""
        plan = Plan()
        async for page in self._sessions(kind, of):
            for found in page:
                if found.held:
                    plan.held.add(found.conversation_id)
                if found.archived:
                    plan.archived.append(found.id)
                elif found.alone:
                    plan.sessions.append(found)
                else:
                    messages = await erasure.messages_of_person(self.database, found, of["user"])
                    if messages or found.begun:
                        plan.shared.append(found)
                        plan.messages += messages
        if kind == "user":
            known = await erasure.person(self.database, of["platform"], of.get("account"), of["user"])
            plan.people = [person for person, _ in known]
            for where, session, held in await self._archived_with(of):
                if held:
                    plan.held.add(where)
                plan.archived.append(session)
        plan.archived = list(dict.fromkeys(plan.archived))
        return plan

    async def carry_out(self, wanted: Erasure) -> Erasure:
        """Erase, as far as that can be done now; the receipt tells what could not be reached yet. Raises StorageError,
        PlaceError and HeldError: then nothing, or not all of it, was deleted yet, and it is to be carried out again."""
        left = dict(wanted.target or {})
        if "of" in left:
            left = await self._erase_rows(wanted, left)
        reasons: list[str] = []
        if threads := left.get("threads"):
            left["threads"], reason = await self._forget(wanted.id, threads)
            if left["threads"]:
                reasons.append(f"what the agent remembers of {len(left['threads'])} sessions: {reason}")
        if packed := left.get("archives"):
            left["archives"] = await self._purge([UUID(each) for each in packed])
            if left["archives"]:
                reasons.append(f"{len(left['archives'])} archives in object storage")
        if contents := left.get("contents"):
            left["contents"] = await self._delete_objects([UUID(each) for each in contents])
            if left["contents"]:
                reasons.append(f"{len(left['contents'])} files in object storage")
        target = {name: value for name, value in left.items() if value} or None
        await erasure.aim(self.database, wanted.id, target, {"not_reached": reasons} if reasons else {})
        done = await erasure.find(self.database, wanted.id)
        assert done is not None
        log.info("erasure.finished" if target is None else "erasure.not_finished", erasure=str(done.id), **done.receipt)
        return done

    async def reapply(self) -> Sequence[Erasure]:
        """Erase again what a restored backup has brought back; which erasures that were. Raises StorageError,
        PlaceError."""
        ledger: dict[UUID, list[str]] = {}
        for name in await self.blobs.names(LEDGER):
            if not name.endswith(".json"):
                continue  # somebody was killed while writing it, and began anew
            ledger.setdefault(UUID(name.split("/")[1]), []).append(name)
        known = await erasure.known(self.database, list(ledger))
        again: list[Erasure] = []
        for each in ledger.keys() - known:
            entries = [json.loads(await self.blobs.read(name)) for name in ledger[each]]
            again.append(await self._erase_again(each, entries))
        return again

    async def _sessions(self, kind: Kind, of: Json) -> AsyncGenerator[Sequence[Found]]:
        if kind == "user":
            async for page in erasure.sessions_of_person(self.database, of["platform"], of.get("account"), of["user"]):
                yield page
        elif kind == "conversation":
            yield await erasure.sessions_of_conversation(self.database, ConversationId(UUID(of["conversation"])))
        else:
            session = await sessions.get_session(self.database, SessionId(UUID(of["session"])))
            if session is not None:
                yield await erasure.sessions_of_conversation(self.database, session.conversation_id, session.id)

    async def _erase_rows(self, wanted: Erasure, target: dict[str, Any]) -> dict[str, Any]:
        """Delete from PostgreSQL and Redis; what is left to do elsewhere."""
        plan = await self.look(wanted.kind, target["of"])
        plan.require_free()
        if plan.archived:
            packed = [str(each) for each in await erasure.archives_of(self.database, plan.archived)]
            target = {**target, "archives": [*target.get("archives", []), *packed]}
            await erasure.aim(self.database, wanted.id, target, {})
            await self._unpack(plan.archived)
            plan = await self.look(wanted.kind, target["of"])
        await self._write_ledger(wanted, plan)
        # What the agent knows of the owner goes with the last of its sessions, and not with one of many.
        owned = wanted.kind != "session"
        threads = [[str(each.id), each.resource if owned else None] for each in plan.sessions]
        threads += [[str(each.id), None] for each in plan.shared]
        contents = await self._contents([each.conversation_id for each in [*plan.sessions, *plan.shared]])
        left = {
            "threads": [*target.get("threads", []), *threads],
            "contents": [*target.get("contents", []), *contents],
            "archives": target.get("archives", []),
        }
        # Before the rows go, from which this could be known again.
        await erasure.aim(self.database, wanted.id, {**target, **left}, {})
        whole = [(each.conversation_id, each.id) for each in plan.sessions]
        begun = [each.id for each in plan.shared if each.begun]
        people = [each.key for each in plan.people]
        async for counts in self._erase_found(whole, begun, plan.messages, people):
            await erasure.note(self.database, wanted.id, counts)
        return left

    async def _archived_with(self, of: Json) -> Sequence[tuple[ConversationId, SessionId, bool]]:
        """Archived sessions in which somebody wrote, and whether they are on hold. Every archive is read."""
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
        return await erasure.archived_with_ids(self.database, list(found))

    async def _unpack(self, sessions_: Sequence[SessionId]) -> None:
        """Give archived sessions their rows again."""
        for session in sessions_:
            await archives.restore(self.database, self._shelf, session)

    async def _purge(self, packed: Sequence[UUID]) -> list[str]:
        """Write archives anew without what was erased; those whose objects are still there."""
        archiver = Archiver(self._store, self.blobs, Ages(None))
        for archive in packed:
            await archiver.purge(archive)
        return [str(each) for each in await erasure.remaining_archives(self.database, packed)]

    async def _contents(self, conversations: Sequence[ConversationId]) -> list[str]:
        return [str(each) for each in await erasure.contents_in(self.database, conversations)]

    async def _erase_found(
        self,
        whole: Sequence[tuple[ConversationId, SessionId]],
        begun: Sequence[SessionId],
        messages: Sequence[Place],
        people: Sequence[UserKey],
    ) -> AsyncGenerator[Counts]:
        """Delete these; what went, step by step."""
        for conversation, session in whole:
            # Nothing arrives in a closed session, and no turn runs there.
            await sessions.close_session(self.database, session)
            await self._hot.control(
                {"type": "stop", "conversation": str(conversation), "before": NEWEST, "reason": "lost", "holding": None}
            )
            yield await erasure.erase_session(self.database, conversation, session)
            await self._hot.forget_conversation(conversation)
        await erasure.blank_sessions(self.database, begun)
        yield await erasure.blank(self.database, messages)
        for conversation in {place.conversation_id for place in messages}:
            await self._hot.forget_conversation(conversation)
        yield Counts(people=await erasure.erase_people(self.database, people))

    async def _write_ledger(self, wanted: Erasure, plan: Plan) -> None:
        """In several files if there is much."""
        ids = {
            "sessions": [str(each.id) for each in plan.sessions],
            "shared": [str(each.id) for each in plan.shared],
            "begun": [str(each.id) for each in plan.shared if each.begun],
            "messages": [str(each.id) for each in plan.messages],
            "people": [each.digest for each in plan.people],
        }
        for start in range(0, max(len(each) for each in ids.values()), IN_A_FILE):
            some = {name: each[start : start + IN_A_FILE] for name, each in ids.items()}
            entry = {"version": 1, "kind": wanted.kind, "erased_at": wanted.created_at.isoformat(), **some}
            await self.blobs.write(f"{LEDGER}{wanted.id}/{uuid4()}.json", io.BytesIO(json.dumps(entry).encode()))

    async def _erase_again(self, wanted: UUID, entries: Sequence[Mapping[str, Any]]) -> Erasure:
        names = [SessionId(UUID(each)) for entry in entries for each in entry["sessions"]]
        begun = [SessionId(UUID(each)) for entry in entries for each in entry["begun"]]
        ids = [UUID(each) for entry in entries for each in entry["messages"]]
        digests = {each for entry in entries for each in entry["people"]}
        shared = [SessionId(UUID(each)) for entry in entries for each in entry["shared"]]
        packed = await erasure.archives_of(self.database, [*names, *shared])
        await self._unpack([*names, *shared])
        whole = await erasure.sessions_with_ids(self.database, names)
        messages = await erasure.messages_with_ids(self.database, ids)
        people = await erasure.people_with_digests(self.database, digests)
        conversations = [conversation for conversation, _ in whole] + [place.conversation_id for place in messages]
        contents = await self._contents(conversations)
        counts = Counts()
        async for more in self._erase_found(whole, begun, messages, people):
            counts.add(more)
        # On record only now: until then it is begun anew.
        left = {
            "threads": [[str(each), None] for each in names],
            "contents": contents,
            "archives": [str(each) for each in packed],
        }
        again = await erasure.begin(self.database, wanted, entries[0]["kind"], left)
        await erasure.note(self.database, wanted, counts)
        return await self.carry_out(again)

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
