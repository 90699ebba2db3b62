"""For how long what is kept: by platform, account and sort of conversation. docs/operate/retention.md tells all."""

import tomllib
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chat_bridge.errors import SettingsError
from chat_bridge.settings import Settings

FOR_EVER = 0

Days = Annotated[int, Field(ge=0, le=36500)]


class Policy(BaseModel):
    """Lifetimes, in days (0: for ever; None: as the policies below say), of the conversations that fit."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    platform: str | None = None
    account: str | None = None
    conversations: Literal["private", "group"] | None = None
    retention_days: Days | None = None
    attachment_retention_days: Days | None = None

    def fits(self, platform: str, account: str, *, group: bool) -> bool:
        return (
            self.platform in (None, platform)
            and self.account in (None, account)
            and self.conversations in (None, "group" if group else "private")
        )

    @property
    def name(self) -> str:
        """What it is for, for people."""
        return " ".join(filter(None, (self.platform, self.account, self.conversations))) or "all others"


class Lifetime(NamedTuple):
    """How long a conversation's messages and files are kept; None: for ever. `policy` names the first one that says
    something about them."""

    policy: str
    messages: timedelta | None
    attachments: timedelta | None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    policy: list[Policy] = []


class Policies:
    """Policies in the order in which they are asked: the first that fits and has a number decides."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = policies

    @property
    def keeps_all(self) -> bool:
        """Nothing is ever deleted."""
        return not any(each.retention_days or each.attachment_retention_days for each in self._policies)

    def of(self, platform: str, account: str, *, group: bool) -> Lifetime:
        """What holds for a conversation."""
        fitting = [each for each in self._policies if each.fits(platform, account, group=group)]
        names = [each.name for each in fitting if (each.retention_days, each.attachment_retention_days) != (None, None)]
        return Lifetime(
            names[0] if names else "all others",
            _first(each.retention_days for each in fitting),
            _first(each.attachment_retention_days for each in fitting),
        )

    def of_people(self, platform: str, account: str) -> timedelta | None:
        """How long a person of an account is kept that nothing is heard of: as long as any message may be."""
        both = [self.of(platform, account, group=group).messages for group in (False, True)]
        lives = [each for each in both if each is not None]
        return max(lives) if len(lives) == len(both) else None


def load_policies(settings: Settings) -> Policies:
    """Those of the file, and below them the settings'. Raises SettingsError."""
    policies = _read(settings.retention_policies) if settings.retention_policies is not None else ()
    rest = Policy(retention_days=settings.retention_days, attachment_retention_days=settings.attachment_retention_days)
    return Policies([*policies, rest])


def _read(file: Path) -> Sequence[Policy]:
    try:
        return _File.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))).policy
    except OSError as error:
        raise SettingsError(f"RETENTION_POLICIES: {file} can't be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"RETENTION_POLICIES: {file} is no TOML ({error})") from None
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        place = " ".join(str(part + 1) if isinstance(part, int) else part for part in wrong["loc"])
        raise SettingsError(f"RETENTION_POLICIES: {file}: {place}: {wrong['msg']}") from None


def _first(days: Iterable[int | None]) -> timedelta | None:
    said = next((each for each in days if each is not None), FOR_EVER)
    return timedelta(days=said) if said else None
