"""The Mastra agent against a real Mastra server; for faults a real one can't make, against raw bytes."""

import asyncio
import base64
import json
import re
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from chat_bridge.agents.contract import (
    AgentError,
    AgentEvent,
    AgentFile,
    AgentMessage,
    AgentRequest,
    Approval,
    Finished,
    Started,
    TextDelta,
)
from chat_bridge.agents.mastra import MastraAgent
from chat_bridge.model import TurnOutcome
from tests.mastra import MastraServer, running_mastra

# The fixtures may install the packages of the server first, which takes as long as the network takes.
pytestmark = pytest.mark.timeout(120, func_only=True)


@pytest.fixture(autouse=True)
def _no_waiting_between_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_bridge.agents.mastra.RETRY_SECONDS", (0.0, 0.0))


@asynccontextmanager
async def connected(
    endpoint: str,
    agent_id: str = "echo",
    *,
    api_key: str | None = None,
    timeout_ms: int = 30_000,
    total_seconds: float = 60,
) -> AsyncGenerator[MastraAgent]:
    agent = MastraAgent(
        endpoint, agent_id, api_key=api_key, headers={}, timeout_ms=timeout_ms, total_seconds=total_seconds
    )
    try:
        yield agent
    finally:
        await agent.aclose()


def message(text: str, author: str | None = None, files: Sequence[AgentFile] = ()) -> AgentMessage:
    return AgentMessage(id=str(uuid4()), text=text, author=author, files=files)


def turn(*messages: AgentMessage | str, session: str | None = None, **more: Any) -> AgentRequest:
    """A request of these messages, in a new session unless one is given."""
    return AgentRequest(
        session=session or str(uuid4()),
        resource=more.pop("resource", "user"),
        messages=[message(item) if isinstance(item, str) else item for item in messages],
        **more,
    )


@dataclass
class Said:
    """What came out of one call."""

    events: list[AgentEvent] = field(default_factory=list[AgentEvent])
    error: AgentError | None = None

    @property
    def deltas(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, TextDelta)]

    @property
    def text(self) -> str:
        return "".join(self.deltas)

    @property
    def finished(self) -> Finished:
        assert self.error is None, self.error
        last = self.events[-1]
        assert isinstance(last, Finished)
        return last

    @property
    def outcome(self) -> TurnOutcome:
        return self.error.outcome if self.error is not None else self.finished.outcome


async def ask(agent: MastraAgent, request: AgentRequest) -> Said:
    said = Said()
    try:
        async for event in agent.answer(request):
            said.events.append(event)
    except AgentError as error:
        said.error = error
    starts = [event for event in said.events if isinstance(event, Started)]
    assert len(starts) <= 1
    assert said.events[: len(starts)] == starts
    return said


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# Against a real server


async def test_an_answer_streams_in_pieces_that_add_up(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint) as agent:
        said = await ask(agent, turn("xin chào 👋🏽"))
    assert agent.name == "mastra:echo"
    assert isinstance(said.events[0], Started)
    assert said.events[0].request_id
    assert said.deltas == ["I remember 1 of your messages.", " ", "The last one: ", "xin chào 👋🏽"]
    assert said.finished.outcome is TurnOutcome.ANSWERED
    assert said.finished.usage is not None
    assert said.finished.usage["totalTokens"] == 8


async def test_a_session_remembers_and_a_new_one_forgets(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint) as agent:
        await ask(agent, turn("one", session="remembering"))
        assert (await ask(agent, turn("two", session="remembering"))).text.startswith("I remember 2 ")
        assert (await ask(agent, turn("three", session="another"))).text.startswith("I remember 1 ")


async def test_a_session_remembers_over_a_restart_of_the_server() -> None:
    async with running_mastra() as server, connected(server.endpoint) as agent:
        await ask(agent, turn("one", session="s"))
        await server.kill()
        assert (await ask(agent, turn("two", session="s"))).outcome is TurnOutcome.UNREACHABLE
        await server.start()
        assert (await ask(agent, turn("three", session="s"))).text.startswith("I remember 2 ")


async def test_a_session_of_somebody_else_is_refused(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint) as agent:
        await ask(agent, turn("mine", session="private", resource="ann"))
        said = await ask(agent, turn("mine?", session="private", resource="bob"))
    assert said.outcome is TurnOutcome.ERROR
    assert "another resource" in str(said.error)


