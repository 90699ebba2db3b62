"""Leases: the right to do what only one process may do at a time. PostgreSQL's clock decides."""

from datetime import timedelta

from chat_bridge.storage.postgres import Database


async def take(database: Database, name: str, owner: str, seconds: float) -> bool:
    """Take a lease, or renew it; False while it is another owner's."""
    return await database.fetch_one("take_lease", name, owner, timedelta(seconds=seconds)) is not None


async def release(database: Database, name: str, owner: str) -> None:
    """Give a lease back."""
    await database.fetch("release_lease", name, owner)
