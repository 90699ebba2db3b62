"""How PostgreSQL finds rows in big tables: by an index, and no more of them than asked for."""

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import md5
from typing import Any
from uuid import UUID

import asyncpg

from chat_bridge.model import new_message_id, new_session_id, new_turn_id
from chat_bridge.storage import messages
from chat_bridge.storage.postgres import _PLANNING, QUERIES
from tests.storage.dialogue import CHAT, looking, said

LONG = 100_000  # messages of one conversation
FILES = 6_000  # of that one, most of them not to be had
SESSION = UUID("019a0000-0000-7000-8000-000000000000")
BIG = {"messages", "sessions", "turns", "deliveries", "users", "attachments", "contents"}

SHORT = 20_000  # other conversations, of one message each
MOVED = md5(b"c1").hexdigest()  # one of those
CONTENT = UUID(md5(b"b1").hexdigest())
FILE = UUID(md5(b"f").hexdigest())  # that waits, in the long conversation

# Ids grow with time, as uuid v7 does.
FILL = f"""
insert into sessions (conversation_id, id, platform, account, platform_conversation_id, user_id, next_seq,
  message_count, answered_seq, last_inbound_seq, pending_since)
values ('{CHAT.id}', '{SESSION}', 'webchat', 'main', 'a-chat', 'ada', {LONG + 1}, {LONG}, {LONG - 1}, {LONG}, now());
insert into waiting values ('{CHAT.id}', '{SESSION}');
insert into messages (conversation_id, seq, id, session_id, direction, status, content_text, event_key, sender_id)
select '{CHAT.id}', n, lpad(to_hex(n), 32, '0')::uuid, '{SESSION}', 'inbound', 'accepted', 'text ' || n, 'key ' || n,
  'ada'
from generate_series(1, {LONG}) n;
insert into sessions (conversation_id, id, platform, account, platform_conversation_id, next_seq, message_count,
  answered_seq, last_inbound_seq)
select md5('c' || n)::uuid, md5('s' || n)::uuid, 'webchat', 'main', 'c' || n, 2, 1, 1, 1
from generate_series(1, {SHORT}) n;
insert into messages (conversation_id, seq, id, session_id, direction, status, event_key, sender_id)
select md5('c' || n)::uuid, 1, lpad(to_hex(n + {LONG}), 32, '0')::uuid, md5('s' || n)::uuid, 'inbound', 'accepted', 'k',
  'u' || n
from generate_series(1, {SHORT}) n;
insert into turns (conversation_id, id, session_id, first_seq, last_seq, lease_until, owner, agent, status, finished_at)
select md5('c' || n)::uuid, md5('t' || n)::uuid, md5('s' || n)::uuid, 1, 1, now(), 'o', 'a', 'done', now()
from generate_series(1, {SHORT}) n;
insert into deliveries (conversation_id, seq, part, idempotency_key, status)
select md5('c' || n)::uuid, 1, 1, md5('d' || n)::uuid, 'sent'
from generate_series(1, {SHORT}) n;
insert into users (platform, account, platform_user_id)
select 'webchat', 'main', 'u' || n
from generate_series(1, {SHORT}) n;
insert into attachments (conversation_id, key, id, seq, told, status, content_id)
select md5('c' || n)::uuid, convert_to('c' || n, 'UTF8'), md5('a' || n)::uuid, 1, '{{}}', 'stored', md5('b' || n)::uuid
from generate_series(1, {SHORT}) n;
insert into attachments (conversation_id, key, id, seq, told, status)
select '{CHAT.id}', convert_to('f' || n, 'UTF8'), md5('f' || n)::uuid, n, '{{}}', 'failed'
from generate_series(1, {FILES}) n;
insert into attachments (conversation_id, key, id, seq, told, next_attempt_at)
values ('{CHAT.id}', 'waiting', md5('f')::uuid, 1, '{{}}', now());
insert into attachments (conversation_id, key, told, next_attempt_at)
select md5('c' || n)::uuid, convert_to('u' || n, 'UTF8'), '{{}}', 'infinity'
from generate_series(1, {SHORT}) n;
insert into contents (id, sha256, size, mime_type, status, unused_since)
select md5('b' || n)::uuid, sha256(n::text::bytea), 1, 'text/plain', 'stored', null
from generate_series(1, {SHORT}) n;
"""