async def test_all_messages_of_a_turn_arrive_with_their_authors(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint) as agent:
        await ask(agent, turn(message("hello all", author="Ann"), message("who else?", author="Bob\nAnn: ")))
    call = await mastra.event("call", users=["Ann: hello all", "Bob Ann:: who else?"])
    assert call["agent"] == "echo"


async def test_the_context_reaches_the_server(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint) as agent:
        await ask(agent, turn("in context", context={"platform": "telegram"}))
    call = await mastra.event("call", users=["in context"])
    assert call["context"]["platform"] == "telegram"


async def test_files_arrive_with_their_types(mastra: MastraServer) -> None:
    files = [
        AgentFile("image/png", b"\x89PNG\r\n\x1a\n"),
        AgentFile("application/pdf", b"%PDF-1.7", name="a.pdf"),
        AgentFile("audio/ogg; codecs=opus", b"OggS"),
    ]
    async with connected(mastra.endpoint, "image") as agent:
        assert (await ask(agent, turn(message("look", files=files)))).text == "image/png, application/pdf, audio/ogg"
        assert (await ask(agent, turn(message("", files=files[:1])))).text == "image/png"


async def test_the_bytes_of_files_arrive_and_are_remembered_once(mastra: MastraServer) -> None:
    photo, report = AgentFile("image/jpeg", bytes(70_000), name="a.jpg"), AgentFile("application/pdf", b"%PDF", "b.pdf")
    async with connected(mastra.endpoint, "flaky-files") as agent:
        said = await ask(agent, turn(message("look", files=[photo, report]), session="files"))
        assert said.text == "look | image/jpeg 70000 - | application/pdf 4 b.pdf | 2 in all"
        assert (await ask(agent, turn("and now?", session="files"))).text == "and now? | 2 in all"


async def test_files_of_ten_megabytes_arrive(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "files") as agent:
        said = await ask(agent, turn(message("look", files=[AgentFile("image/png", bytes(10 * 2**20))])))
        assert said.text == f"look | image/png {10 * 2**20} - | 1 in all"


async def test_files_are_needed_until_no_retry_can_follow(mastra: MastraServer) -> None:
    files, dropped = [AgentFile("image/jpeg", b"123")], list[int]()

    def drop() -> None:
        files.clear()
        dropped.append(1)

    async with connected(mastra.endpoint, "flaky-files") as agent:
        said = await ask(agent, turn(message("look", files=files), session="needed", files_sent=drop))
    assert said.text.startswith("look | image/jpeg 3 -")
    assert dropped == [1]


async def test_a_file_without_a_text(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "files") as agent:
        files = [AgentFile("image/png", b"123")]
        assert (await ask(agent, turn(message("", files=files)))).text == "no text | image/png 3 - | 1 in all"
        assert (
            await ask(agent, turn(message("", author="Ann", files=files)))
        ).text == "Ann:  | image/png 3 - | 1 in all"


async def test_text_files_arrive(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "files") as agent:
        files = [AgentFile("text/plain", "xin chào".encode(), "ả\n.txt"), AgentFile("text/csv", b"a,b")]
        said = await ask(agent, turn(message("read", files=files)))
    assert said.text == "read | text/plain 9 ả\n.txt | text/csv 3 - | 2 in all"


async def test_the_model_makes_files_in_all_forms(mastra: MastraServer) -> None:
    png = base64.b64encode(bytes(range(256)) * 1000).decode()
    lines = [
        *("say Look:", f"base64 image/png {png}", "bytes image/gif 0,1,255", "data text/csv data:text/csv;base64,YSxi"),
        *("say And:", "url image/png https://example.com/a.png", "url image/png file:///etc/passwd", "say Done."),
    ]
    async with connected(mastra.endpoint, "making") as agent:
        said = await ask(agent, turn("\n".join(lines)))
    assert [event for event in said.events if isinstance(event, AgentFile)] == [
        AgentFile("image/png", bytes(range(256)) * 1000),
        AgentFile("image/gif", bytes([0, 1, 255])),
        AgentFile("text/csv", b"a,b"),
        AgentFile("image/png", b""),  # nothing is read from elsewhere
    ]
    assert said.text == "Look:\n\nAnd:\n\nhttps://example.com/a.png\n\nDone."
    assert said.outcome is TurnOutcome.ANSWERED


