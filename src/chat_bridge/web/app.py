"""The ASGI application: routes, middleware, security headers, health."""

import asyncio
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chat_bridge.errors import StorageError
from chat_bridge.web import api, attachments, chat, dead_letters, erasures, search, uploads, webhooks
from chat_bridge.web.admission import (
    MOST_DOWNLOADS_OF_ADDRESS,
    MOST_UPLOADS_OF_ADDRESS,
    MOST_UPLOADS_OF_CONVERSATION,
    Admission,
    BodyLimit,
    Shares,
)
from chat_bridge.web.auth import Used
from chat_bridge.web.metrics import add_metrics
from chat_bridge.web.pages import STATIC
from chat_bridge.web.problems import handle_problems
from chat_bridge.web.services import Services

# Swagger UI starts itself with an inline script; the page shows nothing of any user.
DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)


def create_app(services: Services) -> FastAPI:
    """The application over running services."""
    app = FastAPI(
        title="agoric-chat-bridge",
        version=version("agoric-chat-bridge"),
        summary="Any chat platform in front of any agent; every message kept.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if services.settings.docs_open else None,
    )
    app.state.services = services
    app.state.searches = asyncio.Semaphore(max(1, services.settings.database_pool_size // search.SHARE_OF_POOL))
    app.state.downloads = Shares("downloads", MOST_DOWNLOADS_OF_ADDRESS)
    app.state.uploads = Shares("uploads", MOST_UPLOADS_OF_ADDRESS)
    app.state.uploads_here = Shares("uploads", MOST_UPLOADS_OF_CONVERSATION)
    handle_problems(app)
    app.include_router(api.router, prefix="/api/v1")
    app.include_router(dead_letters.router, prefix="/api/v1")
    app.include_router(search.router, prefix="/api/v1")
    app.include_router(erasures.router, prefix="/api/v1")
    if any(platform.capabilities.webhook for platform in services.platforms.values()):
        app.include_router(webhooks.router)
    app.include_router(attachments.router, prefix="/api/v1")
    if services.settings.webchat_enabled:
        app.include_router(chat.router, prefix="/api/v1")
        app.include_router(uploads.router, prefix="/api/v1")
        app.include_router(chat.pages)
    _add_pages(app)
    if services.settings.docs_open:
        _add_api_docs(app)
    _add_health(app)
    add_metrics(app, services)
    limits = services.settings.max_body_bytes, services.settings.attachment_max_bytes
    app.add_middleware(BodyLimit, max_bytes=limits[0], upload_bytes=limits[1])
    app.add_middleware(Admission)
    app.add_middleware(SecurityHeaders)
    return app


def _add_pages(app: FastAPI) -> None:
    app.mount("/static", _Fresh(directory=STATIC))

    @app.get("/", include_in_schema=False)
    async def start_page(used: Used) -> RedirectResponse:
        page = "/chat" if used.settings.webchat_enabled else "/docs" if used.settings.docs_open else "/health"
        return RedirectResponse(page)

    @app.get("/embed.js", include_in_schema=False)
    async def launcher() -> FileResponse:
        # Other sites load it: that is its purpose.
        headers = {"Cross-Origin-Resource-Policy": "cross-origin", "Cache-Control": "public, max-age=300"}
        return FileResponse(STATIC / "embed.js", media_type="text/javascript", headers=headers)


def _add_api_docs(app: FastAPI) -> None:
    app.mount("/docs-static", StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"))

    @app.get("/docs", include_in_schema=False)
    async def api_docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="agoric-chat-bridge API",
            swagger_js_url="/docs-static/swagger-ui-bundle.js",
            swagger_css_url="/docs-static/swagger-ui.css",
            swagger_favicon_url="/static/favicon.svg",
        )
        page.headers["Content-Security-Policy"] = DOCS_POLICY
        return page


def _add_health(app: FastAPI) -> None:
    @app.get("/health", tags=["operation"], summary="Alive?")
    @app.get("/healthz", include_in_schema=False)
    async def health() -> dict[str, str]:
        """The process runs. Says nothing of what it depends on: see /readyz."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["operation"], summary="Ready?", responses={503: {"description": "Not ready"}})
    async def ready(used: Used) -> JSONResponse:
        """Whether messages can be taken: 503 says what is wrong. Without Redis, or while a platform can't be reached,
        it is degraded, not dead."""
        checks = {"database": "ok", "migrations": "ok", "redis": "ok" if await used.hot.ping() else "unreachable"}
        checks |= {f"platforms.{name}": state for name, state in used.platform_states.items()}
        try:
            await used.store.database.ping()
            checks["migrations"] = await used.schema_problem() or "ok"
        except StorageError as error:
            checks["database"] = str(error)
            checks["migrations"] = "unknown"
        fine = checks["database"] == "ok" and checks["migrations"] == "ok"
        degraded = any(check != "ok" for check in checks.values())
        status = "unavailable" if not fine else "degraded" if degraded else "ok"
        return JSONResponse({"status": status, "checks": checks}, 200 if fine else 503)


class _Fresh(StaticFiles):
    """Files that a browser must ask about each time, so that after an upgrade it does not mix old and new ones."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


class SecurityHeaders:
    """Adds what every response should carry; a response's own headers win."""

    HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(header for header in self.HEADERS if header[0] not in present),
                ]
            await send(message)

        await self._app(scope, receive, with_headers)
