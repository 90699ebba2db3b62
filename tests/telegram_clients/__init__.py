"""Bot libraries that others wrote, to try our fake Telegram with, and to know the Bot API from.

They want other versions of packages than we do, so they live in an environment of their own: `requirements.lock`.
"""

import asyncio
import functools
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.environments import python_with

_FOLDER = Path(__file__).parent


async def run_client(script: str, *arguments: str) -> dict[str, Any]:
    """Run one of the scripts here; gives the JSON that it printed last."""
    python = await asyncio.to_thread(_python)
    process = await asyncio.create_subprocess_exec(
        *(python, "-W", "ignore", _FOLDER / script, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        output, complaints = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, complaints.decode()
    return json.loads(output.splitlines()[-1])


@functools.cache
def bot_api_schema() -> dict[str, dict[str, Any]]:
    """The fields of each method of the Bot API by its name, with their types; of a field that is an object, its fields
    (a dict), of one that is a list, what is in it (a list of one)."""
    output = subprocess.run([_python(), _FOLDER / "schema.py"], check=True, capture_output=True).stdout
    return json.loads(output)


def _python() -> str:
    return python_with("telegram", _FOLDER / "requirements.lock")
