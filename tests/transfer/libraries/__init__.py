"""The libraries whose files the import knows: in each test run they write some anew.

Those of Python want other versions of packages than we do, so they live in an environment of their own: openai-agents,
langchain-community and sqlalchemy[asyncio], as in `requirements.lock`. Those of Mastra are in tests/mastra_server.
"""

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path

from tests.environments import python_with
from tests.mastra import installed_packages, node

_FOLDER = Path(__file__).parent


def file_of(library: str, shared: Path) -> Path:
    """What a library (openai_agents, langchain, mastra) wrote, in a folder of its own inside one that all processes of
    a test run share: the first of them has it written, the others wait."""
    folder = shared / library
    with (shared / f"{library}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(dir=shared))
            write = _write_with_node if library == "mastra" else _write_with_python
            write(library, unfinished / "memory.sqlite")
            unfinished.rename(folder)
    return folder / "memory.sqlite"


def _write_with_python(library: str, file: Path) -> None:
    _run(
        [python_with("transfer", _FOLDER / "requirements.lock"), "-W", "ignore", _FOLDER / f"write_{library}.py", file],
        file.parent,
    )


def _write_with_node(library: str, file: Path) -> None:
    packages = installed_packages()
    command = [node(packages.parent), "--input-type=module", "-", file]
    _run(command, packages.parent, (_FOLDER / f"write_{library}.mjs").read_text())


def _run(command: list[str | Path], folder: Path, program: str | None = None) -> None:
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # what they import is compiled once, not in each test run
    done = subprocess.run(command, cwd=folder, env=environ, input=program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
