"""`chat-bridge backup`, run as its users run it."""

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyrage
import pytest
from typer.testing import CliRunner

from chat_bridge.backup.manifest import BackupError, new_id
from chat_bridge.cli import cli
from chat_bridge.storage.migrate import ASIDE
from tests.backup.stocked import contents, stock, vault_in
from tests.conftest import fresh_database
from tests.observe import rows, run_command
from tests.storage.dialogue import looking


async def backup(*words: str) -> list[str]:
    """What `chat-bridge backup` prints, without the start of another Python. Raises what it would tell as an error."""
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["backup", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output.splitlines()


async def test_from_a_backup_to_another_database(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stock(database)
    (tmp_path / "key").write_text(f"# created: today\n# public key: age1\n{pyrage.x25519.Identity.generate()}\n")
    settings = {
        "DATABASE_URL": database,
        "BACKUP_TO": str(tmp_path / "backups"),
        "BACKUP_KEY_FILE": str(tmp_path / "key"),
    }
    monkeypatch.chdir(tmp_path)
    for variable, text in settings.items():
        monkeypatch.setenv(variable, text)
    assert await backup("list") == ["there is no backup"]
    code, output, errors = await run_command("backup", "create", **settings)
    assert (code, errors) == (0, "")
    (name,) = await vault_in(tmp_path / "backups").whole()
    assert output.startswith(f"{name}  13 messages  ")
    (tmp_path / "backups" / (damaged := new_id(datetime.now(UTC) - timedelta(days=2), "abcdef12"))).mkdir()
    (tmp_path / "backups" / damaged / "manifest.json").write_text("{")
    first, second = await backup("list")
    assert first.startswith(f"{name}  13 messages  ")
    assert first.endswith("  encrypted")
    assert second.startswith(f"{damaged}  its manifest is damaged")
    assert (await backup("verify"))[1] == "good: 16 tables restored, rows counted and compared"
    with pytest.raises(BackupError, match="is not empty"):
        await backup("restore", "newest")
    async with fresh_database("18", template=True) as new:
        monkeypatch.setenv("DATABASE_URL", new)
        assert (await backup("restore", name))[1:] == [
            "restored",
            "0 erasures applied again",
            "`chat-bridge serve` goes on from here",
        ]
        assert await contents(new) == await contents(database)
    with pytest.raises(BackupError, match="exclude each other"):
        await backup("prune", "--keep", "1", "--older-than-days", "1")
    assert await backup("prune") == ["0 removed"]
    assert await backup("prune", "--older-than-days", "1") == [damaged, "1 removed"]
    with pytest.raises(BackupError, match=f"there is no backup {damaged}; `chat-bridge backup list` shows"):
        await backup("restore", damaged)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["killed", "Ctrl-C", "stopped"])
async def test_what_ends_in_the_middle_is_no_backup(number: signal.Signals, database: str, tmp_path: Path) -> None:
    settings = {"DATABASE_URL": database, "BACKUP_TO": str(tmp_path)}
    async with looking(database) as holder, holder.transaction():
        await holder.execute("lock table messages in access exclusive mode")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "chat_bridge", "backup", "create"),
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **settings},
            cwd=tmp_path,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        waiting = """select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
                and application_name = 'chat-bridge backup' and query like 'LOCK TABLE%'"""
        while not await rows(database, waiting):
            assert process.returncode is None
            await asyncio.sleep(0.02)
        assert list(tmp_path.rglob("*.part")), "it is being written"
        process.send_signal(number)
        await process.communicate()
    assert await vault_in(tmp_path).whole() == []
    left = list(tmp_path.iterdir())
    if number != signal.SIGKILL:
        assert left == []
    else:
        (half,) = left
        half.rename(tmp_path / new_id(datetime.now(UTC) - timedelta(days=2), "abcdef12"))
        assert len(await vault_in(tmp_path).prune(keep=1)) == 1
        assert list(tmp_path.iterdir()) == []


async def test_a_restore_whose_ssh_is_closed_puts_the_rows_back(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    manifest = await vault.create(database)
    await rows(database, "drop table moves")
    await stock(database)
    before = await contents(database)
    settings = {"DATABASE_URL": database, "BACKUP_TO": str(tmp_path)}
    async with looking(database) as holder, holder.transaction():
        await holder.execute("create table moves ()")  # pg_restore waits until this name is free
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "chat_bridge", "backup", "restore", manifest.id, "--replace"),
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **settings},
            cwd=tmp_path,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        waiting = """select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
                and starts_with(application_name, 'chat-bridge backup ')"""
        while not await rows(database, waiting):
            assert process.returncode is None
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGHUP)
        _, errors = await process.communicate()
        assert (process.returncode, errors) == (1, b"chat-bridge: stopped by SIGHUP\n")
        assert await rows(database, waiting) == []
        await holder.execute("drop table moves")
    assert await contents(database) == before
    assert await rows(database, "select from pg_namespace where nspname = $1", ASIDE) == []
