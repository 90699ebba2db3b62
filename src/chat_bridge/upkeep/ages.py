"""Ages: since when nothing must have happened for something to be done with a session."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True, slots=True)
class Ages:
    """What the settings say, in days; None: never."""

    archive_after_days: int | None

    def archive_before(self) -> datetime | None:
        """A closed session is archived when its last message is older; None: none is."""
        if self.archive_after_days is None:
            return None
        return datetime.now(UTC) - timedelta(days=self.archive_after_days)
