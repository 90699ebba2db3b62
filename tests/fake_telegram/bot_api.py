"""The Bot API over HTTP: tokens, parameters, planned faults, the record of calls, and files."""

import asyncio
import json
import re
import socket
import struct
import time
from typing import Any

from aiohttp import web

from tests.fake_telegram import parameters
from tests.fake_telegram.errors import ApiError, bad_request, forbidden, too_many_requests
from tests.fake_telegram.faults import BEFORE, Fault, Faults
from tests.fake_telegram.methods import Methods
from tests.fake_telegram.parameters import Parameters
from tests.fake_telegram.world import World

LARGEST_REQUEST = 60 * 2**20
MORE_THAN_SAID = 2**20  # how much longer a file of the fault `larger` is
NOT_JSON = "<!doctype html><title>502</title><h1>Bad gateway</h1>"


class BotApi:
    """What a bot talks to. `calls` holds each call: method, parameters, when, by which way, and what came of it."""

    def __init__(self, world: World, methods: Methods, faults: Faults) -> None:
        self._world = world
        self._methods = methods
        self._faults = faults
        self.calls: list[dict[str, Any]] = []

    def routes(self) -> list[web.RouteDef]:
        """What the server answers for bots."""
        return [
            web.route("*", "/bot{token}/{method}", self._answer),
            web.get("/file/bot{token}/{path:.+}", self._file),
        ]

    async def execute(self, method: str, values: dict[str, Any]) -> None:
        """A call that came in the answer of a webhook."""
        await self._call(method, Parameters(values), "webhook")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        token, method = request.match_info["token"], request.match_info["method"]
        if error := self._wrong_token(token):
            return _response(error)
        try:
            given = await parameters.read(request)
        except ApiError as error:
            return _response(error)
        fault = self._faults.take(method, given.integer("chat_id") or None)
        if fault is None:
            return _response(await self._call(method, given, "http"))
        if fault.kind in BEFORE:
            return await self._fail_before(request, method, given, fault)
        result = await self._call(method, given, "http", fault.kind)
        return await _fail(request, fault.kind.removesuffix("_after"), _response(result))

    def _wrong_token(self, token: str) -> ApiError | None:
        if not re.fullmatch(r"\d+:[A-Za-z0-9_-]+", token):
            return ApiError(404, "Not Found")
        return None if token == self._world.token else ApiError(401, "Unauthorized")

    async def _call(self, method: str, given: Parameters, way: str, fault: str | None = None) -> Any:
        """Do what is asked; gives the result, or the error."""
        record = self._record(method, given, way, fault)
        call = self._methods.find(method)
        outcome: Any = ApiError(404, "Not Found")
        if call is not None:
            try:
                outcome = await call(given)
            except ApiError as error:
                outcome = error
            except asyncio.CancelledError:
                record["outcome"] = "cancelled"
                raise
        record["outcome"] = outcome.description if isinstance(outcome, ApiError) else "ok"
        record["finished"] = time.time()
        self._world.changes.happened()
        return outcome

    def _record(self, method: str, given: Parameters, way: str, fault: str | None) -> dict[str, Any]:
        record = {"method": method, "parameters": given.record(), "at": time.time(), "finished": None}
        record |= {"way": way, "fault": fault, "outcome": None}
        self.calls.append(record)
        self._world.changes.happened()
        return record

    async def _fail_before(
        self, request: web.Request, method: str, given: Parameters, fault: Fault
    ) -> web.StreamResponse:
        if fault.kind == "slow":
            await asyncio.sleep(fault.more.get("seconds", 1.0))
            return _response(await self._call(method, given, "http", fault.kind))
        record = self._record(method, given, "http", fault.kind)
        if error := _error(fault):
            record |= {"outcome": error.description, "finished": time.time()}
            return _response(error)
        record["outcome"] = fault.kind
        return await _fail(request, fault.kind, web.Response())

    async def _file(self, request: web.Request) -> web.StreamResponse:
        if error := self._wrong_token(request.match_info["token"]):
            return _response(error)
        fault = self._faults.take("file")
        kind = fault.kind if fault else ""
        record = self._record("file", Parameters({"file_path": request.match_info["path"]}), "http", kind or None)
        file = self._methods.served(request.match_info["path"])
        if file is None or kind == "expired":
            record["outcome"] = "Not Found"
            return _response(ApiError(404, "Not Found"))
        record["outcome"] = "ok"
        content = file.content
        match kind:
            case "redirect":
                raise web.HTTPFound(fault.more["to"] if fault else "")
            case "larger":
                content += bytes(MORE_THAN_SAID)
            case "shorter":
                content = content[: len(content) // 2]
            case _:
                pass
        response = web.Response(body=content, content_type="application/octet-stream")
        if fault is not None and kind == "wrong_type":
            response.content_type = fault.more.get("content_type", "text/html")
        if fault is not None and kind in ("truncated", "stall", "slow"):
            return await _halves(request, response, fault)
        if fault is not None and (error := _error(fault)):
            return _response(error)
        return await _fail(request, kind, response)


def _error(fault: Fault) -> ApiError | None:
    """The error that a fault is, if it is one."""
    more = fault.more
    match fault.kind:
        case "too_many_requests":
            return too_many_requests(more.get("retry_after", 1))
        case "server_error":
            return ApiError(500, "Internal Server Error")
        case "forbidden":
            return forbidden(more.get("description", "bot was blocked by the user"))
        case "bad_request":
            return bad_request(more.get("description", "chat not found"))
        case "migrate":
            return bad_request("group chat was upgraded to a supergroup chat", migrate_to_chat_id=more["to"])
        case "entities":
            return bad_request("can't parse entities: Can't find end of Bold entity at byte offset 0")
        case _:
            return None


async def _fail(request: web.Request, kind: str, response: web.Response) -> web.StreamResponse:
    """Spoil an answer."""
    match kind:
        case "lost_answer" | "server_error":
            return _response(ApiError(500, "Internal Server Error"))
        case "hang":
            await asyncio.Event().wait()
        case "reset":
            _reset(request)
        case "html":
            return web.Response(text=NOT_JSON, content_type="text/html")
        case "truncated":
            assert isinstance(response.body, bytes)
            response.body = response.body[: len(response.body) // 2]
        case _:
            pass
    return response


async def _halves(request: web.Request, whole: web.Response, fault: Fault) -> web.StreamResponse:
    """Begin an answer, and in the middle of it close the connection, stop for ever, or wait."""
    assert isinstance(whole.body, bytes)
    middle = len(whole.body) // 2
    begun = web.StreamResponse(headers={"Content-Length": str(len(whole.body))})
    await begun.prepare(request)
    await begun.write(whole.body[:middle])
    match fault.kind:
        case "stall":
            await asyncio.Event().wait()
        case "slow":
            await asyncio.sleep(fault.more.get("seconds", 1.0))
            await begun.write(whole.body[middle:])
        case _:
            assert request.transport is not None
            request.transport.close()
    return begun


def _reset(request: web.Request) -> None:
    """Close the connection so that the other side sees a reset."""
    assert request.transport is not None
    connection = request.transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()


def _response(outcome: Any) -> web.Response:
    """A result, a result with a description, or an error, as Telegram writes it."""
    if isinstance(outcome, ApiError):
        wait = outcome.parameters.get("retry_after")
        headers = {"Retry-After": str(wait)} if wait is not None else None
        return _json(outcome.body(), outcome.code, headers)
    if isinstance(outcome, tuple):
        return _json({"ok": True, "result": outcome[0], "description": outcome[1]})
    return _json({"ok": True, "result": outcome})


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    encoded = json.dumps(body).encode()
    return web.Response(body=encoded, status=status, headers=headers, content_type="application/json")
