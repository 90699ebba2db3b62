"""Text and JSON on their way into PostgreSQL, which takes neither U+0000 nor half a surrogate pair."""

import json
import math
from collections.abc import Sequence
from typing import Any, cast


def storable(text: str) -> str:
    """The text with what PostgreSQL can't hold shown as U+FFFD."""
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    # Through UTF-16, where two halves of a pair find each other and a lone half is replaced.
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def storable_or_none(text: str | None) -> str | None:
    """Like `storable`, and None stays None."""
    return None if text is None else storable(text)


def to_jsonb(value: object) -> str | None:
    """JSON text for a jsonb column; None and empty containers become SQL null, which costs nothing."""
    return json.dumps(_clean(value), ensure_ascii=False, separators=(",", ":")) if value else None


def from_jsonb(text: str | None) -> Any:
    """The value of a jsonb column; SQL null gives None."""
    return None if text is None else json.loads(text)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # as JavaScript writes it: JSON has no such number
    if isinstance(value, dict):
        return {storable(str(key)): _clean(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in cast("Sequence[Any]", value)]
    return value
