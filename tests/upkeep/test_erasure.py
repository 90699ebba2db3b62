"""Erasure: nothing of what was erased is left anywhere, nothing else is missing, and a restore brings nothing back."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from chat_bridge.agents.contract import AgentError
from chat_bridge.agents.echo import EchoAgent
from chat_bridge.bridge.keep import Keeper, Rules
from chat_bridge.errors import ChatBridgeError, PlaceError, StorageError
from chat_bridge.model import Address, Attachment, TurnOutcome, User
from chat_bridge.policies import load_policies
from chat_bridge.settings import load_settings
from chat_bridge.storage import attachments, erasure, retention, sessions
from chat_bridge.storage.blobs import Blobs, open_blobs
from chat_bridge.storage.erasure import Erasure, HeldError
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from chat_bridge.storage.transcripts import Transcripts
from chat_bridge.upkeep.ages import Ages
from chat_bridge.upkeep.archive import Archiver
from chat_bridge.upkeep.erasure import LEDGER, Eraser
from chat_bridge.upkeep.retention import Retention
from tests.observe import rows
from tests.storage.dialogue import (
    CHAT,
    HERE,
    assert_consistent,
    chat,
    claimed,
    ending,
    looking,
    opened,
    said,
)

GROUP = Address("webchat", "main", "a-group")
EVE = User("eve-7731", "Eve Adams", "eve_a", "en")
BOB = User("bob", "Bob")
PERSON = {"platform": "webchat", "user": EVE.id}
# What nothing may tell any more.
TRACES = ("eve-7731", "Eve Adams", "eve_a", "secret")


class Remembering(EchoAgent):
    """Remembers sessions, and may be away."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str | None]] = []
        self.away = False

    async def forget(self, session: str, resource: str | None) -> bool:
        if self.away:
            raise AgentError(TurnOutcome.UNREACHABLE, "nobody is there")
        self.asked.append((session, resource))
        return True


class Bench:
    """An eraser with all that it works on."""

    def __init__(self, store: Store, hot: Hot, blobs: Blobs, folder: Path) -> None:
        self.store, self.hot, self.blobs, self.folder = store, hot, blobs, folder
        self.keeper = Keeper(store, blobs, Rules(1_000_000, ["*/*"]), None)
        self.agent = Remembering()
        self.eraser = Eraser(store, hot, blobs, self.agent)

    async def talk(self, text: str, *, to: Address = CHAT, user: User = EVE, file: bytes = b"", **more: Any) -> None:
        """It is said, its file fetched, and it is answered."""
        files = [Attachment("file", "text/plain", f"ref of {text}", f"{text}.txt")] if file else []
        await self.store.receive(said(text, to=to, user=user, attachments=files, **more))
        for one in await attachments.take(self.store.database, HERE, 10):
            content = await self.keeper.keep(pieces(file), "text/plain")
            assert await attachments.stored(self.store.database, one.conversation_id, one.id, content)
        while (turn := await claimed(self.store, to) if await waits(self.store, to) else None) is not None:
            await self.store.complete(ending(turn, f"about {text}"))

    async def erase(self, kind: erasure.Kind = "user", of: Mapping[str, Any] = PERSON) -> Erasure:
        return await self.eraser.carry_out(await self.eraser.begin(kind, of))

    def objects(self) -> list[str]:
        return sorted(
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file() and path.relative_to(self.folder).parts[0] == "attachments"
        )

    def ledger(self) -> str:
        return "\n".join(path.read_text() for path in (self.folder / LEDGER).rglob("*.json"))


async def waits(store: Store, to: Address) -> bool:
    async with store.database.transaction() as transaction:
        found = await transaction.run("select from waiting where conversation_id = $1", to.id)
    return bool(found)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


@asynccontextmanager
async def bench(dsn: str, folder: Path) -> AsyncGenerator[Bench]:
    async with opened(dsn) as store, Hot.open(None) as hot:
        yield Bench(store, hot, open_blobs(str(folder), folder, {}), folder)


async def everything(dsn: str) -> str:
    """All rows of all tables, as text."""
    tables = await rows(dsn, "select relname::text from pg_stat_user_tables")
    return "\n".join(
        [
            json.dumps([list(row.values()) for row in await rows(dsn, f'select t::text from "{table["relname"]}" t')])
            for table in tables
        ]
    )


