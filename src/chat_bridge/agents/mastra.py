"""An agent of a Mastra server, spoken to over HTTP.

A call is one POST; its response is a stream of lines `data: {json}`. HTTP 200 says only that the run began: whether it
succeeded is told by the chunks of the stream.
"""

import asyncio
import base64
import binascii
import codecs
import io
import json
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, cast
from urllib.parse import quote, urlsplit, urlunsplit

import aiohttp

from chat_bridge import tracing
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
from chat_bridge.model import TurnOutcome
from chat_bridge.telemetry import log

CONNECT_SECONDS = 5.0
CHECK_SECONDS = 5.0
MEMORY_SECONDS = 20.0
SILENCE_SECONDS = 120.0  # the least patience between two chunks: Mastra sends no heartbeats while a tool works
CLOSING_SECONDS = 10.0  # what the stream may still take to close when the run has ended
KEEP_ALIVE_SECONDS = 3.5  # Mastra closes idle connections after 5 s; a request on a closing one would be lost
RETRY_SECONDS = (0.5, 2.0)
RETRY_AFTER_LIMIT = 30.0  # who wants us to come back later than this gets no retry


class MastraAgent:
    """Answers with the agent `agent_id` of the Mastra server whose API is at `endpoint` (it ends in /api).

    `timeout_ms` is the time to the response's headers. Silence inside a response may last four times that, and two
    minutes at least. `total_seconds` caps a whole answer, retries included.
    """

    def __init__(
        self,
        endpoint: str,
        agent_id: str,
        *,
        api_key: str | None,
        headers: Mapping[str, str],
        timeout_ms: int,
        total_seconds: float,
    ) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._agent_id = agent_id
        self._agent_url = f"{self._endpoint}/agents/{quote(agent_id, safe='')}"
        self._has_key = api_key is not None
        self._headers = {**({"Authorization": f"Bearer {api_key}"} if api_key is not None else {}), **headers}
        self._headers_seconds = timeout_ms / 1000
        self._silence_seconds = max(SILENCE_SECONDS, 4 * timeout_ms / 1000)
        self._total_seconds = total_seconds
        self._session: aiohttp.ClientSession | None = None

    @property
    def name(self) -> str:
        """`mastra:` and the agent's id."""
        return f"mastra:{self._agent_id}"

    async def answer(self, request: AgentRequest) -> AsyncGenerator[AgentEvent]:
        """Stream the agent's answer.

        A run that failed before it said or did anything, for a reason that may pass, is tried again, twice at most,
        with the same message ids, so that Mastra stores each message once. `Started` waits until no retry can follow.
        A decision on a tool call is sent once: it may have been carried out though the connection broke.
        """
        deadline = _now() + self._total_seconds
        waiting = request.pending_approval
        if waiting is not None and request.decision is not None:
            action = "approve-tool-call" if request.decision else "decline-tool-call"
            async with aclosing(self._run(action, _json(_decision(waiting, request.context)), deadline)) as events:
                async for event in events:
                    yield event
            return
        if waiting is not None:
            await self._decline(waiting, request.context, deadline)
        data = _json(_body(request))
        for pause in (*RETRY_SECONDS, None):
            started: Started | None = None
            try:
                async with aclosing(self._run("stream", data, deadline)) as events:
                    async for event in events:
                        if isinstance(event, Started):
                            started = event
                            continue
                        if data:  # no retry can follow
                            data = b""
                            request.files_sent()
                        if started is not None:
                            yield started
                            started = None
                        yield event
                return
            except _RunError as error:
                wait = max(pause or 0, error.retry_after)
                if pause is None or not error.retryable or wait > RETRY_AFTER_LIMIT or _now() + wait >= deadline:
                    if started is not None:
                        yield started
                    raise
                log.info("agent.retry", agent=self.name, session=request.session, wait_seconds=wait, reason=str(error))
            await asyncio.sleep(wait)

    async def check(self) -> str | None:
        """Ask the server for the agent; see `Agent.check`."""
        shown = _without_secrets(self._endpoint)
        try:
            status, agent = await self._get(self._agent_url)
            if status == 200 and isinstance(agent, dict):
                return None
            if status == 404:
                status, agents = await self._get(f"{self._endpoint}/agents")
                if status == 200 and isinstance(agents, dict):
                    known = ", ".join(sorted(cast("dict[str, Any]", agents))) or "none"
                    return (
                        f"Mastra at {shown} has no agent {self._agent_id!r}: "
                        f"set MASTRA_AGENT_ID to one that it has ({known})."
                    )
        except (aiohttp.ClientConnectionError, TimeoutError):
            return f"No Mastra server answers at {shown}: start it, or correct MASTRA_ENDPOINT."
        except (aiohttp.ClientError, ValueError):
            return f"What answers at {shown} is not a Mastra server: correct MASTRA_ENDPOINT."
        if status in (401, 403):
            problem = "refuses the key" if self._has_key else "asks for a key"
            return f"Mastra at {shown} {problem} (HTTP {status}): correct MASTRA_API_KEY."
        if status >= 500:
            return f"Mastra at {shown} is in trouble (HTTP {status}): look into its own log."
        hint = "" if self._endpoint.endswith("/api") else " (it usually ends in /api)"
        return f"There is no Mastra API at {shown} (HTTP {status}): correct MASTRA_ENDPOINT{hint}."

    async def forget(self, session: str, resource: str | None) -> bool:
        """Delete the session's thread, and what working memory holds of its owner; see `Agent.forget`."""
        thread = f"{self._endpoint}/memory/threads/{quote(session, safe='')}"
        agent = {"agentId": self._agent_id}
        if resource is not None:
            owner = {**agent, "resourceId": resource}
            status, found = await self._memory("GET", f"{thread}/working-memory", owner)
            # It can be changed only while there is a thread, and not to the empty text.
            if status == 200 and _at(found, "source") == "resource" and _at(found, "workingMemory"):
                is_json = _at(_at(found, "workingMemoryTemplate"), "format") == "json"
                body = {"workingMemory": "{}" if is_json else " ", "resourceId": resource}
                status, _ = await self._memory("POST", f"{thread}/working-memory", agent, body)
                if status != 200:
                    raise _RunError(TurnOutcome.ERROR, f"Mastra kept its working memory (HTTP {status})")
        status, answer = await self._memory("DELETE", thread, agent)
        if status == 200:
            return True
        if status in (400, 404) and _at(answer, "error") in ("Thread not found", "Memory is not initialized"):
            return False
        raise _RunError(TurnOutcome.ERROR, f"Mastra kept the thread (HTTP {status})")

    async def _memory(
        self, method: str, url: str, query: Mapping[str, str], body: Mapping[str, str] | None = None
    ) -> tuple[int, object]:
        try:
            async with (
                asyncio.timeout(MEMORY_SECONDS),
                self._client().request(method, url, params=query, json=body, allow_redirects=False) as response,
            ):
                is_json = response.content_type == "application/json"
                return response.status, json.loads(await response.read()) if is_json else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _RunError(TurnOutcome.UNREACHABLE, f"Mastra can't be reached ({type(error).__name__})") from error

    async def aclose(self) -> None:
        """Close the idle connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _decline(self, approval: Approval, context: Mapping[str, str], deadline: float) -> None:
        """Say no to a waiting tool call, since a thread that waits for one can hang a new run without a word.

        Mastra lets its agent react to the no; what it says goes into its memory only. A failure is only logged: the
        call may have been decided elsewhere, and then the coming run works well.
        """
        try:
            data = _json(_decision(approval, context))
            async with aclosing(self._run("decline-tool-call", data, deadline)) as events:
                async for _ in events:
                    pass
        except AgentError as error:
            log.warning("agent.decline_failed", agent=self.name, run_id=approval.run_id, reason=str(error))

    async def _run(self, action: str, data: bytes, deadline: float) -> AsyncGenerator[AgentEvent]:
        reply = _Reply()
        lines = _Lines()
        response = await self._post(action, data, deadline)
        del data  # with files it can be large, and the answer takes its time
        try:
            # To the very end, past the chunk that decides: so Mastra has stored all, and the connection is free again.
            while piece := await self._read(response, reply.decided, deadline):
                for line in lines.feed(piece):
                    for event in reply.take(line):
                        yield event
        finally:
            response.close()
        yield reply.finished()

    async def _post(self, action: str, data: bytes, deadline: float) -> aiohttp.ClientResponse:
        headers = {"Content-Type": "application/json", **tracing.headers()}
        try:
            async with asyncio.timeout_at(min(deadline, _now() + self._headers_seconds)):
                # A file, for bytes would be written in one go.
                response = await self._client().post(
                    f"{self._agent_url}/{action}", data=io.BytesIO(data), headers=headers, allow_redirects=False
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            reason = f"no connection to Mastra ({type(error).__name__})"
            raise _RunError(TurnOutcome.UNREACHABLE, reason, retryable=True) from error
        except TimeoutError as error:
            raise _RunError(TurnOutcome.TIMEOUT, "Mastra did not begin its response in time") from error
        except aiohttp.ClientConnectionError as error:
            raise _RunError(TurnOutcome.UNREACHABLE, "Mastra closed the connection without a response") from error
        except aiohttp.ClientError as error:
            raise _RunError(TurnOutcome.ERROR, f"no HTTP with Mastra ({type(error).__name__})") from error
        if response.status == 200 and response.content_type == "text/event-stream":
            return response
        try:
            raise await self._refusal(response)
        finally:
            response.close()

    async def _refusal(self, response: aiohttp.ClientResponse) -> "_RunError":
        match response.status:
            case 200:
                return _RunError(TurnOutcome.ERROR, f"Mastra sent {response.content_type}, not an event stream")
            case 401:
                return _RunError(TurnOutcome.UNAUTHORIZED, "Mastra refused the key (HTTP 401)")
            case 403 if b"different resource" in await self._read(response, True, _now() + CLOSING_SECONDS):
                return _RunError(TurnOutcome.ERROR, "the memory thread belongs to another resource (HTTP 403)")
            case 403:
                return _RunError(TurnOutcome.UNAUTHORIZED, "Mastra refused the key (HTTP 403)")
            case 404 if response.content_type == "application/json":
                return _RunError(TurnOutcome.NOT_FOUND, f"Mastra has no agent {self._agent_id!r} (HTTP 404)")
            case 404:
                return _RunError(TurnOutcome.NOT_FOUND, "there is no Mastra API at MASTRA_ENDPOINT (HTTP 404)")
            case 413:
                return _RunError(TurnOutcome.ERROR, "the messages and files are too large for Mastra (HTTP 413)")
            case 502 | 503:
                after = _seconds(response.headers.get("Retry-After"))
                reason = f"Mastra is not available (HTTP {response.status})"
                return _RunError(TurnOutcome.ERROR, reason, retryable=True, retry_after=after)
            case status:
                return _RunError(TurnOutcome.ERROR, f"Mastra answered HTTP {status}")

    async def _read(self, response: aiohttp.ClientResponse, decided: bool, deadline: float) -> bytes:
        """The next bytes, none at the end; when all that matters is `decided`, a broken end is an end too."""
        patience = CLOSING_SECONDS if decided else self._silence_seconds
        try:
            async with asyncio.timeout_at(min(deadline, _now() + patience)):
                return await response.content.readany()
        except (TimeoutError, aiohttp.ClientError) as error:
            if decided:
                return b""
            if isinstance(error, TimeoutError):
                raise _RunError(TurnOutcome.TIMEOUT, "Mastra took too long in the middle of its answer") from error
            raise _RunError(TurnOutcome.ERROR, "the connection broke in the middle of the answer") from error

    async def _get(self, url: str) -> tuple[int, object]:
        """Status and JSON of a small resource; the JSON is None when there is none."""
        async with asyncio.timeout(CHECK_SECONDS), self._client().get(url, allow_redirects=False) as response:
            is_json = response.content_type == "application/json"
            return response.status, json.loads(await response.read()) if is_json else None

    def _client(self) -> aiohttp.ClientSession:
        """Made at the first call, since a session belongs to the running loop. It keeps no cookies: turns of
        different users share it."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
            )
        return self._session


