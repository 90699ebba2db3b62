"""Archives: sessions that lie in object storage instead of tables."""

from chat_bridge.storage.migrations import run_sql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run_sql(__file__)
