"""An S3 server for tests, a process of its own."""

import asyncio
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.util import find_spec

from tests.needs import unavailable


@asynccontextmanager
async def running_s3() -> AsyncGenerator[tuple[str, dict[str, str]]]:
    """The URL of an empty bucket, and the environment that leads to it."""
    if find_spec("moto") is None or find_spec("flask_cors") is None:
        unavailable("moto is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", env=_PLAIN)
    try:
        while not await asyncio.to_thread(_made_bucket, f"{address}/backups"):
            assert server.poll() is None
            await asyncio.sleep(0.05)
        yield (
            "s3://backups/chat-bridge",
            {
                "AWS_ENDPOINT_URL": address,
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
            },
        )
    finally:
        server.kill()
        server.wait()


_PLAIN = {"PATH": os.environ["PATH"]}


def _made_bucket(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT")):
            return True
    except urllib.error.HTTPError:
        raise
    except OSError:
        return False
