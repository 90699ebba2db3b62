"""The REST API for operators and their programs: sessions and their messages."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator, AwareDatetime, BaseModel

from chat_bridge.model import Address, BusyPolicy, ConversationId, Seq, Session, SessionId
from chat_bridge.storage import messages, sessions
from chat_bridge.storage.messages import sent_key
from chat_bridge.web import uploads
from chat_bridge.web.auth import ApiClient, Used, api_client, limit_sending
from chat_bridge.web.chat import MAX_SEQ, USED_BEFORE, Accepted, Messages, MessageToSend, views
from chat_bridge.web.problems import Problem, problem_responses

router = APIRouter(
    prefix="/sessions",
    tags=["sessions"],
    dependencies=[Depends(api_client)],
    responses=problem_responses(401, 422, 503),
)


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be between the years 1 and 9999 in UTC") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
SessionPath = Annotated[UUID, Path(description="The session's id.")]


class ActiveSession(BaseModel):
    """The session that a conversation is in now: what of it stays the same as long as it is active."""

    id: UUID
    conversation_id: UUID
    platform: str
    account: str
    conversation: str
    thread: str
    user_id: str | None
    mode: Literal["agent", "human"]
    created_at: datetime
    parent_session_id: UUID | None


class SessionView(ActiveSession):
    """One stretch of a conversation."""

    status: Literal["active", "closed", "archived"]
    last_activity: datetime
    message_count: int
    pending_since: datetime | None
    metadata: dict[str, Any]

    @classmethod
    def of(cls, session: Session) -> "SessionView":
        return cls(
            id=session.id,
            conversation_id=session.conversation_id,
            platform=session.address.platform,
            account=session.address.account,
            conversation=session.address.conversation,
            thread=session.address.thread,
            user_id=session.user_id,
            status=session.status,
            mode=session.mode,
            created_at=session.created_at,
            last_activity=session.last_activity,
            parent_session_id=session.parent_session_id,
            message_count=session.message_count,
            pending_since=session.pending_since,
            metadata=dict(session.metadata),
        )


class SessionPage(BaseModel):
    """Sessions, newest first. `next` is the `before` of the next page; null on the last one."""

    sessions: list[SessionView]
    next: UUID | None


class SessionChange(BaseModel):
    """What may be changed about a session."""

    busy_policy: BusyPolicy | None


@router.get("", summary="List sessions")
async def list_sessions(
    used: Used,
    platform: Annotated[str | None, Query(max_length=100)] = None,
    conversation: Annotated[str | None, Query(max_length=200, description="The platform's id of it.")] = None,
    conversation_id: Annotated[UUID | None, Query()] = None,
    user: Annotated[str | None, Query(max_length=200, description="The platform's id of who began it.")] = None,
    status: Annotated[Literal["active", "closed", "archived"] | None, Query()] = None,
    active_since: Annotated[Moment | None, Query(description="With a message since then (RFC 3339).")] = None,
    before: Annotated[UUID | None, Query(description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> SessionPage:
    """A page of sessions, newest first."""
    wanted = sessions.SessionFilter(
        before=SessionId(before) if before else None,
        platform=platform,
        conversation=conversation,
        conversation_id=ConversationId(conversation_id) if conversation_id else None,
        user_id=user,
        status=status,
        active_since=active_since,
    )
    found = await sessions.list_sessions(used.store.database, wanted, limit + 1)
    kept = found[:limit]
    return SessionPage(
        sessions=[SessionView.of(session) for session in kept], next=kept[-1].id if len(found) > limit else None
    )


@router.get("/active", responses=problem_responses(404), summary="Look up a conversation's active session")
async def look_up(
    used: Used,
    platform: Annotated[str, Query(max_length=100)],
    conversation: Annotated[str, Query(max_length=200, description="The platform's id of it.")],
    account: Annotated[str | None, Query(max_length=100, description="Not given: the one that is served here.")] = None,
    thread: Annotated[str, Query(max_length=200, description="A part of the conversation; empty: the whole.")] = "",
) -> ActiveSession:
    """The session that the next message of a conversation belongs to. From Redis as a rule, so ask as often as you
    like."""
    served = used.platforms.get(platform)
    if account is None and served is None:
        raise Problem(404, f"The platform {platform} is not served here: name the account.")
    address = Address(platform, account or (served.account if served else ""), conversation, thread)
    session = await sessions.look_up(used.store.database, used.hot, address)
    if session is None:
        raise Problem(404, "This conversation has no active session; its next message opens one.")
    return ActiveSession(**SessionView.of(session).model_dump(include=set(ActiveSession.model_fields)))


@router.get("/{session_id}", responses=problem_responses(404), summary="Read a session")
async def get_session(session_id: SessionPath, used: Used) -> SessionView:
    """One session."""
    return SessionView.of(await _session(used, session_id))


@router.get("/{session_id}/messages", responses=problem_responses(404), summary="Read a session's messages")
async def get_messages(
    session_id: SessionPath,
    used: Used,
    before: Annotated[int | None, Query(ge=0, le=MAX_SEQ, description="The newest of those before this seq.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Messages:
    """Messages of a session, oldest first."""
    session = await _session(used, session_id)
    found = await used.transcripts.history(
        session.conversation_id,
        before=None if before is None else Seq(before),
        limit=limit + 1,
        session=session.id,
    )
    return Messages(messages=await views(used, session.conversation_id, found[-limit:]), has_more=len(found) > limit)


@router.post(
    "/{session_id}/uploads",
    status_code=201,
    responses=problem_responses(400, 404, 408, 409, 413, 415, 429),
    openapi_extra={"requestBody": uploads.BODY},
    summary="Upload a file to send",
)
async def upload(session_id: SessionPath, used: Used, request: Request, name: uploads.NameQuery = "") -> uploads.Upload:
    """Keep a file for a message that will be sent to the session's conversation within a day. The body is the file
    itself, as it is. When too many wait for a message, the oldest are forgotten."""
    session = await _session(used, session_id)
    if session.status != "active":
        raise _not_active(session)
    await limit_sending(used, request, ApiClient(), "uploads", str(session.conversation_id))
    return await uploads.take_in(used, request, session.address, name, None)


@router.post(
    "/{session_id}/messages",
    status_code=202,
    responses={200: {"model": Accepted, "description": "Stored before"}} | problem_responses(400, 404, 409, 413, 429),
    summary="Send a message as the bot",
)
async def send(
    session_id: SessionPath, message: MessageToSend, used: Used, request: Request, response: Response
) -> Accepted:
    """Store a message (its text is Markdown), which the platform then gets once all that is before it was sent. The
    agent does not hear of it."""
    ids = message.uploads()
    session = await _session(used, session_id)
    await limit_sending(used, request, ApiClient(), "sent", str(session.conversation_id))
    key = sent_key(message.client_msg_id)
    files = await uploads.of_message(used, session.conversation_id, ids, key)
    sent = await used.sender.send(session, message.client_msg_id, message.text, files)
    match sent:
        case "not_active":
            raise _not_active(await _session(used, session_id))
        case "upload_gone":
            raise Problem(409, "attachments: another message has one of them, or it has expired: upload it again.")
        case "no_adapter":
            platform = session.address.platform
            raise Problem(409, f"The platform {platform} is not served by this process: ask one that serves it.")
        case _:
            if sent.status == "conflict":
                raise Problem(409, USED_BEFORE)
    duplicate = sent.status == "duplicate"
    if duplicate:
        response.status_code = 200
    return Accepted(id=sent.message_id, conversation_id=sent.conversation_id, seq=sent.seq, duplicate=duplicate)


@router.patch("/{session_id}", responses=problem_responses(404), summary="Change a session")
async def change_session(session_id: SessionPath, change: SessionChange, used: Used) -> SessionView:
    """Give a session a busy policy of its own; null gives it the platform's again."""
    await sessions.set_busy_policy(used.store.database, SessionId(session_id), change.busy_policy)
    return SessionView.of(await _session(used, session_id))


@router.post("/{session_id}/close", responses=problem_responses(404, 409), summary="Close a session")
async def close_session(session_id: SessionPath, used: Used) -> SessionView:
    """Close a session: what waits in it is cancelled, and the next message opens another."""
    closed = await sessions.close_session(used.store.database, SessionId(session_id))
    session = await _session(used, session_id)
    await used.hot.forget_session(session.conversation_id)
    if not closed:
        raise Problem(409, f"The session is {session.status} already.")
    for newest in await messages.history(used.store.database, session.conversation_id, limit=1, session=session.id):
        await used.stop_turn(session.conversation_id, Seq(newest.seq + 1))
    return SessionView.of(session)


async def _session(used: Used, session_id: UUID) -> Session:
    session = await sessions.get_session(used.store.database, SessionId(session_id))
    if session is None:
        raise Problem(404, "There is no session with this id.")
    return session


def _not_active(session: Session) -> Problem:
    return Problem(409, f"The session is {session.status}: name the conversation's active one.")
