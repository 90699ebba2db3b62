"""Looking at a running bridge from outside, as its operator does: event streams, the REST API, PostgreSQL's rows."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import aiohttp
import asyncpg

from chat_bridge.model import ConversationId
from chat_bridge.platforms import webchat
from tests.bridge import API_KEY, Chat


async def begun(chat: Chat) -> str:
    """Wait until an answer is being written, and give its first words."""
    async with chat.events() as events:
        async for name, data in events:
            if name == "delta":
                return data["text"]
    raise AssertionError("the event stream ended")


async def messages_in(events: AsyncIterator[tuple[str, dict[str, Any]]], count: int) -> AsyncGenerator[dict[str, Any]]:
    """The next so many messages of an event stream."""
    async for name, data in events:
        if name == "message":
            yield data
            count -= 1
            if count == 0:
                return


async def call(url: str, method: str, path: str, **request: Any) -> tuple[int, Any]:
    """One request with the API key: the status, and the JSON of the answer."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with aiohttp.ClientSession(url, headers=headers) as http, http.request(method, path, **request) as response:
        return response.status, await response.json()


async def session_of(url: str, chat: Chat) -> dict[str, Any]:
    """The active session of a conversation."""
    status, found = await call(
        url, "GET", "/api/v1/sessions", params={"conversation": chat.conversation, "status": "active"}
    )
    assert status == 200, found
    (session,) = found["sessions"]
    return session


async def give_policy(url: str, chat: Chat, policy: str | None) -> None:
    """Give a conversation's session a busy policy of its own."""
    session = await session_of(url, chat)
    status, _ = await call(url, "PATCH", f"/api/v1/sessions/{session['id']}", json={"busy_policy": policy})
    assert status == 200


async def rows(dsn: str, query: str, *arguments: object) -> list[dict[str, Any]]:
    """What PostgreSQL answers."""
    connection = await asyncpg.connect(dsn)
    try:
        return [dict(row) for row in await connection.fetch(query, *arguments)]
    finally:
        await connection.close()


def conversation_id(chat: Chat) -> ConversationId:
    """Our id of it."""
    return webchat.address(chat.conversation).id


async def outcomes(dsn: str, chat: Chat) -> list[str | None]:
    """How the turns of a conversation ended, in the order they began. None: it is running."""
    found = await rows(
        dsn,
        """select outcome from turns join sessions on sessions.id = session_id
        where platform_conversation_id = $1 order by started_at""",
        chat.conversation,
    )
    return [row["outcome"] for row in found]


async def ended(dsn: str, chat: Chat, count: int) -> list[str | None]:
    """Wait until so many turns of a conversation have ended, and give their outcomes."""
    while len(found := await outcomes(dsn, chat)) < count or None in found:
        await asyncio.sleep(0.02)
    return found


def statuses(messages: Sequence[dict[str, Any]]) -> list[tuple[str, str, str | None]]:
    """Text, status and reason of the messages that came in."""
    return [
        (message["text"], message["status"], message["reason"])
        for message in messages
        if message["direction"] == "inbound"
    ]


def replies(messages: Sequence[dict[str, Any]]) -> list[str]:
    """The texts of the messages that went out."""
    return [message["text"] for message in messages if message["direction"] == "outbound"]


async def run_command(*words: str, **environment: str) -> tuple[int, str, str]:
    """Run `chat-bridge` with these words and no other settings, to its end: exit code, output, errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chat_bridge", *words),
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
        cwd=tempfile.gettempdir(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()
