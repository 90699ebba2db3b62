"""What a process of the run saw, one JSON object a line, written before it acts on it."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Journal:
    """A file that only grows. It outlives its process, whatever ends that."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def write(self, what: str, **facts: object) -> None:
        """One line, with the time."""
        self._file.write(f"{json.dumps({'at': time.time(), 'what': what, **facts})}\n")


def read(path: Path) -> Sequence[dict[str, Any]]:
    """All lines of a journal."""
    return [json.loads(line) for line in path.read_text().splitlines()]