async def test_a_run_that_has_made_a_file_is_not_run_again(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "making") as agent:
        said = await ask(agent, turn("base64 text/plain aGk=\nfail"))
    assert [event for event in said.events if isinstance(event, AgentFile)] == [AgentFile("text/plain", b"hi")]
    assert said.outcome is TurnOutcome.ERROR


async def test_a_model_that_takes_no_files_fails_for_good(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "blind") as agent:
        said = await ask(agent, turn(message("look", files=[AgentFile("image/png", b"123")]), session="blind"))
        assert (said.outcome, str(said.error)) == (
            TurnOutcome.ERROR,
            "the model failed (AI_APICallError, HTTP 400)",
        )
        calls = [event["users"] for event in mastra.events if event.get("agent") == "blind"]
        assert len(calls) == 1  # it was not tried again
        # Mastra remembers the file, and gives it to the model with each message that follows.
        assert (await ask(agent, turn("hello", session="blind"))).outcome is TurnOutcome.ERROR
        assert (await ask(agent, turn("hello", session="another"))).outcome is TurnOutcome.ANSWERED


async def test_texts_around_a_tool_call_are_paragraphs(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "tool") as agent:
        said = await ask(agent, turn("weather?"))
    assert said.text == "Let me look.\n\nIt is sunny."
    assert said.outcome is TurnOutcome.ANSWERED


@pytest.mark.parametrize(
    ("agent_id", "outcome", "text"),
    [
        ("length", TurnOutcome.TRUNCATED, "Once upon a"),
        ("empty", TurnOutcome.ANSWERED, ""),
        ("blocked", TurnOutcome.BLOCKED, ""),
        ("big", TurnOutcome.ANSWERED, "That was a lot."),  # with a line of 9 MB
    ],
)
async def test_other_ways_to_end(mastra: MastraServer, agent_id: str, outcome: TurnOutcome, text: str) -> None:
    async with connected(mastra.endpoint, agent_id) as agent:
        said = await ask(agent, turn("go"))
    assert said.finished.outcome is outcome
    assert said.text == text
    assert isinstance(said.events[0], Started)


async def test_a_failure_of_the_model_tells_no_secrets(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "failing") as agent:
        said = await ask(agent, turn("hello"))
    assert [type(event) for event in said.events] == [Started]
    assert said.outcome is TurnOutcome.ERROR
    assert str(said.error) == "the model failed (AI_APICallError, HTTP 401)"


async def test_a_retry_stores_the_message_once(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "flaky") as agent:
        said = await ask(agent, turn("try this", session="flaky"))
        assert said.text == "I remember 1 of your messages. The last one: try this"
        assert (await ask(agent, turn("and this", session="flaky"))).text.startswith("I remember 2 ")
    calls = [event["users"] for event in mastra.events if event.get("agent") == "flaky"]
    assert calls == [["try this"]] * 2 + [["try this", "and this"]] * 2


async def test_a_tool_call_waits_for_approval_and_is_declined_by_the_next_message(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "approval") as agent:
        waiting = await ask(agent, turn("delete it", session="approval"))
        approval = waiting.finished.approval
        assert waiting.finished.outcome is TurnOutcome.APPROVAL
        assert approval is not None
        assert (approval.tool_name, approval.args) == ("delete", {"what": "delete it"})
        assert isinstance(waiting.events[0], Started)
        assert waiting.events[0].request_id == approval.run_id

        said = await ask(agent, turn("go on", session="approval", pending_approval=approval))
        assert said.text == "I remember 2 of your messages. The last one: go on"
        calls = [event["users"] for event in mastra.events if event.get("agent") == "approval"]
        assert calls == [["delete it"], ["delete it"], ["delete it", "go on"]]  # the second one reacts to the no


async def test_an_approval_that_was_decided_elsewhere_does_not_disturb(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "approval") as agent:
        gone = Approval(run_id="gone", tool_call_id="gone", tool_name="delete")
        assert (await ask(agent, turn("hello", pending_approval=gone))).text.startswith("I remember 1 ")


