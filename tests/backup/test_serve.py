"""`chat-bridge serve` makes backups when a setting says so."""

import asyncio
from pathlib import Path

import pytest

from chat_bridge.backup.manifest import BackupError
from chat_bridge.backup.restore import restore
from tests.backup.stocked import vault_in
from tests.bridge import running_bridge


async def test_a_bridge_makes_them_by_itself(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    async with running_bridge(database, BACKUP_TO=str(tmp_path), BACKUP_EVERY_HOURS="24") as bridge:
        while not bridge.events("backup.made"):
            await asyncio.sleep(0.05)
        manifest = await vault.find(None)
        with pytest.raises(BackupError, match="a bridge is running on this database"):
            await restore(vault, manifest, database, replace=True)
        assert await bridge.stop() == 0
    await restore(vault, manifest, database, replace=True)  # and one that has stopped keeps nobody waiting
