"""Export: what people said comes out whole, in each format, and can come in again."""

import asyncio
import io
import json
import os
import re
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from markdown_it import MarkdownIt

from chat_bridge.errors import ChatBridgeError
from chat_bridge.model import Attachment, EventKind
from chat_bridge.storage import messages, transcripts
from chat_bridge.storage.sessions import SessionFilter
from chat_bridge.storage.store import Store
from chat_bridge.transfer.export import export
from chat_bridge.transfer.load import Import, Wish
from chat_bridge.transfer.progress import Progress, counted
from tests.conftest import fresh_database
from tests.observe import run_command
from tests.storage.dialogue import ADA, CHAT, assert_consistent, chat, claimed, ending, looking, opened, said

NASTY = '<script>alert(1)</script>\n# not a title\n> "quoted" & `code`\n\n**bold** 👋'
PICTURE = Attachment("image", "image/png", "ref-1", name="a|b.png")


@pytest.fixture
async def store(database: str) -> AsyncGenerator[Store]:
    """A store with a conversation that has everything, and others."""
    async with opened(database) as store:
        await store.receive(said(NASTY, key="k1", attachments=[PICTURE]))
        await store.complete(ending(await claimed(store), "An *answer*\n\n```\n<b>\n```"))
        await store.receive(said("first words", key="k2"))
        edit = said("newer words", key="e1", kind=EventKind.EDIT, about="k2").event
        assert await messages.edit(store.database, edit) is not None
        await store.receive(said("gone", key="k3"))
        deletion = said("", key="e2", kind=EventKind.DELETE, about="k3").event
        assert await messages.edit(store.database, deletion) is not None
        await store.receive(said("not for us", skip_reason="not_addressed"))
        for n in range(3):
            await store.receive(said(f"hello {n}", to=chat(n)))
        yield store


async def written(store: Store, form: str, folder: Path, wanted: SessionFilter | None = None) -> str:
    """The text of an export."""
    output = folder / f"sessions.{form}"
    output.unlink(missing_ok=True)
    await export(store.database, None, wanted or SessionFilter(), form, output, lambda *_: None)
    return output.read_text()


def ignored(*_: object) -> None:
    """Hears how far it is."""


async def test_jsonl_has_everything(store: Store, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in (await written(store, "jsonl", tmp_path)).splitlines()]
    sessions = [line for line in lines if line["type"] == "session"]
    assert [session["conversation"] for session in sessions] == ["chat-2", "chat-1", "chat-0", "a-chat"]
    said_here = [line for line in lines if line["type"] == "message" and line["conversation"] == "a-chat"]
    assert [(line["direction"], line["text"], line["status"]) for line in said_here] == [
        ("inbound", NASTY, "answered"),
        ("outbound", "An *answer*\n\n```\n<b>\n```", "stored"),
        ("inbound", "newer words", "pending"),
        ("inbound", "", "pending"),
        ("inbound", "not for us", "skipped"),
    ]
    assert [(line["edited"], line["deleted"]) for line in said_here[2:4]] == [(True, False), (True, True)]
    assert (said_here[0]["sender_id"], said_here[0]["sender_name"]) == (ADA.id, ADA.name)
    assert said_here[0]["attachments"][0]["name"] == "a|b.png"
    assert said_here[4]["metadata"] == {"reason": "not_addressed"}


async def test_jsonl_comes_in_again(store: Store, tmp_path: Path) -> None:
    first = await written(store, "jsonl", tmp_path)
    async with fresh_database("18", template=True) as other, opened(other) as elsewhere:
        wish = Wish("jsonl", tmp_path / "sessions.jsonl", tmp_path / "report")
        report = await Import(wish, ignored).run(elsewhere.database)
        assert (report.complete, report.stored, report.sessions) == (True, 8, 4)
        second = await written(elsewhere, "jsonl", tmp_path)
        for ours, theirs in zip(map(json.loads, first.splitlines()), map(json.loads, second.splitlines()), strict=True):
            same = {"type", "id", "platform", "account", "conversation", "text", "direction", "created_at", "event_key"}
            same |= {"user_id", "sender_id", "sender_name", "parent_session_id", "message_count", "seq", "session_id"}
            if ours.get("direction") == "outbound":
                same.remove("event_key")  # ours have none; what comes from elsewhere needs one to come once
            assert {name: ours.get(name) for name in same} == {name: theirs.get(name) for name in same}
        # A redelivery of what was imported is known.
        assert (await elsewhere.receive(said(NASTY, key="k1"))).status == "duplicate"
        await assert_consistent(other)


