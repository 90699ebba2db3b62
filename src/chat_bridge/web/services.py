"""What the HTTP side is given to work with."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fastapi import Request

from chat_bridge.bridge.keep import Keeper
from chat_bridge.bridge.receive import Receiver
from chat_bridge.bridge.send import Sender
from chat_bridge.model import ConversationId, Seq
from chat_bridge.platforms.contract import Platform
from chat_bridge.settings import Settings
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from chat_bridge.storage.transcripts import Transcripts
from chat_bridge.upkeep.erasure import Eraser


@dataclass(frozen=True, slots=True)
class Services:
    """The running parts that requests use. `platform_states` tells of each platform whether it is connected. `api_key`
    None: the REST API is closed. `schema_problem` gives one sentence when the database's schema does not fit.
    `stop_turn` ends the work on a turn of messages before a seq, when the turn itself has ended already."""

    settings: Settings
    store: Store
    hot: Hot
    receiver: Receiver
    sender: Sender
    platforms: Mapping[str, Platform]
    keeper: Keeper
    blobs: Blobs
    eraser: Eraser
    transcripts: Transcripts
    platform_states: Mapping[str, str]
    api_key: str | None
    secret: str
    schema_problem: Callable[[], Awaitable[str | None]]
    stop_turn: Callable[[ConversationId, Seq], Awaitable[None]]


async def services(request: Request) -> Services:
    """The services of the app that a request came to (a FastAPI dependency)."""
    # Async like all of them, though nothing is awaited: FastAPI takes any other to a thread and back.
    return request.app.state.services
