"""Python environments of their own, for libraries that want other versions of packages than we do."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import platformdirs

from tests.needs import unavailable

_CACHE = platformdirs.user_cache_path("agoric-chat-bridge-tests", appauthor=False)


def python_with(name: str, lock_file: Path) -> str:
    """The Python of the environment that a lock file describes, which is built at the first call on this machine."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    installed = _CACHE / f"{name}-{version}-{hashlib.sha256(lock_file.read_bytes()).hexdigest()[:16]}"
    if not installed.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        with (_CACHE / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the first of several test processes installs, the others wait
            if not installed.exists():
                _install(installed, lock_file)
    return str(installed / "bin" / "python")


def _install(folder: Path, lock_file: Path) -> None:
    """Build the environment, which counts only when it is complete: `python` alone may be moved afterwards."""
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    venv.create(unfinished, symlinks=True)
    # Our own pip installs into it; a lock file names everything, so that nothing is left to be worked out.
    pip = [sys.executable, "-m", "pip", "--python", unfinished / "bin" / "python", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-compile", "--no-deps", "--require-hashes", "--requirement", lock_file],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        unavailable(f"what {lock_file} lists can't be installed: {done.stderr.decode()[-500:]}")
    unfinished.rename(folder)
