"""What must be kept whatever the policy says, and what was erased."""

from chat_bridge.storage.migrations import run_sql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run_sql(__file__)
