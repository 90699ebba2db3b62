"""When a conversation begins a new session by itself."""

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta, tzinfo
from functools import partial
from zoneinfo import ZoneInfo

from chat_bridge.settings import Settings


def session_end(settings: Settings) -> Callable[[datetime], datetime] | None:
    """What tells, for now, since when nothing must have happened in a session for the next message to open another.
    None: nothing does."""
    match settings.session_rotation:
        case "none":
            return None
        case "idle":
            return partial(_before, timedelta(minutes=settings.session_idle_minutes))
        case "daily":
            # The default needs no data of time zones, which small machines lack.
            zone = UTC if settings.session_timezone == "UTC" else ZoneInfo(settings.session_timezone)
            return partial(_day_began, time.fromisoformat(settings.session_daily_at), zone)


def _before(duration: timedelta, now: datetime) -> datetime:
    return now - duration


def _day_began(at: time, zone: tzinfo, now: datetime) -> datetime:
    """When the clocks of this zone last showed this time."""
    today = now.astimezone(zone).date()
    began = datetime.combine(today, at, zone).astimezone(UTC)
    return began if began <= now else datetime.combine(today - timedelta(days=1), at, zone).astimezone(UTC)
