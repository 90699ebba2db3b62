"""Sending updates to a webhook: one a request, those of a chat one after another, those of several chats at once."""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from tests.fake_telegram.faults import Faults
from tests.fake_telegram.updates import Update, Updates
from tests.fake_telegram.world import Changes

SECRET_HEADER = "X-Telegram-Bot-Api-Secret-Token"
LONGEST_DELAY = 60
LONGEST_RETRY_AFTER = 3600
NOT_EXECUTED = ("setwebhook", "deletewebhook", "close", "logout")

Execute = Callable[[str, dict[str, Any]], Awaitable[Any]]


class WebhookSender:
    """`retry_scale` shortens the pauses between tries, `timeout` is the patience for one answer. `deliveries` tells
    of each try."""

    def __init__(self, updates: Updates, faults: Faults, changes: Changes) -> None:
        self.url = ""
        self.retry_scale = 1.0
        self.timeout = 60.0
        self.deliveries: list[dict[str, Any]] = []
        self.execute: Execute | None = None
        self._updates = updates
        self._faults = faults
        self._changes = changes
        self._secret = ""
        self._max_connections = 40
        self._last_error: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None

    def info(self) -> dict[str, Any]:
        """The webhook's part of `getWebhookInfo`."""
        if not self.url:
            return {}
        return {"url": self.url, "max_connections": self._max_connections, **self._last_error}

    async def start(self, url: str, secret: str, max_connections: int) -> None:
        """Send from now on to this address."""
        await self.stop()
        self.url = url if "://" in url else f"https://{url}"
        self._secret = secret
        self._max_connections = max_connections
        self._task = asyncio.create_task(self._run(), name="webhook sender")

    async def stop(self) -> None:
        """Send no more."""
        self.url = ""
        self._last_error = {}
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        """Keep one task for each chat that has updates."""
        lanes: dict[int, asyncio.Task[None]] = {}
        slots = asyncio.Semaphore(self._max_connections)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            try:
                while True:
                    arrival = asyncio.ensure_future(self._updates.arrival())
                    for lane in {update.lane for update in self._updates.pending}:
                        if lane not in lanes or lanes[lane].done():
                            lanes[lane] = asyncio.create_task(self._send_lane(http, slots, lane), name="webhook lane")
                    try:
                        await asyncio.wait([arrival, *lanes.values()], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        arrival.cancel()
                    for task in lanes.values():
                        if task.done():
                            task.result()
                    lanes = {lane: task for lane, task in lanes.items() if not task.done()}
            finally:
                for task in lanes.values():
                    task.cancel()
                await asyncio.gather(*lanes.values(), return_exceptions=True)

    async def _send_lane(self, http: aiohttp.ClientSession, slots: asyncio.Semaphore, lane: int) -> None:
        """The updates of one chat, each until it was taken or is too old."""
        while update := next((update for update in self._updates.pending if update.lane == lane), None):
            delay = 1.0
            failures = 0
            while True:
                async with slots:
                    taken, retry_after = await self._send(http, update)
                if taken:
                    break
                pause = float(min(retry_after, LONGEST_RETRY_AFTER))
                if not retry_after and failures:
                    delay = min(delay * 2, random.uniform(LONGEST_DELAY, 2 * LONGEST_DELAY))
                    pause = delay
                failures += 1
                if time.time() + pause * self.retry_scale > update.expires:
                    break
                await asyncio.sleep(pause * self.retry_scale)
            self._updates.forget(update)
            self._changes.happened()

    async def _send(self, http: aiohttp.ClientSession, update: Update) -> tuple[bool, int]:
        if not update.twice_at_once:
            return await self._post(http, update)
        both = await asyncio.gather(self._post(http, update), self._post(http, update))
        return all(taken for taken, _ in both), max(wait for _, wait in both)

    async def _post(self, http: aiohttp.ClientSession, update: Update) -> tuple[bool, int]:
        """One try: whether it was taken, and after how many seconds to come again."""
        record: dict[str, Any] = {"update_id": update.id, "at": time.time(), "status": None, "error": None}
        self.deliveries.append(record)
        error, retry_after = None, 0
        try:
            timeout = aiohttp.ClientTimeout(total=self.timeout)
            async with http.post(
                self.url, json=update.body, headers=self._headers(), timeout=timeout, allow_redirects=False
            ) as response:
                body = await response.read()
                record["status"] = response.status
                if 200 <= response.status <= 299:
                    await self._execute(response.content_type, body)
                else:
                    error = f"Wrong response from the webhook: {response.status} {response.reason}"
                    retry_after = _seconds(response.headers.get("Retry-After"))
        except aiohttp.ClientConnectorError:
            error = "Connection refused"
        except aiohttp.ClientError:
            error = "Webhook connection closed"
        except TimeoutError:
            error = "Read timeout expired"
        record |= {"error": error, "seconds": time.time() - record["at"]}
        if error is not None:
            self._last_error = {"last_error_date": int(time.time()), "last_error_message": error}
        self._changes.happened()
        return error is None, retry_after

    def _headers(self) -> dict[str, str]:
        fault = self._faults.take("webhook")
        if fault is not None and fault.kind == "wrong_secret":
            return {SECRET_HEADER: "not-the-secret"}
        return {SECRET_HEADER: self._secret} if self._secret and fault is None else {}

    async def _execute(self, content_type: str, body: bytes) -> None:
        """A `method` in the answer is called, as the real server does."""
        if content_type != "application/json" or self.execute is None:
            return
        try:
            values = json.loads(body)
        except ValueError:
            return
        method = str(values.pop("method", "")).lower() if isinstance(values, dict) else ""
        if method and not method.startswith("get") and method not in NOT_EXECUTED:
            await self.execute(method, values)


def _seconds(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0
