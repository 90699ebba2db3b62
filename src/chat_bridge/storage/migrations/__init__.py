"""Alembic migrations, written in SQL: `NNNN_name.py` names the revision, `NNNN_name.sql` beside it is what runs."""

from pathlib import Path

from alembic import op


def run_sql(revision_file: str) -> None:
    """Run the `.sql` file beside a revision, statement by statement; a statement ends with `;` and an empty line."""
    for statement in Path(revision_file).with_suffix(".sql").read_text(encoding="utf-8").split(";\n\n"):
        op.execute(statement.rstrip().removesuffix(";"))
