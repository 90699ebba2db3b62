"""Decide: tool calls that wait for somebody's yes or no. The session keeps the one that waits, and who asked for it."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from chat_bridge.agents.contract import Approval
from chat_bridge.model import Turn
from chat_bridge.platforms.contract import Button
from chat_bridge.texts import Texts

ARGUMENTS_SHOWN = 10_000  # characters


def question(approval: Approval | None, texts: Texts, *, buttons: bool) -> str:
    """What the user is asked: the tool and its arguments, and how to answer where there are no buttons."""
    text = texts.say("approval", tool=approval.tool_name if approval else "?")
    if approval is not None and approval.args:
        text = f"{text}\n\n{_fenced(json.dumps(approval.args, ensure_ascii=False))}"
    return text if buttons else f"{text}\n\n{texts.say('approval_commands')}"


def buttons(approval: Approval, texts: Texts) -> list[Mapping[str, str]]:
    """Yes and no, good for this call only."""
    return [
        asdict(Button(texts.say(f"button_{name}"), f"/{name} {_token(approval)}")) for name in ("approve", "decline")
    ]


def waiting(turn: Turn) -> Approval | None:
    """The call that the session left waiting."""
    approval: Mapping[str, Any] | None = turn.metadata.get("approval")
    return Approval(**approval) if approval else None


def refusal(turn: Turn) -> str | None:
    """Why a decision is none, as the name of a text. In groups only who asked may decide."""
    last, approval = turn.messages[-1], waiting(turn)
    if approval is None or last.metadata.get("parameter", _token(approval)) != _token(approval):
        return "nothing_to_decide"
    if turn.group and last.sender_id not in turn.metadata.get("approval_asked", ()):
        return "not_yours_to_decide"
    return None


def asked(turn: Turn, approval: Approval) -> dict[str, Any]:
    """A call waits now, as a change of the session's metadata."""
    people = sorted({message.sender_id for message in turn.messages})
    return {"approval": asdict(approval), "approval_asked": people}


def decided(turn: Turn, *, failed: bool) -> dict[str, Any]:
    """The agent was called, and the call that waited is settled; but one that `failed` may have decided nothing."""
    approval = turn.metadata.get("approval")
    return {"approval": approval if failed else None} if approval else {}


def _token(approval: Approval) -> str:
    """Short, for a button: says which call it is about."""
    return hashlib.sha256(f"{approval.run_id}:{approval.tool_call_id}".encode()).hexdigest()[:12]


def _fenced(arguments: str) -> str:
    """As a code block, whose fence is longer than any in it."""
    if len(arguments) > ARGUMENTS_SHOWN:
        arguments = f"{arguments[:ARGUMENTS_SHOWN]}… (+ {len(arguments) - ARGUMENTS_SHOWN})"
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", arguments)), default=0))
    return f"{fence}\n{arguments}\n{fence}"
