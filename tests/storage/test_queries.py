"""Every named query: it has a comment, and PostgreSQL takes it against the schema."""

import re
from pathlib import Path

import pytest

from chat_bridge.storage import postgres
from chat_bridge.storage.postgres import QUERIES
from tests.storage.dialogue import looking

BLOCKS = [
    block
    for file in sorted((Path(postgres.__file__).parent / "sql").glob("*.sql"))
    for block in re.split(r"^(?=-- name: )", file.read_text(), flags=re.MULTILINE)
    if block.strip()
]


async def test_postgresql_takes_every_query(any_database: str) -> None:
    async with looking(any_database) as connection:
        for name, query in QUERIES.items():
            assert query.startswith(f"-- {name}\n"), "logs would not show which query it is"
            await connection.prepare(query)


def test_every_block_is_a_query() -> None:
    assert len(BLOCKS) == len(QUERIES)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split()[2])
def test_every_query_says_what_it_is_for(block: str) -> None:
    name, comment, *_ = block.splitlines()
    assert re.fullmatch(r"-- name: \w+", name)
    assert comment.startswith("-- ")
    assert block.rstrip().endswith(";"), "psql needs it"
