"""Which column of a table holds what: the ready-made mappings, and those that users write as TOML."""

import tomllib
from collections.abc import Mapping as Table
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from chat_bridge.errors import ChatBridgeError

Direction: TypeAlias = Literal["inbound", "outbound"]
READY_MADE = ("openai-agents", "mastra", "langchain", "bridge")
FORMATS = ("plain", "openai-agents", "mastra", "langchain")

PLACE = frozenset({"platform", "account", "conversation", "thread", "user"})
SESSION_FIELDS = PLACE | {"id", "status", "created_at", "parent", "resource", "metadata"}
MESSAGE_FIELDS = PLACE | {
    "id", "session", "direction", "kind", "text", "created_at", "sender", "sender_name", "event_key",
    "platform_message_id", "agent_request_id", "attachments", "metadata",
}  # fmt: skip

_WORDS: Table[Direction, tuple[str, ...]] = {
    "inbound": ("inbound", "incoming", "in", "user", "human", "customer", "client"),
    "outbound": ("outbound", "outgoing", "out", "assistant", "ai", "bot", "agent", "model"),
}
_TOP = {"sessions", "messages", "values", "directions"}


@dataclass(frozen=True, slots=True)
class Mapping:
    """How a file's tables become sessions and messages.

    `sessions` and `messages` name the columns of each field; several columns only for metadata. `values` are the same
    for all. `lenient`: columns that are absent are passed over.
    """

    name: str
    messages_table: str
    messages: Table[str, tuple[str, ...]]
    sessions_table: str | None = None
    sessions: Table[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    order: tuple[str, ...] = ()
    format: str = "plain"
    values: Table[str, str] = field(default_factory=dict[str, str])
    directions: Table[str, Direction] = field(default_factory=dict[str, Direction])
    lenient: bool = False


def load_mapping(name: str) -> Mapping:
    """A ready-made mapping by its name, or that of a TOML file. Raises ChatBridgeError: what is wrong with it."""
    if name in READY_MADE:
        text = (files("chat_bridge.transfer") / "mappings" / f"{name}.toml").read_text(encoding="utf-8")
        return parse_mapping(name, text)
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(READY_MADE)
        raise ChatBridgeError(f"the mapping {name} can't be read; ready-made ones are {known}") from error
    return parse_mapping(name, text)


def parse_mapping(name: str, text: str) -> Mapping:
    """The mapping that a TOML text describes. Raises ChatBridgeError, with all that is wrong."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ChatBridgeError(f"the mapping {name} is not TOML: {error}") from error
    problems = [f"[{each}] is not known" for each in tree.keys() - _TOP]
    sessions = _columns(tree.get("sessions", {}), "sessions", SESSION_FIELDS, {"table"}, problems)
    messages = _columns(tree.get("messages", {}), "messages", MESSAGE_FIELDS, {"table", "format", "order"}, problems)
    values = _values(tree.get("values", {}), problems)
    directions = _directions(tree.get("directions", {}), problems)
    body: dict[str, Any] = _table(tree.get("messages", {}))
    head: dict[str, Any] = _table(tree.get("sessions", {}))
    if not isinstance(body.get("table"), str):
        problems.append("[messages] needs a table")
    if head and not (isinstance(head.get("table"), str) and "id" in sessions):
        problems.append("[sessions] needs a table and an id")
    if head and "session" not in messages:
        problems.append("[messages] needs a session: the column that names its row in [sessions]")
    if "text" not in messages:
        problems.append("[messages] needs a text")
    form = body.get("format", "plain")
    if form not in FORMATS:
        problems.append(f"[messages] format is one of {', '.join(FORMATS)}")
    if form in ("plain", "mastra") and "direction" not in messages:
        problems.append("[messages] needs a direction")
    if not {"session", "conversation"} & messages.keys():
        problems.append("[messages] needs a session or a conversation")
    if problems:
        raise ChatBridgeError(f"the mapping {name}: " + "; ".join(sorted(problems)))
    return Mapping(
        name=name,
        messages_table=body["table"],
        messages=messages,
        sessions_table=head.get("table"),
        sessions=sessions,
        order=_names(body.get("order", [])) or (),
        format=form,
        values=values,
        directions=directions,
        lenient=name == "bridge",
    )


def _table(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _names(value: object) -> tuple[str, ...] | None:
    """One column or several; None when it is neither."""
    if isinstance(value, str):
        return (value,)
    listed = cast("list[object]", value) if isinstance(value, list) else [None]
    return tuple(map(str, listed)) if all(isinstance(each, str) for each in listed) else None


def _columns(
    value: object, where: str, fields: frozenset[str], others: set[str], problems: list[str]
) -> dict[str, tuple[str, ...]]:
    columns: dict[str, tuple[str, ...]] = {}
    for name, column in _table(value).items():
        names = _names(column)
        if name in others:
            if names is None:
                problems.append(f"[{where}] {name} must be text")
        elif name not in fields:
            problems.append(f"[{where}] has no {name}; it may have {', '.join(sorted(fields | others))}")
        elif names is None or (len(names) != 1 and name != "metadata"):
            problems.append(f"[{where}] {name} must name a column")
        else:
            columns[name] = names
    return columns


def _values(value: object, problems: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, each in _table(value).items():
        if name in PLACE and isinstance(each, str):
            values[name] = each
        else:
            problems.append(f"[values] {name}: it may have texts for {', '.join(sorted(PLACE))}")
    return values


def _directions(value: object, problems: list[str]) -> dict[str, Direction]:
    """Which word means which direction: those of the table, else those that everybody uses."""
    table = _table(value)
    words: dict[str, Direction] = {}
    problems += [f"[directions] {each} is neither inbound nor outbound" for each in table.keys() - _WORDS.keys()]
    for direction, usual in _WORDS.items():
        names = _names(table.get(direction, list(usual)))
        if names is None:
            problems.append(f"[directions] {direction} must be a list of texts")
        words |= {word.lower(): direction for word in names or ()}
    return words