async def test_an_unknown_agent_and_an_unknown_api_are_not_found(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "no/such?agent") as agent:
        said = await ask(agent, turn("hello"))
        assert (said.outcome, str(said.error)) == (
            TurnOutcome.NOT_FOUND,
            "Mastra has no agent 'no/such?agent' (HTTP 404)",
        )
    async with connected(mastra.endpoint.removesuffix("/api")) as agent:
        said = await ask(agent, turn("hello"))
        assert (said.outcome, str(said.error)) == (
            TurnOutcome.NOT_FOUND,
            "there is no Mastra API at MASTRA_ENDPOINT (HTTP 404)",
        )


@pytest.mark.parametrize(
    ("key", "outcome"),
    [("right", TurnOutcome.ANSWERED), ("wrong", TurnOutcome.UNAUTHORIZED), (None, TurnOutcome.UNAUTHORIZED)],
)
async def test_only_the_right_key_opens(guarded_mastra: MastraServer, key: str | None, outcome: TurnOutcome) -> None:
    async with connected(guarded_mastra.endpoint, api_key=key) as agent:
        said = await ask(agent, turn("hello"))
    assert said.outcome is outcome
    assert "wrong" not in str(said.error)


async def test_a_server_killed_midway_is_an_error() -> None:
    async with running_mastra() as server, connected(server.endpoint, "slow") as agent:
        events = agent.answer(turn("1000 words, 20 apart"))
        async for event in events:
            if isinstance(event, TextDelta):
                break
        await server.kill()
        with pytest.raises(AgentError) as failure:
            async for _ in events:
                pass
    assert failure.value.outcome is TurnOutcome.ERROR


async def test_closing_the_answer_cancels_the_run(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "slow") as agent:
        async with aclosing(agent.answer(turn("1000 words, 20 apart, then closed"))) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        await mastra.event("abort", last="1000 words, 20 apart, then closed")


async def test_cancelling_the_task_cancels_the_run(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "slow") as agent:
        task = asyncio.create_task(ask(agent, turn("wait 60000, then cancelled")))
        await mastra.event("call", users=["wait 60000, then cancelled"])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await mastra.event("abort", last="wait 60000, then cancelled")


async def test_a_response_that_does_not_begin_in_time_is_a_timeout(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "slow", timeout_ms=100) as agent:
        said = await ask(agent, turn("prepare 60000"))
    assert said.outcome is TurnOutcome.TIMEOUT


async def test_an_answer_that_takes_too_long_is_a_timeout(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "slow", total_seconds=1) as agent:
        said = await ask(agent, turn("1000 words, 100 apart"))
    assert said.outcome is TurnOutcome.TIMEOUT


async def test_a_slow_model_is_no_slow_response(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint, "slow", timeout_ms=1500) as agent:
        assert (await ask(agent, turn("wait 2000, 2 words, 0 apart"))).text == "1 2 "


async def test_no_server_is_unreachable() -> None:
    async with connected(f"http://127.0.0.1:{unused_port()}/api") as agent:
        assert (await ask(agent, turn("hello"))).outcome is TurnOutcome.UNREACHABLE


async def test_check_says_what_to_do(mastra: MastraServer, guarded_mastra: MastraServer) -> None:
    async def check(endpoint: str, agent_id: str = "echo", api_key: str | None = None) -> str:
        async with connected(endpoint, agent_id, api_key=api_key) as agent:
            return await agent.check() or "fine"

    assert await check(mastra.endpoint) == "fine"
    assert await check(f"{mastra.endpoint}/") == "fine"
    assert await check(mastra.endpoint, "echoAgent") == "fine"  # Mastra also knows it by its name in the code
    assert await check(guarded_mastra.endpoint, api_key="right") == "fine"

    assert await check(mastra.endpoint, "nobody") == (
        f"Mastra at {mastra.endpoint} has no agent 'nobody': set MASTRA_AGENT_ID to one that it has "
        "(approval, big, blind, blocked, echo, empty, failing, files, flaky, flaky-files, forgetful, image, knowing, "
        "length, making, slow, tool)."
    )
    assert await check(guarded_mastra.endpoint) == (
        f"Mastra at {guarded_mastra.endpoint} asks for a key (HTTP 401): correct MASTRA_API_KEY."
    )
    assert await check(guarded_mastra.endpoint, api_key="wrong") == (
        f"Mastra at {guarded_mastra.endpoint} refuses the key (HTTP 401): correct MASTRA_API_KEY."
    )
    root = mastra.endpoint.removesuffix("/api")
    assert await check(root) == (
        f"There is no Mastra API at {root} (HTTP 404): correct MASTRA_ENDPOINT (it usually ends in /api)."
    )
    port = unused_port()
    assert await check(f"http://ann:secret@127.0.0.1:{port}/api") == (
        f"No Mastra server answers at http://127.0.0.1:{port}/api: start it, or correct MASTRA_ENDPOINT."
    )


