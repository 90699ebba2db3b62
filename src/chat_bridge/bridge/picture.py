"""Picture: what an image says of itself, and a small one of it. A program of its own, for a small file can be made so
that decoding it takes hours and gigabytes:

    python -m chat_bridge.bridge.picture SECONDS BYTES <image >seen

takes no more processor time and memory than that. It writes a line of JSON (type, width, height) before it decodes
anything, and behind it the small image if there is one. It imports nothing of the bridge, so that it starts quickly.
"""

import io
import json
import resource
import sys
import warnings
from contextlib import suppress
from typing import BinaryIO

from PIL import Image, ImageOps

MOST_PIXELS = 100_000_000  # what claims more is not looked into
THUMBNAIL_PIXELS = 320  # the longer side
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP")  # what every browser shows, and what is decoded here
_TURNED = (5, 6, 7, 8)  # values of EXIF's orientation that exchange width and height

Image.MAX_IMAGE_PIXELS = MOST_PIXELS


def main() -> None:
    """The program."""
    seconds, size = (int(argument) for argument in sys.argv[1:])
    # The process is killed when its time is over, and is refused more memory.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with suppress(ValueError, OSError):  # macOS has no limit of this kind
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    show(sys.stdin.buffer, sys.stdout.buffer)


def show(file: BinaryIO, to: BinaryIO) -> None:
    """Write what is seen in a file; nothing for what is no image that is decoded here."""
    # The library raises whatever damaged bytes lead it to.
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=_FORMATS) as image:
            # Some cameras put a second picture behind the first: such a JPEG has a name of its own.
            mime_type = "image/jpeg" if image.format == "MPO" else Image.MIME[image.format or ""]
            width, height = image.size
            # The camera's turn is applied, so that the size is the one people see.
            if _is_turned(image):
                width, height = height, width
            to.write(json.dumps([mime_type, width, height]).encode() + b"\n")
            to.flush()
            to.write(_thumbnail(image))


def _is_turned(image: Image.Image) -> bool:
    with suppress(Exception):  # as above
        return image.getexif().get(0x0112) in _TURNED
    return False


def _thumbnail(image: Image.Image) -> bytes:
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    small = ImageOps.exif_transpose(image)
    transparent = "A" in small.getbands() or "transparency" in small.info
    made = small.convert("RGBA" if transparent else "RGB")
    made.info.clear()  # nothing of the file's own metadata, such as where a photo was taken, goes along
    written = io.BytesIO()
    made.save(written, "PNG" if transparent else "JPEG", quality=80)
    return written.getvalue()


if __name__ == "__main__":
    main()
