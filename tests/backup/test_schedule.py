"""Backups by themselves: made when they are due, by one process of all."""

import asyncio
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from chat_bridge.backup import schedule
from chat_bridge.backup.manifest import BackupError, new_id
from chat_bridge.backup.schedule import LEASE, LEASE_SECONDS, LOOK_SECONDS, Schedule
from chat_bridge.backup.seal import Writer
from chat_bridge.backup.vault import Vault
from chat_bridge.errors import StorageError
from chat_bridge.storage import leases
from chat_bridge.storage.places import Folder
from chat_bridge.storage.postgres import Database
from chat_bridge.telemetry import BACKUP_NEWEST, BACKUP_OVERDUE
from tests.backup.stocked import vault_in
from tests.conftest import fresh_database
from tests.observe import rows
from tests.storage.dialogue import opened, opened_often

DAY = timedelta(days=1)


def leave(folder: Path, age: timedelta) -> str:
    """A backup that was made so long ago."""
    backup = new_id(datetime.now(UTC) - age, "abcdef12")
    (folder / backup).mkdir()
    (folder / backup / "manifest.json").touch()
    return backup


async def test_one_is_made_when_the_newest_is_old_enough(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    async with opened(database) as store:
        work = Schedule(store, database, vault, DAY, keep=2)
        young = leave(tmp_path, DAY - timedelta(minutes=10))
        assert 500 < await work.once() < 600
        assert await vault.whole() == [young]
        (tmp_path / young).rename(tmp_path / (old := new_id(datetime.now(UTC) - DAY, "abcdef12")))
        oldest = leave(tmp_path, 2 * DAY)
        assert await work.once() == LOOK_SECONDS
        newest, *others = await vault.whole()
        assert others == [old], f"{oldest} is one too many"
        await vault.manifest(newest)
        assert await rows(database, "select name from leases") == []


async def test_the_backups_of_another_database_are_not_taken_for_ours(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    async with fresh_database("18", template=True) as other:
        theirs = await vault.create(other)
    async with opened(database) as store:
        work = Schedule(store, database, vault, timedelta(minutes=6), keep=1)
        with pytest.raises(BackupError, match="holds the backups of another database"):
            await work.once()
    assert await vault.whole() == [theirs.id]


async def test_it_tells_how_old_the_newest_is(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(database) as store:
        work = Schedule(store, database, vault_in(tmp_path), DAY, keep=1)
        began = time.time()
        monkeypatch.setattr(time, "time", lambda: began + 7200)
        assert 7190 < BACKUP_OVERDUE.collect()[0].samples[0].value < 7210, "none was made since the start"
        monkeypatch.undo()
        await work.once()
        assert abs(BACKUP_NEWEST.collect()[0].samples[0].value - time.time()) < 60
        assert BACKUP_OVERDUE.collect()[0].samples[0].value == 0
        monkeypatch.setattr(time, "time", lambda: began + 86400 + 7200)
        assert 7100 < BACKUP_OVERDUE.collect()[0].samples[0].value < 7201
        monkeypatch.undo()


async def test_of_several_processes_one_makes_it(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    async with opened_often(database, 3) as stores:
        works = [Schedule(store, database, vault, DAY, keep=5) for store in stores]
        pauses = await asyncio.gather(*(work.once() for work in works))
        assert len(await vault.whole()) == 1
        assert set(pauses) <= {LOOK_SECONDS, LEASE_SECONDS}
        assert [await work.once() for work in works] == 3 * [LOOK_SECONDS]
        assert len(await vault.whole()) == 1


async def test_who_lost_the_lease_stops(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "LEASE_SECONDS", 0.1)
    loop = asyncio.get_running_loop()
    taken = asyncio.Event()

    class Robbed(Folder):
        @contextmanager
        def writing(self, name: str) -> Generator[Writer]:
            steal = rows(database, "update leases set owner = 'another', lease_until = now() + interval '1 h'")
            asyncio.run_coroutine_threadsafe(steal, loop).result()
            with super().writing(name) as target:
                loop.call_soon_threadsafe(taken.set)
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0.3), loop).result()
                yield target

    async with opened(database) as store:
        with pytest.raises(BackupError, match="the lease is another process's now"):
            await Schedule(store, database, Vault(Robbed(tmp_path), None), DAY, keep=1).once()
        assert taken.is_set()
        assert await rows(database, "select name, owner from leases") == [{"name": LEASE, "owner": "another"}]
    assert await vault_in(tmp_path).whole() == []


async def test_a_backup_outlives_a_renewal_that_failed(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "LEASE_SECONDS", 3.0)
    loop, failed, tried = asyncio.get_running_loop(), asyncio.Event(), list[str]()
    take = leases.take

    async def take_but_once(database: Database, name: str, owner: str, seconds: float) -> bool:
        tried.append(name)
        if len(tried) == 2:
            failed.set()
            raise StorageError("PostgreSQL: gone for a moment")
        return await take(database, name, owner, seconds)

    class Slow(Folder):
        @contextmanager
        def writing(self, name: str) -> Generator[Writer]:
            asyncio.run_coroutine_threadsafe(failed.wait(), loop).result()
            with super().writing(name) as target:
                yield target

    monkeypatch.setattr(leases, "take", take_but_once)
    async with opened(database) as store:
        await Schedule(store, database, Vault(Slow(tmp_path), None), DAY, keep=1).once()
    assert len(await vault_in(tmp_path).whole()) == 1


async def test_a_backup_stops_when_its_lease_could_not_be_renewed_in_time(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "LEASE_SECONDS", 0.1)
    loop, over, tried = asyncio.get_running_loop(), asyncio.Event(), list[str]()
    take = leases.take

    async def take_first(database: Database, name: str, owner: str, seconds: float) -> bool:
        tried.append(name)
        if len(tried) > 1:
            loop.call_later(1.0, over.set)
            raise StorageError("PostgreSQL: gone for good")
        return await take(database, name, owner, seconds)

    class Slow(Folder):
        @contextmanager
        def writing(self, name: str) -> Generator[Writer]:
            asyncio.run_coroutine_threadsafe(over.wait(), loop).result()
            with super().writing(name) as target:
                yield target

    monkeypatch.setattr(leases, "take", take_first)
    async with opened(database) as store:
        with pytest.raises(StorageError, match="gone for good"):
            await Schedule(store, database, Vault(Slow(tmp_path), None), DAY, keep=1).once()
    assert await vault_in(tmp_path).whole() == []


async def test_old_backups_that_can_not_be_removed_are_no_failed_backup(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Locked(Folder):
        def delete(self, names: Sequence[str]) -> None:
            raise BackupError("the bucket is locked")

    leave(tmp_path, DAY)
    async with opened(database) as store:
        assert await Schedule(store, database, Vault(Locked(tmp_path), None), DAY, keep=1).once() == LOOK_SECONDS
    told = capsys.readouterr().out
    assert "backup.made" in told
    assert "backup.prune_failed" in told
    assert "the bucket is locked" in told


async def test_a_failure_is_told_and_tried_again(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schedule, "TRY_AGAIN_SECONDS", 0.0)
    folder = tmp_path / "backups"
    folder.touch()
    async with opened(database) as store:
        await leases.take(store.database, "poll", "another", 60.0)
        work = asyncio.create_task(Schedule(store, database, vault_in(folder), DAY, keep=1).run())
        while "backup.failed" not in (told := capsys.readouterr().out):
            await asyncio.sleep(0.01)
        assert "Not a directory" in told
        folder.unlink()
        while not await vault_in(folder).whole():
            await asyncio.sleep(0.05)
        work.cancel()
        await asyncio.wait([work])
        assert [row["name"] for row in await rows(database, "select name from leases")] == ["poll"]
