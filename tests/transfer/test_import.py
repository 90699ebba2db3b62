"""Import: files that other libraries wrote become history that is stored once and starts nothing."""

import asyncio
import csv
import errno
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from chat_bridge.errors import ChatBridgeError
from chat_bridge.model import Address, SessionId
from chat_bridge.storage import sessions
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.store import Store
from chat_bridge.transfer.load import Import, Wish
from chat_bridge.transfer.mapping import parse_mapping
from chat_bridge.transfer.report import Report
from chat_bridge.transfer.source import Kind
from chat_bridge.transfer.trouble import explained
from tests.observe import run_command
from tests.storage.dialogue import answer_all, assert_consistent, claimed, ending, looking, opened, said, wish
from tests.transfer.libraries import file_of

# The fixtures may install the libraries first, which takes as long as the network takes.
pytestmark = pytest.mark.timeout(120, func_only=True)

MASTRA_THREAD = SessionId(UUID("0199aaaa-bbbb-7ccc-8ddd-eeeeeeee0001"))
CHAT = Address("webchat", "main", "ada")
HERE = {"platform": "webchat", "account": "main"}


@pytest.fixture
def openai_file(library_files: Path, tmp_path: Path) -> Path:
    return own_copy(file_of("openai_agents", library_files), tmp_path)


@pytest.fixture
def langchain_file(library_files: Path, tmp_path: Path) -> Path:
    return own_copy(file_of("langchain", library_files), tmp_path)


@pytest.fixture
def mastra_file(library_files: Path, tmp_path: Path) -> Path:
    return own_copy(file_of("mastra", library_files), tmp_path)


@pytest.fixture(scope="session")
def library_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def own_copy(file: Path, folder: Path) -> Path:
    """A copy of a SQLite file, with what its library left beside it."""
    return shutil.copytree(file.parent, folder / "library") / file.name


async def imported(store: Store | None, file: Path, kind: Kind = "sqlite", **wished: Any) -> Report:
    """Import a file; its report."""
    folder = wished.pop("folder", file.parent / "report")
    work = Import(Wish(kind, file, folder, **wished), lambda what, done, total: None)
    return await work.run(None if store is None else store.database)


async def transcript(store: Store, address: Address) -> list[tuple[str, str]]:
    """Who said what in a conversation."""
    return [(message.direction, message.text) for message in await store.history(address.id, limit=1000)]


def bridge_file(folder: Path, rows: Sequence[Sequence[object]], sessions: Sequence[Sequence[object]] = ()) -> Path:
    """A SQLite file with our own column names: messages of (id, session, direction, text, time), and sessions of (id,
    conversation, status, time)."""
    file = folder / "bot.sqlite"
    file.unlink(missing_ok=True)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("create table messages (id, session_id, direction, text, created_at)")
        connection.execute("create table sessions (id, conversation, status, created_at)")
        connection.executemany("insert into messages values (?, ?, ?, ?, ?)", rows)
        connection.executemany("insert into sessions values (?, ?, ?, ?)", sessions)
        connection.commit()
    return file


def rejects(folder: Path) -> list[tuple[object, str]]:
    lines = (folder / "rejects.jsonl").read_text().splitlines()
    return [(reject["key"], reject["reason"]) for reject in map(json.loads, lines)]


# What the libraries wrote


async def test_sessions_of_the_openai_agents_sdk(any_database: str, openai_file: Path) -> None:
    async with opened(any_database) as store:
        report = await imported(store, openai_file, values=HERE)
        assert (report.mapping, report.stored, report.sessions) == ("openai-agents", 207, 21)
        assert report.events == {"reasoning": 1, "function_call": 1, "function_call_output": 1}
        assert report.complete
        history = await store.history(CHAT.id)
        assert [(message.direction, message.status, message.text[:20]) for message in history] == [
            ("inbound", "stored", "Xin chào 👋"),
            ("outbound", "skipped", "reasoning"),
            ("outbound", "skipped", "function_call weathe"),
            ("outbound", "skipped", "function_call_output"),
            ("outbound", "stored", "It rains in Huế."),
            ("inbound", "stored", "and here?"),
            ("outbound", "stored", "a long answer, word "),
        ]
        assert history[2].metadata["imported"]["item"]["arguments"] == '{"city": "Huế"}'
        assert [file.ref for file in history[5].attachments] == ["https://example.invalid/sky.png"]
        assert [message.seq for message in history] == [1, 2, 3, 4, 5, 6, 7]
    await assert_consistent(any_database)