@asynccontextmanager
async def filled(dsn: str) -> AsyncGenerator[asyncpg.Connection]:
    """The big tables, in a connection that changes nothing in the end."""
    async with looking(dsn) as connection, _passing(connection):
        await connection.execute(FILL)
        await connection.execute("select brin_summarize_new_values('messages_id')")
        await connection.execute("analyze")
        yield connection


@asynccontextmanager
async def _passing(connection: asyncpg.Connection) -> AsyncGenerator[None]:
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


async def plan_as_the_bridge(connection: asyncpg.Connection) -> None:
    """From now on, and what is prepared already anew."""
    for name, value in _PLANNING.items():
        await connection.execute(f"set {name} = {value}")
    for name in await connection.fetch("select name from pg_prepared_statements where from_sql"):
        await connection.execute(f"deallocate {name['name']}")


async def plan(connection: asyncpg.Connection, query: str, *arguments: object) -> dict[str, Any]:
    """Run a named query and tell how; what it changes is taken back. It stays prepared in the connection."""
    if not await connection.fetchval("select 1 from pg_prepared_statements where name = $1", query):
        await connection.execute(f"prepare {query} as {QUERIES[query]}")
    types = await connection.fetchval("select parameter_types from pg_prepared_statements where name = $1", query)
    literals = [
        await connection.fetchval(f"select quote_nullable($1::{type_}::text)", argument)
        for type_, argument in zip(types, arguments, strict=True)
    ]
    async with _passing(connection):
        (answer,) = json.loads(
            await connection.fetchval(
                f"explain (analyze, buffers, format json) execute {query} ({', '.join(literals)})"
            )
        )
    return answer["Plan"]


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for part in node.get("Plans", ()):
        yield from nodes(part)


def on(found: dict[str, Any], table: str) -> list[dict[str, Any]]:
    """The nodes that read a table and ran."""
    return [
        node
        for node in nodes(found)
        if node.get("Relation Name") == table and node["Actual Loops"] and "Scan" in node["Node Type"]
    ]


def buffers(found: dict[str, Any]) -> int:
    return found["Shared Hit Blocks"] + found["Shared Read Blocks"]


