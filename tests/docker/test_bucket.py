"""The task that makes the bucket, against a server that answers as AWS does where the stack's own server would not."""

import asyncio
import hashlib
import re
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

PROGRAM = Path(__file__).parents[2] / "deploy" / "compose" / "bucket.py"
ABORTED = (409, b"<Error><Code>OperationAborted</Code></Error>")
OWNED = (409, b"<Error><Code>BucketAlreadyOwnedByYou</Code></Error>")
TAKEN = (409, b"<Error><Code>BucketAlreadyExists</Code></Error>")

Request = tuple[str, bytes]
Answer = tuple[int, bytes]


@asynccontextmanager
async def server(answers: Sequence[Answer]) -> AsyncGenerator[tuple[str, list[Request]]]:
    """Gives these answers, one after the other: its address, and what it was asked."""
    asked: list[Request] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        assert request.headers["x-amz-content-sha256"] == hashlib.sha256(body).hexdigest()
        status, text = answers[len(asked)]
        asked.append((request.method, body))
        return web.Response(status=status, body=text)

    application = web.Application()
    application.router.add_route("*", "/attachments", answer)
    async with TestServer(application) as listening:
        yield str(listening.make_url("")), asked


async def run(url: str, folder: Path, region: str = "us-east-1") -> tuple[int | None, str]:
    """Run the task: its exit code, and what it prints."""
    key = folder / "key"
    key.write_text("key")
    environment = {"ATTACHMENT_BUCKET": "attachments", "AWS_ENDPOINT_URL_S3": url, "AWS_REGION": region}
    environment |= {"S3_ACCESS_KEY_FILE": str(key), "S3_SECRET_KEY_FILE": str(key)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, PROGRAM, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.mark.parametrize(("region", "named"), [("us-east-1", []), ("eu-central-1", [b"eu-central-1"])])
async def test_the_region_is_named_where_aws_wants_it(region: str, named: list[bytes], tmp_path: Path) -> None:
    async with server([(404, b""), (200, b"")]) as (url, asked):
        assert await run(url, tmp_path, region) == (0, "bucket attachments: made\n")
    assert [method for method, _ in asked] == ["HEAD", "PUT"]
    (_, nothing), (_, body) = asked
    assert nothing == b""
    assert re.findall(b"<LocationConstraint>(.*)</LocationConstraint>", body) == named


async def test_a_bucket_that_somebody_makes_meanwhile_is_there(tmp_path: Path) -> None:
    missing = (404, b"")
    async with server([missing, ABORTED, missing, missing, OWNED, (200, b"")]) as (url, asked):
        assert await run(url, tmp_path) == (0, "bucket attachments: is there\n")
    assert [method for method, _ in asked] == ["HEAD", "PUT", "HEAD"] * 2


async def test_the_bucket_of_somebody_else_is_no_bucket(tmp_path: Path) -> None:
    async with server([(403, b""), TAKEN, (403, b"")]) as (url, _):
        code, told = await run(url, tmp_path)
    assert code == 1
    assert "can't be made: 409 <Error><Code>BucketAlreadyExists" in told
