"""What the HTTP side is given to work with."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request

from chat_bridge.bridge.receive import Receiver
from chat_bridge.settings import Settings
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store


@dataclass(frozen=True, slots=True)
class Services:
    """The running parts that requests use. `api_key` None: the REST API is closed. `schema_problem` gives one
    sentence when the database's schema does not fit."""

    settings: Settings
    store: Store
    hot: Hot
    receiver: Receiver
    api_key: str | None
    secret: str
    schema_problem: Callable[[], Awaitable[str | None]]


def services(request: Request) -> Services:
    """The services of the app that a request came to (a FastAPI dependency)."""
    return request.app.state.services
