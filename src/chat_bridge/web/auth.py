"""Who may do what: an API key for servers and operators, a signed token for one visitor of one conversation."""

import hmac
import time
from dataclasses import dataclass
from typing import Annotated

import jwt
from fastapi import Depends, Path, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from chat_bridge.web.problems import Problem
from chat_bridge.web.services import Services, services

AUDIENCE = "webchat"
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


async def api_client(used: Used, credentials: Credentials) -> ApiClient:
    """Demand the API key."""
    if used.api_key is None:
        raise Problem(401, "The API is closed: set CHAT_BRIDGE_API_KEY and restart.", CHALLENGE)
    if credentials is None or not _is_api_key(used, credentials.credentials):
        raise Problem(401, "Send the API key as `Authorization: Bearer KEY`.", CHALLENGE)
    return ApiClient()


async def chat_caller(conversation: ConversationPath, used: Used, credentials: Credentials) -> Visitor | ApiClient:
    """Demand the API key, or the token of this conversation's visitor."""
    if credentials is None:
        detail = "Send the visitor's token, or an API key, as `Authorization: Bearer TOKEN`."
        raise Problem(401, detail, CHALLENGE)
    if used.api_key is not None and _is_api_key(used, credentials.credentials):
        return ApiClient()
    try:
        claims = jwt.decode(
            credentials.credentials,
            used.secret,
            [ALGORITHM],
            audience=AUDIENCE,
            options={"require": ["exp", "sub", "aud"]},
        )
    except jwt.ExpiredSignatureError:
        raise Problem(401, "The token has expired: begin a new conversation.", CHALLENGE) from None
    except (jwt.InvalidTokenError, ValueError):
        raise Problem(401, "The token is not valid.", CHALLENGE) from None
    if claims["sub"] != conversation:
        raise Problem(403, "The token belongs to another conversation.")
    return Visitor(conversation, float(claims["exp"]))


def caller_address(request: Request) -> str:
    """The address a request came from, X-Forwarded-For being believed only from CHAT_BRIDGE_TRUSTED_PROXIES."""
    return request.client.host if request.client else "unknown"


def _is_api_key(used: Services, given: str) -> bool:
    assert used.api_key is not None
    return hmac.compare_digest(given.encode(), used.api_key.encode())
