"""Leases: work that one process of all does at a time."""

from chat_bridge.storage.migrations import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql(__file__)
