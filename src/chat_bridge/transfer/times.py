"""Times as other programs write them."""

from datetime import UTC, datetime
from typing import cast


def read_time(value: object) -> datetime | None:
    """Seconds, milliseconds or microseconds since 1970, or ISO 8601; without a zone it is UTC. Raises ValueError."""
    if value is None or value in ("", b""):
        return None
    try:
        if isinstance(value, bytes):
            value = value.decode()
        if isinstance(value, str):
            if not _is_number(value):
                moment = datetime.fromisoformat(value.strip())
                return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
            value = float(value)
        number = float(cast("float", value))
        for _ in range(2):  # to milliseconds, to seconds
            number = number / 1000 if abs(number) >= 1e11 else number
        return datetime.fromtimestamp(number, UTC)
    except (OverflowError, OSError, TypeError) as error:
        raise ValueError(str(error)) from None


def moment_of(value: object) -> float | None:
    """The same as a number, to sort by; what can't be read has none."""
    try:
        moment = read_time(value)
    except ValueError:
        return None
    return None if moment is None else moment.timestamp()


def _is_number(text: str) -> bool:
    return text.strip().removeprefix("-").replace(".", "", 1).isdecimal()
