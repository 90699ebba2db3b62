"""Take the pictures of docs/platforms/telegram.md: the adapter writes to the fake Telegram, and a browser looks at it.

Run it with `.venv/bin/python -m scripts.telegram_pictures` after a change that users see. Needs Chromium.
"""

import asyncio
from pathlib import Path
from uuid import UUID, uuid4

from playwright.async_api import Page

from chat_bridge.model import Address, MessageId, Seq
from chat_bridge.platforms.contract import Button, OutboundPart
from chat_bridge.platforms.telegram.adapter import Telegram
from chat_bridge.texts import Texts
from tests.fake_telegram.client import Chat, FakeTelegram, Message, running_telegram
from tests.web.browser import open_browser

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SIZE = {"width": 900, "height": 760}

ORDERS = """\
Three orders left the house **this morning**; one waits for a part:

1. `#4711` Hanoi, *delivered*
2. `#4712` Da Nang, on its way
3. `#4713` waits: [tracking](https://example.com/4713)

```sql
select city from orders where state = 'waiting'
```"""
ASKS = Texts().say("approval", tool="cancel_order") + '\n\n```\n{"order": "#4713"}\n```'
SUMMARY = """\
Since the deploy at 14:02 the median went **from 80 ms to 310 ms**.

> since the deploy

I would roll back and look at the new index first."""


async def send(telegram: Telegram, chat: Chat, text: str, reply_to: Message | None = None, *buttons: Button) -> None:
    """Send an answer as the bridge does."""
    address = Address("telegram", telegram.account, str(chat.id))
    (content,) = telegram.render(text)
    quoted = None if reply_to is None else str(reply_to.id)
    message = MessageId(UUID(int=uuid4().int))
    await telegram.send(OutboundPart(address.id, address, message, Seq(1), 1, content, str(message), quoted, buttons))


async def private_chat(fake: FakeTelegram, telegram: Telegram) -> str:
    """What it looks like between two."""
    chat = await fake.private(await fake.user("Linh"))
    await chat.say("Where are my orders?")
    await send(telegram, chat, ORDERS)
    await chat.say("Then cancel the last one, please.")
    await send(telegram, chat, ASKS, None, Button("Approve", "/approve 1"), Button("Decline", "/decline 1"))
    return "Linh"


async def group_chat(fake: FakeTelegram, telegram: Telegram) -> str:
    """What it looks like in a group."""
    linh, minh = await fake.user("Linh"), await fake.user("Minh")
    group = await fake.supergroup("Operations", linh, minh)
    await group.say("the shop is slow", by=linh)
    await group.say("since the deploy, I think", by=minh)
    question = await group.say("@bridge_bot what do you see?", by=linh)
    await send(telegram, group, SUMMARY, question)
    return "Operations"


async def shoot(page: Page, fake: FakeTelegram, name: str, file: str) -> None:
    await page.goto(fake.base_url)
    await page.get_by_text(name, exact=True).first.click()
    await page.get_by_placeholder("Message").wait_for()
    await page.screenshot(path=IMAGES / file)


async def main() -> None:
    async with open_browser() as browser:
        for make, file in ((private_chat, "telegram-private.png"), (group_chat, "telegram-group.png")):
            async with running_telegram("--sees-all") as fake:
                telegram = Telegram(
                    token=fake.token, api_base_url=fake.base_url, webhook_url=None, webhook_secret=None, polling=None
                )
                name = await make(fake, telegram)
                page = await browser.new_page(viewport=SIZE, device_scale_factor=1.5)
                await shoot(page, fake, name, file)
                await telegram.aclose()


if __name__ == "__main__":
    asyncio.run(main())
