"""Figures: how much waits in the database, for who watches over the bridge."""

from dataclasses import dataclass

from chat_bridge.storage.postgres import Database

MOST_COUNTED = 10_000  # of each kind: more is not worth the time it takes to count


@dataclass(frozen=True, slots=True)
class Figures:
    """`waiting`: conversations with messages and no turn. `outbox`: parts of replies not sent yet; the first of them
    has been due for `overdue_seconds`, and nobody took it. Ages are of the oldest."""

    waiting: int
    waiting_seconds: float
    outbox: int
    outbox_seconds: float
    overdue_seconds: float
    dead_replies: int
    dead_messages: int


async def read_figures(database: Database) -> Figures:
    """How much waits now. Raises StorageError."""
    (row,) = await database.fetch("figures", MOST_COUNTED)
    return Figures(
        waiting=row["waiting"],
        waiting_seconds=float(row["waiting_seconds"]),
        outbox=row["outbox"],
        outbox_seconds=float(row["outbox_seconds"]),
        overdue_seconds=float(row["overdue_seconds"] or 0),
        dead_replies=row["dead_replies"],
        dead_messages=row["dead_messages"],
    )
