"""PostgreSQL's own pg_dump and pg_restore: the right ones found, and run with a thread at their pipe."""

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar
from urllib.parse import parse_qsl, unquote

from chat_bridge.backup.manifest import BackupError
from chat_bridge.errors import EmbeddedPostgresError
from chat_bridge.settings import how_to_install
from chat_bridge.storage.embedded import binaries

T = TypeVar("T")

# Where packages put the programs of several versions: Debian, Red Hat, Homebrew on both kinds of Macs.
_FOLDERS = (
    ("/usr/lib/postgresql", "*/bin"),
    ("/usr", "pgsql-*/bin"),
    ("/opt/homebrew/opt", "postgresql@*/bin"),
    ("/opt/homebrew/opt", "libpq/bin"),
    ("/usr/local/opt", "postgresql@*/bin"),
    ("/usr/local/opt", "libpq/bin"),
)

# From here on pg_restore says `SET transaction_timeout`, which older servers refuse.
_FIRST_WITH_TRANSACTION_TIMEOUT = 17
_OF_THE_EXTRA = 18  # that of `embedded`


@dataclass(frozen=True, slots=True)
class Program:
    """An installed program and the major version of its PostgreSQL."""

    path: Path
    version: int


def find_pg_dump(server: int) -> Program:
    """The pg_dump that can read a server of this major version: the oldest, since its dumps fit most. Raises
    BackupError, which says what to install."""
    return _oldest("pg_dump", f"{server} or newer", server, lambda version: version >= server)


def find_pg_restore(dump: int, server: int) -> Program:
    """The pg_restore that can read what a pg_dump of the version `dump` wrote, and talk to the server."""
    newer = server >= _FIRST_WITH_TRANSACTION_TIMEOUT
    if not newer and dump >= _FIRST_WITH_TRANSACTION_TIMEOUT:
        raise BackupError(
            f"the dump was made by pg_dump {dump}, and PostgreSQL {server} can't take that: restore it to PostgreSQL "
            f"{_FIRST_WITH_TRANSACTION_TIMEOUT} or newer, or install postgresql-client-{server} before you make backups"
        )
    return _oldest(
        "pg_restore",
        f"{dump} or newer" if newer else f"{dump} to {_FIRST_WITH_TRANSACTION_TIMEOUT - 1}",
        max(dump, server),
        lambda version: version >= dump and (newer or version < _FIRST_WITH_TRANSACTION_TIMEOUT),
    )


def _oldest(name: Literal["pg_dump", "pg_restore"], needed: str, best: int, fits: Callable[[int], bool]) -> Program:
    """The oldest of those that fit. Raises BackupError, which advises to install the version `best`."""
    found = [program for path in _candidates(name) if (program := _examined(path))]
    if fitting := [program for program in found if fits(program.version)]:
        return min(fitting, key=lambda program: program.version)
    there = ", ".join(f"{program.version} ({program.path})" for program in found) or "none"
    ours = f"; or {how_to_install('embedded')}" if fits(_OF_THE_EXTRA) else ""
    raise BackupError(
        f"{name} of PostgreSQL {needed} is needed, there is: {there}. Install it: the package "
        f"postgresql-client-{best} on Debian and Ubuntu, postgresql{best} on Red Hat, postgresql@{best} with Homebrew"
        f"{ours}"
    )


def _candidates(name: str) -> Iterable[Path]:
    with suppress(EmbeddedPostgresError):
        yield binaries() / name
    if (first := shutil.which(name)) is not None:
        yield Path(first)
    for folder, pattern in _FOLDERS:
        yield from sorted(path / name for path in Path(folder).glob(pattern) if (path / name).is_file())


def _examined(path: Path) -> Program | None:
    with suppress(OSError):
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        if version := re.search(r"\(PostgreSQL\) (\d+)", told):
            return Program(path, int(version[1]))
    return None


