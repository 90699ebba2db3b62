"""Long polling: fetching a bot's updates, whatever becomes of Telegram, the network or our database."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, cast

from chat_bridge.backoff import backoff
from chat_bridge.errors import StorageError
from chat_bridge.platforms.contract import Deliver
from chat_bridge.platforms.telegram.api import (
    REFUSED,
    BotApi,
    BotApiError,
    CallFailedError,
    CallRefusedError,
    fields,
    refuses_token,
)
from chat_bridge.platforms.telegram.parse import ALLOWED_UPDATES, Bot, parse
from chat_bridge.telemetry import log

POLL_SECONDS = 50  # how long Telegram holds a call when there is nothing new; it allows no more
POLL_ANSWER_SECONDS = 10.0
SHORT_POLL_SECONDS = 1.0

# The first and the longest pause of the poll after a failure
UNREACHABLE_PAUSES = (1.0, 30.0)
CONFLICT_PAUSES = (3.0, 30.0)
NOT_STORED_PAUSES = (1.0, 30.0)
REFUSED_TOKEN_PAUSES = (60.0, 60.0)


async def poll(api: BotApi, bot: Bot, deliver: Deliver) -> None:
    """Fetch updates by long polling. Asking for the next ones is what makes Telegram forget the ones before."""
    pauses = _Pauses()
    offset: int | None = None
    while True:
        asked_at = time.monotonic()
        try:
            updates = await _updates(api, offset)
        except BotApiError as error:
            if isinstance(error, CallRefusedError) and error.status == 400:
                offset = None  # it is not one of Telegram's: begin with whatever waits
            await asyncio.sleep(pauses.after(error))
            continue
        pauses.reached()
        try:
            if updates:
                await deliver([parse(update, bot) for update in updates])
        except StorageError:
            await asyncio.sleep(pauses.not_stored(len(updates)))
            continue
        pauses.stored()
        # After nothing, all before is confirmed; and ids begin anew after a quiet week, so the old end must go.
        offset = _after(updates)
        if updates and offset is None:
            await asyncio.sleep(pauses.unnumbered())
        elif not updates and time.monotonic() - asked_at < SHORT_POLL_SECONDS:
            await asyncio.sleep(SHORT_POLL_SECONDS)  # something between does not let calls wait


async def _updates(api: BotApi, offset: int | None) -> list[Any]:
    parameters: dict[str, Any] = {"timeout": POLL_SECONDS, "limit": 100, "allowed_updates": ALLOWED_UPDATES}
    if offset is not None:
        parameters["offset"] = offset
    found = await api.call("getUpdates", parameters, seconds=POLL_SECONDS + POLL_ANSWER_SECONDS)
    if not isinstance(found, list):
        raise CallFailedError("getUpdates gave no list of updates", maybe_done=False)
    return cast("list[Any]", found)


class _Pauses:
    """How long the poll waits after each failure, and one line of log for each streak of a kind."""

    def __init__(self) -> None:
        self._kind = ""
        self._failures = 0
        self._not_stored = 0

    def reached(self) -> None:
        """Telegram has answered."""
        if self._kind:
            log.info("telegram.reached")
        self._kind, self._failures = "", 0

    def stored(self) -> None:
        """The updates are stored."""
        self._not_stored = 0

    def unnumbered(self) -> float:
        """The seconds to wait after updates without ids, which can't be confirmed and come again."""
        return UNREACHABLE_PAUSES[0]

    def not_stored(self, updates: int) -> float:
        """The seconds to wait when updates could not be stored."""
        self._not_stored += 1
        seconds = _pause(NOT_STORED_PAUSES, self._not_stored)
        log.warning("telegram.not_stored", updates=updates, wait_seconds=round(seconds, 1))
        return seconds

    def after(self, error: BotApiError) -> float:
        """The seconds to wait when a call failed."""
        kind, bounds = _kind_of(error)
        began = kind != self._kind
        self._kind, self._failures = kind, 1 if began else self._failures + 1
        if began:
            tell = log.error if kind == "telegram.refused_token" else log.warning
            tell(kind, reason=_explained(error))
        seconds = _pause(bounds, self._failures)
        retry_after = error.retry_after if isinstance(error, CallRefusedError) else None
        return seconds if retry_after is None else max(seconds, retry_after)


def _kind_of(error: BotApiError) -> tuple[str, tuple[float, float]]:
    """The name of a failure in the log, and how long to wait after it."""
    if isinstance(error, CallRefusedError) and error.status == 409:
        return "telegram.conflict", CONFLICT_PAUSES
    if refuses_token(error):
        return "telegram.refused_token", REFUSED_TOKEN_PAUSES
    return "telegram.unreachable", UNREACHABLE_PAUSES


def _explained(error: BotApiError) -> str:
    if refuses_token(error):
        return REFUSED
    if not isinstance(error, CallRefusedError) or error.status != 409:
        return str(error)
    if error.says("webhook"):
        return (
            "somebody has set a webhook for this bot, so Telegram refuses polling: remove it by starting the bridge "
            "with TELEGRAM_POLLING=true, or set TELEGRAM_WEBHOOK_URL to use one"
        )
    return (
        "another program fetches the updates of this bot with the same token: stop it, or give each program a bot of "
        "its own"
    )


def _pause(bounds: tuple[float, float], failures: int) -> float:
    """Twice as long each time, within bounds, and spread so that many don't come back at once."""
    first, most = bounds
    return max(first, backoff(failures, first, most))


def _after(updates: Sequence[Any]) -> int | None:
    """The offset that confirms these."""
    ids = [fields(update).get("update_id") for update in updates]
    return max((found + 1 for found in ids if isinstance(found, int)), default=None)
