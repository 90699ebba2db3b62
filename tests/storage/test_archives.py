"""Archives: closed sessions leave the tables as they were, are read as if they had not, and come back as they were.
Nothing is lost wherever it stops."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import zstandard

from chat_bridge.errors import PlaceError, StorageError
from chat_bridge.model import Address, Attachment, EventKind, MessageId, SessionId
from chat_bridge.storage import archives, attachments, messages, sessions
from chat_bridge.storage.archive_format import ArchiveError
from chat_bridge.storage.blobs import Blobs, open_blobs
from chat_bridge.storage.places import open_place
from chat_bridge.storage.postgres import Database, Transaction
from chat_bridge.storage.sessions import SessionFilter
from chat_bridge.storage.store import Store
from chat_bridge.storage.story import tell_story
from chat_bridge.storage.transcripts import Transcripts
from chat_bridge.storage.transfer import HistoricMessage, HistoricSession, store_history
from chat_bridge.upkeep import archive as upkeep
from chat_bridge.upkeep.ages import Ages
from chat_bridge.upkeep.archive import Archiver, Done
from tests.observe import rows
from tests.storage.dialogue import (
    CHAT,
    assert_consistent,
    chat,
    claimed,
    ending,
    looking,
    opened,
    replied,
    said,
)

DAYS = 30
WORKING = ("messages", "turns", "deliveries", "waiting")


class Desk:
    """A store, and an archive of its own in a folder."""

    def __init__(self, store: Store, dsn: str, folder: Path) -> None:
        self.store = store
        self.database = store.database
        self.dsn = dsn
        self.folder = folder
        self.blobs = open_blobs(str(folder), folder, {})
        self.transcripts = Transcripts(store.database, self.blobs)

    def archiver(self, blobs: Blobs | None = None) -> Archiver:
        return Archiver(self.store, blobs or self.blobs, Ages(DAYS), pause_seconds=0)

    async def run(self) -> Done | None:
        return await self.archiver().once()

    async def talk(self, to: Address = CHAT, turns: int = 3, text: str = "the answer") -> SessionId:
        """A session with questions, answers that were sent, and an end."""
        for _ in range(turns):
            delivery = await replied(self.store, to, text)
            assert delivery is not None
            await self.sent()
        (row,) = await self.rows("select id from sessions where conversation_id = $1 and status = 'active'", to.id)
        assert await sessions.close_session(self.database, row["id"])
        return row["id"]

    async def sent(self) -> None:
        """All parts of replies were sent."""
        await self.execute(
            "update deliveries set status = 'sent', sent_at = now(), platform_message_id = 'p' || seq "
            "where status in ('pending', 'sending')"
        )

    async def old_talk(self, to: Address = CHAT, turns: int = 3, text: str = "the answer") -> SessionId:
        session = await self.talk(to, turns, text)
        await self.age(session)
        return session

    async def age(self, *only: SessionId, days: float = DAYS + 1) -> None:
        """Let days pass, for these sessions."""
        await self.execute(
            "update sessions set created_at = created_at - make_interval(hours => ($1::float * 24)::int), "
            "last_activity = last_activity - make_interval(hours => ($1::float * 24)::int) where id = any ($2)",
            days,
            list(only),
        )

    async def later(self, hours: int) -> None:
        """Let hours pass for archives."""
        await self.execute("update archives set changed_at = changed_at - make_interval(hours => $1)", hours)

    async def execute(self, statement: str, *arguments: object) -> None:
        async with looking(self.dsn) as connection:
            await connection.execute(statement, *arguments)

    async def rows(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        return await rows(self.dsn, query, *arguments)

    async def all_rows(self, *tables: str) -> dict[str, list[dict[str, Any]]]:
        """All there is in tables, as text, but for what tells when something will be tried again."""
        without = "'{lease_until,next_attempt_at,give_up_at,idempotency_key}'::text[]"
        return {
            table: await self.rows(f"select (to_jsonb(t) - {without})::text as row from {table} t order by 1")
            for table in tables
        }

    async def state(self, session: SessionId) -> str:
        found = await sessions.get_session(self.database, session)
        assert found is not None
        return found.status

    async def statuses(self) -> list[str]:
        return [row["status"] for row in await archives.list_archives(self.database)]

    def objects(self) -> set[str]:
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}


@asynccontextmanager
async def desk(dsn: str, folder: Path) -> AsyncGenerator[Desk]:
    async with opened(dsn) as store:
        yield Desk(store, dsn, folder)


async def test_a_session_leaves_its_tables_and_comes_back_as_it_was(any_database: str, tmp_path: Path) -> None:
    async with desk(any_database, tmp_path) as it:
        await it.store.receive(said("look", attachments=[Attachment("image", "image/png", "f", "a.png", 17)]))
        await it.execute("update attachments set status = 'failed'")
        await it.store.receive(said("with an accent: đơn hàng 👋\x00", metadata={"number": 1.10, "text": '"\n'}))
        await it.store.complete(ending(await claimed(it.store), "yes", usage={"tokens": 5}, parts=2))
        await it.sent()
        await it.store.receive(said("first", key="edited"))
        edit = said("second", kind=EventKind.EDIT, about="edited", key="e").event
        assert await messages.edit(it.database, edit) is not None
        session = await it.old_talk()
        before = await it.all_rows(*WORKING, "attachments")
        seen = await it.transcripts.history(CHAT.id, limit=100)

        done = await it.run()

        assert done == Done(1, len(seen))
        assert await it.all_rows(*WORKING) == {table: [] for table in WORKING}
        assert await it.state(session) == "archived"
        assert await it.statuses() == ["stored"]
        (name,) = it.objects()
        assert name.startswith("archives/")
        assert await it.transcripts.history(CHAT.id, limit=100) == seen

        assert await archives.restore(it.database, archives.Shelf(it.blobs), session) == len(seen)
        assert await it.all_rows(*WORKING, "attachments") == before
        assert await it.state(session) == "closed"
        assert await it.transcripts.history(CHAT.id, limit=100) == seen
        await assert_consistent(any_database)


async def test_what_is_restored_is_not_archived_again_at_once(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        session = await it.old_talk()
        await it.run()
        await archives.restore(it.database, archives.Shelf(it.blobs), session)
        assert await it.run() == Done(0, 0)
        await it.execute('update sessions set metadata = metadata || \'{"restored_at": "2020-01-01T00:00:00Z"}\'')
        assert await it.run() == Done(1, 6)
        assert await archives.restore(it.database, archives.Shelf(it.blobs), session) == 6
        assert await archives.restore(it.database, archives.Shelf(it.blobs), session) is None


async def test_only_what_is_closed_old_and_finished_goes(any_database: str, tmp_path: Path) -> None:
    async with desk(any_database, tmp_path) as it:
        young = await it.talk(chat("young"))
        await it.age(young, days=DAYS - 1)
        await it.store.receive(said(to=chat("active")))
        names = ("undelivered", "dead reply", "dead message", "unfetched")
        unfinished = {name: await it.old_talk(chat(name)) for name in names}
        where = {name: chat(name).id for name in names}
        await it.execute(
            "update deliveries set status = 'pending' where conversation_id = $1 and seq = 6", where["undelivered"]
        )
        await it.execute(
            "update deliveries set status = 'failed' where conversation_id = $1 and seq = 2", where["dead reply"]
        )
        await it.execute(
            "update messages set status = 'failed' where conversation_id = $1 and seq = 1", where["dead message"]
        )
        await it.execute(
            "insert into attachments (conversation_id, key, seq, told) values ($1, 'k', 1, '{}')", where["unfetched"]
        )
        await it.execute("update sessions set last_activity = now() - interval '1 year' where status = 'active'")
        kept = await it.all_rows(*WORKING)

        assert await it.run() == Done(0, 0)
        assert await it.all_rows(*WORKING) == kept
        assert it.objects() == set()

        await it.execute("update deliveries set status = 'sent' where status = 'pending'")
        await it.execute("update deliveries set status = 'purged' where status = 'failed'")
        await it.execute("update messages set metadata = '{\"purged\": true}' where status = 'failed'")
        await it.execute("update attachments set status = 'failed'")
        assert await it.run() == Done(4, 24)
        assert [await it.state(session) for session in unfinished.values()] == ["archived"] * 4
        assert await it.state(young) == "closed"


async def test_pages_are_the_same_wherever_their_messages_are(any_database: str, tmp_path: Path) -> None:
    """Sessions in the tables and in archives take turns, and one lies in many blocks."""
    async with desk(any_database, tmp_path) as it:
        all_sessions = [await it.talk(turns=n % 3 + 1) for n in range(9)]
        await it.store.receive(said("still talking"))

        async def pages(limit: int) -> list[Any]:
            found: list[Any] = []
            for seq in range(46):
                found += [
                    await it.transcripts.history(CHAT.id, before=messages.Seq(seq), limit=limit),
                    await it.transcripts.history_after(CHAT.id, messages.Seq(seq), limit),
                ]
            for session in all_sessions:
                found.append(await it.transcripts.history(CHAT.id, limit=limit, session=session))
            return found

        before = {limit: await pages(limit) for limit in (1, 3, 100)}
        assert len(before[100][1]) == 37
        for number in (0, 1, 4, 5, 8):
            await it.age(all_sessions[number])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(upkeep, "BLOCK_BYTES", 1)
                assert await it.run() is not None
            assert {limit: await pages(limit) for limit in before} == before
        assert len(await archives.list_archives(it.database)) == 5


async def test_messages_of_sessions_that_overlap_stay_in_order(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        await it.old_talk(turns=2)
        await it.old_talk(turns=2)
        # What arrives while a session ends is in the next one, and the reply to the one before comes after it.
        await it.execute(
            "update messages set session_id = (select min(session_id::text)::uuid from messages) where seq = 7"
        )
        await it.execute(
            "update sessions s set message_count = (select count(*) from messages where session_id = s.id)"
        )
        await it.execute("update sessions set next_seq = 9")
        before = [await it.transcripts.history(CHAT.id, before=messages.Seq(n), limit=2) for n in range(10)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(upkeep, "SESSIONS", 1)
            assert await it.run() == Done(2, 8)
        assert [await it.transcripts.history(CHAT.id, before=messages.Seq(n), limit=2) for n in range(10)] == before


async def test_a_page_of_the_tables_asks_once(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(database, tmp_path) as it:
        asked = list[str]()
        fetch = Database.fetch

        async def counted(self: Database, query: str, *arguments: object) -> Any:
            asked.append(query)
            return await fetch(self, query, *arguments)

        await it.old_talk()
        await it.run()
        await it.talk(turns=5)
        monkeypatch.setattr(Database, "fetch", counted)
        monkeypatch.setattr(Database, "snapshot", None)
        assert len(await it.transcripts.history(CHAT.id, limit=10)) == 10
        assert len(await it.transcripts.history_after(CHAT.id, messages.Seq(6), 50)) == 10
        assert await it.transcripts.history(chat("new").id, limit=10) == []
        assert await it.transcripts.history_after(chat("new").id, messages.Seq(0)) == []
        assert asked == ["history_before", "history_after"] * 2


async def test_a_session_is_read_with_one_request(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(database, tmp_path) as it:
        found = [await it.old_talk(chat(n)) for n in range(5)]
        await it.run()
        ranges = list[tuple[int, int | None]]()
        stream = Blobs.stream

        def counted(self: Blobs, name: str, start: int = 0, size: int | None = None) -> AsyncIterator[bytes]:
            ranges.append((start, size))
            return stream(self, name, start, size)

        monkeypatch.setattr(Blobs, "stream", counted)
        for _ in range(3):
            assert len(await it.transcripts.history(chat(2).id, session=found[2])) == 6
        ((start, size),) = ranges
        assert start > 0
        assert size is not None


async def test_what_can_not_be_read_is_an_error_and_no_shorter_transcript(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        session = await it.old_talk()
        await it.run()
        await it.talk(turns=1)
        (path,) = (tmp_path / name for name in it.objects())
        data = path.read_bytes()

        def reading() -> Sequence[Any]:
            fresh = Transcripts(it.database, it.blobs)
            return [
                fresh.history(CHAT.id, limit=3),
                fresh.history_after(CHAT.id, messages.Seq(0), 3),
                fresh.history(CHAT.id, session=session),
                Transcripts(it.database, None).history(CHAT.id, limit=3),
            ]

        for damage in (data[:-1] + bytes([data[-1] ^ 1]), data[: len(data) // 2], b"", None):
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            for asked in reading():
                with pytest.raises(ArchiveError):
                    await asked
            assert len(await Transcripts(it.database, it.blobs).history(CHAT.id, limit=2)) == 2
            with pytest.raises(ArchiveError):
                await archives.restore(it.database, archives.Shelf(it.blobs), session)
            assert await it.state(session) == "archived"
        path.write_bytes(data)
        assert len(await Transcripts(it.database, it.blobs).history(CHAT.id)) == 8


# Where it stops


class Failing:
    """A place that fails at one step."""

    def __init__(self, folder: Path, step: str) -> None:
        self._place: Any = open_place(str(folder), {})
        self._step = step

    def __getattr__(self, name: str) -> Any:
        if name == self._step:
            return self._fail
        return getattr(self._place, name)

    def _fail(self, *_: object) -> Any:
        raise PlaceError(f"{self._step} fails")


def raising(step: str) -> Callable[..., Any]:
    async def fail(*_: object, **__: object) -> Any:
        raise StorageError(f"{step} fails")

    return fail


class Forgetful:
    """A place that does not keep what it was given."""

    def __init__(self, folder: Path) -> None:
        self._place: Any = open_place(str(folder), {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)

    @contextmanager
    def writing(self, name: str) -> Generator[Any]:
        with self._place.writing(name) as target:
            yield type("Half", (), {"write": lambda _, data: target.write(data[: len(data) // 2])})()


async def test_nothing_leaves_when_the_object_is_not_what_was_written(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        session = await it.old_talk()
        kept = await it.all_rows(*WORKING)
        with pytest.raises(ArchiveError, match="not there as it was written"):
            await it.archiver(Blobs(Forgetful(tmp_path))).once()
        assert await it.all_rows(*WORKING) == kept
        assert (await it.state(session), await it.statuses()) == ("closed", ["writing"])


async def test_a_block_that_is_whole_but_another_is_not_taken(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        await it.old_talk()
        await it.run()
        (archive,) = await archives.list_archives(it.database)
        (stretch,) = await archives.blocks_of(it.database, archive["id"])
        assert (await archives.Shelf(it.blobs).read(stretch))["messages"]
        with pytest.raises(ArchiveError, match="checksum"):
            await archives.Shelf(it.blobs).read(replace(stretch, sha256=b"another"))


STEPS = ["begin", "writing", "reading", "written", "first move", "second move", "filled"]


@pytest.mark.parametrize("step", STEPS)
async def test_a_run_that_stops_loses_nothing_and_the_next_one_ends_it(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with desk(database, tmp_path) as it:
        found = [await it.old_talk(chat(n)) for n in range(3)]
        before = [await it.transcripts.history(chat(n).id) for n in range(3)]
        with monkeypatch.context() as patch:
            patch.setattr(upkeep, "MESSAGES_AT_ONCE", 1)
            blobs = Blobs(Failing(tmp_path, step)) if step in ("writing", "reading") else it.blobs
            if step.endswith("move"):
                move_in, times = archives.move_in, [0]

                async def moving(*arguments: Any) -> Any:
                    times[0] += 1
                    if times[0] == (1 if step == "first move" else 2):
                        raise StorageError("the move fails")
                    return await move_in(*arguments)

                patch.setattr(archives, "move_in", moving)
            elif step not in ("writing", "reading"):
                patch.setattr(archives, step, raising(step))
            with pytest.raises((StorageError, PlaceError)):
                await it.archiver(blobs).once()

        async def looks_whole() -> None:
            fresh = Transcripts(it.database, it.blobs)
            assert [await fresh.history(chat(n).id) for n in range(3)] == before

        await looks_whole()
        assert await it.run() is not None
        await looks_whole()
        assert [await it.state(session) for session in found] == ["archived"] * 3
        assert await it.all_rows(*WORKING) == {table: [] for table in WORKING}

        for _ in range(3):
            await it.later(25)
            await it.run()
        await looks_whole()
        there = await archives.list_archives(it.database)
        assert {row["status"] for row in there} == {"stored"}
        assert it.objects() == {archives.object_name(row["id"]) for row in there}
        assert sum(row["messages"] for row in there) == sum(row["messages_left"] for row in there) == 18


@pytest.mark.parametrize("step", ["begin", "writing", "replace", "delete"])
async def test_tidying_that_stops_loses_nothing_and_the_next_run_ends_it(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with desk(database, tmp_path) as it:
        found = [await it.old_talk(chat(n)) for n in range(3)]
        before = [await it.transcripts.history(chat(n).id) for n in range(3)]
        await it.run()
        await archives.restore(it.database, archives.Shelf(it.blobs), found[1])
        assert await it.statuses() == ["partial"]
        old = it.objects()
        with monkeypatch.context() as patch:
            blobs = it.blobs
            if step in ("writing", "delete"):
                blobs = Blobs(Failing(tmp_path, step))
            else:
                patch.setattr(archives, step, raising(step))
            try:
                await it.archiver(blobs).once()
                await it.later(2)
                await it.archiver(blobs).once()
            except StorageError:
                pass
        for _ in range(4):
            await it.run()
            assert [await Transcripts(it.database, it.blobs).history(chat(n).id) for n in range(3)] == before
            await it.later(25)
        assert [await it.state(session) for session in found] == ["archived", "closed", "archived"]
        (archive,) = await archives.list_archives(it.database)
        assert (archive["status"], archive["sessions"], archive["messages"]) == ("stored", 2, 12)
        assert it.objects() == {archives.object_name(archive["id"])}
        assert not it.objects() & old


async def test_a_session_that_is_restored_while_its_archive_is_written_anew_stays_out(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(database, tmp_path) as it:
        found = [await it.old_talk(chat(n)) for n in range(3)]
        await it.run()
        await archives.restore(it.database, archives.Shelf(it.blobs), found[0])
        replacing = archives.replace

        async def replace_late(*arguments: Any) -> Any:
            assert await archives.restore(it.database, archives.Shelf(it.blobs), found[1]) == 6
            return await replacing(*arguments)

        monkeypatch.setattr(archives, "replace", replace_late)
        await it.run()
        monkeypatch.undo()
        for _ in range(3):
            assert [await it.state(session) for session in found] == ["closed", "closed", "archived"]
            for n in range(3):
                assert len(await Transcripts(it.database, it.blobs).history(chat(n).id)) == 6
            await it.later(25)
            await it.run()
        (archive,) = await archives.list_archives(it.database)
        assert (archive["status"], archive["sessions"], archive["sessions_left"]) == ("stored", 1, 1)


async def test_what_a_killed_process_left_half_written_goes_with_its_archive(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        archive = UUID(int=7)
        await archives.begin(it.database, archive)
        half = tmp_path / f"{archives.object_name(archive)}.0a1b2c3d.part"
        half.parent.mkdir(parents=True)
        half.touch()
        for _ in range(2):
            await it.later(25)
            await it.run()
        assert (await it.statuses(), it.objects()) == ([], set())


async def test_a_session_that_comes_back_while_a_page_is_read_is_not_missed(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(database, tmp_path) as it:
        session = await it.old_talk()
        await it.run()
        await it.talk(turns=1)
        fetch = Transaction.fetch

        async def late(self: Transaction, query: str, *arguments: object) -> Any:
            if query == "archived_between":
                assert await archives.restore(it.database, archives.Shelf(it.blobs), session) == 6
            return await fetch(self, query, *arguments)

        monkeypatch.setattr(Transaction, "fetch", late)
        assert [each.seq for each in await it.transcripts.history(CHAT.id)] == list(range(1, 9))


async def test_no_session_moves_into_an_archive_that_was_given_up(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(database, tmp_path) as it:
        session = await it.old_talk()
        move_in = archives.move_in

        async def too_late(*arguments: Any) -> Any:
            await it.execute("update archives set status = 'deleting'")
            return await move_in(*arguments)

        monkeypatch.setattr(archives, "move_in", too_late)
        assert await it.run() == Done(0, 0)
        monkeypatch.undo()
        assert (await it.state(session), len(await it.rows("select from messages"))) == ("closed", 6)
        assert await it.run() == Done(1, 6)


async def test_what_nobody_has_any_more_is_deleted_but_not_while_it_may_be_read(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        session = await it.old_talk()
        await it.run()
        await archives.restore(it.database, archives.Shelf(it.blobs), session)
        await it.run()
        assert (await it.statuses(), len(it.objects())) == (["deleting"], 1)
        await it.run()
        assert (await it.statuses(), len(it.objects())) == (["deleting"], 1)
        await it.later(2)
        await it.run()
        assert (await it.statuses(), len(it.objects())) == ([], 0)
        assert await it.rows("select from archive_blocks") == []


async def test_what_changes_meanwhile_stays(any_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(any_database, tmp_path) as it:
        changed, same = await it.old_talk(chat("changed")), await it.old_talk(chat("same"))
        grown = await it.old_talk(chat("grown"))
        await it.store.receive(said("to be edited", to=chat("edited"), key="k"))
        edited = await it.old_talk(chat("edited"))
        move_in = archives.move_in

        async def moving(*arguments: Any) -> Any:
            await it.execute("update messages set metadata = '{\"a\": 1}' where session_id = $1 and seq = 2", changed)
            late = HistoricSession(grown, chat("grown"), (await it.rows("select now() as at"))[0]["at"])
            more = HistoricMessage(late, "late", MessageId(UUID(int=5)), "inbound", "late", late.created_at)
            await store_history(it.database, [more])
            edit = said("edited now", to=chat("edited"), kind=EventKind.EDIT, about="k").event
            assert await messages.edit(it.database, edit) is not None
            return await move_in(*arguments)

        monkeypatch.setattr(archives, "move_in", moving)
        assert await it.run() == Done(1, 6)
        monkeypatch.undo()
        assert [await it.state(each) for each in (changed, same, grown, edited)] == [
            "closed", "archived", "closed", "closed",
        ]  # fmt: skip
        (first, *_) = await it.transcripts.history(chat("edited").id)
        assert first.metadata["versions"][-1]["text"] == "edited now"
        assert await it.statuses() == ["partial"]
        await it.run()
        assert "edited now" in str(await it.transcripts.history(chat("edited").id))
        assert await it.state(edited) == "archived"


async def test_an_edit_that_waits_for_a_move_finds_the_message_gone(any_database: str, tmp_path: Path) -> None:
    """It is then stored as a message of its own, and not thought to have changed nothing."""
    async with desk(any_database, tmp_path) as it:
        await it.store.receive(said("old", key="k"))
        await it.old_talk()
        async with looking(any_database) as mover, mover.transaction():
            await mover.execute("delete from messages where event_key = 'k'")
            edit = said("new", kind=EventKind.EDIT, about="k").event
            editing = asyncio.create_task(messages.edit(it.database, edit))
            async with looking(any_database) as connection:
                while not await connection.fetchval(
                    "select count(*) from pg_stat_activity where datname = current_database() "
                    "and wait_event_type = 'Lock'"
                ):
                    await asyncio.sleep(0.01)
        assert await editing is None


async def test_two_at_once_archive_everything_once(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it, opened(database, owner="another") as other:
        for n in range(20):
            await it.old_talk(chat(n), turns=1)
        both = [it.archiver(), Archiver(other, it.blobs, Ages(DAYS), pause_seconds=0)]
        done = await asyncio.gather(*(each.once() for each in both))
        assert sum(each.sessions for each in done if each is not None) == 20
        # As if a lease had run out in the middle.
        await it.execute("update sessions set status = 'closed'")
        await it.execute("delete from archived_sessions")
        for n in range(20, 40):
            await it.old_talk(chat(n), turns=1)
        for each in both:
            each._ours = lambda: asyncio.sleep(0, True)
        done = await asyncio.gather(*(each.once() for each in both))
        assert sum(each.sessions for each in done if each is not None) == 20
        counts = await it.rows("select session_id from archived_sessions group by session_id having count(*) > 1")
        assert counts == []
        for _ in range(3):
            await it.later(25)
            await it.run()
        for n in range(20, 40):
            assert len(await it.transcripts.history(chat(n).id)) == 2


async def test_a_conversation_that_moves_takes_its_archive_along(any_database: str, tmp_path: Path) -> None:
    async with desk(any_database, tmp_path) as it:
        session = await it.old_talk()
        other = await it.old_talk(chat("other"))
        await it.run()
        seen = await it.transcripts.history(CHAT.id)
        new = replace(CHAT, conversation="moved")
        assert await sessions.move(it.database, CHAT, new)
        assert await it.transcripts.history(CHAT.id) == []
        assert [each.text for each in await it.transcripts.history(new.id)] == [each.text for each in seen]
        # The archive is written anew with what is left, and knows the new place.
        await archives.restore(it.database, archives.Shelf(it.blobs), other)
        await it.run()
        assert len(await it.transcripts.history(new.id)) == 6
        assert await archives.restore(it.database, archives.Shelf(it.blobs), session) == 6
        back = await it.rows("select platform_message_id from messages where conversation_id = $1", new.id)
        assert {row["platform_message_id"] for row in back} == {None}


async def test_a_message_that_came_again_keeps_its_key_at_a_restore(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        await it.store.receive(said("hello", key="again"))
        session = await it.old_talk()
        await it.run()
        receipt = await it.store.receive(said("hello", key="again"))
        assert receipt.seq == 8
        assert await archives.restore(it.database, archives.Shelf(it.blobs), session) == 7
        found = await it.rows("select seq from messages where event_key = 'again'")
        assert [row["seq"] for row in found] == [8]


async def test_the_conversation_goes_on_behind_its_archive(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        first = await it.old_talk()
        await it.run()
        receipt = await it.store.receive(said("again"))
        assert receipt.seq == 7
        new = await sessions.get_session(it.database, receipt.session_id)
        assert new is not None
        assert new.parent_session_id == first
        assert (await it.store.complete(ending(await claimed(it.store)))) is not None
        assert [each.seq for each in await it.transcripts.history(CHAT.id)] == list(range(1, 9))


async def test_nothing_is_imported_into_an_archived_session(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        session = await it.old_talk()
        await it.run()
        (found,) = await sessions.list_sessions(it.database, SessionFilter(status="archived"), 10)
        late = HistoricSession(session, CHAT, found.created_at)
        more = HistoricMessage(late, "late", MessageId(UUID(int=5)), "inbound", "late", found.created_at)
        outcome = await store_history(it.database, [more])
        ((_, reason),) = outcome.refused
        assert "archive restore" in reason
        assert await it.rows("select from messages") == []


async def test_files_of_archived_messages_are_still_known(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        picture = Attachment("image", "image/png", "f", "a.png", 17)
        await it.store.receive(said("look", attachments=[picture]))
        await it.execute("update attachments set status = 'failed', error = 'gone'")
        await it.old_talk()
        await it.run()
        first, *_ = await it.transcripts.history(CHAT.id)
        assert list(first.attachments) == [picture]
        assert attachments.key(picture) in await attachments.of(it.database, CHAT.id, first.attachments)


async def test_a_big_session_is_many_blocks_and_one_commit(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        session = await it.talk(turns=1)
        await it.execute(
            "insert into messages (conversation_id, seq, id, session_id, direction, status, content_text) "
            "select $1, n, gen_random_uuid(), $2, 'inbound', 'skipped', repeat(md5(n::text), 20) "
            "from generate_series(3, 5002) n",
            CHAT.id,
            session,
        )
        await it.execute("update sessions set message_count = 5002, next_seq = 5003")
        await it.age(session)
        assert await it.run() == Done(1, 5002)
        (archive,) = await archives.list_archives(it.database)
        assert len(await archives.blocks_of(it.database, archive["id"])) == 4
        assert [each.seq for each in await it.transcripts.history(CHAT.id, before=messages.Seq(2500), limit=2)] == [
            2498, 2499,
        ]  # fmt: skip
        found = await sessions.get_session(it.database, session)
        assert found is not None
        assert [row["seq"] async for row in it.transcripts.of_session(found)] == list(range(1, 5003))
        assert await archives.restore(it.database, archives.Shelf(it.blobs), session) == 5002
        assert len(await it.rows("select from messages")) == 5002


async def test_the_object_can_be_read_without_this_program(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        session = await it.old_talk(text="an answer of the agent")
        await it.run()
        (name,) = it.objects()
        data = (tmp_path / name).read_bytes()
        size = int.from_bytes(data[4:8], "little")
        about = json.loads(data[8 : 8 + size])
        assert about["format"] == 1
        with zstandard.ZstdDecompressor().stream_reader(data[8 + size :], read_across_frames=True) as stream:
            (line,) = stream.read().decode().splitlines()
        block = json.loads(line)
        assert block["sessions"]["id"] == [session.hex]
        assert "an answer of the agent" in block["messages"]["content_text"]
        # What is skipped at the beginning is skipped by every program for zstd.
        assert data[:4] == (0x184D2A50).to_bytes(4, "little")


async def test_archives_lie_in_a_bucket(database: str, tmp_path: Path, bucket: tuple[str, dict[str, str]]) -> None:
    url, environment = bucket
    async with desk(database, tmp_path) as it:
        it.blobs = open_blobs(url, tmp_path, environment)
        it.transcripts = Transcripts(it.database, it.blobs)
        found = [await it.old_talk(chat(n)) for n in range(3)]
        before = [await it.transcripts.history(chat(n).id) for n in range(3)]
        assert await it.run() == Done(3, 18)
        assert [await it.transcripts.history(chat(n).id) for n in range(3)] == before
        await archives.restore(it.database, archives.Shelf(it.blobs), found[0])
        await it.run()
        await it.later(2)
        await it.run()
        assert await it.statuses() == ["stored"]
        assert [await it.transcripts.history(chat(n).id) for n in range(3)] == before


async def test_no_session_goes_while_an_archive_has_it(database: str, tmp_path: Path) -> None:
    """Who deletes one has to tell the archive first, or its object would keep the messages for ever."""
    async with desk(database, tmp_path) as it:
        session = await it.old_talk()
        other = await it.old_talk(chat("other"))
        await it.run()
        with pytest.raises(Exception, match="archived_sessions"):
            await it.execute("delete from sessions where id = $1", session)
        async with it.database.transaction() as transaction:
            await archives.forget(transaction, CHAT.id, [session])
            await transaction.run("delete from sessions where id = $1", session)
        await it.run()
        await it.later(2)
        await it.run()
        (name,) = it.objects()
        assert (
            session.hex.encode()
            not in zstandard.ZstdDecompressor()
            .stream_reader((tmp_path / name).read_bytes(), read_across_frames=True)
            .read()
        )
        assert len(await it.transcripts.history(chat("other").id)) == 6
        assert await it.state(other) == "archived"


async def test_the_story_of_an_archived_message_can_be_told_after_a_restore(database: str, tmp_path: Path) -> None:
    async with desk(database, tmp_path) as it:
        session = await it.old_talk(turns=1)
        question, _ = await it.transcripts.history(CHAT.id)
        await it.run()
        assert await tell_story(it.database, question.id) is None
        await archives.restore(it.database, archives.Shelf(it.blobs), session)
        story = await tell_story(it.database, question.id)
        assert story is not None
        assert [reply["status"] for reply in story.replies] == ["sent"]
