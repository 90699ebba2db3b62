"""The REST API of full text search."""

import asyncio
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AwareDatetime, BaseModel

from chat_bridge.model import ConversationId, MessageId, SessionId
from chat_bridge.storage.search import SEARCH_SECONDS, Hit, SearchFilter, SearchOffError, search
from chat_bridge.storage.search_index import SearchError
from chat_bridge.web.api import Moment
from chat_bridge.web.auth import Used, api_client
from chat_bridge.web.chat import Sender
from chat_bridge.web.problems import RETRY_SECONDS, Problem, problem_responses

router = APIRouter(
    prefix="/search",
    tags=["search"],
    dependencies=[Depends(api_client)],
    responses=problem_responses(401, 409, 422, 503),
)

SHARE_OF_POOL = 5  # one connection of so many may search: the others are for messages


class PieceView(BaseModel):
    """A piece of a text; `match`: it is a word that was searched for."""

    text: str
    match: bool


class HitView(BaseModel):
    """A message that was found. `snippet` is a part of its text as plain text, piece by piece."""

    id: UUID
    seq: int
    conversation_id: UUID
    session_id: UUID
    platform: str
    account: str
    conversation: str
    thread: str
    direction: Literal["inbound", "outbound"]
    created_at: AwareDatetime
    sender: Sender | None
    snippet: list[PieceView]

    @classmethod
    def of(cls, hit: Hit) -> "HitView":
        return cls(
            id=hit.id,
            seq=hit.seq,
            conversation_id=hit.conversation_id,
            session_id=hit.session_id,
            platform=hit.address.platform,
            account=hit.address.account,
            conversation=hit.address.conversation,
            thread=hit.address.thread,
            direction=hit.direction,
            created_at=hit.created_at,
            sender=Sender(id=hit.sender_id, name=hit.sender_name) if hit.sender_id else None,
            snippet=[PieceView(text=piece.text, match=piece.match) for piece in hit.snippet],
        )


class SearchPage(BaseModel):
    """Messages, newest first. `next` is the `before` of the next page; null on the last one."""

    messages: list[HitView]
    next: UUID | None


@router.get("", summary="Search messages")
async def search_messages(
    request: Request,
    used: Used,
    q: Annotated[
        str, Query(max_length=500, description='All of these: `word`, `prefix*`, `"a phrase"`, and `-not this`.')
    ],
    platform: Annotated[str | None, Query(max_length=100)] = None,
    account: Annotated[str | None, Query(max_length=100)] = None,
    conversation: Annotated[str | None, Query(max_length=200, description="The platform's id of it.")] = None,
    conversation_id: Annotated[UUID | None, Query()] = None,
    session_id: Annotated[UUID | None, Query()] = None,
    person: Annotated[
        str | None, Query(max_length=200, description="Who wrote it: the platform's id, the user name or the name.")
    ] = None,
    direction: Annotated[Literal["inbound", "outbound"] | None, Query()] = None,
    since: Annotated[Moment | None, Query(description="Stored then or later (RFC 3339).")] = None,
    until: Annotated[Moment | None, Query(description="Stored before then.")] = None,
    before: Annotated[UUID | None, Query(description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> SearchPage:
    """Messages that have all words, newest first, as their newest version has them. Accents and case don't matter."""
    wanted = SearchFilter(
        before=MessageId(before) if before else None,
        platform=platform,
        account=account,
        conversation=conversation,
        conversation_id=ConversationId(conversation_id) if conversation_id else None,
        session_id=SessionId(session_id) if session_id else None,
        person=person,
        direction=direction,
        since=since,
        until=until,
    )
    searches: asyncio.Semaphore = request.app.state.searches
    try:
        async with asyncio.timeout(SEARCH_SECONDS):
            await searches.acquire()
    except TimeoutError:
        raise Problem(503, "Other searches take long. Please try again.", {"Retry-After": str(RETRY_SECONDS)}) from None
    try:
        page = await search(used.store.database, q, wanted, limit)
    except SearchOffError as error:
        raise Problem(409, _sentence(error)) from None
    except SearchError as error:
        raise Problem(422, _sentence(error)) from None
    finally:
        searches.release()
    return SearchPage(messages=[HitView.of(hit) for hit in page.hits], next=page.hits[-1].id if page.more else None)


def _sentence(error: SearchError) -> str:
    text = str(error)
    return f"{text[0].upper()}{text[1:]}."
