"""A database with something of everything in it, and a look at all of it."""

from collections.abc import Mapping
from pathlib import Path

from chat_bridge.backup.manifest import TableSum
from chat_bridge.backup.seal import read_key
from chat_bridge.backup.tables import connected, present_tables, sum_up
from chat_bridge.backup.vault import Vault
from chat_bridge.storage import leases
from chat_bridge.storage.places import Folder
from tests.storage.dialogue import chat, claimed, ending, opened, replied, said

TEXTS = ("hello", "", "Xin chào, tiếng Việt 🎉", "tab\tand\nnewline \\N \\. 'quotes' \"double\"", "x" * 100_000)


async def stock(dsn: str, mark: str = "") -> None:
    """Conversations with answers sent and unsent, one that waits, and a lease that has run out."""
    async with opened(dsn) as store:
        for number, text in enumerate(TEXTS):
            await replied(store, chat(f"{mark}{number}"), text, parts=3, metadata={"usage": [1.5, None, {"ü": True}]})
        await store.receive(said("failing", to=chat(f"{mark}failed")))
        await store.complete(ending(await claimed(store, chat(f"{mark}failed"))))
        await store.receive(said("still waiting", to=chat(f"{mark}waits")))
        assert await leases.take(store.database, f"poll{mark}", "one", 0.0)


async def contents(dsn: str) -> Mapping[str, TableSum]:
    """Counts and digests of all tables."""
    async with connected(dsn) as connection:
        return await sum_up(connection, await present_tables(connection))


def vault_in(folder: Path, key: str | None = None) -> Vault:
    """A vault in a folder."""
    return Vault(Folder(folder), None if key is None else read_key(key))
