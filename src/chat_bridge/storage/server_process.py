"""One PostgreSQL server process: started, found again after a crash of ours, waited for, stopped."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from chat_bridge.errors import EmbeddedPostgresError
from chat_bridge.storage.server_account import ServerAccount

log = logging.getLogger(__name__)


class ServerPlace(NamedTuple):
    """What a server needs: its program, files, the folder of its socket, and whom it runs as."""

    program: Path
    cluster: Path
    socket: Path
    log: Path
    account: ServerAccount


class ServerProcess:
    """A server that we started, or one that a killed process of ours had started (`child` is None)."""

    def __init__(
        self, place: ServerPlace, pid: int, child: subprocess.Popen[Any] | None = None, log_start: int = 0
    ) -> None:
        self._place = place
        self._pid = pid
        self._child = child
        self._log_start = log_start

    async def ready(self) -> None:
        """Wait until it takes connections, through a crash recovery of any length.

        Raises EmbeddedPostgresError with the server's last words when it ends instead.
        """
        while True:
            await _until(lambda: self._takes_connections() or self._ended(), "PostgreSQL is starting or recovering")
            if not self._ended():
                return
            words = last_lines(self._place.log.read_bytes()[self._log_start :])
            if "shared memory block" not in words:
                raise EmbeddedPostgresError(f"PostgreSQL did not start. Its last words in {self._place.log}:\n{words}")
            log.warning("start: waiting for the children of a killed PostgreSQL to end")
            await asyncio.sleep(0.2)
            self._pid, self._child, self._log_start = _launch(self._place)

    async def stop(self) -> None:
        """End it in its fast way: roll back what is running, write a checkpoint."""
        if not self._ended():
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGINT)
            await _until(self._ended, "PostgreSQL is stopping")

    def _takes_connections(self) -> bool:
        return _living_server(self._place.cluster) == (self._pid, "ready")

    def _ended(self) -> bool:
        return self._child.poll() is not None if self._child else not _serves(self._pid, self._place.cluster)


async def start_server(place: ServerPlace) -> ServerProcess:
    """Start a server, or take over the one that runs; `ready` tells when it can be used."""
    pid, state = _living_server(place.cluster)
    if state == "stopping":
        await _until(lambda: not _serves(pid, place.cluster), "an earlier PostgreSQL is stopping")
    elif pid:
        return ServerProcess(place, pid)
    return ServerProcess(place, *_launch(place))


def run_program(command: list[str | Path], cluster: Path, account: ServerAccount, text: str = "") -> str:
    """Run one of PostgreSQL's programs to its end and give what it printed.

    Raises EmbeddedPostgresError with its last words when it fails.
    """
    try:
        done = subprocess.run(
            command,
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            **_surroundings(cluster, account),
        )
    except OSError as error:
        raise EmbeddedPostgresError(f"PostgreSQL's {command[0]} can't be run: {error.strerror}") from error
    if done.returncode != 0:
        raise EmbeddedPostgresError(f"PostgreSQL's {command[0]} failed. Its last words:\n{last_lines(done.stdout)}")
    return done.stdout.decode(errors="replace")


def last_lines(output: bytes) -> str:
    """The last ten lines, indented."""
    return "\n".join(f"  {line}" for line in output.decode(errors="replace").splitlines()[-10:])


def _launch(place: ServerPlace) -> tuple[int, subprocess.Popen[Any], int]:
    """Start a child in a session of its own, so that a Ctrl-C in the terminal reaches only us.

    Gives pid, child, and where its words begin in the log. It blocks the event loop for some milliseconds: in a
    thread, a cancellation could lose the process.
    """
    # Files of a killed server name its pid. After a reboot another program may have it, and PostgreSQL would refuse to
    # start. Living children of the killed server keep it from starting without these files too, by their shared memory.
    for stale in (place.cluster / "postmaster.pid", *place.socket.iterdir()):
        stale.unlink(missing_ok=True)
    out = os.open(place.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        log_start = os.fstat(out).st_size
        child: subprocess.Popen[Any] = subprocess.Popen(
            [place.program],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            **_surroundings(place.cluster, place.account),
        )
        return child.pid, child, log_start
    finally:
        os.close(out)


def _living_server(cluster: Path) -> tuple[int, str]:
    """Pid and state (starting, ready, stopping) that postmaster.pid names; (0, "") when no such process lives."""
    try:
        lines = [*(cluster / "postmaster.pid").read_text().splitlines(), *[""] * 8]
        pid, state = int(lines[0]), lines[7].strip()
    except (FileNotFoundError, ValueError):
        return 0, ""
    return (pid, state) if _serves(pid, cluster) else (0, "")


def _serves(pid: int, cluster: Path) -> bool:
    """Whether this process is the cluster's server, and not another program that got an old server's pid."""
    if sys.platform == "linux":
        with suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink() == cluster
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _surroundings(cluster: Path, account: ServerAccount) -> dict[str, Any]:
    """Options for `subprocess` that pass on nothing of the caller's: no PG variables, no locale, no folder."""
    environ = {"PGDATA": str(cluster), "PATH": os.defpath, "LC_ALL": "C"}
    return {"env": environ, "cwd": "/", "start_new_session": True, **account.options}


async def _until(condition: Callable[[], bool], what: str) -> None:
    """Wait until the condition holds; every ten seconds, log what for."""
    logged = time.monotonic()
    while not condition():
        await asyncio.sleep(0.02)
        if time.monotonic() - logged > 10:
            logged = time.monotonic()
            log.warning("wait: %s", what)