async def traces(dsn: str) -> list[str]:
    """What still tells of Eve."""
    told = await everything(dsn)
    return [trace for trace in TRACES if trace in told]


async def texts(store: Store, to: Address) -> list[str]:
    return [message.text for message in await store.history(to.id, limit=1000)]


async def test_nothing_of_a_person_is_left(any_database: str, tmp_path: Path) -> None:
    async with bench(any_database, tmp_path) as it:
        await it.talk("secret one", file=b"a secret letter")
        await it.talk("secret two", to=chat("another"))
        await it.talk("of Bob", to=chat("bob"), user=BOB, file=b"a letter of Bob")
        await it.hot.keep_session(await session_of(it.store, CHAT))
        assert await traces(any_database) == [*TRACES]
        done = await it.erase()
        assert done.finished_at is not None
        assert done.receipt == {"sessions": 2, "messages": 4, "files": 1, "people": 1, "threads": 2}
        assert await traces(any_database) == []
        assert not [trace for trace in TRACES if trace in it.ledger()]
        assert len(it.objects()) == 1
        assert await it.hot.session(CHAT.id) is None
        assert [resource for _, resource in it.agent.asked] == ["webchat:main:eve-7731"] * 2
        assert await texts(it.store, chat("bob")) == ["of Bob", "about of Bob"]
        await it.talk("back again")
        assert await texts(it.store, CHAT) == ["back again", "about back again"]
    await assert_consistent(any_database)


async def session_of(store: Store, to: Address) -> Any:
    (found,) = await sessions.list_sessions(store.database, sessions.SessionFilter(conversation_id=to.id), 1)
    return found


async def test_what_others_said_stays(any_database: str, tmp_path: Path) -> None:
    async with bench(any_database, tmp_path) as it:
        await it.talk("of Bob", to=GROUP, user=BOB, group=True, file=b"shared")
        await it.talk("a secret", to=GROUP, group=True, file=b"shared")
        await it.talk("secret, overheard", to=GROUP, group=True, skip_reason="not_addressed")
        await it.talk("of Bob again", to=GROUP, user=BOB, group=True)
        done = await it.erase()
        assert done.receipt == {"sessions": 0, "messages": 3, "files": 1, "people": 1, "threads": 1}
        assert await texts(it.store, GROUP) == [
            "of Bob",
            "about of Bob",
            "",
            "",
            "",
            "of Bob again",
            "about of Bob again",
        ]
        assert await traces(any_database) == []
        assert len(it.objects()) == 1, "Bob has the same file"
        assert (await it.erase()).receipt["messages"] == 0, "there is nothing more"
    await assert_consistent(any_database)


async def test_a_message_that_waits_is_not_answered_any_more(any_database: str, tmp_path: Path) -> None:
    async with bench(any_database, tmp_path) as it:
        await it.store.receive(said("of Bob", to=GROUP, user=BOB, group=True))
        await it.store.receive(said("secret", to=GROUP, user=EVE, group=True))
        await it.store.receive(said("secret", to=CHAT, user=EVE))
        running = await claimed(it.store, CHAT)
        assert (await it.erase()).finished_at is not None
        turn = await claimed(it.store, GROUP)
        assert [(message.text, message.deleted) for message in turn.messages] == [("of Bob", False), ("", True)]
        assert await it.store.complete(ending(running, "about the secret")) is None, "a stale worker changes nothing"
        assert "secret" not in await everything(any_database)
        await it.store.complete(ending(turn))
    await assert_consistent(any_database)


async def test_a_conversation_with_all_its_sessions(any_database: str, tmp_path: Path) -> None:
    async with bench(any_database, tmp_path) as it:
        await it.talk("secret one", file=b"1")
        await sessions.close_session(it.store.database, (await session_of(it.store, CHAT)).id)
        await it.talk("secret two", file=b"2")
        await it.talk("elsewhere", to=chat("other"))
        done = await it.erase("conversation", {"conversation": str(CHAT.id)})
        assert done.receipt == {"sessions": 2, "messages": 4, "files": 2, "people": 0, "threads": 2}
        assert await texts(it.store, CHAT) == []
        assert it.objects() == []
        assert len(await texts(it.store, chat("other"))) == 2
    await assert_consistent(any_database)


