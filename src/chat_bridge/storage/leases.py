"""Leases: the right to do what only one process may do at a time. PostgreSQL's clock decides."""

from collections.abc import Sequence
from datetime import timedelta

from chat_bridge.storage.postgres import Database


async def take(database: Database, name: str, owner: str, seconds: float) -> bool:
    """Take a lease, or renew it; False while it is another owner's."""
    return bool(await take_several(database, [name], owner, seconds))


async def take_several(database: Database, names: Sequence[str], owner: str, seconds: float) -> set[str]:
    """Take leases, or renew them; those that are ours now."""
    return {row["name"] for row in await database.fetch("take_leases", names, owner, timedelta(seconds=seconds))}


async def release(database: Database, name: str, owner: str) -> None:
    """Give a lease back."""
    await database.fetch("release_lease", name, owner)
