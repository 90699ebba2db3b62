"""Answer: have the agent (or, for a command, the bridge itself) answer a claimed turn, then complete and deliver it."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from chat_bridge.agents.contract import (
    Agent,
    AgentError,
    AgentMessage,
    AgentRequest,
    Approval,
    Finished,
    Started,
    TextDelta,
)
from chat_bridge.bridge.claim import Running
from chat_bridge.bridge.deliver import Deliverer
from chat_bridge.errors import StorageError
from chat_bridge.model import Turn, TurnOutcome, new_message_id
from chat_bridge.platforms.contract import Platform
from chat_bridge.settings import Settings
from chat_bridge.storage import sessions, turns
from chat_bridge.storage.store import Store
from chat_bridge.storage.turns import Completed, Completion
from chat_bridge.telemetry import FIRST_TEXT_SECONDS, TURN_SECONDS, TURNS, log
from chat_bridge.texts import Texts

COMPLETE_RETRY_SECONDS = 0.5
LONGEST_ANSWER = 1_000_000  # characters; an agent that writes more is stopped
SHOWN_PER_SECOND = 200_000  # characters


@dataclass(slots=True)
class Draft:
    """What a turn has come to so far."""

    outcome: TurnOutcome | None = None
    text: str = ""
    request_id: str | None = None
    usage: Mapping[str, Any] | None = None
    error: str | None = None
    approval: Approval | None = None
    notice: bool = False
    new_session: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Answerer:
    """Turns a claimed turn into a stored and delivered reply."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        platforms: Mapping[str, Platform],
        agent: Agent,
        deliverer: Deliverer,
        texts: Texts,
    ) -> None:
        self._settings = settings
        self._store = store
        self._platforms = platforms
        self._agent = agent
        self._deliverer = deliverer
        self._texts = texts

    async def answer(self, running: Running) -> None:
        """Answer a turn to its end. Whatever the agent does, the turn gets a final state and the user a text."""
        turn, began, draft = running.turn, time.monotonic(), Draft()
        platform = self._platforms[turn.address.platform]
        log.info("turn.claimed", messages=len(turn.messages), **_ids(turn))
        async with _typing(platform, turn):
            if turn.messages[-1].is_command:
                await self._obey(turn, draft)
            else:
                await running.call(self._ask(turn, draft, platform), f"agent:{turn.id}")
        if running.stopped in ("superseded", "handed_back", "lost"):
            await self._give_back(running, platform)
            return
        if running.stopped == "cancelled":
            draft.outcome = TurnOutcome.CANCELLED
        completion = self._completion(turn, draft, platform)
        untold = completion.text if completion.error_text else None
        try:
            completed = await self._complete(completion, draft.new_session)
            self._tell(completion, completed, time.monotonic() - began)
            if completed is not None and completed.seq is not None and completion.message_id is not None:
                untold = None
                await self._deliverer.deliver(
                    turn.conversation_id,
                    turn.address,
                    completion.message_id,
                    completed.seq,
                    platform.split(completion.text),
                    completed.idempotency_keys,
                )
        finally:
            await platform.show_end(turn, completion.outcome, untold)

    def _tell(self, completion: Completion, completed: Completed | None, seconds: float) -> None:
        TURN_SECONDS.labels(self._agent.name).observe(seconds)
        TURNS.labels(self._agent.name, completion.outcome.value).inc()
        # Only the operator can mend these.
        ours = completion.outcome in (TurnOutcome.UNAUTHORIZED, TurnOutcome.NOT_FOUND)
        log.log(
            logging.ERROR if ours else logging.INFO,
            "turn.completed" if completed else "turn.superseded",
            outcome=completion.outcome.value,
            milliseconds=round(seconds * 1000),
            **_ids(completion.turn),
            **({"request": completion.agent_request_id} if completion.agent_request_id else {}),
            **({"reason": completion.error} if completion.error else {}),
        )

    async def _ask(self, turn: Turn, draft: Draft, platform: Platform) -> None:
        try:
            async with asyncio.timeout(self._settings.turn_timeout_seconds), _showing(platform, turn, draft):
                await self._read(turn, draft)
        except AgentError as error:
            draft.outcome, draft.error = error.outcome, error.detail
        except TimeoutError:
            draft.outcome = TurnOutcome.TIMEOUT
            draft.error = f"the agent was still answering after {self._settings.turn_timeout_seconds:g} s"
        except Exception as error:  # noqa: BLE001 - whatever an agent does, its turn ends
            log.exception("agent.crashed", agent=self._agent.name, **_ids(turn))
            draft.outcome, draft.error = TurnOutcome.ERROR, type(error).__name__

    async def _read(self, turn: Turn, draft: Draft) -> None:
        async with aclosing(self._agent.answer(self._request(turn))) as events:
            async for event in events:
                match event:
                    case Started():
                        draft.request_id = event.request_id
                    case TextDelta():
                        if not draft.text:
                            waited = time.time() - turn.messages[0].created_at.timestamp()
                            FIRST_TEXT_SECONDS.labels(self._agent.name).observe(max(0.0, waited))
                        draft.text += event.text
                        draft.changed.set()
                        if len(draft.text) > LONGEST_ANSWER:
                            draft.text, draft.outcome = draft.text[:LONGEST_ANSWER], TurnOutcome.TRUNCATED
                            return
                    case Finished():
                        draft.outcome, draft.usage = event.outcome, event.usage
                        draft.approval, draft.error = event.approval, event.detail
        if draft.outcome is None:
            raise AgentError(TurnOutcome.ERROR, "the agent ended without saying that it had finished")

    def _request(self, turn: Turn) -> AgentRequest:
        last = turn.messages[-1]
        group = bool(last.metadata.get("group"))
        owner = turn.address.conversation if group else turn.user_id or last.sender_id
        waiting: Mapping[str, Any] | None = turn.metadata.get("approval")
        return AgentRequest(
            session=str(turn.session_id),
            resource=f"{turn.address.platform}:{turn.address.account}:{owner}",
            messages=[
                AgentMessage(
                    str(message.id), message.text, (message.sender_name or message.sender_id) if group else None
                )
                for message in turn.messages
            ],
            context={"channel": turn.address.platform}
            | ({"user_name": last.sender_name} if last.sender_name and not group else {}),
            pending_approval=Approval(**waiting) if waiting else None,
        )

    async def _obey(self, turn: Turn, draft: Draft) -> None:
        command = turn.messages[-1].text
        draft.outcome, draft.notice = TurnOutcome.ANSWERED, True
        match command:
            case "/new":
                draft.text, draft.new_session = self._texts.say("new"), True
            case "/stop":
                draft.text = self._texts.say("stopped")
            case "/status":
                began, messages = await sessions.active_session(self._store.database, turn.conversation_id) or (None, 0)
                draft.text = self._texts.say(
                    "status",
                    began=began.strftime("%Y-%m-%d %H:%M UTC") if began else "-",
                    messages=messages,
                    agent=self._agent.name,
                )
            case _:
                draft.text = self._texts.say(command.removeprefix("/"))

    def _completion(self, turn: Turn, draft: Draft, platform: Platform) -> Completion:
        """The words and the record for how the turn ended."""
        outcome = draft.outcome or TurnOutcome.ERROR
        if outcome is TurnOutcome.ANSWERED and not draft.text.strip():
            outcome = TurnOutcome.EMPTY
        failed = outcome.turn_status == "failed"
        match outcome:
            case TurnOutcome.ANSWERED | TurnOutcome.CANCELLED:
                text = draft.text
            case TurnOutcome.TRUNCATED:
                text = f"{draft.text}\n\n{self._texts.say('truncated')}".strip()
            case TurnOutcome.APPROVAL:
                tool = draft.approval.tool_name if draft.approval else "?"
                text = f"{draft.text}\n\n{self._texts.say('approval', tool=tool)}".strip()
            case _:
                text = self._texts.say(outcome.value)
        notice = draft.notice or failed or outcome in (TurnOutcome.EMPTY, TurnOutcome.BLOCKED)
        metadata: dict[str, Any] = {}
        if notice:
            metadata["notice"] = turn.messages[-1].text if draft.notice else outcome.value
        if outcome is TurnOutcome.CANCELLED:
            metadata["partial"] = True
        return Completion(
            turn=turn,
            outcome=outcome,
            text=text,
            message_id=new_message_id() if text.strip() else None,
            content_type="notice" if notice else "text",
            parts=len(platform.split(text)) if text.strip() else 0,
            error_text=failed,
            error=draft.error,
            agent_request_id=draft.request_id,
            usage=draft.usage,
            metadata=metadata,
            session_metadata=_approval_left(turn, draft, outcome),
        )

    async def _complete(self, completion: Completion, new_session: bool) -> Completed | None:
        """Commit, trying for as long as the lease may last: the answer is paid for. A commit whose answer was lost
        looks like a lost turn; the reply is then sent by the sweep."""
        deadline = time.monotonic() + self._settings.lease_seconds
        while True:
            try:
                return await self._store.complete(completion, follow_with_new_session=new_session)
            except StorageError as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("turn.not_stored_yet", reason=str(error), **_ids(completion.turn))
                await asyncio.sleep(COMPLETE_RETRY_SECONDS)

    async def _give_back(self, running: Running, platform: Platform) -> None:
        turn = running.turn
        log.info("turn.given_back", reason=running.stopped, **_ids(turn))
        TURNS.labels(self._agent.name, TurnOutcome.SUPERSEDED.value).inc()
        if running.stopped != "lost":
            await turns.supersede(self._store.database, turn.conversation_id, running.stopped or "stopped", turn.id)
        await platform.show_end(turn, TurnOutcome.SUPERSEDED, None)


