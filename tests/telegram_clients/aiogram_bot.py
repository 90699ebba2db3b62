"""A bot made with aiogram, by polling or (third argument `webhook`) by webhook. It answers

hello: with a button, edits that when it is pressed, and answers the press · a document: with its content · any
other file: with its size and the SHA-256 of its bytes, or with what came of fetching it ·
`send CHAT`: with what came of sending there · `media BASE64`: with these bytes as a photo, or with what came of that,
and as a voice, audio and video · stop: not at all, but ends and prints what it is called.
"""

import asyncio
import base64
import hashlib
import json
import sys
from typing import Any

from aiogram import Bot, Dispatcher, F
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import TelegramAPIError, TelegramBadRequest, TelegramMigrateToChat, TelegramRetryAfter
from aiogram.types import (
    BufferedInputFile,
    CallbackQuery,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    Message,
    ReactionTypeEmoji,
    ReplyParameters,
)
from aiogram.webhook.aiohttp_server import SimpleRequestHandler
from aiohttp import ClientPayloadError, ClientResponseError, web

dispatcher = Dispatcher()
stopped = asyncio.Event()


@dispatcher.message(F.text == "hello")
async def greet(message: Message) -> None:
    keyboard = InlineKeyboardMarkup(inline_keyboard=[[InlineKeyboardButton(text="Yes", callback_data="yes:1")]])
    await message.bot.send_chat_action(message.chat.id, "typing")
    await message.answer(
        "*bold* answer",
        parse_mode="MarkdownV2",
        reply_markup=keyboard,
        reply_parameters=ReplyParameters(message_id=message.message_id),
    )
    await message.react([ReactionTypeEmoji(emoji="👍")])


@dispatcher.callback_query()
async def pressed(query: CallbackQuery) -> None:
    await query.message.edit_text(f"you chose {query.data}")
    await query.answer("noted")


@dispatcher.message(F.document)
async def echo_file(message: Message) -> None:
    content = (await message.bot.download(message.document)).read()
    await message.answer_document(BufferedInputFile(content, message.document.file_name), caption=content.decode())


@dispatcher.message(F.photo | F.voice | F.audio | F.video | F.video_note | F.animation | F.sticker)
async def digest_file(message: Message) -> None:
    photo = message.photo[-1] if message.photo else None
    media = photo or message.voice or message.audio or message.video or message.video_note or message.sticker
    try:
        content = (await message.bot.download(media)).read()
        result = f"{len(content)} {hashlib.sha256(content).hexdigest()}"
    except TelegramBadRequest as error:
        result = error.message
    except ClientResponseError as error:
        result = f"HTTP {error.status}"
    except ClientPayloadError:
        result = "cut off"
    await message.answer(result)


@dispatcher.message(F.text.startswith("send "))
async def send_elsewhere(message: Message) -> None:
    try:
        await message.bot.send_message(int(message.text.split()[1]), "elsewhere")
        result = "sent"
    except TelegramRetryAfter as error:
        result = f"TelegramRetryAfter {error.retry_after}"
    except TelegramMigrateToChat as error:
        result = f"TelegramMigrateToChat {error.migrate_to_chat_id}"
    except TelegramAPIError as error:
        result = type(error).__name__
    await message.answer(result)


@dispatcher.message(F.text.startswith("media "))
async def send_media(message: Message) -> None:
    content = base64.b64decode(message.text.split()[1])
    try:
        await message.answer_photo(BufferedInputFile(content, "a.png"))
    except TelegramBadRequest as error:
        await message.answer(error.message)
    await message.answer_voice(BufferedInputFile(content, "a.ogg"))
    await message.answer_audio(BufferedInputFile(content, "a.mp3"))
    await message.answer_video(BufferedInputFile(content, "é b.mp4"))


@dispatcher.message(F.text == "stop")
async def stop(message: Message) -> None:
    stopped.set()


async def serve_webhook(bot: Bot) -> None:
    """Receive by webhook until it is stopped."""
    app = web.Application()
    SimpleRequestHandler(dispatcher, bot, handle_in_background=False, secret_token="s3cret").register(app, "/hook")
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    await bot.set_webhook(f"http://127.0.0.1:{port}/hook", secret_token="s3cret", allowed_updates=["message"])
    await stopped.wait()
    await bot.delete_webhook()
    await runner.cleanup()


async def poll(bot: Bot) -> None:
    """Receive by polling until it is stopped."""
    polling = asyncio.create_task(dispatcher.start_polling(bot, polling_timeout=10, handle_signals=False))
    await stopped.wait()
    await dispatcher.stop_polling()
    await polling


async def main(base_url: str, token: str, way: str = "poll") -> dict[str, Any]:
    """Run until somebody says stop."""
    async with Bot(token, session=AiohttpSession(api=TelegramAPIServer.from_base(base_url))) as bot:
        me = await bot.get_me()
        await (serve_webhook if way == "webhook" else poll)(bot)
        return {"username": me.username}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
