"""Places: what the process has for one of them leaks into no other, and folders are safe for many writers."""

import asyncio
import io
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from starlette.concurrency import run_in_threadpool

from chat_bridge.storage import places
from chat_bridge.storage.blobs import MOST_AT_ONCE, Blobs, open_blobs
from chat_bridge.storage.places import BLOCK, Folder, Reader

OF_BACKUPS = {
    "AWS_ACCESS_KEY_ID": "of-backups",
    "AWS_SECRET_ACCESS_KEY": "secret-of-backups",
    "AWS_SESSION_TOKEN": "token-of-backups",
    "AWS_ENDPOINT_URL": "https://backups.example",
    "AWS_REGION": "eu-backups-1",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
}
OWN = {"ATTACHMENT_AWS_ACCESS_KEY_ID": "own", "ATTACHMENT_AWS_SECRET_ACCESS_KEY": "secret"}


def link(blobs: Blobs) -> str:
    """A signed link to an object: it tells with what the bucket is asked."""
    store: Any = blobs._place
    return obstore.sign(store._store, "GET", "a", timedelta(hours=1))


@pytest.mark.parametrize(
    ("own", "begins"),
    [
        ({}, "https://s3.us-east-1.amazonaws.com/files/a?"),
        ({"ATTACHMENT_AWS_REGION": "us-own-1"}, "https://s3.us-own-1.amazonaws.com/files/a?"),
        ({"ATTACHMENT_AWS_ENDPOINT_URL": "https://own.example"}, "https://own.example/files/a?"),
    ],
)
async def test_credentials_of_attachments_do_not_mix_with_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: dict[str, str], begins: str
) -> None:
    for name, value in OF_BACKUPS.items():
        monkeypatch.setenv(name, value)
    signed = link(open_blobs("files", tmp_path, {**os.environ, **OWN, **own}))
    assert signed.startswith(begins)
    assert "Credential=own%2F" in signed
    assert "backups" not in signed
    assert {name: os.environ[name] for name in OF_BACKUPS} == OF_BACKUPS, "others have theirs still"


async def test_without_credentials_of_its_own_it_has_those_of_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in OF_BACKUPS.items():
        monkeypatch.setenv(name, value)
    signed = link(open_blobs("files", tmp_path, dict(os.environ)))
    assert signed.startswith("https://backups.example/a?")
    assert "Security-Token=token-of-backups" in signed


async def test_every_new_folder_survives_a_power_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    synced = list[Path]()
    monkeypatch.setattr(places, "_sync", synced.append)
    await Blobs(Folder(tmp_path)).write("attachments/abc/1", io.BytesIO(b"x"))
    assert synced == [tmp_path / "attachments" / "abc", tmp_path / "attachments", tmp_path]


async def test_a_folder_that_is_emptied_can_be_written_to_at_the_same_time(tmp_path: Path) -> None:
    blobs = Blobs(Folder(tmp_path))

    async def come_and_go(name: str) -> None:
        for _ in range(200):
            await blobs.write(name, io.BytesIO(b"x"))
            await blobs.delete([name])

    await asyncio.gather(*(come_and_go(f"attachments/abc/{number}") for number in range(4)))


class Hanging(Folder):
    """Opens files; what is in them does not come before the test lets it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.go_on = threading.Event()
        self.asked = 0
        self.open = 0

    @contextmanager
    def reading(self, name: str, start: int = 0, block: int = BLOCK) -> Generator[Reader]:
        self.asked += 1
        with super().reading(name, start, block) as source:
            self.open += 1
            try:
                self.go_on.wait()
                yield source
            finally:
                self.open -= 1


async def test_a_place_that_hangs_holds_up_no_other_work_in_threads(tmp_path: Path) -> None:
    place = Hanging(tmp_path)
    blobs = Blobs(place)
    await blobs.write("a", io.BytesIO(b"x" * 200_000))
    streams = [blobs.stream("a") for _ in range(100)]
    readers = [asyncio.create_task(anext(stream)) for stream in streams]
    while place.open < MOST_AT_ONCE:
        await asyncio.sleep(0.01)
    assert await asyncio.to_thread(lambda: "other work") == "other work"
    assert await run_in_threadpool(lambda: "static files") == "static files"
    for reader in readers[1:]:
        reader.cancel()
    await asyncio.wait(readers[1:])
    place.go_on.set()
    assert len(await readers[0]) == 64 * 1024
    assert b"".join([block async for block in streams[0]]) == b"x" * (200_000 - 64 * 1024)
    while place.open:
        await asyncio.sleep(0.01)
    assert place.asked == MOST_AT_ONCE, "who has gone is not read for"