async def test_a_memory_of_mastra_goes_on_under_its_own_ids(database: str, mastra_file: Path) -> None:
    async with opened(database) as store:
        report = await imported(store, mastra_file, values=HERE)
        assert (report.mapping, report.stored, report.notes.inline_files) == ("mastra", 5, 1)
        session = await sessions.get_session(store.database, MASTRA_THREAD)
        assert session is not None
        assert (session.status, session.metadata["resource"]) == ("active", "telegram:main:42")
        assert session.metadata["imported"]["metadata"] == {"title": "Rain"}
        history = await store.history(session.conversation_id)
        assert [(message.direction, message.text) for message in history] == [
            ("inbound", "Will it rain?"),
            ("outbound", "Yes.\n\nTake an umbrella ☂️."),
            ("inbound", ""),
        ]
        assert history[0].created_at.isoformat() == "2026-01-02T03:04:01.678000+00:00"
        assert history[1].metadata["imported"]["parts"][0]["toolInvocation"]["toolName"] == "weather"
        assert [file.ref for file in history[2].attachments] == ["https://example.invalid/a.png"]
        await store.receive(said("and tomorrow?", to=session.address))
        turn = await claimed(store, session.address)
        assert (turn.session_id, turn.metadata["resource"]) == (MASTRA_THREAD, "telegram:main:42")


async def test_messages_of_langchain(database: str, langchain_file: Path) -> None:
    async with opened(database) as store:
        report = await imported(store, langchain_file)
        assert (report.mapping, report.stored, report.notes.no_time) == ("langchain", 8, 8)
        assert report.events == {"system": 1, "tool": 1, "no_text": 1}
        assert report.complete
        assert await transcript(store, Address("imported", "default", "s-2")) == [
            ("inbound", "one\ufffdtwo"),
            ("outbound", "three"),
        ]
        *_, last = await store.history(Address("imported", "default", "s-1").id)
        assert [file.ref for file in last.attachments] == ["https://example.invalid/a.png"]
        assert len(json.dumps(last.metadata)) < 500, "the bytes of the other picture are left out"


# Once, and resumed


async def test_twice_is_once(database: str, openai_file: Path) -> None:
    async with opened(database) as store:
        await imported(store, openai_file)
        async with looking(database) as connection:
            before = await connection.fetch("select * from messages order by id")
            again = await imported(store, openai_file)
            assert (again.stored, again.known, again.complete) == (0, 207, True)
            assert await connection.fetch("select * from messages order by id") == before


async def test_what_was_broken_off_goes_on(database: str, tmp_path: Path) -> None:
    file = bridge_file(tmp_path, [(n, f"s{n % 7}", "in", f"text {n}", 1.7e9 + n) for n in range(5000)])

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    async with opened(database) as store:
        with pytest.raises(KeyboardInterrupt):
            await Import(Wish("sqlite", file, tmp_path), stop).run(store.database)
        report = await imported(store, file)
        assert 0 < report.known < 5000
        assert report.stored + report.known == 5000
        assert report.complete
        assert report.check is not None
        assert report.check.out_of_order == 0
    await assert_consistent(database)


async def test_what_is_added_to_the_file_later_follows(database: str, tmp_path: Path) -> None:
    rows = [("1", "s", "user", "one", "2026-01-01 10:00:00"), ("2", "s", "bot", "two", "2026-01-01T10:00:01Z")]
    async with opened(database) as store:
        await imported(store, bridge_file(tmp_path, rows))
        rows.append(("3", "s", "user", "three", "2026-01-01T12:00:02+02:00"))
        report = await imported(store, bridge_file(tmp_path, rows))
        assert (report.stored, report.known) == (1, 2)
        assert [text for _, text in await transcript(store, Address("imported", "default", "s"))] == [
            "one",
            "two",
            "three",
        ]
        (session,) = await sessions.list_sessions(store.database, sessions.SessionFilter(), 10)
        assert session.message_count == 3
        assert session.last_activity.isoformat() == "2026-01-01T10:00:02+00:00"
    await assert_consistent(database)


