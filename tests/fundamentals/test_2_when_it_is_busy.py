"""Fundamentals, part 2: messages that arrive while an answer is being written.

The echo agent writes a word every 30 ms, so a long text keeps it busy.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from tests.bridge import BridgeProcess, Chat, visiting
from tests.observe import begun, give_policy, replies, statuses

LONG = "word " * 20 + "end"


@asynccontextmanager
async def busy_chat(bridge: BridgeProcess, policy: str) -> AsyncGenerator[Chat]:
    """A conversation in which an answer is being written, under a busy policy.

    BUSY_POLICY sets it for all conversations; an operator may give one session its own, as is done here.
    """
    async with visiting(bridge.url) as chat:
        await chat.send("/start")
        await chat.answered()
        await give_policy(bridge.url, chat, policy)
        await chat.send(LONG)
        await begun(chat)
        yield chat


async def test_collect_answers_all_of_them_together(bridge: BridgeProcess) -> None:
    # The default: what arrives meanwhile is one next turn.
    async with busy_chat(bridge, "collect") as chat:
        await chat.send("two")
        await chat.send("three")
        assert (await chat.until(7))[2:] == [f"> {LONG}", "> two", "> three", LONG, "two\n\nthree"]


async def test_followup_answers_one_after_the_other(bridge: BridgeProcess) -> None:
    async with busy_chat(bridge, "followup") as chat:
        await chat.send("two")
        await chat.send("three")
        assert (await chat.until(8))[5:] == [LONG, "two", "three"]


async def test_interrupt_begins_again_with_the_new_message(bridge: BridgeProcess) -> None:
    async with busy_chat(bridge, "interrupt") as chat:
        await chat.send("two")
        assert (await chat.until(5))[2:] == [f"> {LONG}", "> two", f"{LONG}\n\ntwo"]


async def test_latest_answers_only_the_newest_that_waits(bridge: BridgeProcess) -> None:
    async with busy_chat(bridge, "latest") as chat:
        await chat.send("two")
        await chat.send("three")
        messages = await chat.answered()
    # Nothing is dropped in silence: the one passed over is kept, with the reason.
    assert statuses(messages)[2:] == [("two", "skipped", "newer_message"), ("three", "answered", None)]
    assert replies(messages)[1:] == [LONG, "three"]


async def test_reject_says_so(bridge: BridgeProcess) -> None:
    async with busy_chat(bridge, "reject") as chat:
        await chat.send("two")
        await chat.until(6)
        messages = await chat.answered()
    assert statuses(messages)[2:] == [("two", "skipped", "busy")]
    assert replies(messages)[1:] == [
        "I am still answering your last message. Please write again when I am done.",
        LONG,
    ]


async def test_stop_ends_the_answer(bridge: BridgeProcess) -> None:
    async with busy_chat(bridge, "collect") as chat:
        # A command does not wait for the answer that it is about.
        await chat.send("/stop")
        messages = await chat.answered()
    assert statuses(messages)[1:] == [(LONG, "cancelled", "cancelled"), ("/stop", "answered", None)]
    # What was written so far is kept.
    partial, stopped = replies(messages)[1:]
    assert LONG.startswith(partial)
    assert partial != LONG
    assert stopped == "Stopped."
