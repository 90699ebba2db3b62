"""The containers. Only `make test-docker` runs these tests: they need a Docker engine, and minutes.

Base images must be there or be pulled. Where that can't be, TEST_IMAGES_COMMAND names a command that makes or loads
the image whose name it is given, and TEST_S3_IMAGE an S3 server instead of the stack's own.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.docker.images import balancer_override, bases, need, node_override, s3_override
from tests.docker.stack import Stack, docker, free_port
from tests.needs import unavailable

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent
COMPOSE = (2, 24)


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leave these out, unless the command line names them."""
    named = [(config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args]
    return None if any(path.is_relative_to(HERE) for path in named) else True


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine with compose v2."""
    if shutil.which("docker") is None or subprocess.run(["docker", "version"], capture_output=True).returncode != 0:
        unavailable("no Docker engine answers")
    version = subprocess.run(["docker", "compose", "version", "--short"], capture_output=True, text=True, check=False)
    found = re.match(r"v?(\d+)\.(\d+)", version.stdout)
    if found is None or (int(found[1]), int(found[2])) < COMPOSE:
        unavailable(f"Docker Compose {COMPOSE[0]}.{COMPOSE[1]} or newer is needed")


@pytest.fixture(scope="session")
def checkout(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as somebody gets it, with what is not committed yet, and `.env` made as the page says."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    folder = tmp_path_factory.mktemp("checkout")
    for name in listed.stdout.split("\0"):
        if name and (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    shutil.copy(folder / ".env.example", folder / ".env")
    return folder


@pytest.fixture(scope="session")
def stack(checkout: Path) -> Generator[Stack]:
    """The running stack, for all tests of the session; each leaves it running, with one replica."""
    need(*bases(checkout / "Dockerfile"), "postgres:18-alpine", "redis:8-alpine")
    files = ["compose.yaml", *s3_override(), *balancer_override(), *node_override()]
    stack = Stack(
        checkout,
        f"agoric-test-{os.getpid()}",
        files,
        PORT=free_port(),
        S3_ACCESS_KEY="access-key-of-the-tests",
        S3_SECRET_KEY="secret-key-of-the-tests",
    )
    with (checkout / ".env").open("a") as file:
        # So that work of a killed bridge is taken up soon; and no limit to what a test may send.
        file.write("LEASE_SECONDS=3\nWEBCHAT_RATE_CONVERSATION=100000\nWEBCHAT_RATE_ADDRESS=100000\n")
    try:
        stack.up()
        yield stack
    finally:
        print(stack.compose("--profile", "*", "logs", "--no-color", "--tail", "40"))  # shown with a failure
        stack.down("--volumes", "--rmi", "local")
    label = f"label=com.docker.compose.project={stack.name}"
    left = [docker(kind, "ls", "--quiet", "--filter", label) for kind in ("container", "volume", "network")]
    assert left == ["", "", ""]