# Beside a running bridge


async def test_history_starts_nothing_and_the_next_message_goes_on_in_its_session(
    database: str, tmp_path: Path
) -> None:
    rows = [(n, "ada", "user", f"text {n}", 1.7e9 + n) for n in range(3)]
    async with opened(database) as store:
        await imported(store, bridge_file(tmp_path, rows), values=HERE)
        assert await store.claim(wish(CHAT)) is None
        before = (await store.history(CHAT.id))[0].session_id
        receipt = await store.receive(said("now", to=CHAT))
        assert (receipt.session_id, receipt.seq) == (before, 4)
        turn = await claimed(store, CHAT)
        assert [message.text for message in turn.messages] == ["now"]
        assert await store.complete(ending(turn)) is not None
        assert await store.claim(wish(CHAT)) is None
    await assert_consistent(database)


async def test_in_a_conversation_that_the_bridge_has_history_comes_after_in_a_closed_session(
    database: str, tmp_path: Path
) -> None:
    file = bridge_file(tmp_path, [(n, "ada", "user", f"old {n}", 1.7e9 + n) for n in range(3)])
    async with opened(database) as store:
        live = await store.receive(said("live", to=CHAT))
        report = await imported(store, file, values=HERE)
        assert report.behind == {CHAT.id}
        assert [text for _, text in await transcript(store, CHAT)] == ["live", "old 0", "old 1", "old 2"]
        await store.receive(said("more", to=CHAT))
        turn = await claimed(store, CHAT)
        assert turn.session_id == live.session_id
        assert [message.text for message in turn.messages] == ["live", "more"]
        assert await store.complete(ending(turn)) is not None
        statuses = [message.status for message in await store.history(CHAT.id)]
        assert statuses == ["answered", "stored", "stored", "stored", "answered", "stored"]
    await assert_consistent(database)


async def test_both_write_at_once(database: str, tmp_path: Path) -> None:
    """In the same conversations, new ones among them: neither fails, and nothing is lost."""
    chats = [Address("webchat", "main", f"chat-{n}") for n in range(5)]
    rows = [(n, f"chat-{n % 5}", "user", f"old {n}", 1.7e9 + n) for n in range(10_000)]
    file = bridge_file(tmp_path, rows)

    async def talk(store: Store, chat: Address) -> None:
        for n in range(40):
            await store.receive(said(f"live {n}", to=chat))
            await answer_all(store, chat)

    async with opened(database) as store, opened(database) as other:
        report, *_ = await asyncio.gather(imported(other, file, values=HERE), *(talk(store, chat) for chat in chats))
        assert report.complete
        assert report.stored == 10_000
        for chat in chats:
            history = await store.history(chat.id, limit=10_000)
            live = [message for message in history if message.text.startswith("live")]
            assert [message.text for message in live] == [f"live {n}" for n in range(40)]
            assert {message.status for message in live} == {"answered"}
            assert sum(message.text.startswith("old") for message in history) == 2000
    await assert_consistent(database)


async def test_several_sessions_of_a_conversation_follow_each_other(database: str, tmp_path: Path) -> None:
    rows = [(n, f"s{n // 2}", "user", f"text {n}", 1.7e9 + n) for n in range(6)]
    begun = [("s2", "c", "open", 1.7e9 + 4), ("s0", "c", "open", 1.7e9), ("s1", "c", "open", 1.7e9 + 2)]
    async with opened(database) as store:
        await imported(store, bridge_file(tmp_path, rows, begun))
        where = Address("imported", "default", "c")
        assert [text for _, text in await transcript(store, where)] == [f"text {n}" for n in range(6)]
        found = await sessions.list_sessions(store.database, sessions.SessionFilter(), 10)
        assert [(session.status, session.message_count) for session in found] == [
            ("active", 2),
            ("closed", 2),
            ("closed", 2),
        ]
        assert [session.metadata["imported"]["id"] for session in found] == ["s2", "s1", "s0"]
    await assert_consistent(database)


