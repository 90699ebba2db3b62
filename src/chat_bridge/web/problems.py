"""Errors as RFC 9457 problem details: what was wrong and what to do, never a traceback."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from chat_bridge.errors import OverloadedError, StorageError
from chat_bridge.storage.archive_format import ArchiveError
from chat_bridge.telemetry import REFUSED, log

RETRY_SECONDS = 2


class ProblemDetails(BaseModel):
    """The body of every error (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class Problem(HTTPException):
    """An error to answer with. `headers` go along (Retry-After, WWW-Authenticate)."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, dict(headers) if headers else None)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these errors."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/problem+json": {"schema": ProblemDetails.model_json_schema()}},
        }
        for status in statuses
    }


def problem_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response of an error."""
    body = ProblemDetails(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(body.model_dump(), status, dict(headers or {}), "application/problem+json")


def handle_problems(app: FastAPI) -> None:
    """Have every error of the app answered as problem details."""

    async def on_http(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return problem_response(error.status_code, error.detail, error.headers)

    async def on_invalid(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        # Only where and why: the value itself may be a user's text.
        reasons = [f"{'.'.join(str(place) for place in item['loc'])}: {item['msg']}" for item in error.errors()]
        return problem_response(422, "; ".join(reasons))

    async def on_storage(_request: Request, error: Exception) -> JSONResponse:
        log.warning("request.storage_failed", reason=str(error))
        why = "The message store can't be reached"
        if isinstance(error, OverloadedError):
            REFUSED.labels("writes").inc()
            why = "Too much waits to be stored"
        detail = f"{why}; nothing was stored. Please try again."
        return problem_response(503, detail, {"Retry-After": str(RETRY_SECONDS)})

    async def on_archive(_request: Request, error: Exception) -> JSONResponse:
        log.error("request.archive_failed", reason=str(error))
        detail = "Older messages of this are in an archive that can't be read now. Please try again later."
        return problem_response(503, detail, {"Retry-After": str(RETRY_SECONDS)})

    async def on_gone(_request: Request, _error: Exception) -> JSONResponse:
        return problem_response(400, "The connection was closed before the body was whole.")  # nobody reads it

    async def on_crash(_request: Request, error: Exception) -> JSONResponse:
        log.error("request.crashed", exc_info=error)
        return problem_response(500, "Something went wrong here; it was logged.")

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(ArchiveError, on_archive)
    app.add_exception_handler(StorageError, on_storage)
    app.add_exception_handler(ClientDisconnect, on_gone)
    app.add_exception_handler(Exception, on_crash)
