"""One compose stack, as a person would run it: a fresh copy of the project, and `docker compose` commands in it."""

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IMAGE = "agoric-chat-bridge:test"


class Stack:
    """A compose project of a name of its own, so that it disturbs no other. `settings` are environment
    variables of the command."""

    def __init__(self, folder: Path, name: str, files: Sequence[Path | str], **settings: str) -> None:
        self.folder = folder
        self.name = name
        self.files = files
        self.settings = settings
        self._command = ["docker", "compose", "--project-name", name]
        self._command += [part for file in files for part in ("--file", str(file))]
        self._environment = {**os.environ, "CHAT_BRIDGE_IMAGE": IMAGE, "COMPOSE_PROGRESS": "plain", **settings}

    def compose(self, *command: str, **settings: str) -> str:
        """Run `docker compose COMMAND`, which must succeed; what it prints."""
        done = self.tried(*command, **settings)
        assert done.returncode == 0, f"docker compose {' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def tried(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run `docker compose COMMAND`, which may fail."""
        return subprocess.run(
            [*self._command, *command],
            cwd=self.folder,
            env=self._environment | settings,
            capture_output=True,
            text=True,
            check=False,
        )

    @contextmanager
    def started(self, *command: str) -> Generator[Callable[[], str]]:
        """`docker compose COMMAND` runs meanwhile; what it has printed so far."""
        with tempfile.NamedTemporaryFile() as output:
            process = subprocess.Popen(
                [*self._command, *command], cwd=self.folder, env=self._environment, stdout=output, stderr=output
            )
            try:
                yield Path(output.name).read_text
            finally:
                process.terminate()
                process.wait()

    def up(self, *options: str, profiles: Sequence[str] = (), **settings: str) -> None:
        """Build and start, and return when everything is healthy."""
        self.compose(*_profiles(profiles), "up", "--build", "--detach", "--wait", *options, **settings)

    def down(self, *options: str) -> None:
        """Remove the containers; with --volumes the data too."""
        self.compose("--profile", "*", "down", "--remove-orphans", *options)

    def containers(self, service: str) -> list[dict[str, Any]]:
        """What `docker inspect` tells of a service's containers."""
        ids = self.compose("ps", "--all", "--quiet", service).split()
        return json.loads(docker("inspect", *ids)) if ids else []

    def health(self, service: str) -> str:
        """Of its one container."""
        [container] = self.containers(service)
        return container["State"]["Health"]["Status"] if container["State"]["Running"] else container["State"]["Status"]

    def python(self, program: str) -> str:
        """Run a program inside the bridge's container; what it prints."""
        return self.compose("exec", "--no-TTY", "app", "python", "-c", program)

    def url(self, service: str = "app") -> str:
        """Where the service is reached from outside."""
        return f"http://{self.compose('port', service, '3000').strip()}"


def docker(*command: str) -> str:
    """Run `docker COMMAND`, which must succeed; what it prints."""
    done = subprocess.run(["docker", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker {' '.join(command)}\n{done.stderr}"
    return done.stdout


def free_port() -> str:
    """A port that nobody has right now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def _profiles(names: Sequence[str]) -> list[str]:
    return [part for name in names for part in ("--profile", name)]