async def test_sessions_without_times_follow_each_other_by_their_first_messages(database: str, tmp_path: Path) -> None:
    times = [
        ("z", "2026-01-01T10:00:00Z"),
        ("z", "2026-01-01T10:00:00.5Z"),
        ("m", "2026-01-01T12:00:01+02:00"),
        ("a", "1767261602"),
        ("b", 1767261603500),
        ("b", "2026-01-01 10:00:04"),
    ]
    lines = [
        {"id": n, "session_id": session, "conversation": "c", "direction": "in", "text": f"text {n}", "created_at": at}
        for n, (session, at) in enumerate(times)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, reversed(lines))))
    async with opened(database) as store:
        assert (await imported(store, file, "jsonl")).complete
        where = Address("imported", "default", "c")
        assert [text for _, text in await transcript(store, where)] == [f"text {n}" for n in range(6)]
        found = await sessions.list_sessions(store.database, sessions.SessionFilter(status="active"), 10)
        assert [session.metadata["imported"]["id"] for session in found] == ["b"]
    await assert_consistent(database)


async def test_an_older_session_that_comes_later_does_not_take_over(database: str, tmp_path: Path) -> None:
    rows = [("1", "new", "user", "one", 1.7e9), ("2", "old", "user", "two", 1.6e9), ("3", "newest", "user", "x", 1.8e9)]
    begun = [("new", "c", "open", 1.7e9), ("old", "c", "open", 1.6e9), ("newest", "c", "open", 1.8e9)]
    async with opened(database) as store:
        for count, active in ((1, "new"), (2, "new"), (3, "newest")):
            await imported(store, bridge_file(tmp_path, rows[:count], begun[:count]))
            found = await sessions.list_sessions(store.database, sessions.SessionFilter(status="active"), 10)
            assert [session.metadata["imported"]["id"] for session in found] == [active]
    await assert_consistent(database)


async def test_ids_are_compared_as_text(tmp_path: Path) -> None:
    rows = [(1, 7, "user", "one", 1.7e9), (2, "8", "user", "two", 1.7e9), (3, "9", "user", "three", 1.7e9)]
    begun = [("7", "c7", "open", 1.7e9), (8, "c8", "open", 1.7e9), ("8", "c8", "open", 1.7e9), ("6", "c6", "open", 1)]
    report = await imported(None, bridge_file(tmp_path, rows, begun))
    assert (report.read, report.sessions, report.orphans, report.empty_sessions) == (3, 3, 1, 1)
    assert any("  1 row of a session that has no row: " in line for line in report.lines())


async def test_a_session_that_ended_stays_closed(database: str, tmp_path: Path) -> None:
    file = bridge_file(tmp_path, [("1", "s", "user", "one", 1.7e9)], [("s", "c", "closed", 1.7e9)])
    async with opened(database) as store:
        await imported(store, file)
        (session,) = await sessions.list_sessions(store.database, sessions.SessionFilter(), 10)
        assert session.status == "closed"
        receipt = await store.receive(said("again", to=session.address))
        assert (receipt.seq, receipt.session_id != session.id) == (2, True)
    await assert_consistent(database)


# What does not fit


async def test_bad_rows_are_rejected_with_their_reasons(database: str, tmp_path: Path) -> None:
    long = "x" * 1001
    rows: list[tuple[object, ...]] = [
        (1, "s", "user", "good", 1.7e9),
        (2, "s", "wizard", "who?", 1.7e9),
        (3, "s", "user", "when?", "yesterday"),
        (4, "s", "user", b"\xff\xfe", 1.7e9),
        (5, None, "user", "where?", 1.7e9),
        (6, long, "user", "too long", 1.7e9),
        (7, "s", "user", "good too", 1.7e9),
    ]
    async with opened(database) as store:
        report = await imported(store, bridge_file(tmp_path, rows))
        assert (report.read, report.stored, report.complete) == (7, 2, False)
        assert report.check is not None
        assert report.check.passed
    assert sorted(rejects(tmp_path / "report"), key=str) == [
        (2, "its direction is 'wizard', which the mapping does not know"),
        (3, "its time can't be read"),
        (4, "its text is not UTF-8 text"),
        (5, "it has neither a session nor a conversation"),
        (6, "its conversation is longer than 1000 bytes"),
    ]


