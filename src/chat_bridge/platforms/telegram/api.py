"""Telegram's Bot API over HTTP: one POST a call, JSON both ways; and the bytes of files.

The bot's token is part of every URL. So no error of the HTTP client leaves this module: what is raised here holds a
reason in our own words, or Telegram's description without the token.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, cast
from urllib.parse import quote

import aiohttp

from chat_bridge.errors import ChatBridgeError
from chat_bridge.platforms.contract import OutboundFile

REFUSED = "Telegram refuses TELEGRAM_BOT_TOKEN: copy it again from @BotFather"
CONNECT_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 15.0  # well before Telegram closes an idle connection: a call on a closing one would be lost
MOST_BYTES = 32 * 1024 * 1024  # far more than 100 updates, the most that come at once
MOST_DESCRIPTION = 300
SILENCE_SECONDS = 15.0  # between two pieces of a file
PIECE_BYTES = 64 * 1024
DEFAULT_RETRY_AFTER = 5.0


class BotApiError(ChatBridgeError):
    """A call did not succeed. `maybe_done`: Telegram may have done it all the same, for its answer was lost."""

    def __init__(self, message: str, *, maybe_done: bool) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done


class CallFailedError(BotApiError):
    """Telegram could not be reached, was in trouble, or what answered was not Telegram."""


class CallRefusedError(BotApiError):
    """Telegram said no, and did nothing. Its texts are no contract: ask `says` for a part of one."""

    def __init__(
        self, status: int, description: str, *, retry_after: float | None = None, migrate_to_chat_id: int | None = None
    ) -> None:
        super().__init__(f"Telegram: {description} (HTTP {status})", maybe_done=False)
        self.status = status
        self.description = description
        self.retry_after = retry_after
        self.migrate_to_chat_id = migrate_to_chat_id

    def says(self, *parts: str) -> bool:
        """Whether the description contains one of these, in lower case."""
        description = self.description.lower()
        return any(part in description for part in parts)


class BotApi:
    """The methods of one bot, on Telegram's server or on one that speaks like it."""

    def __init__(self, token: str, base_url: str = "https://api.telegram.org") -> None:
        self._token = token
        self._url = f"{base_url.rstrip('/')}/bot{token}"
        self._files_url = f"{base_url.rstrip('/')}/file/bot{token}"
        self._session: aiohttp.ClientSession | None = None
        self._dated: tuple[str, datetime] | None = None

    async def call(self, method: str, parameters: Mapping[str, Any], *, seconds: float) -> Any:
        """What the method returns. Raises CallRefusedError, and CallFailedError at the latest after so many seconds."""
        return self._result(*await self._post(method, seconds, json=parameters))

    async def upload(
        self, method: str, parameters: Mapping[str, Any], field: str, file: OutboundFile, *, seconds: float
    ) -> Any:
        """The same with a file, as multipart/form-data; the parameters are numbers and objects. Without the end of the
        file Telegram does nothing."""
        form = aiohttp.FormData(quote_fields=False)  # Telegram takes names as they are, in UTF-8
        for name, value in parameters.items():
            form.add_field(name, json.dumps(value))
        ended = False

        async def pieces() -> AsyncGenerator[bytes]:
            nonlocal ended
            file.content.seek(0)
            while piece := await asyncio.to_thread(file.content.read, PIECE_BYTES):
                yield piece
            ended = True

        form.add_field(field, pieces(), filename=file.name, content_type=file.mime_type)
        try:
            return self._result(*await self._post(method, seconds, data=form))
        except CallFailedError as error:
            raise CallFailedError(str(error), maybe_done=error.maybe_done and ended) from None

    def _result(self, status: int, body: bytes) -> Any:
        try:
            answer: object = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict):
            fields = cast("dict[str, Any]", answer)
            if fields.get("ok") is True and status == 200 and "result" in fields:
                return fields["result"]
            if fields.get("ok") is False and 400 <= status < 500:
                raise self._refusal(status, fields)
            if fields.get("ok") is False and status >= 500:
                raise CallFailedError(f"Telegram: {self._description(fields)} (HTTP {status})", maybe_done=True)
        # A redirection or a refusal by something in between did not pass the call on.
        raise CallFailedError(f"no answer of the Bot API (HTTP {status})", maybe_done=not 300 <= status < 500)

    async def download(self, path: str, *, web_page: bool) -> AsyncGenerator[bytes]:
        """The bytes at a path that `getFile` told, piece by piece. `web_page`: the file is one; otherwise one can only
        come from something in between. Raises CallRefusedError, CallFailedError."""
        timeout = aiohttp.ClientTimeout(connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        try:
            async with self._client().get(
                f"{self._files_url}/{quote(path)}",
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,  # the file as it is, and no more bytes than come in
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                _require_file(response, web_page)
                async for piece in response.content.iter_chunked(PIECE_BYTES):
                    yield piece
        except (aiohttp.ClientError, TimeoutError) as error:
            _raise_for(error)

    @property
    def clock_ahead(self) -> float | None:
        """How many seconds Telegram's clock was ahead of ours at its last answer, if it told."""
        if self._dated is None:
            return None
        told, ours = self._dated
        try:
            return (parsedate_to_datetime(told).astimezone(UTC) - ours).total_seconds()
        except (ValueError, OverflowError):
            return None

    async def aclose(self) -> None:
        """Close the idle connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, method: str, seconds: float, **body: Any) -> tuple[int, bytes]:
        """Status and body. What is raised here has no cause, for that would know the URL."""
        # Without a connection by then it is certain that nothing was sent.
        timeout = aiohttp.ClientTimeout(total=seconds, connect=min(CONNECT_SECONDS, seconds / 2))
        try:
            async with self._client().post(
                f"{self._url}/{method}", timeout=timeout, allow_redirects=False, **body
            ) as response:
                if date := response.headers.get("Date"):
                    self._dated = date, datetime.now(UTC)
                return response.status, await _read(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            _raise_for(error)

    def _refusal(self, status: int, answer: Mapping[str, Any]) -> CallRefusedError:
        found: object = answer.get("parameters")
        parameters = cast("dict[str, object]", found) if isinstance(found, dict) else {}
        retry_after = parameters.get("retry_after")
        chat = parameters.get("migrate_to_chat_id")
        return CallRefusedError(
            status,
            self._description(answer),
            retry_after=_seconds(retry_after) if status == 429 else None,
            migrate_to_chat_id=chat if isinstance(chat, int) else None,
        )

    def _description(self, answer: Mapping[str, Any]) -> str:
        """Why Telegram says no. Whoever answered may have put the request's URL into it."""
        described = str(answer.get("description") or "no description")
        secret = self._token.partition(":")[2] or self._token
        return described.replace(self._token, "[token]").replace(secret, "[token]")[:MOST_DESCRIPTION]

    def _client(self) -> aiohttp.ClientSession:
        """Made at the first call, since a session belongs to the running loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


def _raise_for(error: Exception) -> NoReturn:
    """Say what failed without the error, for that would know the URL."""
    name = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL):
        raise CallFailedError(f"no connection to Telegram ({name})", maybe_done=False) from None
    if isinstance(error, TimeoutError):
        raise CallFailedError("Telegram did not answer in time", maybe_done=True) from None
    raise CallFailedError(f"the connection to Telegram broke ({name})", maybe_done=True) from None


def _require_file(response: aiohttp.ClientResponse, web_page: bool) -> None:
    """Raise if an answer is not the file that was asked for."""
    match response.status:
        case 200 if web_page or response.content_type != "text/html":
            return
        case 200:
            raise CallFailedError("a web page came instead of the file", maybe_done=False)
        case 401:
            raise CallRefusedError(401, "Unauthorized")
        case 429:
            wait = response.headers.get("Retry-After", "")
            seconds = float(wait) if re.fullmatch(r"\d{1,9}", wait) else DEFAULT_RETRY_AFTER
            raise CallRefusedError(429, "Too Many Requests", retry_after=seconds)
        case status:
            raise CallFailedError(f"Telegram did not give the file (HTTP {status})", maybe_done=False)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MOST_BYTES:
            raise CallFailedError("Telegram's answer is too large", maybe_done=True)
    return bytes(body)


def _seconds(retry_after: object) -> float:
    return float(retry_after) if isinstance(retry_after, int | float) and retry_after > 0 else DEFAULT_RETRY_AFTER


def refuses_token(error: BotApiError) -> bool:
    """Telegram answers 404 for what is no token at all."""
    return isinstance(error, CallRefusedError) and error.status in (401, 404)


def fields(value: object) -> dict[str, Any]:
    """What a JSON object holds; nothing if it is something else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