# Against raw bytes


HANG = b""  # a piece that never comes: the server waits until the client goes away
Reply = Sequence[bytes | asyncio.Event]


@dataclass
class Wire:
    """What the raw server was sent."""

    endpoint: str
    bodies: list[Any] = field(default_factory=list[Any])
    paths: list[str] = field(default_factory=list[str])


@asynccontextmanager
async def wire(*replies: Reply) -> AsyncGenerator[Wire]:
    """A server that gives its nth request the nth reply, as it is, and closes. An Event holds back what follows."""
    waiting = iter(replies)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        seen.paths.append(head.split()[1])
        if length := re.search(r"content-length: (\d+)", head, re.IGNORECASE):
            seen.bodies.append(json.loads(await reader.readexactly(int(length[1]))))
        for piece in next(waiting):
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif piece == HANG:
                await reader.read()
            else:
                writer.write(piece)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    seen = Wire(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api")
    async with server:
        yield seen


def head(status: str, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


STREAM = head("200 OK", content_type="text/event-stream")


def chunk(kind: str, **payload: Any) -> bytes:
    return f"data: {json.dumps({'type': kind, 'runId': 'run', 'payload': payload}, ensure_ascii=False)}\n\n".encode()


def delta(text: str) -> bytes:
    return chunk("text-delta", text=text)


def failure(**error: Any) -> bytes:
    return chunk("error", error={"name": "AI_APICallError", "message": "boom", **error})


START = chunk("start")
FINISH = chunk("finish", stepResult={"reason": "stop"})
DONE = b"data: [DONE]\n\n"
GOOD = (STREAM, START, delta("good"), FINISH, DONE)


async def ask_wire(*replies: Reply, **options: Any) -> tuple[Said, Wire]:
    async with wire(*replies) as server, connected(server.endpoint, **options) as agent:
        return await ask(agent, turn("hello")), server


@pytest.mark.parametrize(
    "replies",
    [
        ((head("502 Bad Gateway"),), GOOD),
        ((head("503 Service Unavailable", retry_after="0"),), (head("502 Bad Gateway"),), GOOD),
        ((STREAM, START, failure(isRetryable=True, responseHeaders={"retry-after": "0"}), DONE), GOOD),
    ],
)
async def test_what_may_pass_is_tried_again_with_the_same_message_ids(replies: tuple[Reply, ...]) -> None:
    said, server = await ask_wire(*replies)
    assert said.text == "good"
    assert len(server.bodies) == len(replies)
    assert all(body == server.bodies[0] for body in server.bodies)


async def test_it_tries_three_times_at_most() -> None:
    said, server = await ask_wire(*[(head("503 Service Unavailable"),)] * 4)
    assert said.outcome is TurnOutcome.ERROR
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ((head("503 Service Unavailable", retry_after="3600"),), TurnOutcome.ERROR),  # too long to wait
        ((head("500 Internal Server Error"),), TurnOutcome.ERROR),
        ((head("413 Payload Too Large"),), TurnOutcome.ERROR),
        ((head("403 Forbidden"),), TurnOutcome.UNAUTHORIZED),
        ((head("307 Temporary Redirect", location="/api/elsewhere"),), TurnOutcome.ERROR),
        ((), TurnOutcome.UNREACHABLE),  # closes without a response
        ((b"not HTTP at all\r\n\r\n",), TurnOutcome.ERROR),
        ((head("200 OK", content_type="text/html"), b"<html>"), TurnOutcome.ERROR),
        ((STREAM,), TurnOutcome.ERROR),
        ((STREAM, START, delta("half"), failure(isRetryable=True)), TurnOutcome.ERROR),  # would say it twice
        ((STREAM, START, chunk("tool-call"), failure(isRetryable=True)), TurnOutcome.ERROR),  # would do it twice
        ((STREAM, START, failure()), TurnOutcome.ERROR),
        ((STREAM, START, chunk("error")), TurnOutcome.ERROR),
        ((STREAM, START, chunk("finish", stepResult={"reason": "error"})), TurnOutcome.ERROR),
        ((STREAM, START, delta("half")), TurnOutcome.ERROR),  # no finish, no [DONE]
        ((STREAM, START, delta("half"), DONE), TurnOutcome.ERROR),
        ((STREAM, START, delta("half"), b"data: {oops\n\n", FINISH), TurnOutcome.ERROR),
        ((STREAM, START, delta("half"), b'data: {"type": "fin'), TurnOutcome.ERROR),
    ],
)
async def test_what_fails_once_and_for_all(reply: Reply, outcome: TurnOutcome) -> None:
    said, server = await ask_wire(reply)
    assert said.outcome is outcome
    assert len(server.bodies) == 1


