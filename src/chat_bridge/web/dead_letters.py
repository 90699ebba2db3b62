"""The REST API of dead letters: what could not be delivered or answered."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel

from chat_bridge.model import MessageId
from chat_bridge.storage import dead_letters
from chat_bridge.storage.dead_letters import NEWEST, DeadLetter, Place
from chat_bridge.web.auth import Used, api_client
from chat_bridge.web.problems import Problem, problem_responses

router = APIRouter(
    prefix="/dead-letters",
    tags=["dead letters"],
    dependencies=[Depends(api_client)],
    responses=problem_responses(401, 422, 503),
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CURSOR = r"^[0-9]{1,16}\.[0-9a-f]{32}\.[0-9]{1,4}$"  # whatever looks like this is a place
LetterPath = Annotated[UUID, Path(description="The id of its message.")]


class DeadLetterView(BaseModel):
    """A part of a reply that was given up (`failed`) or may not have arrived (`unknown`), or a user's message that got
    no answer."""

    id: UUID
    kind: Literal["reply", "message"]
    part: int
    status: Literal["unknown", "failed"]
    died_at: datetime
    attempts: int
    reason: str | None
    conversation_id: UUID
    platform: str
    account: str
    conversation: str
    thread: str

    @classmethod
    def of(cls, letter: DeadLetter) -> "DeadLetterView":
        return cls(
            id=letter.message_id,
            kind=letter.kind,
            part=letter.part,
            status=letter.status,
            died_at=letter.died_at,
            attempts=letter.attempts,
            reason=letter.reason,
            conversation_id=letter.conversation_id,
            platform=letter.address.platform,
            account=letter.address.account,
            conversation=letter.address.conversation,
            thread=letter.address.thread,
        )


class DeadLetterPage(BaseModel):
    """Dead letters, newest first. `next` is the `after` of the next page; null on the last one."""

    dead_letters: list[DeadLetterView]
    next: str | None


@router.get("", summary="List dead letters")
async def list_dead_letters(
    used: Used,
    platform: Annotated[str | None, Query(max_length=100)] = None,
    after: Annotated[str | None, Query(pattern=CURSOR, description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> DeadLetterPage:
    """A page of dead letters, newest first."""
    place = NEWEST if after is None else _place(after)
    found = await dead_letters.list_dead_letters(used.store.database, platform=platform, after=place, limit=limit + 1)
    kept = found[:limit]
    return DeadLetterPage(
        dead_letters=[DeadLetterView.of(letter) for letter in kept],
        next=_cursor(kept[-1].place) if len(found) > limit else None,
    )


@router.post("/{message_id}/retry", status_code=202, responses=problem_responses(404), summary="Try one again")
async def retry(message_id: LetterPath, used: Used) -> Response:
    """Send the dead parts of a reply again; have a failed message answered after all, as a new one at the end of its
    conversation. It begins within seconds."""
    if not await dead_letters.retry(used.store, MessageId(message_id)):
        raise Problem(404, "There is no dead letter with this id.")
    return Response(status_code=202)


@router.post("/{message_id}/purge", status_code=204, responses=problem_responses(404), summary="Lay one aside")
async def purge(message_id: LetterPath, used: Used) -> Response:
    """Lay a dead letter aside for good. The message stays, and `chat-bridge explain` tells its story."""
    if not await dead_letters.purge(used.store.database, MessageId(message_id)):
        raise Problem(404, "There is no dead letter with this id.")
    return Response(status_code=204)


def _cursor(place: Place) -> str:
    return f"{(place.died_at - EPOCH) // timedelta(microseconds=1)}.{place.message_id.hex}.{place.part}"


def _place(cursor: str) -> Place:
    microseconds, message, part = cursor.split(".")
    return Place(EPOCH + timedelta(microseconds=int(microseconds)), MessageId(UUID(message)), int(part))
