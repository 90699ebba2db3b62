"""Serving: the listening socket, signals, and the lines that tell where everything is."""

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib.metadata import version

import uvicorn

from chat_bridge.errors import ChatBridgeError, SettingsError
from chat_bridge.service import Service, running_service
from chat_bridge.settings import Settings
from chat_bridge.storage.postgres import wait_for_server

TELEGRAM_HINT = [
    "For a Telegram bot add the token that @BotFather gives you:",
    "  TELEGRAM_ENABLED=true",
    "  TELEGRAM_BOT_TOKEN=123456789:AA-your-token",
]


async def serve_until_stopped(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM; a second one does not wait for turns. Raises ChatBridgeError."""
    stop = asyncio.Event()
    main_task = asyncio.current_task()
    assert main_task is not None

    def stop_or_give_up() -> None:
        if stop.is_set():
            main_task.cancel()
        stop.set()

    _allow_many_connections()
    # Before anything starts, so that a Ctrl-C at any moment still stops what was started.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop_or_give_up)
    with suppress(asyncio.CancelledError), _listener(settings) as listener:
        await _found_database(settings, stop)
        if stop.is_set():
            return
        async with running_service(settings) as service:
            await _serve_until(stop, settings, service, listener)


def _allow_many_connections() -> None:
    # Each event stream is an open file, and many systems begin with 1024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS has a limit below what it calls the most
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _found_database(settings: Settings, stop: asyncio.Event) -> None:
    """Wait until PostgreSQL can be reached, or until a signal. What is wrong with it is told by who needs it."""
    if settings.database_url is not None:
        url, seconds = settings.database_url.get_secret_value(), settings.database_wait_seconds
        finding = asyncio.create_task(wait_for_server(url, seconds), name="find_database")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait((finding, stopping), return_when=asyncio.FIRST_COMPLETED)
        finding.cancel()
        stopping.cancel()
        await asyncio.gather(finding, stopping, return_exceptions=True)


async def _serve_until(stop: asyncio.Event, settings: Settings, service: Service, listener: socket.socket) -> None:
    server = _Server(
        uvicorn.Config(
            service.app,
            log_config=None,
            access_log=False,
            server_header=False,
            forwarded_allow_ips=list(settings.trusted_proxies),
            timeout_graceful_shutdown=5,
            lifespan="off",
        )
    )
    serving = asyncio.create_task(server.serve([listener]), name="http")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    _announce(settings, service, listener.getsockname()[1])
    await asyncio.wait((serving, stopping, service.failed), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    print("stopping: running turns may finish; press Ctrl-C again to hand them back at once", flush=True)
    # The listening socket closes now; open event streams see the last turns end before they are closed.
    server.stop_accepting()
    await service.drain()
    server.should_exit = True
    await serving
    if service.failed.done():
        raise ChatBridgeError("a part of the bridge died, so all of it stopped; the log says which and why")


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: ours decide when it stops."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def stop_accepting(self) -> None:
        """Take no new connections."""
        for server in self.servers:
            server.close()


def _listener(settings: Settings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"can't listen on {settings.host} port {settings.port} ({os.strerror(error.errno or 0)}): "
            "stop what uses it, or choose another with PORT and CHAT_BRIDGE_HOST"
        ) from None


def _announce(settings: Settings, service: Service, port: int) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0', '[::]') else host}:{port}"  # noqa: S104
    lines = [f"agoric-chat-bridge {version('agoric-chat-bridge')} is ready.", ""]
    if settings.webchat_enabled:
        lines.append(f"  Chat        {address}/chat")
    places = {name: platform.describe() for name, platform in service.platforms.items()}
    lines += [f"  {name.capitalize():<11} {place}" for name, place in places.items() if place]
    lines += [
        f"  API         {address}/{'docs' if settings.docs_open else 'api/v1'}",
        f"  Agent       {service.agent.name}",
    ]
    if settings.embedded:
        lines.append(f"  Data        {settings.data_dir}")
        if settings.api_key is None:
            lines.append(f"  API key     in the file {settings.data_dir / 'api-key'}")
    lines.append("")
    if service.agent.name == "echo" and not settings.repeat_mode:
        lines += [
            "Next: connect a Mastra agent. Stop with Ctrl-C, put this into a file named .env, and start again:",
            "  MASTRA_ENDPOINT=http://localhost:4111/api",
            "  MASTRA_AGENT_ID=the-id-of-your-agent",
            *([] if settings.telegram_enabled else TELEGRAM_HINT),
        ]
    else:
        lines.append("Next: put the chat on your site; docs/web-chat.md shows how. Stop with Ctrl-C.")
    print("\n".join(lines), flush=True)
