"""PostgreSQL in trouble under a running bridge: 503 until it is over, nothing acknowledged is lost, nobody restarts."""

import asyncio
import os
import random
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from uuid import uuid4

import aiohttp

from chat_bridge.storage.migrate import migrate
from tests.bridge import API_KEY, BridgeProcess, running_bridge
from tests.needs import unavailable
from tests.observe import rows
from tests.servers import OwnServer, own_server

BUSY = {"LEASE_SECONDS": "3", "BUSY_POLICY": "followup", "QUEUE_CAP": "1000"}


class Traffic:
    """Senders with a conversation each, who send again what was not taken, as platforms do."""

    def __init__(self, bridge: BridgeProcess, senders: int = 20, length: int = 20) -> None:
        self._bridge = bridge
        self._length = length
        self._senders = senders
        self._going = True
        self.taken: list[str] = []
        self.refused = 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Traffic"]:
        """Meanwhile they send. In the end all that they sent was taken."""
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with (
            aiohttp.ClientSession(self._bridge.url, headers=headers) as http,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(self._senders):
                group.create_task(self._send(http, uuid4().hex))
            yield self
            self._going = False

    async def goes_on(self, messages: int = 50) -> None:
        """Wait until so many more messages were taken."""
        wanted = len(self.taken) + messages
        while len(self.taken) < wanted:
            await asyncio.sleep(0.02)

    async def is_refused(self, times: int = 20) -> None:
        """Wait until so many more were refused."""
        wanted = self.refused + times
        while self.refused < wanted:
            await asyncio.sleep(0.02)

    async def _send(self, http: aiohttp.ClientSession, conversation: str) -> None:
        while self._going:
            text = random.randbytes(self._length // 2).hex()
            while not await self._taken(http, conversation, text):
                await asyncio.sleep(0.1)
            self.taken.append(text)

    async def _taken(self, http: aiohttp.ClientSession, conversation: str, text: str) -> bool:
        body = {"client_msg_id": text[:40], "text": text}
        async with http.post(f"/api/v1/chat/{conversation}/messages", json=body) as response:
            if response.status == 503:
                assert int(response.headers["Retry-After"]) > 0
                assert response.content_type == "application/problem+json"
                self.refused += 1
                return False
            assert response.status in (200, 202), await response.text()
            return True


async def all_answered_once(dsn: str, traffic: Traffic) -> None:
    """Wait until every message that was taken has its one answer."""
    wanted = sorted(traffic.taken)
    while (found := await texts(dsn, "outbound")) != wanted:
        assert len(found) <= len(wanted)
        await asyncio.sleep(0.1)
    assert await texts(dsn, "inbound") == wanted


async def texts(dsn: str, direction: str) -> list[str]:
    found = await rows(dsn, "select content_text from messages where direction = $1", direction)
    return sorted(row["content_text"] for row in found)


async def test_restarts_under_traffic() -> None:
    async with own_server() as server:
        await server.make()
        dsn = server.dsn("postgres")
        async with running_bridge(dsn, **BUSY) as bridge:
            async with Traffic(bridge).running() as traffic:
                for _ in range(3):
                    await traffic.goes_on()
                    await server.stop()
                    await traffic.is_refused()
                    await server.start()
                await traffic.goes_on()
            await all_answered_once(dsn, traffic)
            assert not bridge.events("request.crashed")


async def test_fail_over_under_traffic() -> None:
    async with own_server() as primary, own_server() as replica:
        # Whoever hears that a message is stored must find it after a fail-over: the replica has it first.
        await primary.make("wal_level = replica\nmax_wal_senders = 4\n")
        await migrate(primary.dsn("postgres"))
        await replica.make_replica(primary)
        await rows(primary.dsn("postgres"), "alter system set synchronous_standby_names = '*'")
        await rows(primary.dsn("postgres"), "select pg_reload_conf()")
        hosts = f"postgresql://chat_bridge@{primary.host},{replica.host}/postgres?target_session_attrs=read-write"
        async with running_bridge(hosts, **BUSY) as bridge:
            async with Traffic(bridge).running() as traffic:
                await traffic.goes_on()
                await primary.stop()
                await traffic.is_refused()
                await rows(replica.dsn("postgres"), "select pg_promote()")
                await traffic.goes_on()
            await all_answered_once(replica.dsn("postgres"), traffic)
            assert not bridge.events("request.crashed")


async def test_a_full_disk_under_traffic() -> None:
    async with own_server() as server:
        await server.make()
        with small_disk(server) as disk:
            await rows(server.dsn("postgres"), f"create tablespace small location '{disk}'")
            await rows(server.dsn("postgres"), "create database bridge tablespace small")
            dsn = server.dsn("bridge")
            async with running_bridge(dsn, **BUSY) as bridge:
                async with Traffic(bridge, senders=5, length=8000).running() as traffic:
                    await traffic.goes_on()
                    with filled(disk):
                        await traffic.is_refused()
                    await traffic.goes_on()
                await all_answered_once(dsn, traffic)
                assert not bridge.events("request.crashed")
            await rows(server.dsn("postgres"), "drop database bridge with (force)")


@contextmanager
def small_disk(server: OwnServer) -> Generator[Path]:
    """A disk of 60 MB that the server may use."""
    if os.getuid() != 0:
        unavailable("only root can mount a disk")
    folder = server.folder / "disk"
    folder.mkdir()
    owner = f"uid={server.folder.stat().st_uid},gid={server.folder.stat().st_gid}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size=60m,mode=0700,{owner}", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        unavailable(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def filled(disk: Path) -> Generator[None]:
    """Meanwhile the disk is full."""
    file = disk / "filling"
    with file.open("wb", buffering=0) as filling:
        try:
            while filling.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass
        yield
    file.unlink()
