"""`python -m bench.backup`: how long a backup of 1,000,000 messages takes, and how big it is.

On an embedded PostgreSQL of its own in TMPDIR, with texts of about 300 bytes that compress as speech does.
"""

import argparse
import asyncio
import os
import platform
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pyrage
from chat_bridge.backup.places import Folder

from chat_bridge.backup.manifest import Manifest
from chat_bridge.backup.restore import restore, verify
from chat_bridge.backup.seal import read_key
from chat_bridge.backup.tables import connected, present_tables, sum_up
from chat_bridge.backup.vault import Vault
from chat_bridge.storage.embedded import embedded_postgres
from chat_bridge.storage.migrate import migrate
from chat_bridge.telemetry import configure_logging

T = TypeVar("T")
SESSION_MESSAGES = 100

# A conversation for every hundred messages: questions, turns, answers, their deliveries.
FILL = [
    """create function pg_temp.speech(id bigint) returns text language sql as $$
        select string_agg(substr(md5((abs(hashint8extended(id * 64 + word, 1)) % 4000)::text), 1,
          2 + (abs(hashint8extended(id * 64 + word, 1)) % 4000 % 7)::int), ' ')
        from generate_series(1, 50) word $$""",
    """insert into sessions (conversation_id, id, platform, account, platform_conversation_id, message_count, next_seq,
          last_inbound_seq, answered_seq, user_id)
        select md5(c::text)::uuid, md5('s' || c)::uuid, 'telegram', 'bot', c::text, {per}, {per} + 1, {per} - 1,
          {per} - 1, c::text
        from generate_series(1, {count} / {per}) c""",
    """insert into users (platform, account, platform_user_id, display_name)
        select 'telegram', 'bot', c::text, 'User ' || c from generate_series(1, {count} / {per}) c""",
    """insert into messages (conversation_id, seq, id, session_id, turn_id, direction, status, content_text, event_key,
          sender_id, platform_message_id, metadata)
        select md5((1 + (n - 1) / {per})::text)::uuid, 1 + (n - 1) % {per}, md5('m' || n)::uuid,
          md5('s' || (1 + (n - 1) / {per}))::uuid, case when n % 2 = 0 then md5('t' || n / 2)::uuid end,
          case when n % 2 = 1 then 'inbound' else 'outbound' end, case when n % 2 = 1 then 'accepted' else 'stored' end,
          pg_temp.speech(n), case when n % 2 = 1 then n::text end, case when n % 2 = 1 then ((n - 1) / {per})::text end,
          n::text, case when n % 2 = 0 then jsonb_build_object('model', 'a-model', 'tokens', n % 1000) end
        from generate_series(1::bigint, {count}) n""",
    """insert into turns (conversation_id, id, session_id, first_seq, last_seq, lease_until, finished_at, status, owner,
          agent, outcome)
        select conversation_id, turn_id, session_id, seq - 1, seq - 1, now(), now(), 'done', 'host:1', 'mastra',
          'answered'
        from messages where direction = 'outbound'""",
    """insert into deliveries (conversation_id, seq, part, attempts, sent_at, idempotency_key, status,
          platform_message_id)
        select conversation_id, seq, 1, 1, now(), id, 'sent', platform_message_id
        from messages where direction = 'outbound'""",
    "analyze",
]


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.backup")
    parser.add_argument("--messages", type=int, default=1_000_000)
    count: int = parser.parse_args().messages
    configure_logging("error", "text")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}; {count:,} messages"
    )
    with tempfile.TemporaryDirectory() as folder:
        async with embedded_postgres(Path(folder) / "data") as dsn:
            await measure(dsn, Path(folder), count)


async def measure(dsn: str, folder: Path, count: int) -> None:
    """Fill the database, and time everything that is done with backups."""
    await migrate(dsn)
    async with connected(dsn) as connection:
        for statement in FILL:
            await connection.execute(statement.replace("{count}", str(count)).replace("{per}", str(SESSION_MESSAGES)))
        size, text = await connection.fetchrow(
            "select pg_database_size(current_database()), (select avg(octet_length(content_text)) from messages)"
        )
        print(f"{'database, indexes included':<40} {size / 1e6:,.0f} MB, {text:.0f} bytes of text a message")
        tables = await present_tables(connection)
        await timed("counts and digests of all tables", lambda: sum_up(connection, tables))
    key = read_key(str(pyrage.x25519.Identity.generate()))
    for name, vault in (("plain", Vault(Folder(folder / "plain"), None)), ("age", Vault(Folder(folder / "age"), key))):
        manifest = await timed(f"create, {name}", lambda vault=vault: vault.create(dsn))
        print(f"{f'size, {name}':<40} {manifest.dump.bytes / 1e6:,.0f} MB")
        await timed(f"verify, {name}", lambda vault=vault, manifest=manifest: verify(vault, manifest, dsn))
        await timed(
            f"restore over the rows, {name}", lambda vault=vault, manifest=manifest: replaced(vault, manifest, dsn)
        )


async def replaced(vault: Vault, manifest: Manifest, dsn: str) -> None:
    """Restore over what is there."""
    await restore(vault, manifest, dsn, replace=True)


async def timed(what: str, work: Callable[[], Awaitable[T]]) -> T:
    """Do it, and say how long it took."""
    began = time.perf_counter()
    done = await work()
    print(f"{what:<40} {time.perf_counter() - began:.1f} s", flush=True)
    return done


if __name__ == "__main__":
    asyncio.run(main())