async def test_another_message_under_a_known_id_is_rejected(database: str, tmp_path: Path) -> None:
    async with opened(database) as store:
        await imported(store, bridge_file(tmp_path, [("1", "s", "user", "one", 1.7e9)]))
        report = await imported(store, bridge_file(tmp_path, [("1", "s", "user", "another", 1.7e9)]))
        assert rejects(tmp_path / "report") == [("1", "another message with this id is stored already")]
        assert report.check is not None
        assert (report.check.different, report.check.passed) == (1, False)
        report = await imported(
            store, bridge_file(tmp_path, [("1", "s", "user", "another", 1.7e9)]), source="another file"
        )
        assert (report.stored, report.complete) == (1, True)


async def test_a_session_is_in_one_conversation(database: str, tmp_path: Path) -> None:
    session = str(MASTRA_THREAD)
    lines = [
        {"id": n, "session_id": session, "conversation": f"c{n // 2}", "direction": "in", "text": "x"} for n in range(3)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    async with opened(database) as store:
        for known in (0, 2):
            report = await imported(store, file, "jsonl")
            assert (report.stored, report.known) == (2 - known, known)
            assert report.rejected == {"its session belongs to another conversation": 1}
    await assert_consistent(database)


async def test_nobody_guesses_between_the_conversations_of_a_session(database: str, tmp_path: Path) -> None:
    rows = [(1, "a", "user", "whose?", 1.7e9), (2, "b", "user", "mine", 1.7e9 + 1)]
    begun = [("a", "x", "open", 1.7e9), ("b", "z", "open", 1.7e9), ("a", "y", "open", 1.7e9)]
    async with opened(database) as store:
        report = await imported(store, bridge_file(tmp_path, rows, begun))
        assert (report.stored, report.complete) == (1, False)
        assert rejects(tmp_path / "report") == [(1, "its session has several rows, of different conversations")]
        assert await transcript(store, Address("imported", "default", "z")) == [("inbound", "mine")]


async def test_behind_pgbouncer(database: str, openai_file: Path) -> None:
    async with opened(database, pgbouncer=True) as store:
        assert (await imported(store, openai_file)).complete


@pytest.mark.parametrize(
    "written", ["2026-01-02T03:04:05Z", "2026-01-02 03:04:05", 1767323045, "1767323045000", 1767323045000000.0]
)
async def test_times_are_read_as_they_are_written(database: str, tmp_path: Path, written: object) -> None:
    async with opened(database) as store:
        await imported(store, bridge_file(tmp_path, [("1", "s", "user", "x", written)]))
        (message,) = await store.history(Address("imported", "default", "s").id)
        assert message.created_at.isoformat() == "2026-01-02T03:04:05+00:00"
        # Its id is in the order of time, as the index on ids wants it.
        assert (message.id.version, message.id.int >> 80) == (7, 1767323045000)


async def test_a_row_that_postgresql_refuses_fails_alone(database: str, tmp_path: Path) -> None:
    rows = [(n, "s", "user", f"text {n}", 1.7e9) for n in range(20)]
    async with looking(database) as connection:
        await connection.execute("alter table messages add constraint test check (content_text <> 'text 13')")
    async with opened(database) as store:
        report = await imported(store, bridge_file(tmp_path, rows))
        assert report.stored == 19
        ((key, reason),) = rejects(tmp_path / "report")
        assert (key, reason.startswith("PostgreSQL: ")) == (13, True)
        assert report.check is not None
        assert (report.check.missing, report.check.passed) == (1, False)


async def test_the_check_finds_what_was_changed(database: str, tmp_path: Path) -> None:
    file = bridge_file(tmp_path, [(n, "s", "user", f"text {n}", 1.7e9 + n) for n in range(5)])
    async with opened(database) as store:
        assert (await imported(store, file)).complete
        async with looking(database) as connection:
            await connection.execute("update messages set created_at = now() where content_text = 'text 2'")
        report = await imported(store, file)
        assert report.check is not None
        assert (report.check.different, report.check.missing, report.complete) == (1, 0, False)
    sample = (tmp_path / "report" / "sample.md").read_text()
    assert "imported s: the same" in sample
    assert "| inbound: text 4 | inbound: text 4 |" in sample
    async with opened(database) as store:
        async with looking(database) as connection:
            await connection.execute("update messages set session_id = gen_random_uuid() where content_text = 'text 3'")
        report = await imported(store, file)
        assert report.check is not None
        assert (report.check.different, report.check.missing) == (2, 0)


async def test_a_dry_run_needs_no_database_and_tells_what_would_be(tmp_path: Path) -> None:
    file = bridge_file(tmp_path, [("1", "s", "user", "one", 1.7e9), ("2", "s", "wizard", "two", 1.7e9)])
    report = await imported(None, file)
    assert (report.read, report.stored, report.messages["inbound"]) == (2, 0, 1)
    assert "  columns of messages: read: id, session_id, direction, text, created_at" in report.lines()
    kept = json.loads((tmp_path / "report" / "report.json").read_text())
    assert kept["rejected"] == {"its direction is 'wizard', which the mapping does not know": 1}
    assert (tmp_path / "report" / "rejects.jsonl").stat().st_mode & 0o777 == 0o600


async def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    file = bridge_file(tmp_path, [(n, "s", "user", f"text {n} {'x' * 500}", n) for n in range(200)])
    data = bytearray(file.read_bytes())
    middle = len(data) // 8192 * 4096
    data[middle : middle + 8192] = b"\xff" * 8192
    file.write_bytes(data)
    with pytest.raises(ChatBridgeError, match="can't be read: database disk image is malformed"):
        await imported(None, file)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"attachments": "{}"}, "its attachments are not a JSON list"),
        ({"attachments": ["x"]}, "an attachment is not a JSON object"),
        ({"attachments": [{"kind": "cat", "mime_type": "a/b", "ref": "r"}]}, "an attachment needs a kind"),
        (
            {"attachments": [{"kind": "file", "mime_type": "a/b", "ref": "r", "colour": 1}]},
            "an attachment has no colour",
        ),
        ({"sender_id": "x" * 1001}, "its sender is longer than 1000 bytes"),
        ({"id": None}, "it has no id"),
        ({"direction": "x" * 41}, f"its direction is '{'x' * 40}...'"),
        ({"created_at": 10**400}, "its time can't be read"),
    ],
)
async def test_reasons_to_reject(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    file = tmp_path / "rows.jsonl"
    usual = {"id": "1", "conversation": "c", "direction": "user", "text": "x"}
    file.write_text(f"{json.dumps({**usual, **row})}\n{json.dumps({**usual, 'id': '2'})}")
    report = await imported(None, file, "jsonl")
    (told,) = report.rejected
    assert told.startswith(reason)
    assert report.messages["inbound"] == 1


async def test_unknown_files_say_what_to_do(tmp_path: Path) -> None:
    text, empty, other = tmp_path / "a.txt", tmp_path / "empty.sqlite", tmp_path / "other.sqlite"
    text.write_text("hello")
    with closing(sqlite3.connect(empty)) as connection:
        connection.execute("vacuum")
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("create table notes (a, b)")
    for file, words in (
        (tmp_path / "none", "there is no file"),
        (text, "is not a SQLite database"),
        (empty, "without its -wal file"),
        (other, "has the tables notes, and no ready-made mapping fits"),
    ):
        with pytest.raises(ChatBridgeError, match=words):
            await imported(None, file)


async def test_what_is_wrong_with_a_file_or_a_folder_is_said(tmp_path: Path) -> None:
    """And a file that is not there leaves no folder."""
    good = bridge_file(tmp_path, [("1", "s", "user", "one", 1.7e9)])
    view, latin = tmp_path / "view.sqlite", tmp_path / "latin.csv"
    with closing(sqlite3.connect(view)) as connection:
        connection.execute("create table messages (id)")
        connection.execute("create view lines as select gone from messages")
    mapping = tmp_path / "view.toml"
    mapping.write_text('[messages]\ntable = "lines"\nid = "i"\nsession = "s"\ndirection = "d"\ntext = "t"')
    latin.write_bytes("id,grün\n1,2\n".encode("latin1"))
    folder = tmp_path / "report"
    cases: list[tuple[Path, Kind, dict[str, Any], str]] = [
        (tmp_path / "none", "sqlite", {}, "there is no file"),
        (view, "sqlite", {"mapping": str(mapping)}, "view.sqlite can't be read: no such column: gone"),
        (latin, "csv", {}, "latin.csv is not UTF-8 text; convert it"),
        (good, "sqlite", {"folder": latin}, "latin.csv: File exists; .*--report"),
        (good, "sqlite", {"folder": latin / "report"}, "Not a directory; .*--report"),
    ]
    for file, kind, wished, words in cases:
        with pytest.raises(ChatBridgeError, match=words):
            await imported(None, file, kind, **{"folder": folder, **wished})
    assert not folder.exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "", "/a"), "/a: Permission denied; give yourself the right"),
        (OSError(errno.ENOSPC, ""), "No space left on device; make room"),
        (RecursionError(), "nested too deeply"),
    ],
)
def test_errors_of_the_system_say_what_to_do(error: Exception, words: str) -> None:
    with pytest.raises(ChatBridgeError, match=words), explained(Path("file")):
        raise error


