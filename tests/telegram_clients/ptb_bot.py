"""The same bot as in aiogram_bot.py, made with python-telegram-bot."""

import asyncio
import base64
import hashlib
import json
import sys
from typing import Any

from telegram import InlineKeyboardButton, InlineKeyboardMarkup, ReplyParameters, Update
from telegram.error import BadRequest, ChatMigrated, Forbidden, InvalidToken, NetworkError, RetryAfter, TelegramError
from telegram.ext import Application, CallbackQueryHandler, ContextTypes, MessageHandler, filters

NAMES = {Forbidden: "TelegramForbiddenError", BadRequest: "TelegramBadRequest"}
stopped = asyncio.Event()


async def greet(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    message = update.message
    await message.reply_chat_action("typing")
    await message.reply_text(
        "*bold* answer",
        parse_mode="MarkdownV2",
        reply_markup=InlineKeyboardMarkup([[InlineKeyboardButton("Yes", callback_data="yes:1")]]),
        reply_parameters=ReplyParameters(message.message_id),
    )
    await message.set_reaction("👍")


async def pressed(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    query = update.callback_query
    await query.edit_message_text(f"you chose {query.data}")
    await query.answer("noted")


async def echo_file(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    file = await update.message.document.get_file()
    content = bytes(await file.download_as_bytearray())
    name = update.message.document.file_name
    await update.message.reply_document(content, filename=name, caption=content.decode())


async def digest_file(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    media = update.message.effective_attachment
    try:
        file = await (media[-1] if isinstance(media, tuple) else media).get_file()
        content = bytes(await file.download_as_bytearray())
        result = f"{len(content)} {hashlib.sha256(content).hexdigest()}"
    except BadRequest as error:
        result = f"Bad Request: {error.message[:1].lower()}{error.message[1:]}"
    except InvalidToken:
        result = "HTTP 404"  # which it takes every 404 for
    except NetworkError as error:
        result = "cut off" if "RemoteProtocolError" in str(error) else str(error)
    await update.message.reply_text(result)


async def send_elsewhere(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    try:
        await context.bot.send_message(int(update.message.text.split()[1]), "elsewhere")
        result = "sent"
    except RetryAfter as error:
        result = f"TelegramRetryAfter {error.retry_after}"
    except ChatMigrated as error:
        result = f"TelegramMigrateToChat {error.new_chat_id}"
    except TelegramError as error:
        result = NAMES[type(error)]
    await update.message.reply_text(result)


async def send_media(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    message = update.message
    content = base64.b64decode(message.text.split()[1])
    try:
        await message.reply_photo(content, filename="a.png")
    except BadRequest as error:
        await message.reply_text(f"Bad Request: {error.message[:1].lower()}{error.message[1:]}")
    await message.reply_voice(content, filename="a.ogg")
    await message.reply_audio(content, filename="a.mp3")
    await message.reply_video(content, filename="é b.mp4")


async def stop(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    stopped.set()


async def main(base_url: str, token: str) -> dict[str, Any]:
    """Run until somebody says stop."""
    builder = Application.builder().token(token)
    app = builder.base_url(f"{base_url}/bot").base_file_url(f"{base_url}/file/bot").build()
    app.add_handler(MessageHandler(filters.Text(["hello"]), greet))
    app.add_handler(MessageHandler(filters.Document.ALL, echo_file))
    app.add_handler(MessageHandler(filters.ATTACHMENT, digest_file))
    app.add_handler(MessageHandler(filters.Regex("^send "), send_elsewhere))
    app.add_handler(MessageHandler(filters.Regex("^media "), send_media))
    app.add_handler(MessageHandler(filters.Text(["stop"]), stop))
    app.add_handler(CallbackQueryHandler(pressed))
    async with app:
        await app.start()
        await app.updater.start_polling(timeout=10)
        await stopped.wait()
        await app.updater.stop()
        await app.stop()
        return {"username": app.bot.username}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
