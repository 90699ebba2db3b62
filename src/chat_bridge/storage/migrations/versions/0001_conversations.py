"""Sessions, messages, turns, deliveries, users."""

from chat_bridge.storage.migrations import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_sql(__file__)
