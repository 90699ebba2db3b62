"""Start the fake Telegram: `python -m tests.fake_telegram --help`."""

import argparse
import asyncio
import signal
import sys

from aiohttp import web

from tests.fake_telegram import page
from tests.fake_telegram.bot_api import LARGEST_REQUEST, BotApi
from tests.fake_telegram.control import Control
from tests.fake_telegram.faults import Faults
from tests.fake_telegram.methods import Methods
from tests.fake_telegram.updates import Updates
from tests.fake_telegram.webhook import WebhookSender
from tests.fake_telegram.world import World

TOKEN = "7000000001:test-token-of-the-fake-telegram-bot"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fake_telegram",
        description="A Telegram for one bot, on this machine only: the Bot API, and a page to play its users.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8081, help="the port, 0 for a free one (%(default)s)")
    parser.add_argument("--token", default=TOKEN, help="the bot's token (%(default)s)")
    parser.add_argument("--username", default="bridge_bot", help="the bot's @name (%(default)s)")
    parser.add_argument("--name", default="Bridge", help="the bot's name (%(default)s)")
    parser.add_argument("--sees-all", action="store_true", help="turn off privacy mode: the bot sees all of a group")
    parser.add_argument("--first-update-id", type=int, default=845210001, metavar="ID", help="(%(default)s)")
    parser.add_argument(
        "--retry-scale",
        type=float,
        default=1.0,
        metavar="X",
        help="make the pauses between a webhook's tries longer or shorter (%(default)s)",
    )
    parser.add_argument("--demo", action="store_true", help="begin with a private chat and a group of three people")
    return parser.parse_args()


async def _serve(options: argparse.Namespace) -> None:
    world = World(options.token, options.username, options.name, sees_all=options.sees_all)
    updates, faults = Updates(options.first_update_id), Faults()
    webhook = WebhookSender(updates, faults, world.changes)
    webhook.retry_scale = options.retry_scale
    world.emit = updates.emit
    methods = Methods(world, updates, webhook)
    bot_api = BotApi(world, methods, faults)
    webhook.execute = bot_api.execute
    if options.demo:
        _people(world)

    app = web.Application(client_max_size=LARGEST_REQUEST)
    app.add_routes(Control(world, updates, webhook, faults, methods, bot_api).routes())
    app.add_routes(page.routes())
    app.add_routes(bot_api.routes())
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, options.host, options.port)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        sys.exit(f"can't listen on {options.host} port {options.port}: {error.strerror}")
    _, port = runner.addresses[0][:2]
    address = f"http://{options.host}:{port}"
    print(
        f"Telegram is played at {address} (open it in a browser). "
        f"For the bot, set TELEGRAM_API_BASE_URL={address} and TELEGRAM_BOT_TOKEN={options.token}",
        flush=True,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await webhook.stop()
    await runner.cleanup()


def _people(world: World) -> None:
    """Who is there at the beginning of a demonstration."""
    linh = world.add_user({"first_name": "Linh", "last_name": "Trần", "username": "linh_tr", "language_code": "vi"})
    sam = world.add_user({"first_name": "Sam", "username": "sam_ops", "language_code": "en"})
    ada = world.add_user({"first_name": "Ada", "username": "ada_l", "language_code": "en"})
    world.private(linh)
    world.add_chat("group", "Release team", members={user["id"]: "member" for user in (linh, sam, ada)})


if __name__ == "__main__":
    asyncio.run(_serve(_options()))