def _approval_left(turn: Turn, draft: Draft, outcome: TurnOutcome) -> Mapping[str, Any] | None:
    if draft.approval is not None:
        return {"approval": asdict(draft.approval)}
    # Commands don't reach the agent, and a call that failed may have declined nothing.
    declined = turn.metadata.get("approval") and not draft.notice and outcome.turn_status == "done"
    return {"approval": None} if declined else None


def _ids(turn: Turn) -> dict[str, str]:
    return {
        "turn": str(turn.id),
        "conversation": str(turn.conversation_id),
        "session": str(turn.session_id),
        "message": str(turn.messages[-1].id),
    }


@asynccontextmanager
async def _typing(platform: Platform, turn: Turn) -> AsyncGenerator[None]:
    """Show that somebody is writing, again and again where a platform forgets it."""

    async def show() -> None:
        await platform.show_typing(turn)
        while platform.capabilities.typing_seconds > 0:
            await asyncio.sleep(platform.capabilities.typing_seconds)
            await platform.show_typing(turn)

    async with _beside(show()):
        yield


@asynccontextmanager
async def _showing(platform: Platform, turn: Turn, draft: Draft) -> AsyncGenerator[None]:
    """Show the answer as it grows: the first text at once, then at most once an edit interval. Reading the agent never
    waits for showing."""

    async def show() -> None:
        while True:
            await draft.changed.wait()
            draft.changed.clear()
            await platform.show_partial(turn, draft.text)
            # Each time the whole text goes to Redis: less often as it grows.
            await asyncio.sleep(platform.capabilities.min_edit_interval + len(draft.text) / SHOWN_PER_SECOND)

    async with _beside(show()):
        yield


@asynccontextmanager
async def _beside(work: Any) -> AsyncGenerator[None]:
    """Run something that only shows: whatever becomes of it, the turn goes on."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("turn.not_shown", reason=type(error).__name__)
