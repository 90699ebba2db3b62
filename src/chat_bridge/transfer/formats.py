"""What other programs keep as JSON in one column: text, files, and whatever else a message of theirs holds."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from chat_bridge.transfer.mapping import Direction

_LONG = 2000  # characters of base64 that are still kept as they are


class BadRowError(Exception):
    """A row that can't be stored; the message says why."""


@dataclass(slots=True)
class Body:
    """What one row says. A `kind` says what it is if not a message. `rest` is what is neither text nor a file;
    `inline_files` counts files whose bytes were inside, and are left out."""

    direction: Direction
    text: str = ""
    kind: str | None = None
    attachments: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    rest: dict[str, Any] = field(default_factory=dict[str, Any])
    inline_files: int = 0

    def settled(self) -> "Body":
        """Without text or files, a row that holds something else is an event, not a message."""
        if self.kind is None and self.rest and not self.text and not self.attachments:
            self.kind = "no_text"
        return self


Decoder = Callable[[str, str | None], Body]


def openai_agents(text: str, _role: str | None) -> Body:
    """An item of the OpenAI Agents SDK: of the Responses API, or a message of chat completions."""
    item = _object(text)
    kind, role = item.get("type", "message"), item.get("role")
    if kind == "message" and role in ("user", "assistant"):
        body = Body("inbound" if role == "user" else "outbound")
        if tool_calls := item.get("tool_calls"):
            body.rest["tool_calls"] = tool_calls
        _read_content(body, item.get("content"))
        return body.settled()
    return _event(str(role if kind == "message" else kind), item)


def langchain(text: str, _role: str | None) -> Body:
    """A message of LangChain."""
    message = _object(text)
    data = _mapping(message.get("data"))
    role = str(data.get("role") if message.get("type") == "chat" else message.get("type")).removesuffix("MessageChunk")
    directions: dict[str, Direction] = {
        "human": "inbound", "Human": "inbound", "user": "inbound",
        "ai": "outbound", "AI": "outbound", "assistant": "outbound",
    }  # fmt: skip
    if role not in directions:
        return _event(role, data)
    body = Body(directions[role])
    body.rest |= {name: data[name] for name in ("tool_calls", "invalid_tool_calls") if data.get(name)}
    _read_content(body, data.get("content"))
    return body.settled()


def mastra(text: str, role: str | None) -> Body:
    """The content of a message in Mastra's storage: parts (format 2), or plain text as older versions wrote it."""
    try:
        content = json.loads(text)
    except ValueError:
        content = text
    if role not in ("user", "assistant"):
        return _event(str(role), {"content": content})
    body = Body("inbound" if role == "user" else "outbound")
    if isinstance(content, dict):
        tree = cast("dict[str, Any]", content)
        _read_content(body, tree.get("parts") or tree.get("content"))
        if metadata := tree.get("metadata"):
            body.rest["metadata"] = metadata
    else:
        _read_content(body, cast("object", content))
    return body.settled()


DECODERS: Mapping[str, Decoder] = {"openai-agents": openai_agents, "langchain": langchain, "mastra": mastra}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        raise BadRowError("its body is not JSON") from None
    if not isinstance(value, dict):
        raise BadRowError("its body is not a JSON object")
    return cast("dict[str, Any]", value)


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _event(kind: str, item: dict[str, Any]) -> Body:
    name = item.get("name")
    return Body("outbound", f"{kind} {name}" if isinstance(name, str) else kind, kind, rest={"item": item})


def _read_content(body: Body, content: object) -> None:
    """Text is text, links become attachments, and the rest is kept as it is."""
    if isinstance(content, str):
        body.text = content
        return
    if content is None:
        return
    if not isinstance(content, list):
        raise BadRowError("its content is neither text nor a list of parts")
    texts: list[str] = []
    others: list[object] = []
    for part in cast("list[object]", content):
        if isinstance(part, str):
            texts.append(part)
            continue
        tree = _mapping(part)
        kind = tree.get("type")
        said = tree.get("refusal") if kind == "refusal" else tree.get("text")
        if kind in ("text", "input_text", "output_text", "refusal") and isinstance(said, str):
            texts.append(said)
        elif (link := _link(tree)) is not None and link.startswith(("https://", "http://")):
            body.attachments.append(_attachment(tree, link))
        elif kind == "step-start":
            continue  # a mark of Mastra's between parts
        else:
            body.inline_files += link is not None
            others.append(_shortened(tree or part))
    body.text = "\n\n".join(texts)
    if others:
        body.rest["parts"] = others


def _link(part: dict[str, Any]) -> str | None:
    """Where the bytes of a part are, if it is a file: a link, or the bytes themselves."""
    for name in ("image_url", "file_url", "url", "image", "data", "file_data", "source"):
        value = part.get(name)
        if isinstance(value, dict):
            value = _mapping(cast("object", value)).get("url")
        if isinstance(value, str) and part.get("type") not in ("reasoning", "source", "source-url"):
            return value
    return None


def _attachment(part: dict[str, Any], link: str) -> dict[str, Any]:
    mime_type = part.get("mimeType") or part.get("mediaType") or part.get("mime_type")
    # "image/png", "input_image" or "image_url"
    kind = str(mime_type or part.get("type")).removeprefix("input_").split("/")[0].split("_")[0]
    file = {
        "kind": kind if kind in ("image", "audio", "video") else "file",
        "mime_type": str(mime_type or "application/octet-stream"),
        "ref": link,
    }
    name = part.get("filename") or part.get("name")
    return file | ({"name": name} if isinstance(name, str) else {})


def _shortened(value: Any) -> Any:
    """The value without the bytes of files, which would fill the database."""
    if isinstance(value, dict):
        return {name: _shortened(each) for name, each in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_shortened(each) for each in cast("list[Any]", value)]
    if isinstance(value, str) and len(value) > _LONG and " " not in value[:_LONG]:
        return f"({len(value)} characters, left out)"
    return value
