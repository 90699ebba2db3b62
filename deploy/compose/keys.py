"""Passwords and keys of the compose stack, one file each in /run/keys: what the environment gives, or made at random.

Run at each start, before everything else. What was made stays in its volume, so that it is the same the next time.
A value comes from NAME, or from the file that NAME_FILE names (a Docker secret).
"""

import os
import re
import secrets
import sys
from pathlib import Path
from urllib.parse import quote

KEYS = Path("/run/keys")
NAMES = (
    "POSTGRES_PASSWORD",
    "REDIS_PASSWORD",
    "S3_ACCESS_KEY",
    "S3_SECRET_KEY",
    "CHAT_BRIDGE_SECRET",
    "CHAT_BRIDGE_API_KEY",
)


def given(name: str) -> str:
    """What the operator says; empty when that is nothing."""
    file = os.environ.get(f"{name}_FILE")
    try:
        value = (Path(file).read_text(encoding="utf-8") if file else os.environ.get(name, "")).strip()
    except OSError as error:
        sys.exit(f"{name}_FILE: {file} can't be read ({error.strerror})")
    if not re.fullmatch(r"[!#-\[\]-~]*", value):  # Redis reads it from a line of its configuration
        sys.exit(f'{name}: may have ASCII letters, digits and signs only, but no spaces, no " and no \\')
    return value


def kept(name: str) -> str:
    """The value of the last time; empty at the first start."""
    file = KEYS / name
    return file.read_text(encoding="utf-8") if file.exists() else ""


def keep(name: str, value: str) -> None:
    """Write it as a whole or not at all. The servers read it under accounts of their own."""
    unfinished = KEYS / f".{name}"
    unfinished.write_text(value, encoding="utf-8")
    unfinished.chmod(0o444)
    unfinished.rename(KEYS / name)


def main() -> None:
    """Settle all of them, and the URLs that hold them."""
    for name in ("DATABASE_URL", "REDIS_URL"):
        if os.environ.get(name):
            sys.stderr.write(f"{name} is left out: the stack has its own servers; for others take production.yaml\n")
    for name in NAMES:
        keep(name, given(name) or kept(name) or secrets.token_hex(24))
    postgres, redis = (quote(kept(name), safe="") for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD"))
    keep("DATABASE_URL", f"postgresql://agoric:{postgres}@postgres:5432/agoric")
    keep("REDIS_URL", f"redis://:{redis}@redis:6379/0")


main()