async def test_json_that_is_nested_too_deeply_is_rejected(database: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    row = '{"id": "%s", "conversation": "c", "direction": "in", "text": "x", "metadata": %s}\n'
    depths = (1, 600, 100_000)
    file.write_text("".join(row % (depth, "[" * depth + "]" * depth) for depth in depths))
    async with opened(database) as store:
        report = await imported(store, file, "jsonl")
        assert (report.stored, report.rejected) == (1, {"it is JSON that is nested too deeply": 2})


async def test_a_report_that_was_open_to_others_is_closed_and_short(tmp_path: Path) -> None:
    file = bridge_file(tmp_path, [(n, "s", f"wizard {n}", "x", 1.7e9) for n in range(25)])
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "rejects.jsonl").touch(0o644)
    report = await imported(None, file)
    assert (tmp_path / "report" / "rejects.jsonl").stat().st_mode & 0o777 == 0o600
    assert sum("rejected:" in line for line in report.lines()) == 20
    assert "  and 5 more reasons to reject, in report.json" in report.lines()


# Mappings of one's own, and other kinds of files


async def test_a_mapping_of_ones_own(database: str, tmp_path: Path) -> None:
    file = tmp_path / "shop.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("create table s (nr integer primary key, tg_chat, owner, begun)")
        connection.execute("create table f (chat, who, body, ms, pics) ")
        connection.execute("insert into s values (1, '-100123', 'u7', 1700000000)")
        picture = json.dumps([{"kind": "image", "mime_type": "image/png", "ref": "abc", "size": None}])
        connection.executemany(
            "insert into f values (1, ?, ?, ?, ?)",
            [("Kunde", "hallo", 1700000001500, picture), ("Bot", "guten Tag", 1700000002500, None)],
        )
        connection.commit()
    mapping = tmp_path / "shop.toml"
    mapping.write_text("""
        [sessions]
        table = "s"
        id = "nr"
        conversation = "tg_chat"
        user = "owner"
        created_at = "begun"
        [messages]
        table = "f"
        session = "chat"
        direction = "who"
        text = "body"
        created_at = "ms"
        attachments = "pics"
        [values]
        platform = "telegram"
        account = "main"
        [directions]
        inbound = ["kunde"]
        outbound = ["bot"]
    """)
    async with opened(database) as store:
        assert (await imported(store, file, mapping=str(mapping))).complete
        where = Address("telegram", "main", "-100123")
        first, second = await store.history(where.id)
        assert (first.sender_id, first.created_at.timestamp(), first.attachments[0].ref) == ("u7", 1700000001.5, "abc")
        assert (second.direction, second.text) == ("outbound", "guten Tag")