async def test_what_is_there_does_not_come_in_again(store: Store, database: str, tmp_path: Path) -> None:
    """Replies have no event key: their ids say that they are known."""
    await written(store, "jsonl", tmp_path)
    wish = Wish("jsonl", tmp_path / "sessions.jsonl", tmp_path / "report")
    report = await Import(wish, ignored).run(store.database)
    assert (report.complete, report.stored, report.known, report.rejected) == (True, 0, 8, {})
    async with fresh_database("18", template=True) as other, opened(other) as elsewhere:
        lines = (tmp_path / "sessions.jsonl").read_text().splitlines(keepends=True)
        part = tmp_path / "part.jsonl"
        part.write_text("".join(line for line in lines if '"text":"not for us"' not in line))
        assert (await Import(replace(wish, file=part), ignored).run(elsewhere.database)).stored == 7
        report = await Import(wish, ignored).run(elsewhere.database)
        assert (report.complete, report.stored, report.known) == (True, 1, 7), "though the file's name is another"
        await assert_consistent(other)
    await assert_consistent(database)


async def test_the_memory_goes_on_where_an_export_came_in(store: Store, database: str, tmp_path: Path) -> None:
    async with looking(database) as connection:
        await connection.execute("""update sessions set metadata = '{"resource": "telegram:main:42"}'""")
    await written(store, "jsonl", tmp_path, SessionFilter(conversation="a-chat"))
    async with fresh_database("18", template=True) as other, opened(other) as elsewhere:
        await Import(Wish("jsonl", tmp_path / "sessions.jsonl", tmp_path / "report"), ignored).run(elsewhere.database)
        await elsewhere.receive(said("and now?"))
        assert (await claimed(elsewhere)).metadata["resource"] == "telegram:main:42"


async def test_markdown_keeps_every_message_in_its_place(store: Store, tmp_path: Path) -> None:
    text = await written(store, "markdown", tmp_path, SessionFilter(conversation="a-chat"))
    tokens = MarkdownIt().parse(text)
    titles = [
        tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open" and not token.level
    ]
    assert titles == ["webchat a-chat"], "what people write makes no title"
    assert sum(token.type == "blockquote_open" and token.level == 0 for token in tokens) == 4, (
        "what was deleted has no text"
    )
    assert not any(token.type.startswith("html") for token in tokens)
    assert "**Ada**" in text
    assert re.search(r"\(edited, pending\)\n\n> newer words", text)
    assert re.search(r"\(deleted, edited, pending\)", text)
    assert "first words" not in text


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_html_is_text_and_nothing_else(store: Store, tmp_path: Path) -> None:
    page = _Page()
    page.feed(await written(store, "html", tmp_path))
    assert page.tags.count("article") == 8
    assert page.tags.count("section") == 4
    assert NASTY in page.text
    assert {"script", "img", "link", "iframe", "b"}.isdisjoint(page.tags)


async def test_parquet_has_a_row_for_each_message(store: Store, tmp_path: Path) -> None:
    output = tmp_path / "sessions.parquet"
    assert await export(store.database, None, SessionFilter(), "parquet", output, ignored) == (4, 8)
    rows = pyarrow.parquet.read_table(output).to_pylist()
    assert NASTY in [row["text"] for row in rows]
    assert rows[-1]["created_at"].tzinfo is not None
    assert json.loads(rows[-1]["metadata"]) == {"reason": "not_addressed"}


async def test_parquet_without_its_package_says_what_to_install(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ChatBridgeError, match=r"agoric-chat-bridge\[parquet\]"):
        await export(store.database, None, SessionFilter(), "parquet", tmp_path / "a.parquet", ignored)
    assert list(tmp_path.iterdir()) == []


