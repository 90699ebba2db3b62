"""Bot libraries that others wrote, to try our fake Telegram with, and to know the Bot API from.

They want other versions of packages than we do, so they live in an environment of their own: `requirements.lock`.
"""

import asyncio
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import platformdirs

from tests.needs import unavailable

_FOLDER = Path(__file__).parent
_CACHE = platformdirs.user_cache_path("agoric-chat-bridge-tests", appauthor=False)


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
    """The Python of the environment, which is built at the first call on this machine."""
    lock_file = (_FOLDER / "requirements.lock").read_bytes()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    installed = _CACHE / f"telegram-{version}-{hashlib.sha256(lock_file).hexdigest()[:16]}"
    if not installed.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        with (_CACHE / "telegram.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the first of several test processes installs, the others wait
            if not installed.exists():
                _install(installed)
    return str(installed / "bin" / "python")


def _install(folder: Path) -> None:
    """Build the environment, which counts only when it is complete: `python` alone may be moved afterwards."""
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    venv.create(unfinished, with_pip=True)
    pip = [unfinished / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    done = subprocess.run(
        [*pip, "--require-hashes", "--requirement", _FOLDER / "requirements.lock"],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        unavailable(f"aiogram and python-telegram-bot can't be installed: {done.stderr.decode()[-500:]}")
    unfinished.rename(folder)
