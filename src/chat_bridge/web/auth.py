"""Who may do what: an API key for servers and operators, a signed token for one visitor of one conversation."""

import hmac
import time
from dataclasses import dataclass
from typing import Annotated, Any

import jwt
from fastapi import Depends, Path, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from chat_bridge.model import AttachmentId
from chat_bridge.web.problems import Problem
from chat_bridge.web.services import Services, services

AUDIENCE = "webchat"
FILE_AUDIENCE = "attachment"
ALGORITHM = "HS256"
CHALLENGE = {"WWW-Authenticate": "Bearer"}

_bearer = HTTPBearer(auto_error=False, description="An API key, or a visitor's token.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
Used = Annotated[Services, Depends(services)]
ConversationPath = Annotated[
    str, Path(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._:@-]+$", description="The client's own id of it.")
]


@dataclass(frozen=True, slots=True)
class Visitor:
    """May write and read one conversation, until the token expires."""

    conversation: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class ApiClient:
    """May do everything the API offers."""


def visitor_token(secret: str, conversation: str, seconds: int) -> str:
    """A signed token (JWT, HS256) for one conversation, good for so many seconds."""
    claims = {"sub": conversation, "aud": AUDIENCE, "exp": int(time.time()) + seconds}
    return jwt.encode(claims, secret, ALGORITHM)


def file_key(secret: str, attachment: AttachmentId, seconds: int) -> str:
    """A signed key (JWT, HS256) to one file, good for so many seconds, or up to half as many more: within that time all
    keys to it are equal, so that browsers keep the file."""
    step = max(1, seconds // 2)
    expires_at = -(-(int(time.time()) + seconds) // step) * step
    claims = {"sub": str(attachment), "aud": FILE_AUDIENCE, "exp": expires_at}
    return jwt.encode(claims, secret, ALGORITHM)


async def api_client(used: Used, credentials: Credentials) -> ApiClient:
    """Demand the API key."""
    if used.api_key is None:
        raise Problem(401, "The API is closed: set CHAT_BRIDGE_API_KEY and restart.", CHALLENGE)
    if credentials is None or not _is_api_key(used, credentials.credentials):
        raise Problem(401, "Send the API key as `Authorization: Bearer KEY`.", CHALLENGE)
    return ApiClient()


async def any_caller(used: Used, credentials: Credentials) -> Visitor | ApiClient | None:
    """Who calls, whatever the conversation; None says nothing of who it is."""
    if credentials is None:
        return None
    if used.api_key is not None and _is_api_key(used, credentials.credentials):
        return ApiClient()
    claims = _claims(used, credentials.credentials, AUDIENCE, "The token has expired: begin a new conversation.")
    return Visitor(claims["sub"], float(claims["exp"]))


async def chat_caller(
    conversation: ConversationPath, caller: Annotated[Visitor | ApiClient | None, Depends(any_caller)]
) -> Visitor | ApiClient:
    """Demand the API key, or the token of this conversation's visitor."""
    if caller is None:
        detail = "Send the visitor's token, or an API key, as `Authorization: Bearer TOKEN`."
        raise Problem(401, detail, CHALLENGE)
    if isinstance(caller, Visitor) and caller.conversation != conversation:
        raise Problem(403, "The token belongs to another conversation.")
    return caller


Caller = Annotated[Visitor | ApiClient, Depends(chat_caller)]


def require_file_key(used: Services, key: str, attachment: AttachmentId) -> None:
    """Demand a key to this file, as `file_key` makes them."""
    claims = _claims(used, key, FILE_AUDIENCE, "The link has expired: read the message again.")
    if claims["sub"] != str(attachment):
        raise Problem(401, "The link is that of another file.", CHALLENGE)


async def limit_sending(
    used: Services, request: Request, caller: Visitor | ApiClient, what: str, conversation: str
) -> None:
    """Refuse what is more than a conversation, or (of visitors) an address, may send in a minute."""
    if isinstance(caller, Visitor):
        await limit_address(used, request)
    await _limit(used, f"{what}:{conversation}", used.settings.webchat_rate_conversation)


async def limit_address(used: Services, request: Request) -> None:
    """Refuse what is more than an address may send in a minute."""
    await _limit(used, f"address:{caller_address(request)}", used.settings.webchat_rate_address)


def caller_address(request: Request) -> str:
    """The address a request came from, X-Forwarded-For being believed only from CHAT_BRIDGE_TRUSTED_PROXIES."""
    return request.client.host if request.client else "unknown"


def _is_api_key(used: Services, given: str) -> bool:
    assert used.api_key is not None
    return hmac.compare_digest(given.encode(), used.api_key.encode())


def _claims(used: Services, token: str, audience: str, expired: str) -> Any:
    try:
        return jwt.decode(
            token, used.secret, [ALGORITHM], audience=audience, options={"require": ["exp", "sub", "aud"]}
        )
    except jwt.ExpiredSignatureError:
        raise Problem(401, expired, CHALLENGE) from None
    except (jwt.InvalidTokenError, jwt.InvalidKeyError, ValueError):
        # An invalid key is that of a bridge without a secret, which signs nothing.
        raise Problem(401, "The token is not valid.", CHALLENGE) from None


async def _limit(used: Services, name: str, most: int) -> None:
    if (wait := await used.hot.allow(name, most)) > 0:
        raise Problem(429, f"Too many requests: try again in {wait} s.", {"Retry-After": str(wait)})