async def test_one_session_of_several(any_database: str, tmp_path: Path) -> None:
    async with bench(any_database, tmp_path) as it:
        await it.talk("first", file=b"1")
        first = await session_of(it.store, CHAT)
        await sessions.close_session(it.store.database, first.id)
        await it.talk("second", file=b"1")
        done = await it.erase("session", {"session": str(first.id)})
        assert done.receipt == {"sessions": 1, "messages": 2, "files": 1, "people": 0, "threads": 1}
        assert it.agent.asked == [(str(first.id), None)], "what it knows of the person stays"
        assert await texts(it.store, CHAT) == ["second", "about second"]
        assert len(it.objects()) == 1, "the other session has the same content"
        await it.talk("third")
        assert [message.seq for message in await it.store.history(CHAT.id)] == [3, 4, 5, 6]
    await assert_consistent(any_database)


async def test_a_file_that_another_session_has_stays(any_database: str, tmp_path: Path) -> None:
    async with bench(any_database, tmp_path) as it:
        for _ in range(2):
            await it.talk("same", file=b"1")
            await sessions.close_session(it.store.database, (await session_of(it.store, CHAT)).id)
        found = await sessions.list_sessions(it.store.database, sessions.SessionFilter(conversation_id=CHAT.id), 9)
        await it.erase("session", {"session": str(found[0].id)})
        assert len(it.objects()) == 1
        assert await rows(any_database, "select seq from attachments") == [{"seq": 1}]
        await it.erase("session", {"session": str(found[1].id)})
        assert it.objects() == []


async def test_what_moved_is_found(any_database: str, tmp_path: Path) -> None:
    new = chat("new")
    async with bench(any_database, tmp_path) as it:
        await it.talk("secret")
        await sessions.move(it.store.database, CHAT, new)
        await it.talk("secret", to=new)
        assert (await it.erase()).receipt["messages"] == 4
        left = await everything(any_database)
        assert "a-chat" not in left
        assert "chat-new" not in left


async def test_what_is_on_hold_is_not_erased(any_database: str, tmp_path: Path) -> None:
    async with bench(any_database, tmp_path) as it:
        await it.talk("secret")
        await it.talk("secret", to=chat("held"))
        await retention.hold(it.store.database, chat("held").id, "a dispute")
        with pytest.raises(HeldError, match=f"on legal hold: {chat('held').id}. Lift that first"):
            (await it.eraser.look("user", PERSON)).require_free()
        with pytest.raises(HeldError):
            await it.erase()
        assert len(await texts(it.store, CHAT)) == 2, "nothing of it"
        await retention.lift_hold(it.store.database, chat("held").id)
        (waiting,) = await erasure.unfinished(it.store.database)
        assert (await it.eraser.carry_out(waiting)).receipt["sessions"] == 2


async def test_an_agent_that_is_away_is_asked_again(any_database: str, tmp_path: Path) -> None:
    async with bench(any_database, tmp_path) as it:
        await it.talk("secret one")
        await it.talk("secret two", to=chat("another"))
        it.agent.away = True
        done = await it.erase()
        assert done.finished_at is None
        assert done.receipt["not_reached"] == ["what the agent remembers of 2 sessions: nobody is there"]
        assert await texts(it.store, CHAT) == []
        it.agent.away = False
        (waiting,) = await erasure.unfinished(it.store.database)
        done = await it.eraser.carry_out(waiting)
        assert done.finished_at is not None
        assert done.receipt == {"sessions": 2, "messages": 4, "files": 0, "people": 1, "threads": 2}
        assert await traces(any_database) == []


STEPS = ("write", "names", "delete")


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, blobs: Blobs, step: str) -> Any:
    async def fail(*_: object) -> None:
        raise PlaceError("it is away")

    with monkeypatch.context() as patch:
        patch.setattr(blobs, step, fail)
        yield