async def test_the_mapping_of_the_documentation_is_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operate" / "import.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    mapping = parse_mapping("docs", example)
    assert mapping.messages["metadata"] == ("lang", "score")
    assert mapping.directions == {"kunde": "inbound", "bot": "outbound", "team": "outbound"}


async def test_a_view_is_read_like_a_table(tmp_path: Path) -> None:
    file = bridge_file(tmp_path, [("1", "s", "user", "one", 1.7e9)])
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(
            "create view lines as select id as nr, session_id, direction, upper(text) as t from messages"
        )
    mapping = tmp_path / "view.toml"
    text = '[messages]\ntable = "lines"\nsession = "session_id"\ndirection = "direction"\ntext = "t"\n'
    mapping.write_text(f'{text}id = "nr"')
    assert (await imported(None, file, mapping=str(mapping))).complete
    mapping.write_text(text)
    with pytest.raises(ChatBridgeError, match="needs an id for lines"):
        await imported(None, file, mapping=str(mapping))


async def test_wrong_mappings_name_all_that_is_wrong(tmp_path: Path) -> None:
    file = bridge_file(tmp_path, [])
    mapping = tmp_path / "wrong.toml"
    for text, words in (
        ("[messages", "is not TOML"),
        ('[messages]\ntable = "messages"\ncolour = "red"', r"has no colour.*needs a direction.*needs a text"),
        ('[message]\ntext = "t"', r"\[message\] is not known"),
        ('[messages]\ntable="messages"\nsession="session_id"\ndirection="who"\ntext="text"', "has no column who"),
        ('[messages]\ntable="lines"\nsession="s"\ndirection="d"\ntext="t"', "has no table lines"),
    ):
        mapping.write_text(text)
        with pytest.raises(ChatBridgeError, match=f"(?s){words}"):
            await imported(None, file, mapping=str(mapping))


