"""Write docs/settings.md and .env.example from the fields of Settings. Run it after a setting was changed."""

import inspect
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

from annotated_types import Ge, Le, MinLen

from chat_bridge.model import BusyPolicy
from chat_bridge.settings import SECRETS, Settings, setting_names, shown

PROJECT = Path(__file__).parent.parent

PAGE_BEGIN = """\
# Settings

<!-- Written by scripts/settings_doc.py. -->

Settings are environment variables; a `.env` file in the current folder may hold them too, and the environment wins.
An empty value counts as not set. What is wrong is listed in one message, before anything is started.
`chat-bridge config` shows what is in force, without secrets.

Every secret (marked 🔒) can also be given as `NAME_FILE`, the path of a file that holds it.
"""

ENV_BEGIN = """\
# Settings of agoric-chat-bridge. Copy this file to .env and change what you need; every line shows its default.
# Environment variables win over .env. Secrets can also be given as NAME_FILE, the path of a file that holds them.
# Written by scripts/settings_doc.py; docs/settings.md says more.
"""

ENV_END = """
# --- The compose stack ---

# For `docker compose` alone; docs/operate/containers.md says more. Passwords that are not given are made at random.
#POSTGRES_PASSWORD=
#REDIS_PASSWORD=
#S3_ACCESS_KEY=
#S3_SECRET_KEY=

# The port of `app`; 0: a free one for each of several replicas, which the balancer needs.
#APP_PORT=3000

# Who may connect; 0.0.0.0: everybody.
#PUBLISH_ADDRESS=127.0.0.1

# What runs besides: balanced, mastra.
#COMPOSE_PROFILES=
"""


def settings_page() -> str:
    """docs/settings.md: a table for each group of settings."""
    parts = [PAGE_BEGIN]
    for group, fields in groups().items():
        rows = "".join(_row(field) for field in fields)
        parts.append(f"\n## {group}\n\n| Setting | Default | Values | Meaning |\n| --- | --- | --- | --- |\n{rows}")
    return "".join(parts)


def env_example() -> str:
    """.env.example: every setting with its default, commented out."""
    parts = [ENV_BEGIN]
    for group, fields in groups().items():
        parts.append(f"\n# --- {group} ---\n")
        for field in fields:
            about, example = _about(field), _example(field)
            parts.append(f"\n# {about}\n# Example: {example}\n#{setting_names(field)[0]}={_default(field)}\n")
    parts.append(ENV_END)
    return "".join(parts)


def groups() -> dict[str, list[str]]:
    """The fields under the comments that stand above them in the class."""
    found: dict[str, list[str]] = {}
    for title, field in re.findall(r"^    (?:# (.+)|(\w+):.*)$", inspect.getsource(Settings), re.MULTILINE):
        if title:
            found[title] = []
        elif field in Settings.model_fields:
            found[list(found)[-1]].append(field)
    return found


def _row(field: str) -> str:
    default, lock = _default(field), " 🔒" if field in SECRETS else ""
    name = f"`{setting_names(field)[0]}`{lock}"
    example = f"Example: `{_example(field)}`"
    cells = [name, f"`{default}`" if default else "", _values(field), f"{_about(field)} {example}"]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _about(field: str) -> str:
    aliases = setting_names(field)[1:]
    also = f" Also read as {' and '.join(aliases)}." if aliases else ""
    return f"{Settings.model_fields[field].description}{also}"


def _example(field: str) -> str:
    examples = Settings.model_fields[field].examples
    assert examples is not None
    return str(examples[0])


def _default(field: str) -> str:
    """As text; empty where there is none, or where it depends on the machine."""
    if Settings.model_fields[field].default_factory is not None:
        return ""
    return shown(Settings())[setting_names(field)[0]]


def _values(field: str) -> str:
    info = Settings.model_fields[field]
    if info.annotation is bool:
        return "`true`, `false`"
    choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
    if info.annotation is BusyPolicy:
        choices = tuple(BusyPolicy)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    least = next((limit.ge for limit in info.metadata if isinstance(limit, Ge)), None)
    most = next((limit.le for limit in info.metadata if isinstance(limit, Le)), None)
    length = next((limit.min_length for limit in info.metadata if isinstance(limit, MinLen)), None)
    if length is not None:
        return f"{length} characters or more"
    if most is not None:
        return f"{least} to {most}"
    return "" if least is None else f"{least} or more"


if __name__ == "__main__":
    (PROJECT / "docs" / "settings.md").write_text(settings_page(), encoding="utf-8")
    (PROJECT / ".env.example").write_text(env_example(), encoding="utf-8")