async def test_without_a_ledger_nothing_is_erased(
    any_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(any_database, tmp_path) as it:
        await it.talk("secret")
        with failing(monkeypatch, it.blobs, "write"), pytest.raises(PlaceError):
            await it.erase()
        assert len(await texts(it.store, CHAT)) == 2
        (waiting,) = await erasure.unfinished(it.store.database)
        assert (await it.eraser.carry_out(waiting)).finished_at is not None
        assert await texts(it.store, CHAT) == []


async def test_files_that_cant_be_deleted_now_are_told(
    any_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(any_database, tmp_path) as it:
        await it.talk("secret", file=b"1")
        with failing(monkeypatch, it.blobs, "delete"):
            done = await it.erase()
        assert (done.finished_at, done.receipt["not_reached"]) == (None, ["1 files in object storage"])
        (waiting,) = await erasure.unfinished(it.store.database)
        done = await it.eraser.carry_out(waiting)
        assert done.finished_at is not None
        assert "not_reached" not in done.receipt
        assert it.objects() == []


async def test_whoever_comes_next_finishes_it(
    any_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each of its statements, one after the other."""
    killed_at = 0
    async with bench(any_database, tmp_path) as it:
        while True:
            await it.talk("secret one", file=b"1")
            await it.talk("secret two", to=chat("another"))
            await it.talk("secret three", to=GROUP, group=True)
            await it.talk("of Bob", to=GROUP, user=BOB, group=True)
            begun = await it.eraser.begin("user", PERSON)
            with killed(monkeypatch, it.store, killed_at) as was_killed, suppress(KilledError):
                await it.eraser.carry_out(begun)
            if not was_killed():
                break
            killed_at += 1
            for waiting in await erasure.unfinished(it.store.database):
                await it.eraser.carry_out(waiting)
            assert await traces(any_database) == [], killed_at
            assert it.objects() == []
            found = await erasure.find(it.store.database, begun.id)
            assert found is not None
            assert found.finished_at is not None
            assert len(it.agent.asked) >= 3
            it.agent.asked.clear()
            await assert_consistent(any_database)
    assert killed_at > 10


class KilledError(Exception): ...


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, store: Store, after: int) -> Any:
    fetch, left = store.database.fetch, after

    async def counting(query: str, *arguments: object) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError
        return await fetch(query, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store.database, "fetch", counting)
        yield lambda: left < 0


async def test_a_restored_backup_loses_it_again(any_database: str, tmp_path: Path) -> None:
    async with bench(any_database, tmp_path) as it:
        await it.talk("secret one", file=b"1")
        await it.talk("a secret", to=GROUP, group=True)
        await it.talk("of Bob", to=GROUP, user=BOB, group=True)
        backup = await copied(any_database)
        await it.erase()
        assert await it.eraser.reapply() == []
        async with looking(any_database) as connection:
            await put_back(connection, backup)
        assert await traces(any_database) == [*TRACES]
        (again,) = await it.eraser.reapply()
        assert again.finished_at is not None
        assert (again.kind, again.receipt["sessions"], again.receipt["messages"], again.receipt["people"]) == (
            "user",
            1,
            4,
            1,
        )
        assert await traces(any_database) == []
        assert await texts(it.store, GROUP) == ["", "", "of Bob", "about of Bob"]
        assert await it.eraser.reapply() == []
    await assert_consistent(any_database)


async def test_somebody_of_the_same_name_is_not_erased_again(any_database: str, tmp_path: Path) -> None:
    """Who comes back after an erasure is somebody new to a ledger."""
    async with bench(any_database, tmp_path) as it:
        await it.talk("before")
        await it.erase()
        await it.talk("after")
        async with looking(any_database) as connection:
            await connection.execute("delete from erasures")
        (again,) = await it.eraser.reapply()
        assert (again.receipt["messages"], again.receipt["people"]) == (0, 0)
        assert await texts(it.store, CHAT) == ["after", "about after"]


async def copied(dsn: str) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    tables = await rows(dsn, "select relname::text from pg_stat_user_tables where relname <> 'alembic_version'")
    return {table["relname"]: await rows(dsn, f'select * from "{table["relname"]}"') for table in tables}


async def put_back(connection: Any, backup: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    await connection.execute(f"truncate {', '.join(backup)}")
    for table, kept in sorted(backup.items(), key=lambda item: item[0] != "sessions"):  # others refer to these
        if kept:
            await connection.copy_records_to_table(
                table, columns=list(kept[0]), records=[tuple(row.values()) for row in kept]
            )


async def archived(it: Bench, dsn: str) -> None:
    """All closed sessions go into an archive."""
    async with looking(dsn) as connection:
        await connection.execute("update deliveries set status = 'sent'")
        await connection.execute(
            "update sessions set created_at = created_at - interval '40 days', "
            "last_activity = last_activity - interval '40 days' where status = 'closed'"
        )
    assert (await Archiver(it.store, it.blobs, Ages(30), pause_seconds=0).once()) is not None


async def close(it: Bench, to: Address) -> None:
    assert await sessions.close_session(it.store.database, (await session_of(it.store, to)).id)


def packed(it: Bench) -> str:
    """What all archives hold."""
    files = [path for path in (it.folder / "archives").rglob("*") if path.is_file()]
    return "".join(
        zstandard.ZstdDecompressor().stream_reader(path.read_bytes(), read_across_frames=True).read().decode()
        for path in files
    )


async def test_archives_are_written_anew_without_it(any_database: str, tmp_path: Path) -> None:
    async with bench(any_database, tmp_path) as it:
        await it.talk("secret one", file=b"1")
        await it.talk("of Bob", to=chat("bob"), user=BOB)
        await it.talk("of Bob", to=GROUP, user=BOB, group=True)
        await it.talk("a secret", to=GROUP, group=True)
        for place in (CHAT, chat("bob"), GROUP):
            await close(it, place)
        await archived(it, any_database)
        assert all(trace in packed(it) for trace in ("secret one", "a secret", "of Bob"))
        backup = await copied(any_database)
        objects = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert (await it.eraser.look("user", PERSON)).archived
        done = await it.erase()
        assert done.finished_at is not None
        assert done.receipt == {"sessions": 1, "messages": 4, "files": 1, "people": 1, "threads": 2}
        assert await traces(any_database) == []
        assert "secret" not in packed(it)
        assert "of Bob" in packed(it)
        history = Transcripts(it.store.database, it.blobs).history
        assert [message.text for message in await history(chat("bob").id)] == ["of Bob", "about of Bob"]
        assert [message.text for message in await history(GROUP.id)] == ["of Bob", "about of Bob", "", ""]
        await assert_consistent(any_database)

        # A backup of the database and of the bucket comes back; the ledger stays.
        async with looking(any_database) as connection:
            await put_back(connection, backup)
        for path, data in objects.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (again,) = await it.eraser.reapply()
        assert again.finished_at is not None
        assert await traces(any_database) == []
        assert [message.text for message in await history(GROUP.id)] == ["of Bob", "about of Bob", "", ""]
        assert not [path for path in objects if "archives" in path.parts and path.exists()]


async def test_an_archive_that_cant_be_read_is_told(any_database: str, tmp_path: Path) -> None:
    async with bench(any_database, tmp_path) as it:
        await it.talk("secret one")
        await close(it, CHAT)
        await archived(it, any_database)
        (path,) = (path for path in (tmp_path / "archives").rglob("*") if path.is_file())
        kept = path.read_bytes()
        path.write_bytes(kept[:-1])
        with pytest.raises(StorageError, match=r"damaged|can't be read"):
            await it.erase()
        path.write_bytes(kept)
        (waiting,) = await erasure.unfinished(it.store.database)
        assert (await Eraser(it.store, it.hot, it.blobs, it.agent).carry_out(waiting)).receipt["messages"] == 2


async def test_what_is_on_hold_is_not_archived_and_what_is_archived_may_be_held(
    any_database: str, tmp_path: Path
) -> None:
    async with bench(any_database, tmp_path) as it:
        await it.talk("kept")
        await close(it, CHAT)
        await retention.hold(it.store.database, CHAT.id, "a dispute")
        await archived(it, any_database)
        assert len(await texts(it.store, CHAT)) == 2
        await retention.lift_hold(it.store.database, CHAT.id)
        await archived(it, any_database)
        assert await texts(it.store, CHAT) == []
        await retention.hold(it.store.database, CHAT.id, "a dispute")
        with pytest.raises(HeldError):
            await it.erase()
        with pytest.raises(HeldError):
            await it.erase("conversation", {"conversation": str(CHAT.id)})


async def test_archived_sessions_expire(any_database: str, tmp_path: Path) -> None:
    rules = load_policies(load_settings({"RETENTION_DAYS": "60"}, dotenv=None))
    async with bench(any_database, tmp_path) as it:
        await it.talk("old", file=b"1")
        await close(it, CHAT)
        await it.talk("of Bob", to=chat("bob"), user=BOB, file=b"2")
        await close(it, chat("bob"))
        await archived(it, any_database)
        await it.talk("new")
        await retention.hold(it.store.database, chat("bob").id, "a dispute")
        assert (await Retention(it.store.database, rules, None, "test").once()).messages.total() == 0
        async with looking(any_database) as connection:
            await connection.execute(
                "update sessions set last_activity = last_activity - interval '30 days' where status = 'archived'"
            )
        plan = await Retention(it.store.database, rules, None, "test").plan()
        effect = await Retention(it.store.database, rules, None, "test").once()
        assert plan.messages == effect.messages == {"all others": 2}
        assert (effect.sessions, effect.files.total()) == (1, 1)
        history = Transcripts(it.store.database, it.blobs).history
        assert [message.text for message in await history(CHAT.id)] == ["new", "about new"]
        assert len(await history(chat("bob").id)) == 2
        await Archiver(it.store, it.blobs, Ages(None), pause_seconds=0).once()
        assert len(await history(chat("bob").id)) == 2
        async with looking(any_database) as connection:
            await connection.execute("update archives set changed_at = changed_at - interval '2 hours'")
        await Archiver(it.store, it.blobs, Ages(None), pause_seconds=0).once()
        assert "old" not in packed(it)
        assert "of Bob" in packed(it)
    await assert_consistent(any_database)


# What goes on meanwhile


async def test_in_a_group_the_memory_is_the_groups(database: str, tmp_path: Path) -> None:
    async with bench(database, tmp_path) as it:
        await it.talk("of Bob", to=GROUP, user=BOB, group=True)
        await it.erase("conversation", {"conversation": str(GROUP.id)})
        assert [resource for _, resource in it.agent.asked] == ["webchat:main:a-group"]


async def test_who_joins_in_meanwhile_keeps_what_they_say(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(database, tmp_path) as it:
        await it.talk("a secret", to=GROUP, group=True)
        begun = await it.eraser.begin("user", PERSON)
        look = it.eraser.look

        async def slow(*arguments: Any) -> Any:
            plan = await look(*arguments)
            if await texts(it.store, GROUP) == ["a secret", "about a secret"]:
                await it.talk("of Bob", to=GROUP, user=BOB, group=True)
            return plan

        monkeypatch.setattr(it.eraser, "look", slow)
        done = await it.eraser.carry_out(begun)
        assert done.finished_at is not None
        assert await texts(it.store, GROUP) == ["", "", "of Bob", "about of Bob"]
        assert await traces(database) == []
    await assert_consistent(database)


async def test_who_comes_back_meanwhile_is_not_meant(database: str, tmp_path: Path) -> None:
    async with bench(database, tmp_path) as it:
        await it.talk("a secret")
        begun = await it.eraser.begin("user", PERSON)
        await it.talk("back again")
        await it.eraser.carry_out(begun)
        assert await texts(it.store, CHAT) == ["", "", "back again", "about back again"]
        await it.talk("still here")
        assert [message.seq for message in await it.store.history(CHAT.id)] == [1, 2, 3, 4, 5, 6]
    await assert_consistent(database)


async def test_a_turn_that_has_it_begins_anew_without_it(database: str, tmp_path: Path) -> None:
    async with bench(database, tmp_path) as it:
        await it.store.receive(said("of Bob", to=GROUP, user=BOB, group=True))
        await it.store.receive(said("a secret", to=GROUP, user=EVE, group=True))
        running = await claimed(it.store, GROUP)
        await it.erase()
        assert await it.store.complete(ending(running, "about the secret")) is None
        turn = await claimed(it.store, GROUP)
        assert [message.text for message in turn.messages if not message.deleted] == ["of Bob"]
        await it.store.complete(ending(turn, "about Bob"))
        assert await traces(database) == []
    await assert_consistent(database)


async def test_what_others_quoted_goes_too(database: str, tmp_path: Path) -> None:
    quote = {"message_id": "77", "text": "a secret", "author": "Eve Adams", "from_bot": False, "chosen": False}
    other = {**quote, "message_id": "78", "text": "of Bob", "author": "Bob"}
    async with bench(database, tmp_path) as it:
        await it.talk("a secret", to=GROUP, group=True, platform_message_id="77")
        for each in (quote, other):
            await it.talk("of Bob", to=GROUP, user=BOB, group=True, metadata={"reply_to": each})
        async with looking(database) as connection:
            await connection.execute(
                """update sessions set metadata = metadata
                || '{"approval": {"args": "a secret"}, "approval_asked": ["eve-7731"], "summary": "Eve Adams"}'"""
            )
        await it.erase()
        assert await traces(database) == []
        kept = await rows(
            database, "select metadata #>> '{reply_to,text}' as text from messages where metadata ? 'reply_to'"
        )
        assert {"text": "of Bob"} in kept
    await assert_consistent(database)


async def test_a_hold_that_comes_late_stops_it(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(database, tmp_path) as it:
        await it.talk("a secret")
        await it.talk("a secret", to=GROUP, group=True)
        await it.talk("of Bob", to=GROUP, user=BOB, group=True)
        backup = await copied(database)
        write = it.eraser._write_ledger

        async def hold(*arguments: Any) -> None:
            await write(*arguments)
            for place in (CHAT, GROUP):
                await retention.hold(it.store.database, place.id, "a dispute")

        with monkeypatch.context() as patch:
            patch.setattr(it.eraser, "_write_ledger", hold)
            with pytest.raises(HeldError):
                await it.erase()
        assert len(await texts(it.store, CHAT)) == 2
        assert "" not in await texts(it.store, GROUP)
        for place in (CHAT, GROUP):
            await retention.lift_hold(it.store.database, place.id)
        (waiting,) = await erasure.unfinished(it.store.database)
        await it.eraser.carry_out(waiting)
        async with looking(database) as connection:
            await put_back(connection, backup)
        await retention.hold(it.store.database, CHAT.id, "a dispute")
        with pytest.raises(HeldError):
            await it.eraser.reapply()
        assert len(await texts(it.store, CHAT)) == 2
        await retention.lift_hold(it.store.database, CHAT.id)
        assert len(await it.eraser.reapply()) == 1
        assert await traces(database) == []


async def test_two_at_once_do_it_once(database: str, tmp_path: Path) -> None:
    async with bench(database, tmp_path) as it:
        await it.talk("a secret", file=b"1")
        await it.talk("a secret", to=GROUP, group=True)
        await it.talk("of Bob", to=GROUP, user=BOB, group=True)
        begun = await it.eraser.begin("user", PERSON)
        others = [Eraser(it.store, it.hot, it.blobs, it.agent) for _ in range(3)]
        receipts = await asyncio.gather(*(each.finish(begun) for each in others))
        assert len({str(each.receipt) for each in receipts}) == 1
        assert receipts[0].receipt["messages"] == 4
        assert len(it.agent.asked) == 2


async def test_what_is_no_ledger_does_no_harm(database: str, tmp_path: Path) -> None:
    async with bench(database, tmp_path) as it:
        await it.talk("a secret")
        backup = await copied(database)
        await it.erase()
        async with looking(database) as connection:
            await put_back(connection, backup)
        (tmp_path / LEDGER / "old.json").write_text("{}")
        (tmp_path / LEDGER / "00000000-0000-0000-0000-000000000001").mkdir()
        damaged = tmp_path / LEDGER / "00000000-0000-0000-0000-000000000001" / "x.json"
        for text in ("", "[]", '{"version": 1, "kind": "user", "erased_at": "now", "sessions": []}'):
            damaged.write_text(text)
            with pytest.raises(ChatBridgeError, match="is no entry of a ledger"):
                await it.eraser.reapply()
            assert await traces(database) == [], "the others have their turn"
        damaged.unlink()
        assert await it.eraser.reapply() == []


async def test_what_came_after_a_restore_stays(database: str, tmp_path: Path) -> None:
    async with bench(database, tmp_path) as it:
        await it.talk("a secret")
        backup = await copied(database)
        await it.erase()
        async with looking(database) as connection:
            await put_back(connection, backup)
        await it.talk("back again")
        await it.eraser.reapply()
        assert await texts(it.store, CHAT) == ["", "", "back again", "about back again"]


async def test_seq_goes_on_while_anything_is_left(database: str, tmp_path: Path) -> None:
    async with bench(database, tmp_path) as it:
        await it.talk("one")
        await close(it, CHAT)
        await it.talk("two")
        await it.erase("session", {"session": str((await session_of(it.store, CHAT)).id)})
        await it.talk("three")
        assert [message.seq for message in await it.store.history(CHAT.id)] == [1, 2, 5, 6]
    await assert_consistent(database)


async def test_what_another_account_noted_stays(database: str, tmp_path: Path) -> None:
    old, new = Address("webchat", "other", "old-group"), Address("webchat", "other", "new-group")
    async with bench(database, tmp_path) as it:
        await it.talk("a secret", to=replace(new, account="main"))
        await it.talk("of Bob", to=old, user=BOB)
        await sessions.move(it.store.database, old, new)
        await it.erase()
        assert await sessions.moved_to(it.store.database, old) == new
