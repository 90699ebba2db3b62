"""An adapter for an invented pager system, which sends signed JSON and wants signed JSON back."""

import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from chat_bridge.errors import SettingsError
from chat_bridge.model import Address, EventKind, InboundEvent, User
from chat_bridge.platforms import contract
from chat_bridge.platforms.contract import Finding, Refused, RefusedUs, RetryAfter, RetryLater, SendResult, Sent

TIMEOUT = aiohttp.ClientTimeout(total=20, connect=5)
KINDS = {"message": EventKind.MESSAGE, "edit": EventKind.EDIT, "delete": EventKind.DELETE}


def make(environment: Mapping[str, str]) -> contract.Platform:
    """The adapter as the environment wants it; the entry point names this function."""
    url, secret = (environment.get(name, "").strip() for name in ("PAGER_URL", "PAGER_SECRET"))
    if not url.startswith(("http://", "https://")) or len(secret) < 16:
        raise SettingsError("set PAGER_URL to where replies go (https://...), PAGER_SECRET to 16 characters or more")
    return Pager(url, secret)


class Pager(contract.Platform):
    """Events come to /webhooks/pager; replies go to a URL of the operator's."""

    capabilities = contract.Capabilities("pager", max_text=2000, groups=True, idempotent_send=True, webhook=True)
    account = "default"

    def __init__(self, url: str, secret: str) -> None:
        self._url, self._secret = url, secret.encode()
        self._session: aiohttp.ClientSession | None = None

    def events(self, request: contract.WebhookRequest) -> Sequence[InboundEvent]:
        signature, stamp = (request.headers.get(f"x-pager-{name}", "") for name in ("signature", "timestamp"))
        if not hmac.compare_digest(signature.encode("utf-8", "replace"), self._sign(stamp, request.body).encode()):
            raise contract.NotAuthenticError("x-pager-signature does not fit the timestamp, the body and PAGER_SECRET")
        if not stamp.isdecimal() or abs(time.time() - float(stamp)) > 300:
            raise contract.NotAuthenticError("x-pager-timestamp is not within five minutes of now")
        return _parse(request.body)

    async def send(self, part: contract.OutboundPart) -> SendResult:
        content = {"conversation": part.address.conversation, "text": part.content.text, "reply_to": part.reply_to}
        return await self._post(content, part.idempotency_key)

    async def check(self) -> Sequence[Finding]:
        result = await self._post({"ping": True}, "ping")
        if isinstance(result, Sent):
            return [Finding("pager", "ok", "PAGER_URL answers.")]
        return [Finding("pager", "problem", f"PAGER_URL: {getattr(result, 'error', result)}")]

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _sign(self, stamp: str, body: bytes) -> str:
        return hmac.new(self._secret, stamp.encode("utf-8", "replace") + b"." + body, hashlib.sha256).hexdigest()

    async def _post(self, content: Mapping[str, Any], key: str) -> SendResult:
        body, stamp = json.dumps(content).encode(), str(int(time.time()))
        signed = {"X-Pager-Timestamp": stamp, "X-Pager-Signature": self._sign(stamp, body)}
        headers = {"Content-Type": "application/json", "Idempotency-Key": key, **signed}
        self._session = self._session or aiohttp.ClientSession(timeout=TIMEOUT)
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                return _result(response.status, response.headers.get("Retry-After", ""), await response.read(), key)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            return RetryLater(f"no connection ({type(error).__name__})")
        except (TimeoutError, aiohttp.ClientError) as error:
            return RetryLater(f"the answer was lost ({type(error).__name__})", maybe_sent=True)


def _result(status: int, retry_after: str, body: bytes, key: str) -> SendResult:
    if 200 <= status < 300 or status == 409:
        return Sent(_id(_json(body).get("id")) or key, duplicate=status == 409)
    if status == 429:
        return RetryAfter(min(float(retry_after), 3600) if retry_after.isdecimal() else 5, "HTTP 429", scope="account")
    if status >= 500:
        return RetryLater(f"HTTP {status}", maybe_sent=True)
    if status in (401, 403) or status < 400:
        return RefusedUs(f"HTTP {status}: look at PAGER_URL and PAGER_SECRET")
    return Refused(f"HTTP {status}", scope="conversation" if status == 410 else "part")


def _parse(body: bytes) -> Sequence[InboundEvent]:
    entries, digest = _json(body).get("events"), hashlib.sha256(body).hexdigest()
    listed = entries if isinstance(entries, list) else [None]
    return [_event(_fields(entry), f"{digest}:{place}") for place, entry in enumerate(listed)]


def _event(entry: Mapping[str, Any], spare_key: str) -> InboundEvent:
    own, about, conversation, kind = (_id(entry.get(name)) for name in ("id", "message", "conversation", "type"))
    user, text = _fields(entry.get("user")), entry.get("text", "")
    understood = own and conversation and _id(user.get("id")) and isinstance(text, str) and (about or kind == "message")
    group = entry.get("group") is True
    return InboundEvent(
        address=Address("pager", Pager.account, conversation or "unknown"),
        event_key=own or spare_key,
        user=User(_id(user.get("id")) or "unknown", _id(user.get("name")) or None),
        text=text if isinstance(text, str) else "",
        kind=KINDS.get(kind, EventKind.UNKNOWN) if understood else EventKind.UNKNOWN,
        platform_message_id=about or own or None,
        about=about or None,
        addressed=not group or entry.get("mentioned") is True,
        group=group,
    )


def _json(body: bytes) -> dict[str, Any]:
    try:
        return _fields(json.loads(body))
    except (ValueError, RecursionError):
        return {}


def _fields(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _id(value: object) -> str:
    """An id as text, or empty: exact, however large the number is, and not too long for the store."""
    return str(value) if type(value) in (str, int) and len(str(value)) <= 200 else ""
