"""The contract between the bridge and an agent.

An agent gets the new messages of one turn and yields events; the bridge does the storing, the streaming to the user
and the wording of failures. Closing the iterator cancels the call.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from chat_bridge.errors import ChatBridgeError
from chat_bridge.model import TurnOutcome


@dataclass(frozen=True, slots=True)
class AgentFile:
    """A file as bytes, for the agent or (as an event) of its answer. The type that an agent tells counts only for
    text: of all else the bytes tell it."""

    mime_type: str
    data: bytes
    name: str | None = None


@dataclass(frozen=True, slots=True)
class AgentMessage:
    """One new message. `id` is globally unique and stable: a repeated call carries the same one.

    `author` is the sender's name, set only where several people write in one conversation.
    """

    id: str
    text: str
    author: str | None = None
    files: Sequence[AgentFile] = ()


@dataclass(frozen=True, slots=True)
class Approval:
    """A tool call that waits for somebody's yes or no."""

    run_id: str
    tool_call_id: str
    tool_name: str
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])


def _nothing() -> None: ...


@dataclass(frozen=True, slots=True)
class AgentRequest:
    """One turn for an agent.

    `session` keys the agent's memory (a new session starts with none). `resource` owns it: the user, or the chat in
    groups. `pending_approval` is what the session's last turn left waiting. `decision` answers it: the call may be made
    or not, and the agent goes on from there, without `messages`; with new messages instead it counts as refused.
    `context` holds facts (platform, user's name, locale) that tools of the agent may read. An agent that needs the
    files no more may call `files_sent`: it takes them out of the messages, so that other turns have room for theirs.
    """

    session: str
    resource: str
    messages: Sequence[AgentMessage]
    context: Mapping[str, str] = field(default_factory=dict[str, str])
    pending_approval: Approval | None = None
    decision: bool | None = None
    files_sent: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True)
class Started:
    """The agent took the request; `request_id` is its own name for it, kept for tracing."""

    request_id: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text, to be appended."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a call that did not fail.

    `outcome` is ANSWERED, TRUNCATED, BLOCKED or APPROVAL (an answer without text is found by the bridge itself).
    `usage` holds the token counts as the agent reports them. `detail` is for the record, not for the user.
    """

    outcome: TurnOutcome = TurnOutcome.ANSWERED
    usage: Mapping[str, Any] | None = None
    approval: Approval | None = None
    detail: str | None = None


AgentEvent = Started | TextDelta | AgentFile | Finished


class AgentError(ChatBridgeError):
    """The call failed. `outcome` is one of the failed ones; the message is for the record, not for the user."""

    def __init__(self, outcome: TurnOutcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


class Agent(Protocol):
    """Anything that answers."""

    @property
    def name(self) -> str:
        """Short and stable, for `turns.agent`, logs and metrics: `echo`, `mastra:weather`."""
        ...

    def answer(self, request: AgentRequest) -> AsyncGenerator[AgentEvent]:
        """Yield Started (at most once), any number of TextDelta and AgentFile, then Finished; or raise AgentError. The
        files come after the whole text, in their order."""
        ...

    async def check(self) -> str | None:
        """None when the agent can be reached and knows us; else one sentence that says what to do."""
        ...

    async def forget(self, session: str, resource: str | None) -> bool:
        """Delete what it remembers of a session, and with `resource` what it knows of that owner. False: there is
        nothing. Raises AgentError: it may still be there."""
        ...

    async def aclose(self) -> None:
        """Give back connections. Running calls must have ended."""
        ...