async def test_filters(store: Store, tmp_path: Path) -> None:
    async def count(wanted: SessionFilter) -> int:
        output = tmp_path / "some.jsonl"
        output.unlink(missing_ok=True)
        return (await export(store.database, None, wanted, "jsonl", output, ignored))[0]

    assert await count(SessionFilter(platform="webchat")) == 4
    assert await count(SessionFilter(platform="slack")) == 0
    assert await count(SessionFilter(conversation="chat-1")) == 1
    assert await count(SessionFilter(conversation_id=CHAT.id)) == 1
    assert await count(SessionFilter(user_id=ADA.id, status="active")) == 4
    assert await count(SessionFilter(status="closed")) == 0
    assert await count(SessionFilter(active_since=datetime.now(UTC) + timedelta(hours=1))) == 0


async def test_long_sessions_and_many_of_them(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a page of each."""
    monkeypatch.setattr(transcripts, "PAGE", 7)
    monkeypatch.setattr("chat_bridge.transfer.export.PAGE", 2)
    async with opened(database) as store:
        for n in range(21):
            await store.receive(said(f"text {n}", queue_cap=100))
        for n in range(4):
            await store.receive(said("hello", to=chat(n)))
        lines = list(map(json.loads, (await written(store, "jsonl", tmp_path)).splitlines()))
        assert [line["text"] for line in lines if line.get("conversation") == "a-chat" and "text" in line] == [
            f"text {n}" for n in range(21)
        ]
        assert sum(line["type"] == "session" for line in lines) == 5


async def test_no_file_is_left_half_or_overwritten(store: Store, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await export(store.database, None, SessionFilter(), "jsonl", output, stop)
    assert list(tmp_path.iterdir()) == []
    output.write_text("mine")
    with pytest.raises(ChatBridgeError, match="is there already"):
        await export(store.database, None, SessionFilter(), "jsonl", output, ignored)
    assert output.read_text() == "mine"
    with pytest.raises(ChatBridgeError, match="can't be written: No such file or directory"):
        await export(store.database, None, SessionFilter(), "jsonl", tmp_path / "no" / "a.jsonl", ignored)
    with pytest.raises(ChatBridgeError, match="standard output"):
        await export(store.database, None, SessionFilter(), "parquet", None, ignored)


async def test_the_command_writes_to_standard_output(store: Store, database: str) -> None:
    settings = {"DATABASE_URL": database, "CHAT_BRIDGE_SECRET": "s" * 32}
    code, output, errors = await run_command("export", "jsonl", "--conversation", "a-chat", **settings)
    assert code == 0, errors
    assert [json.loads(line)["type"] for line in output.splitlines()] == ["session", *["message"] * 5]
    assert errors.splitlines()[-1] == "5 messages of 1 session written"


async def test_a_full_disk_behind_standard_output(store: Store, database: str) -> None:
    with Path("/dev/full").open("wb") as full:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "chat_bridge", "export", "jsonl"),
            env={"PATH": os.environ["PATH"], "DATABASE_URL": database, "CHAT_BRIDGE_SECRET": "s" * 32},
            stdout=full,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors.decode()
    assert errors.decode().endswith("chat-bridge: standard output can't be written: No space left on device\n")


# The bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_in_a_log() -> None:
    out = io.StringIO()
    progress = Progress(out)
    progress.tell("storing", 1, 4)
    progress.tell("storing", 2, 4)
    progress.tell("storing", 4, 4)
    progress.count(1, 1000)
    progress.end()
    assert re.findall(r"storing +(\d+)%  (\d) of 4", out.getvalue()) == [("25", "1"), ("100", "4")]
    assert len(out.getvalue().splitlines()) == 2, "not more often than somebody reads"


def test_one_is_one() -> None:
    out = io.StringIO()
    Progress(out).count(1, 1000)
    assert out.getvalue() == "1,000 messages of 1 session\n"
    assert [counted(number, "row") for number in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]


def test_the_bar_on_a_terminal() -> None:
    out = _Terminal()
    progress = Progress(out)
    progress.tell("storing", 50, 100)
    progress.tell("storing", 60, 100)  # too soon to be shown
    progress.tell("storing", 100, 100)
    progress.tell("checking", 0, 0)
    progress.end()
    first, last, checking, end = out.getvalue().replace("\x1b[K", "").replace("\n", "\r").split("\r")[1:5]
    assert first.startswith("[###############...............] storing  50%  50 of 100")
    assert last.startswith("[##############################] storing 100%  100 of 100")
    assert (checking, end[:40]) == ("", "[##############################] checking"[:40])