async def test_csv_and_jsonl(database: str, tmp_path: Path) -> None:
    rows = [
        {
            "id": f"m{n}",
            "conversation": f"c{n % 2}",
            "direction": "user",
            "text": f'"{n}",\nline two',
            "created_at": 1e9 + n,
        }
        for n in range(6)
    ]
    table, lines = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        file.write("m9,c1,user,x,1,too,many\n")
    lines.write_text("\n".join([*map(json.dumps, rows), "{broken", "[1]", ""]))
    async with opened(database) as store:
        report = await imported(store, table, "csv", source="rows")
        assert (report.stored, report.rejected) == (6, {"it has more fields than the header": 1})
        report = await imported(store, lines, "jsonl", source="rows")
        assert (report.known, report.rejected) == (6, {"it is not a JSON object": 2})
        assert await transcript(store, Address("imported", "default", "c1")) == [
            ("inbound", f'"{n}",\nline two') for n in (1, 3, 5)
        ]


async def test_a_csv_file_with_an_unnamed_column(tmp_path: Path) -> None:
    """As pandas writes it."""
    file = tmp_path / "rows.csv"
    file.write_text(",id,conversation,direction,text,mood\n0,1,c,user,x,good\n1,2,c,user,y,bad\n")
    report = await imported(None, file, "csv")
    assert (report.messages["inbound"], report.rejected) == (2, {})
    assert (
        "  columns of messages: read: id, conversation, direction, text; not read: one without a name, mood"
        in report.lines()
    )


# The command


async def test_the_command(database: str, openai_file: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "report")
    settings = {"DATABASE_URL": database, "CHAT_BRIDGE_SECRET": "s" * 32}
    words = "import", "sqlite", str(openai_file), "--report", folder, "--platform", "webchat"
    code, output, errors = await run_command(*words, **settings)
    assert (code, "storing 100%" in errors, "checking 100%" in errors) == (0, True, True), errors
    assert "207 stored, 0 were stored before" in output
    assert "all 207 are in PostgreSQL, with their session, direction, text, sender and time as in the file" in output
    bad = bridge_file(tmp_path, [("1", "s", "wizard", "one", 1.7e9)])
    code, output, errors = await run_command("import", "sqlite", str(bad), "--report", folder, "--dry-run")
    assert (code, "not every row is in" in errors) == (1, True)
    async with Database.open(database) as opened_database:
        assert len(await sessions.list_sessions(opened_database, sessions.SessionFilter(platform="webchat"), 99)) == 21
