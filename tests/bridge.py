"""The real bridge for tests: `chat-bridge serve` as a process of its own, and a small client of its web chat."""

import asyncio
import json
import os
import re
import signal
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp

from tests import forked

API_KEY = "the-api-key-of-the-tests"
SECRET = "the-secret-of-the-tests-which-signs-tokens"


class BridgeProcess:
    """A bridge that can be stopped, killed and started again on the same database and port."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._environment = {**environment, "PATH": os.environ["PATH"], "HOME": str(folder)}
        self._folder = folder
        self._process: BaseProcess | None = None
        self.log = folder / "log"
        self.url = ""

    async def start(self) -> None:
        """Start, and return when it is ready."""
        seen = self.log.stat().st_size if self.log.exists() else 0
        self._process = forked.start(
            "chat_bridge", ["serve"], environment=self._environment, folder=self._folder, log=self.log
        )
        while True:
            told = self.log.read_bytes()[seen:].decode()
            if "is ready." in told and (found := re.search(r"http://localhost:(\d+)", told)):
                self._environment["PORT"] = found[1]
                self.url = f"http://127.0.0.1:{found[1]}"
                return
            assert self._process.exitcode is None, told
            await asyncio.sleep(0.02)

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.exitcode

    async def stop(self, number: int = signal.SIGINT) -> int:
        """Ask it to stop; wait, and give its exit code."""
        assert self._process is not None
        if self._process.exitcode is None:
            os.kill(self.pid, number)
        return await forked.ended(self._process)

    async def kill(self) -> None:
        """kill -9."""
        await self.stop(signal.SIGKILL)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of the log that tell of this event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]


@asynccontextmanager
async def running_bridge(database: str | None = None, **settings: str) -> AsyncGenerator[BridgeProcess]:
    """Run the bridge with the echo agent, or as the settings (environment names) say. Without a database: embedded."""
    with tempfile.TemporaryDirectory(prefix="bridge-") as folder:
        environment = {
            "PORT": "0",
            "CHAT_BRIDGE_DATA_DIR": str(Path(folder) / "data"),
            "CHAT_BRIDGE_API_KEY": API_KEY,
            "CHAT_BRIDGE_SECRET": SECRET,
            "WEBCHAT_RATE_CONVERSATION": "100000",
            "WEBCHAT_RATE_ADDRESS": "100000",
        }
        if database is not None:
            environment["DATABASE_URL"] = database
        bridge = BridgeProcess(Path(folder), environment | settings)
        await bridge.start()
        try:
            yield bridge
        except BaseException:
            # What the bridge said goes with the report of the failed test.
            print(f"exit code {bridge.exit_code}; the end of its log:\n{bridge.log.read_text()[-8000:]}")
            raise
        finally:
            await bridge.stop()


class Chat:
    """A visitor of web chat, or (with `key`) a program that holds the API key."""

    def __init__(self, http: aiohttp.ClientSession, url: str, conversation: str, token: str) -> None:
        self._http = http
        self._url = f"{url}/api/v1/chat/{conversation}"
        self._headers = {"Authorization": f"Bearer {token}"}
        self.conversation = conversation
        self.token = token

    async def post(self, text: str, client_msg_id: str | None = None, **more: Any) -> tuple[int, dict[str, Any]]:
        """Send a message: the status and the body of the answer."""
        body = {"client_msg_id": client_msg_id or str(uuid4()), "text": text, **more}
        async with self._http.post(f"{self._url}/messages", json=body, headers=self._headers) as response:
            return response.status, await response.json()

    async def send(self, text: str, client_msg_id: str | None = None) -> dict[str, Any]:
        """Send a message that must be accepted."""
        status, body = await self.post(text, client_msg_id)
        assert status == 202, body
        return body

    async def messages(self, **query: int) -> list[dict[str, Any]]:
        """The conversation's messages, oldest first."""
        async with self._http.get(f"{self._url}/messages", params=query, headers=self._headers) as response:
            assert response.status == 200, await response.text()
            return (await response.json())["messages"]

    async def texts(self) -> list[str]:
        """The newest 200 messages: `> text` from the user, `text` from the bridge."""
        return [
            f"{'> ' if message['direction'] == 'inbound' else ''}{message['text']}"
            for message in await self.messages(limit=200)
        ]

    async def until(self, count: int) -> list[str]:
        """Wait until there are so many messages, and give their texts."""
        while len(texts := await self.texts()) < count:
            await asyncio.sleep(0.02)
        return texts

    async def answered(self) -> list[dict[str, Any]]:
        """Wait until nothing is pending, and give the messages."""
        while True:
            messages = await self.messages(limit=200)
            if messages and all(message["status"] != "pending" for message in messages):
                return messages
            await asyncio.sleep(0.02)

    @asynccontextmanager
    async def events(self, after: int | None = None) -> AsyncGenerator[AsyncIterator[tuple[str, dict[str, Any]]]]:
        """The event stream: (event, data) one after another."""
        headers = self._headers | ({} if after is None else {"Last-Event-ID": str(after)})
        async with self._http.get(f"{self._url}/events", headers=headers) as response:
            assert response.status == 200, await response.text()
            yield _events(response)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    name = ""
    async for raw in response.content:
        line = raw.decode().rstrip("\r\n")
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


@asynccontextmanager
async def visiting(url: str) -> AsyncGenerator[Chat]:
    """A new visitor with a conversation of its own."""
    async with aiohttp.ClientSession() as http, http.post(f"{url}/api/v1/chat/conversations") as response:
        assert response.status == 201, await response.text()
        body = await response.json()
        yield Chat(http, url, body["conversation"], body["token"])


@asynccontextmanager
async def calling(url: str, conversation: str, key: str = API_KEY) -> AsyncGenerator[Chat]:
    """A program with the API key, in a conversation that it names."""
    async with aiohttp.ClientSession() as http:
        yield Chat(http, url, conversation, key)
