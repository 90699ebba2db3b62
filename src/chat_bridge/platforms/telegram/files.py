"""Files. Those that people send: where they are, their bytes, and what it means when Telegram gives none. Those that
people are sent: as what."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from chat_bridge.model import Attachment
from chat_bridge.platforms.contract import NoFileError, OutboundFile
from chat_bridge.platforms.telegram.api import BotApi, BotApiError, CallRefusedError, fields, refuses_token

ASK_SECONDS = 15.0
NOT_NOW = "Telegram does not give it at the moment"
NEVER = "Telegram does not give it"

LARGEST_PHOTO = 10 * 2**20
LARGEST_FILE = 50 * 2**20  # that a bot may upload
LONGEST_SIDES = 10_000  # of a photo, in pixels: width and height together
MOST_OBLONG = 20  # of a photo: one side by the other


@dataclass(frozen=True, slots=True)
class Form:
    """As what a file is sent: by which method, and in which of its fields."""

    method: str
    field: str


DOCUMENT = Form("sendDocument", "document")  # takes everything, and shows a name
_FORMS = {
    "audio/ogg": Form("sendVoice", "voice"),
    "audio/mpeg": Form("sendAudio", "audio"),
    "audio/mp4": Form("sendAudio", "audio"),
    "audio/x-m4a": Form("sendAudio", "audio"),
    "video/mp4": Form("sendVideo", "video"),
}


def form_of(file: OutboundFile) -> Form:
    """As what Telegram shows a file best."""
    if file.mime_type in ("image/jpeg", "image/png", "image/webp"):
        return Form("sendPhoto", "photo") if _is_photo(file) else DOCUMENT
    return _FORMS.get(file.mime_type, DOCUMENT)


def _is_photo(file: OutboundFile) -> bool:
    """Whether an image is within the limits of photos."""
    width, height = file.width or 0, file.height or 0
    return (
        file.size <= LARGEST_PHOTO
        and 0 < width + height <= LONGEST_SIDES
        and max(width, height) <= MOST_OBLONG * min(width, height)
    )


async def download(api: BotApi, attachment: Attachment) -> AsyncGenerator[bytes]:
    """The bytes of a file. The link to it lives an hour, so it is asked for each time. Raises NoFileError."""
    try:
        file = fields(await api.call("getFile", {"file_id": attachment.ref}, seconds=ASK_SECONDS))
        path, size, received = _path(file.get("file_path")), file.get("file_size"), 0
        is_page = attachment.mime_type.partition(";")[0].strip().lower() == "text/html"
        async with aclosing(api.download(path, web_page=is_page)) as pieces:
            async for piece in pieces:
                received += len(piece)
                if isinstance(size, int) and received > size:
                    break
                yield piece
    except BotApiError as error:
        raise _no_file(error) from None
    if isinstance(size, int) and received != size:
        raise NoFileError(NOT_NOW, for_good=False, detail="Telegram sent more or less than the file")


def _path(told: object) -> str:
    """The path on the file server. A server of one's own that runs with `--local` tells one of its own disk, and serves
    none over HTTP: such a path is never opened, for it is somebody else who says it."""
    if not isinstance(told, str) or not told:
        raise NoFileError(NOT_NOW, for_good=False, detail="Telegram does not say where the file is")
    if told.startswith("/") or told[1:3] in (":\\", ":/"):
        detail = "the Bot API server runs with --local and serves no files"
        raise NoFileError(NEVER, for_good=True, detail=detail)
    if not told.isprintable() or any(step in ("", ".", "..") for step in told.replace("\\", "/").split("/")):
        raise NoFileError(NEVER, for_good=True, detail="Telegram says that the file is where none can be")
    return told


def _no_file(error: BotApiError) -> NoFileError:
    """For good is only what Telegram says of the file itself; all else may pass, and costs little to try again."""
    if not isinstance(error, CallRefusedError) or refuses_token(error):
        return NoFileError(NOT_NOW, for_good=False, detail=str(error))
    if error.says("file is too big"):
        return NoFileError("Telegram gives bots no file as large as this", for_good=True)
    # "wrong file_id or the file is temporarily unavailable": it says so whenever its own download failed.
    if error.status == 400 and error.says("file_id", "file identifier") and not error.says("temporarily"):
        return NoFileError("Telegram does not know the file any more", for_good=True, detail=str(error))
    return NoFileError(NOT_NOW, for_good=False, retry_after=error.retry_after, detail=str(error))
