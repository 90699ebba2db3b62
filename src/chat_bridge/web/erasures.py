"""The REST API of erasures: what is to be deleted for good, and what became of that."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict, Field, model_validator

from chat_bridge.storage import erasure
from chat_bridge.storage.erasure import Erasure, HeldError
from chat_bridge.web.auth import Used, api_client
from chat_bridge.web.problems import Problem, problem_responses

router = APIRouter(
    prefix="/erasures",
    tags=["erasures"],
    dependencies=[Depends(api_client)],
    responses=problem_responses(401, 422, 503),
)


class PersonToErase(BaseModel):
    """Somebody, as a platform calls them; without an account on all of its accounts."""

    platform: Annotated[str, Field(min_length=1, max_length=100)]
    account: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    user: Annotated[str, Field(min_length=1, max_length=200)]


class NewErasure(BaseModel):
    """What is to be erased: one of these."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"properties": {name: {"type": type_}}, "required": [name]}
                for name, type_ in (("person", "object"), ("conversation_id", "string"), ("session_id", "string"))
            ]
        }
    )

    person: PersonToErase | None = None
    conversation_id: UUID | None = None
    session_id: UUID | None = None

    @model_validator(mode="after")
    def _one(self) -> "NewErasure":
        if sum(each is not None for each in (self.person, self.conversation_id, self.session_id)) != 1:
            raise ValueError("name one of person, conversation_id, session_id")
        return self


class ErasureView(BaseModel):
    """What was erased so far; `not_reached` tells what is tried again each minute."""

    id: UUID
    kind: Literal["user", "conversation", "session"]
    created_at: datetime
    finished_at: datetime | None
    sessions: int
    messages: int
    files: int
    people: int
    threads: int
    not_reached: list[str]

    @classmethod
    def of(cls, found: Erasure) -> "ErasureView":
        counts: dict[str, Any] = {
            name: found.receipt.get(name, 0) for name in ("sessions", "messages", "files", "people", "threads")
        }
        return cls(
            id=found.id,
            kind=found.kind,
            created_at=found.created_at,
            finished_at=found.finished_at,
            not_reached=found.receipt.get("not_reached", []),
            **counts,
        )


@router.post("", status_code=202, responses=problem_responses(404, 409), summary="Erase for good")
async def erase(wanted: NewErasure, used: Used) -> ErasureView:
    """Have a person, a conversation or a session deleted from everywhere: soon after, as the receipt tells."""
    if wanted.person is not None:
        of = wanted.person.model_dump(exclude_none=True)
        return ErasureView.of(await used.eraser.begin("user", of))
    kind, of = (
        ("conversation", {"conversation": str(wanted.conversation_id)})
        if wanted.conversation_id is not None
        else ("session", {"session": str(wanted.session_id)})
    )
    plan = await used.eraser.look(kind, of)
    if not plan.sessions:
        raise Problem(404, f"There is no {kind} with this id.")
    try:
        plan.require_free()
    except HeldError as error:
        raise Problem(409, f"{error}.") from error
    return ErasureView.of(await used.eraser.begin(kind, of))


@router.get("/{erasure_id}", responses=problem_responses(404), summary="Read a receipt")
async def get_erasure(
    erasure_id: Annotated[UUID, Path(description="The id of an erasure.")], used: Used
) -> ErasureView:
    """What became of an erasure."""
    found = await erasure.find(used.store.database, erasure_id)
    if found is None:
        raise Problem(404, "There is no erasure with this id.")
    return ErasureView.of(found)