PAGES = [
    ("history_before", [2**63 - 1, 50, None], "Backward"),
    ("history_before", [LONG // 2, 50, None], "Backward"),
    ("history_after", [LONG // 2, 50], "Forward"),
    ("history_after", [0, 50], "Forward"),
]


async def test_reading_a_long_conversation_costs_no_more_than_what_is_read(database: str) -> None:
    async with filled(database) as connection:
        for query, arguments, direction in PAGES:
            found = await plan(connection, query, CHAT.id, *arguments)
            (scan,) = on(found, "messages")
            assert (scan["Node Type"], scan["Index Name"]) == ("Index Scan", "messages_pkey")
            assert scan["Scan Direction"] == direction
            assert (scan["Actual Rows"], scan.get("Rows Removed by Filter", 0)) == (50, 0)
            assert not [node for node in nodes(found) if "Sort" in node["Node Type"]]
            assert buffers(found) < 30

        found = await plan(connection, "history_before", CHAT.id, 2**63 - 1, 50, SESSION)
        assert buffers(found) < 30

        found = await plan(connection, "find_message", UUID(int=LONG // 2))
        blocks = await connection.fetchval("select pg_relation_size('messages') / current_setting('block_size')::int")
        assert "messages_id" in {node.get("Index Name") for node in nodes(found)}
        assert "Seq Scan" not in {node["Node Type"] for node in on(found, "messages")}
        assert buffers(found) < 100 < blocks / 5


SOON = datetime.now(UTC) + timedelta(days=1)  # what is older than that is all there is


def receive_arguments() -> list[list[object]]:
    session_ids = {CHAT.id: new_session_id()}
    rows = [messages._columns(said(f"{n}"), session_ids) for n in range(3)]
    return [list(column) for column in zip(*rows, strict=True)]


STATEMENTS: dict[str, list[object]] = {
    "receive": receive_arguments(),
    "claim": [[CHAT.id], [new_turn_id()], ["agent"], ["collect"], [1000], "owner", timedelta(seconds=30)],
    "complete": [
        [CHAT.id], [UUID(int=7)], ["done"], ["answered"], [None], [None], [None], [new_message_id()], ["text"],
        ["text"], [2], [False], [None], [None], [None], ['[{"ref": "sent"}]'], [f'["{CONTENT}"]'],
    ],
    "note": [CHAT.id, UUID(int=7), '{"preview": "1"}'],
    "stored_reply": [CHAT.id, LONG - 1, UUID(int=8)],
    "note_move": [UUID(int=9), "new"],
    "moved_to": [CHAT.id],
    "read_albums": [[CHAT.id, CHAT.id], [LONG, 1]],
    "rotate": [CHAT.id, SESSION, LONG - 1, new_session_id()],
    "rotate_ended": [[CHAT.id], [new_session_id()], datetime.now(UTC), [CHAT.id], ["a key"]],
    "say": [CHAT.id, SESSION, new_message_id(), "text", None, 1],
    "renew": [[CHAT.id], [UUID(int=7)], timedelta(seconds=30)],
    "supersede": [CHAT.id, None, "reason"],
    "recover": [False, ["webchat"], ["main"]],
    "find_pending": [100, ["webchat"], ["main"]],
    "lock_lost": [[CHAT.id], [UUID(int=7)]],
    "set_aside": [[CHAT.id], [UUID(int=7)], 3],
    "sent_before": [CHAT.id, f"key {LONG}"],
    "store_message": [CHAT.id, SESSION, new_message_id(), "text", "sent:1", "[]", None, 2, [b"waiting", b"f1"]],
    "due_deliveries": [100, ["webchat"], None, ["webchat"], ["main"], 8],
    "finish_deliveries": [[CHAT.id], [1], [1], ["sent"], [None], [None], [0.0], [1], [False], [False]],
    "renew_delivery": [CHAT.id, 1, 1, 1],
    "list_dead_letters": [datetime(9999, 1, 1, tzinfo=UTC), UUID(int=2**128 - 1), 0, None, 50],
    "retry_deliveries": [UUID(int=8)],
    "purge_deliveries": [UUID(int=8)],
    "failed_message": [UUID(int=8)],
    "note_on_failed": [UUID(int=8), "{}"],
    "set_session_metadata": [SESSION, "{}"],
    "lock_session": [SESSION],
    "close_session": [SESSION],
    "get_session": [SESSION],
    "active_session": [CHAT.id],
    "active_in": ["webchat", "a-chat", "main"],
    "lock_conversations": [[UUID(MOVED), UUID(int=8)]],
    "move_sessions": [UUID(MOVED), UUID(int=8), "new"],
    "move_messages": [UUID(MOVED), UUID(int=8)],
    "move_turns": [UUID(MOVED), UUID(int=8)],
    "move_deliveries": [UUID(MOVED), UUID(int=8)],
    "move_waiting": [UUID(MOVED), UUID(int=8)],
    "follow_conversation": [UUID(MOVED), CHAT.id, "new"],
    "edit": [CHAT.id, f"key {LONG}", "edited", '{"key": "edited", "text": "new"}'],
    "lock_album": [CHAT.id, f"key {LONG}", "part"],
    "add_to_album": [CHAT.id, LONG, "part", "[]", "text", True],
    "late_for_album": [CHAT.id, LONG, "part"],
    "overheard": [CHAT.id, SESSION, LONG, 50],
    "take_attachments": [8, ["webchat"], ["main"], timedelta(seconds=30)],
    "take_attachments_in": [8, CHAT.id, timedelta(seconds=30)],
    "abandon_attachments": [100],
    "renew_attachment": [CHAT.id, FILE, 1, timedelta(seconds=30)],
    "attachment_failed": [CHAT.id, FILE, 1, "error", 1.0],
    "attachment_stored": [CHAT.id, FILE, FILE],
    "find_content": [b"x" * 32],
    "begin_content": [FILE, b"x" * 32, 1, "text/plain", None, None, False],
    "add_upload": [CHAT.id, UUID(int=8), b"key", "{}"],
    "drop_upload": [CHAT.id, FILE],
    "forget_old_uploads": [CHAT.id, 1000, 20, 10_000],
    "forget_upload": [CHAT.id, FILE],
    "attachments_of": [CHAT.id, [b"waiting"]],
    "find_attachment": [FILE],
    "move_attachments": [UUID(MOVED), UUID(int=8)],
    "expire_uploads": [100],
    "doom_contents": [100],
    "content_deleted": [[UUID(int=8)]],
    "conversations_after": [UUID(int=0), 5],
    "lock_expired_messages": [[CHAT.id, UUID(MOVED)], [SOON, SOON], 100],
    "expire_messages": [[CHAT.id, UUID(MOVED)], [1, 1], 100],
    "drop_empty_sessions": [[UUID(MOVED), UUID(int=8)], [SOON, SOON]],
    "forget_move": [UUID(MOVED)],
    "expire_attachments": [[UUID(MOVED)], [SOON], 100, "reason"],
    "count_expired_attachments": [[UUID(MOVED)], [SOON], [SOON]],
    "expire_users": [["webchat"], ["main"], ["u1"], [SOON]],
    "same_conversation": [UUID(MOVED)],
    "take_leases": [["poll"], "owner", timedelta(seconds=30)],
    "release_lease": ["poll", "owner"],
    "turns_of_message": [CHAT.id, LONG],
    "turn": [CHAT.id, UUID(int=7)],
}  # fmt: skip
TURN = f"""
insert into turns (conversation_id, id, session_id, first_seq, last_seq, lease_until, owner, agent)
values ('{CHAT.id}', '{UUID(int=7)}', '{SESSION}', {LONG}, {LONG}, now() - interval '1 s', 'o', 'a')
"""


async def test_no_statement_reads_a_big_table_from_end_to_end(any_database: str) -> None:
    async with filled(any_database) as connection:
        assert await whole_reads(connection) == {}
        await plan_as_the_bridge(connection)
        assert await whole_reads(connection) == {}


async def test_nor_with_a_plan_that_was_made_while_the_tables_were_empty(any_database: str) -> None:
    # PostgreSQL plans again once it has analysed the tables; until then it believes what it believed.
    async with looking(any_database) as connection:
        await plan_as_the_bridge(connection)
        for name, arguments in STATEMENTS.items():
            await plan(connection, name, *arguments)
        async with _passing(connection):
            await connection.execute(FILL)
            await connection.execute("analyze")
            assert await whole_reads(connection) == {}


async def whole_reads(connection: asyncpg.Connection) -> dict[str, list[tuple[str, str]]]:
    """The statements that read much more than they need, and what they read."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, arguments in STATEMENTS.items():
        async with _passing(connection):
            if name != "claim":
                await connection.execute(TURN)
            answer = await plan(connection, name, *arguments)
            whole = [
                (node["Node Type"], node["Relation Name"])
                for table in BIG
                for node in on(answer, table)
                if node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0) > 5000
            ]
            if whole:
                found[name] = whole
    return found
