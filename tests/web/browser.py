"""A real browser for tests, and small sites for it to open."""

import os
import shutil
import threading
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from playwright.async_api import Browser, Page, async_playwright

from tests.needs import unavailable

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@asynccontextmanager
async def open_browser() -> AsyncGenerator[Browser]:
    """The machine's own Chromium; the test is skipped where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None) or unavailable("there is no Chromium")
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=[*OPTIONS, *sandbox])
        yield browser
        await browser.close()


def complaints_of(page: Page) -> list[str]:
    """What the browser complains about from now on: errors on the console (a breach of the content security policy is
    one), uncaught exceptions and dialogs."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("dialog", lambda dialog: found.append(f"dialog: {dialog.message}"))
    return found


@contextmanager
def site(files: Mapping[str, str], policy: str | None = None) -> Generator[str]:
    """Serve these texts by their path, on a port of their own; gives the origin."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = files.get(self.path)
            self.send_response(200 if text is not None else 204)
            self.send_header("Content-Type", "text/javascript" if self.path.endswith(".js") else "text/html")
            if policy is not None:
                self.send_header("Content-Security-Policy", policy)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
