"""Where the tests of the containers get images that this machine may not have."""

import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

from tests.needs import unavailable

HERE = Path(__file__).parent


@cache
def have(image: str) -> bool:
    """Whether the engine has the image, or gets it: from TEST_IMAGES_COMMAND (a command that is given the name and
    makes or loads the image), or from its registry."""
    command = os.environ.get("TEST_IMAGES_COMMAND")
    ways = [["docker", "image", "inspect", image], ["docker", "pull", image]]
    if command:
        ways.insert(1, [*shlex.split(command), image])
    return any(subprocess.run(way, capture_output=True, check=False).returncode == 0 for way in ways)


def need(*images: str) -> None:
    """Go on only with these images."""
    for image in images:
        if not have(image):
            unavailable(f"the image {image} is neither here nor can it be pulled")


def bases(dockerfile: Path) -> list[str]:
    """The images that a Dockerfile begins with."""
    return sorted(set(re.findall(r"^FROM (\S+:\S+)", dockerfile.read_text(), re.MULTILINE)))


def s3_override() -> list[Path]:
    """What to add to the stack, so that it has an S3 server: TEST_S3_IMAGE may name another one than its own."""
    if os.environ.get("TEST_S3_IMAGE"):
        need(os.environ["TEST_S3_IMAGE"])
        return [HERE / "s3.yaml"]
    need("rustfs/rustfs:1.0.0")
    return []


def balancer_override() -> list[Path]:
    """What to add to the stack, so that it has a balancer."""
    if have("haproxy:3.2-alpine"):
        return []
    need("debian:bookworm-slim")
    return [HERE / "balancer.yaml"]


def node_override() -> list[Path]:
    """What to add to the stack, so that the demo agent can be built."""
    if have("node:22-bookworm-slim"):
        return []
    dockerfile = HERE / "node.Dockerfile"
    need(*bases(dockerfile))
    with dockerfile.open("rb") as file:
        subprocess.run(["docker", "build", "--quiet", "--tag", "agoric-test-node", "-"], stdin=file, check=True)
    return [HERE / "mastra.yaml"]
