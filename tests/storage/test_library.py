"""The program in docs/library.md runs as it is, and prints what the page says."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "library.md"


def blocks(kind: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [text for of_kind, text in found if of_kind == kind]


async def run(program: str, database: str) -> str:
    environment = os.environ | {"DATABASE_URL": database, "PYTHONWARNINGS": "error"}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    printed, complaints = await child.communicate()
    assert child.returncode == 0, complaints.decode()
    return printed.decode()


async def test_the_program_of_the_page_runs_on_an_empty_database(empty_database: str) -> None:
    (program,) = blocks("python")
    _, expected = blocks("")
    assert await run(program, empty_database) == expected
    assert await run(program, empty_database) == expected.replace("accepted", "duplicate", 1)
