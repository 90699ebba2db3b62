"""Dead letters, tries that count, and the oldest program that may use the schema."""

from chat_bridge.storage.migrations import run_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_sql(__file__)