async def test_a_response_cut_within_its_http_chunk_is_an_error() -> None:
    said, _ = await ask_wire((head("200 OK", content_type="text/event-stream", transfer_encoding="chunked"), b"ff\r\n"))
    assert said.outcome is TurnOutcome.ERROR


async def test_a_broken_end_after_the_finish_does_no_harm() -> None:
    chunked = head("200 OK", content_type="text/event-stream", transfer_encoding="chunked")
    pieces = (START, delta("good"), FINISH)
    said, _ = await ask_wire((chunked, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)))
    assert (said.text, said.outcome) == ("good", TurnOutcome.ANSWERED)


async def test_a_content_filter_blocks() -> None:
    said, _ = await ask_wire((STREAM, START, chunk("finish", stepResult={"reason": "content-filter"}), DONE))
    assert said.outcome is TurnOutcome.BLOCKED


async def test_comments_other_fields_crlf_and_unknown_chunks_are_no_trouble() -> None:
    lines = b": connected\n\nevent: message\nid: 1\n\n" + START + chunk("surprise") + delta("good") + FINISH + DONE
    for reply in (lines, lines.replace(b"\n", b"\r\n"), lines.replace(b"data: ", b"data:")):
        said, _ = await ask_wire((STREAM, reply))
        assert (said.text, said.outcome) == ("good", TurnOutcome.ANSWERED)


async def test_a_character_may_be_cut_anywhere() -> None:
    character = "👋".encode()
    before, after = delta("x👋y").split(character)
    for cut in range(1, len(character)):
        gate = asyncio.Event()
        pieces = (STREAM, START, delta("first ") + before + character[:cut], gate, character[cut:] + after, FINISH)
        said = Said()
        async with wire(pieces) as server, connected(server.endpoint) as agent:
            async for event in agent.answer(turn("hello")):
                said.events.append(event)
                if isinstance(event, TextDelta):
                    gate.set()  # the first piece is read, and half a character with it
        assert said.text == "first x👋y"


async def test_halves_of_a_surrogate_pair_meet_and_a_lone_one_does_no_harm() -> None:
    halves = rb'data: {"type": "text-delta", "payload": {"text": "a\ud83d"}}' + b"\n\n"
    halves += rb'data: {"type": "text-delta", "payload": {"text": "\udc4bb\udc4bc"}}' + b"\n\n"
    said, _ = await ask_wire((STREAM, START, halves, FINISH))
    assert said.text == "a👋b\ufffdc"


async def test_silence_before_the_response_is_a_timeout() -> None:
    said, server = await ask_wire((HANG,), timeout_ms=100)
    assert said.outcome is TurnOutcome.TIMEOUT
    assert len(server.bodies) == 1


async def test_silence_in_the_middle_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_bridge.agents.mastra.SILENCE_SECONDS", 0.1)
    said, _ = await ask_wire((STREAM, START, delta("half"), HANG), timeout_ms=300)
    assert (said.text, said.outcome) == ("half", TurnOutcome.TIMEOUT)