class _RunError(AgentError):
    """A run failed. `retryable`: another one may go well, `retry_after` seconds from now at the earliest."""

    def __init__(self, outcome: TurnOutcome, detail: str, *, retryable: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(outcome, detail)
        self.retryable = retryable
        self.retry_after = retry_after


class _Lines:
    """Cuts a stream of bytes into lines of any length, touching each byte a fixed number of times."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The lines that end within this piece."""
        first, *others = piece.split(b"\n")
        self._begun.append(first)
        for other in others:
            yield b"".join(self._begun)
            self._begun = [other]


class _Reply:
    """What one run has said so far. The first chunk that decides its end counts, as others follow an `error`."""

    def __init__(self) -> None:
        self._run_id: str | None = None
        self._has_text = False
        self._has_acted = False
        self._new_block = False
        self._end: Finished | _RunError | None = None
        # JavaScript may cut a character between the halves of its surrogate pair; through UTF-16 they meet again.
        self._utf16 = codecs.getincrementaldecoder("utf-16-le")("replace")

    @property
    def decided(self) -> bool:
        return self._end is not None

    def take(self, line: bytes) -> Iterator[AgentEvent]:
        """The events of one line; comments, blank lines and the closing [DONE] have none."""
        data = line.removeprefix(b"data:").strip()
        if self.decided or data == b"[DONE]" or not line.startswith(b"data:"):
            return
        try:
            chunk: object = json.loads(data)
        except ValueError as error:
            raise _RunError(TurnOutcome.ERROR, "Mastra sent a line that is not JSON") from error
        if self._run_id is None and isinstance(run_id := _at(chunk, "runId"), str):
            self._run_id = run_id
            yield Started(run_id)
        payload = _at(chunk, "payload")
        match _at(chunk, "type"):
            case "text-start":
                self._new_block = self._has_text
            case "text-delta":
                if text := self._utf16.decode(str(_at(payload, "text") or "").encode("utf-16-le", "surrogatepass")):
                    yield TextDelta(f"\n\n{text}" if self._new_block else text)
                    self._has_text, self._new_block = True, False
            case "file":
                self._has_acted = True  # a second run would make it again
                yield self._file(payload)
            case "error":
                self._end = _provider_error(_at(payload, "error"), may_retry=not (self._has_text or self._has_acted))
            case "tripwire":
                self._end = Finished(TurnOutcome.BLOCKED, detail=f"guard {_word(_at(payload, 'processorId'))}")
            case "tool-call-approval" | "tool-call-suspended":
                self._end = Finished(TurnOutcome.APPROVAL, approval=_approval(self._run_id or "", payload))
            case "finish":
                self._end = _finish(payload)
            case str(kind) if kind.startswith("tool-"):
                self._has_acted = True  # a second run would act again
            case _:
                pass

    def _file(self, payload: object) -> AgentFile | TextDelta:
        """A file that the model made. One that lies elsewhere is told as a link: nothing is fetched from where a model
        says."""
        data, name = _at(payload, "data"), _at(payload, "filename")
        if isinstance(data, str) and re.fullmatch(r"https?://\S+", data):
            before = "\n\n" if self._has_text else ""
            self._has_text = True
            return TextDelta(f"{before}{data}")
        mime_type = str(_at(payload, "mimeType") or "application/octet-stream")
        return AgentFile(mime_type, _bytes(data), name if isinstance(name, str) else None)

    def finished(self) -> Finished:
        """The last event, when the stream has closed; raises if the run failed."""
        if self._end is None:
            raise _RunError(TurnOutcome.ERROR, "the stream closed before the run was finished")
        if isinstance(self._end, _RunError):
            raise self._end
        return self._end


def _body(request: AgentRequest) -> dict[str, Any]:
    return {
        "messages": [_message(message) for message in request.messages],
        "memory": {"thread": request.session, "resource": request.resource},
        "requestContext": dict(request.context),
    }


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _decision(approval: Approval, context: Mapping[str, str]) -> dict[str, Any]:
    return {"runId": approval.run_id, "toolCallId": approval.tool_call_id, "requestContext": dict(context)}


def _message(message: AgentMessage) -> dict[str, Any]:
    text = message.text
    if message.author is not None:
        text = f"{' '.join(message.author.split())}: {text}"  # on one line: a name must not look like a text
    if not message.files:
        return {"id": message.id, "role": "user", "content": text}
    parts = [{"type": "text", "text": text}] if text else []
    return {"id": message.id, "role": "user", "content": [*parts, *map(_file_part, message.files)]}


def _file_part(file: AgentFile) -> dict[str, str]:
    """As a data URL: from bare base64 Mastra guesses the type."""
    mime_type = file.mime_type.partition(";")[0].strip()
    data = f"data:{mime_type};base64,{base64.b64encode(file.data).decode()}"
    if mime_type.startswith("image/"):
        return {"type": "image", "image": data, "mimeType": mime_type}
    name = {"filename": file.name} if file.name is not None else {}
    return {"type": "file", "data": data, "mediaType": mime_type, **name}


def _bytes(data: object) -> bytes:
    """What a file chunk holds: base64, a data URL, or an array of bytes, which JSON shows as an object. Of what is none
    of these nothing, and an empty file is not let in."""
    try:
        if isinstance(data, str):
            return base64.b64decode(data.partition(",")[2] if data.startswith("data:") else data, validate=True)
        return bytes(cast("dict[str, int]", data).values()) if isinstance(data, dict) else b""
    except (binascii.Error, ValueError, TypeError):
        return b""


def _finish(payload: object) -> "Finished | _RunError":
    usage = _at(payload, "output", "usage")
    match _at(payload, "stepResult", "reason"):
        case "error":
            return _RunError(TurnOutcome.ERROR, "the run failed and did not say why")
        case "length":
            return Finished(TurnOutcome.TRUNCATED, usage=usage)
        case "content-filter":
            return Finished(TurnOutcome.BLOCKED, usage=usage, detail="the model's content filter")
        case _:
            return Finished(TurnOutcome.ANSWERED, usage=usage)


def _approval(run_id: str, payload: object) -> Approval:
    return Approval(
        run_id=run_id,
        tool_call_id=str(_at(payload, "toolCallId")),
        tool_name=str(_at(payload, "toolName")),
        args=_at(payload, "args") or {},
    )


def _provider_error(error: object, *, may_retry: bool) -> _RunError:
    """Name and status only: the message can hold keys, URLs and the user's text."""
    status = _at(error, "statusCode")
    seen = f"{_word(_at(error, 'name'))}, HTTP {status}" if isinstance(status, int) else _word(_at(error, "name"))
    return _RunError(
        TurnOutcome.ERROR,
        f"the model failed ({seen})",
        retryable=may_retry and _at(error, "isRetryable") is True,
        retry_after=_seconds(_at(error, "responseHeaders", "retry-after")),
    )


def _at(value: object, *path: str) -> Any:
    """What nested JSON objects hold at this path, or None."""
    for key in path:
        value = cast("dict[str, object]", value).get(key) if isinstance(value, dict) else None
    return value


def _word(value: object) -> str:
    """A name from outside, if it is one word and short."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.:-]{1,64}", value) else "unnamed"


def _seconds(retry_after: object) -> float:
    """A Retry-After in seconds. Its other form, a date, counts as none."""
    return float(retry_after) if isinstance(retry_after, str) and re.fullmatch(r"\d{1,9}", retry_after) else 0.0


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _now() -> float:
    return asyncio.get_running_loop().time()
