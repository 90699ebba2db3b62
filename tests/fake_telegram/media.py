"""Media that a person sends, as fields of a message."""

import base64
import random
import struct
import zlib
from typing import Any

from tests.fake_telegram.world import Json, World

# kind: folder, name and type that it has if nothing else is said, further fields
_FILES: dict[str, tuple[str, str, str, Json]] = {
    "photo": ("photos", "picture.jpg", "image/jpeg", {}),
    "document": ("documents", "paper.pdf", "application/pdf", {}),
    "voice": ("voice", "voice.oga", "audio/ogg", {"duration": 4}),
    "audio": ("music", "song.mp3", "audio/mpeg", {"duration": 180, "title": "A song", "performer": "Somebody"}),
    "video": ("videos", "video.mp4", "video/mp4", {"duration": 8, "width": 640, "height": 360}),
    "video_note": ("video_notes", "note.mp4", "video/mp4", {"duration": 5, "length": 240}),
    "animation": ("animations", "cat.mp4", "video/mp4", {"duration": 2, "width": 320, "height": 240}),
    "sticker": (
        "stickers",
        "sticker.webp",
        "image/webp",
        {"width": 512, "height": 512, "type": "regular", "is_animated": False, "is_video": False, "emoji": "👍"},
    ),
}
_NAMED = ("document", "audio", "video", "animation")
_PLACE = {"latitude": 10.776889, "longitude": 106.700806}
_OTHERS: dict[str, Json] = {
    "location": _PLACE,
    "venue": {"location": _PLACE, "title": "The market", "address": "1 Main Street"},
    "contact": {"phone_number": "+840000000000", "first_name": "An"},
    "dice": {"emoji": "🎲", "value": 4},
    "poll": {
        "id": "1",
        "question": "Tea or coffee?",
        "total_voter_count": 0,
        "type": "regular",
        "is_closed": False,
        "is_anonymous": True,
        "allows_multiple_answers": False,
        "allows_revoting": True,
        "members_only": False,
        "options": [{"persistent_id": "0", "text": "Tea", "voter_count": 0}],
    },
}
KINDS = (*_FILES, *_OTHERS)


def media_body(world: World, media: dict[str, Any]) -> Json:
    """`kind` and maybe `content` (base64), `name`, `mime_type`, `size` (what is told of it) and `fields`."""
    kind, fields = media["kind"], media.get("fields", {})
    if kind in _OTHERS:
        body = {kind: {**_OTHERS[kind], **fields}}
        return body | ({"location": _PLACE} if kind == "venue" else {})
    folder, name, mime_type, more = _FILES[kind]
    name, mime_type = media.get("name") or name, media.get("mime_type") or mime_type
    content = base64.b64decode(media["content"]) if "content" in media else picture(64, 48)
    file = world.add_file(folder, name, content, mime_type, media.get("size"))
    if kind == "photo":
        small = world.add_file(folder, name, content[: len(content) // 2], mime_type)
        sizes = {"width": 90, "height": 67}, {"width": 1280, "height": 960}
        return {"photo": [{**small.json(), **sizes[0]}, {**file.json(), **sizes[1], **fields}]}
    body = {**more, **file.json()}
    if kind not in ("sticker", "video_note"):
        body["mime_type"] = mime_type
    if kind in _NAMED:
        body["file_name"] = name
    # An animation comes as a document too, for programs from before there were any.
    return {kind: body | fields} | ({"document": body | fields} if kind == "animation" else {})


def picture(width: int, height: int) -> bytes:
    """A PNG of one colour, another each time, so that two files are not one."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = b"\0" + random.randbytes(3) * width
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(row * height)) + chunk(b"IEND", b"")
