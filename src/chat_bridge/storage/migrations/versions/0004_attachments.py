"""Files of messages, and what lies in object storage."""

from chat_bridge.storage.migrations import run_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_sql(__file__)
