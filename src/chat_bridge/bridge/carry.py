"""Carry: what a session that follows another one takes along is a summary, which the agent itself writes of the one
before."""

import asyncio
from contextlib import aclosing
from uuid import NAMESPACE_URL, uuid5

from chat_bridge.agents.contract import Agent, AgentError, AgentMessage, AgentRequest, TextDelta
from chat_bridge.model import Turn
from chat_bridge.storage import turns
from chat_bridge.storage.postgres import Database
from chat_bridge.telemetry import log
from chat_bridge.texts import Texts

SUMMARY_SECONDS = 30.0  # somebody waits for an answer
LONGEST_SUMMARY = 4000  # characters

_IDS = uuid5(NAMESPACE_URL, "https://chat-bridge.invalid/summary")


async def summary(
    database: Database, agent: Agent, texts: Texts, turn: Turn, request: AgentRequest
) -> AgentMessage | None:
    """What the first turn of a session tells the agent of the one before. None: there is nothing to tell. It is written
    once, and kept with the session, in case the turn does not reach its end. Raises StorageError."""
    before: str | None = turn.metadata.get("follows")
    if before is None or request.decision is not None:
        return None
    text: str | None = turn.metadata.get("summary")
    if text is None:
        text = await _written(agent, texts, before, request)
        await turns.note(database, turn, {"summary": text})
    return AgentMessage(str(uuid5(_IDS, f"of {turn.session_id}")), texts.say("summary", summary=text)) if text else None


async def _written(agent: Agent, texts: Texts, session: str, request: AgentRequest) -> str:
    """Empty when it could not be had: the conversation goes on without it."""
    # The same id at every try: the agent's memory has the question once.
    question = AgentMessage(str(uuid5(_IDS, f"ask {session}")), texts.say("summarise"))
    text = ""
    try:
        async with asyncio.timeout(SUMMARY_SECONDS):
            asked = AgentRequest(session, request.resource, [question], request.context)
            async with aclosing(agent.answer(asked)) as events:
                async for event in events:
                    text += event.text if isinstance(event, TextDelta) else ""
    except (AgentError, TimeoutError) as error:
        reason = error.detail if isinstance(error, AgentError) else f"no summary within {SUMMARY_SECONDS:g} s"
        log.warning("session.not_summarised", session=session, reason=reason)
        return ""
    return text.strip()[:LONGEST_SUMMARY]