def with_database(dsn: str, database: str) -> str:
    """The same server, another database."""
    parts = re.fullmatch(r"(\w+://[^/?#]*)(?:/[^?#]*)?(?:\?(.*))?", dsn, re.DOTALL)
    assert parts is not None
    options = [option for option in (parts[2] or "").split("&") if not re.match(r"dbname=|database=", option)]
    return f"{parts[1]}/{database}?{'&'.join(options)}".rstrip("?")


def without_password(dsn: str) -> tuple[str, str | None]:
    """The DSN as everybody may see it in the list of processes, and its password. Raises BackupError for a secret
    that can be told in no other way."""
    parts = re.match(r"(\w+://)([^/?#]*)([^?#]*)\??([^#]*)", dsn)
    assert parts is not None
    scheme, hosts, path, query = parts.groups()
    account, at, hosts = hosts.rpartition("@")
    user, _, password = account.partition(":")
    options: list[str] = []
    secrets: dict[str, str] = {}
    for option in query.split("&"):
        name, value = next(iter(parse_qsl(option, keep_blank_values=True)), ("", ""))
        if name in ("password", "sslpassword"):
            secrets[name] = value
        elif option:
            options.append(option)
    if secrets.get("sslpassword"):
        raise BackupError(
            "pg_dump and pg_restore would show the sslpassword of DATABASE_URL to everybody on this machine: give this "
            "command a DATABASE_URL with an sslkey that needs none"
        )
    shown = f"{scheme}{user}{at}{hosts}{path}?{'&'.join(options)}".rstrip("?")
    return shown, unquote(password) or secrets.get("password")


class Running:
    """A program that runs, with pipes to it or from it."""

    def __init__(self, process: subprocess.Popen[Any], words: IO[bytes]) -> None:
        self._process = process
        self._words = words

    def read(self, size: int = -1, /) -> bytes:
        """What it says next."""
        assert self._process.stdout is not None
        return self._process.stdout.read(size)

    def write(self, data: bytes, /) -> int:
        """Say something to it. When it does not listen any more, `finish` tells why."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(data)
        return len(data)

    def flush(self) -> None:
        """The pipe is flushed when it is closed."""

    def hang_up(self) -> None:
        """Say nothing more to it. It need not have heard all: `finish` tells whether it was content."""
        with suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()

    def finish(self) -> None:
        """Wait for its end. Raises BackupError when it failed."""
        self.hang_up()
        if (code := self._process.wait()) != 0:
            raise BackupError(self._last_words() or f"{Path(str(self._process.args)).name} failed with the code {code}")

    def _last_words(self) -> str | None:
        # Only its own first error: the lines after it may quote a row.
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").splitlines()
        return next((line for line in lines if "error: " in line), None)


def _started(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    return subprocess.Popen(command, **options)


def _notepad() -> IO[bytes]:
    """A file for what a program complains of. In memory where that can be: a container may have no folder to write."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("chat-bridge-backup"), "w+b")
    return tempfile.TemporaryFile()


async def run(
    program: Program, dsn: str, name: str, arguments: Sequence[str], work: Callable[[Running], T], **pipes: Any
) -> T:
    """Run a program on a database, known there by `name`; the work at its pipe is done in a thread and has to `finish`
    it. However this ends, the program and the thread have ended too."""
    shown, password = without_password(dsn)
    environment = {**os.environ, "PGAPPNAME": name} | ({} if password is None else {"PGPASSWORD": password})
    command = [str(program.path), f"--dbname={shown}", "--no-password", *arguments]
    with (
        _notepad() as words,
        _started(command, stderr=words, env=environment, start_new_session=True, **pipes) as process,
    ):
        running = Running(process, words)
        working = asyncio.create_task(asyncio.to_thread(work, running), name=program.path.name)
        try:
            return await asyncio.shield(working)
        finally:
            process.kill()
            await asyncio.wait([working])
            working.exception()  # heard, also when we are cancelled
            running.hang_up()  # here, so that no broken pipe takes the place of what went wrong
