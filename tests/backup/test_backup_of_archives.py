"""A backup has the index of archives, and a database that is restored from it reads them."""

from pathlib import Path

from chat_bridge.backup.restore import restore
from chat_bridge.storage.transcripts import Transcripts
from tests.backup.stocked import vault_in
from tests.conftest import fresh_database
from tests.storage.dialogue import CHAT, opened
from tests.storage.test_archives import desk


async def test_archives_are_read_after_a_restore(database: str, tmp_path: Path) -> None:
    vault = vault_in(tmp_path / "backups")
    async with desk(database, tmp_path / "files") as it:
        await it.old_talk()
        await it.run()
        seen = await it.transcripts.history(CHAT.id)
        manifest = await vault.create(database)
        assert manifest.tables["archived_sessions"].rows == 1
        async with fresh_database("18", template=True) as other:
            for replacing in (False, True):
                await restore(vault, manifest, other, replace=replacing)
            async with opened(other) as store:
                assert await Transcripts(store.database, it.blobs).history(CHAT.id) == seen