async def test_silence_after_the_finish_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_bridge.agents.mastra.CLOSING_SECONDS", 0.1)
    said, _ = await ask_wire((STREAM, START, delta("good"), FINISH, HANG))
    assert (said.text, said.outcome) == ("good", TurnOutcome.ANSWERED)


async def test_a_redirect_is_not_followed() -> None:
    _, server = await ask_wire((head("307 Temporary Redirect", location="/api/elsewhere"),), GOOD)
    assert server.paths == ["/api/agents/echo/stream"]


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ([(head("500 Internal Server Error"),)], "is in trouble (HTTP 500)"),
        ([(b"SSH-2.0-OpenSSH\r\n",)], "is not a Mastra server"),
        ([(head("200 OK", content_type="text/html"), b"<html>")], "There is no Mastra API"),
        ([(head("404 Not Found"),), (head("302 Found", location="/login"),)], "There is no Mastra API"),
        ([(head("404 Not Found"),), (head("200 OK", content_type="application/json"), b"{")], "is not a Mastra server"),
    ],
)
async def test_check_of_strange_servers(replies: list[Reply], words: str) -> None:
    async with wire(*replies) as server, connected(server.endpoint) as agent:
        assert words in (await agent.check() or "fine")


async def test_check_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_bridge.agents.mastra.CHECK_SECONDS", 0.1)
    async with wire((HANG,)) as server, connected(server.endpoint) as agent:
        assert "No Mastra server answers" in (await agent.check() or "fine")


# Forgetting


async def answered(agent: MastraAgent, request: AgentRequest) -> str:
    async with aclosing(agent.answer(request)) as events:
        return "".join([event.text async for event in events if isinstance(event, TextDelta)])


async def test_a_session_is_forgotten(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint) as agent:
        session, other = str(uuid4()), str(uuid4())
        for each in (session, other):
            await answered(agent, turn("remember me", session=each))
        assert await agent.forget(session, "user")
        assert (await answered(agent, turn("and now?", session=session))).startswith("I remember 1 of your messages.")
        assert (await answered(agent, turn("and now?", session=other))).startswith("I remember 2 of your messages.")


async def test_there_may_be_nothing_to_forget(mastra: MastraServer) -> None:
    async with connected(mastra.endpoint) as agent:
        assert not await agent.forget(str(uuid4()), "user")
    async with connected(mastra.endpoint, "forgetful") as agent:
        assert not await agent.forget(str(uuid4()), "user")


async def test_what_it_knows_of_an_owner_is_forgotten(mastra: MastraServer) -> None:
    async def working_memory(session: str) -> object:
        query = {"agentId": "knowing", "resourceId": "ada"}
        url = f"{mastra.endpoint}/memory/threads/{session}/working-memory"
        async with aiohttp.ClientSession() as http, http.get(url, params=query) as response:
            return (await response.json())["workingMemory"]

    async with connected(mastra.endpoint, "knowing") as agent:
        one, two, three = (str(uuid4()) for _ in range(3))
        for session in (one, two, three):
            await answered(agent, turn("hello", session=session, resource="ada"))
        async with (
            aiohttp.ClientSession() as http,
            http.post(
                f"{mastra.endpoint}/memory/threads/{one}/working-memory?agentId=knowing",
                json={"workingMemory": "She likes tea.", "resourceId": "ada"},
            ) as response,
        ):
            assert response.status == 200
        assert await working_memory(two) == "She likes tea."
        assert await agent.forget(one, None)
        assert await working_memory(two) == "She likes tea.", "it is not of that session"
        assert await agent.forget(two, "ada")
        assert await working_memory(three) == " "


async def test_what_could_not_be_forgotten_is_told(guarded_mastra: MastraServer) -> None:
    async with connected(guarded_mastra.endpoint, api_key="wrong") as agent:
        with pytest.raises(AgentError, match=r"Mastra kept the thread \(HTTP 401\)"):
            await agent.forget(str(uuid4()), "user")
    async with connected("http://127.0.0.1:1/api") as agent:
        with pytest.raises(AgentError, match="Mastra can't be reached"):
            await agent.forget(str(uuid4()), "user")
