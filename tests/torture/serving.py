"""A server process of the run: it tells its address on stdout and serves until it is killed."""

import asyncio
import socket

from aiohttp import web


async def serve(app: web.Application) -> None:
    """Serve on a free port of this machine, for ever."""
    runner = web.AppRunner(app)
    await runner.setup()
    door = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, door).start()
    print(f"http://127.0.0.1:{door.getsockname()[1]}", flush=True)
    await asyncio.Event().wait()
