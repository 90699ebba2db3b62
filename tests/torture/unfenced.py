"""The bridge on purpose without what keeps a stale worker from writing: `python -m tests.torture.unfenced serve`.

The statement that ends a turn does not ask whether the turn still runs, and a worker does not look whether its lease is
gone. The checker must catch what comes of it.
"""

import asyncio

from chat_bridge.bridge.claim import Workers
from chat_bridge.cli import main
from chat_bridge.storage.postgres import QUERIES

FENCE = "and t.finished_at is null"


async def trust(_: Workers) -> None:
    """Renew no lease, and lose none."""
    await asyncio.Event().wait()


def unfence() -> None:
    """Take the fence out."""
    assert QUERIES["complete"].count(FENCE) == 2
    QUERIES["complete"] = QUERIES["complete"].replace(FENCE, "")
    Workers.renew_leases = trust


if __name__ == "__main__":
    unfence()
    main()
