"""Formatted text as Telegram sees it: entities counted in UTF-16 units, found, checked and read from markup."""

import html
import re
from typing import Any

from tests.fake_telegram.errors import bad_request

Entity = dict[str, Any]

MOST_ENTITIES = 100
# Those that a bot may send; the last row is found by the server itself.
KINDS = {
    *("bold", "italic", "underline", "strikethrough", "spoiler", "blockquote", "expandable_blockquote"),
    *("code", "pre", "text_link", "text_mention", "custom_emoji", "date_time"),
    *("mention", "hashtag", "cashtag", "bot_command", "url", "email", "phone_number"),
}
_FOUND = (
    ("url", re.compile(r"https?://[^\s<>\"]+[^\s<>\".,!?;:)\]]")),
    ("email", re.compile(r"(?<![\w.])[\w.+-]+@[\w-]+\.[a-zA-Z]{2,}")),
    ("mention", re.compile(r"(?<![\w/@])@[A-Za-z][A-Za-z0-9_]{2,31}\b")),
    ("bot_command", re.compile(r"(?<![\w/<>@])/[A-Za-z0-9_]{1,64}(?:@[A-Za-z0-9_]{3,32})?\b")),
    ("hashtag", re.compile(r"(?<!\w)#\w*[^\W\d]\w*")),
)


def units(text: str) -> int:
    """The length as Telegram counts it: in UTF-16 units."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def cut(text: str, offset: int, length: int) -> str:
    """The part of a text that an entity covers."""
    return text.encode("utf-16-le")[2 * offset : 2 * (offset + length)].decode("utf-16-le")


def found(text: str, given: list[Entity]) -> list[Entity]:
    """The given entities, and the mentions, commands and addresses that the server finds by itself."""
    taken = [(entity["offset"], entity["offset"] + entity["length"]) for entity in given if _opaque(entity)]
    entities = list(given)
    for kind, pattern in _FOUND:
        for match in pattern.finditer(text):
            start, length = units(text[: match.start()]), units(match[0])
            if all(start >= end or start + length <= begin for begin, end in taken):
                taken.append((start, start + length))
                entities.append({"type": kind, "offset": start, "length": length})
    return sorted(entities, key=lambda entity: (entity["offset"], -entity["length"]))


def _opaque(entity: Entity) -> bool:
    return entity["type"] not in {"bold", "italic", "underline", "strikethrough", "spoiler", "blockquote"}


def checked(text: str, entities: Any) -> list[Entity]:
    """The entities that a bot gave, or the complaint that the real server has of them."""
    if not isinstance(entities, list):
        raise bad_request("can't parse entities: Expected an Array of MessageEntity")
    for entity in entities:
        if not isinstance(entity, dict) or not isinstance(entity.get("type"), str):
            raise bad_request("can't parse MessageEntity: Expected an Object")
        if not all(type(entity.get(name)) is int for name in ("offset", "length")):
            raise bad_request('can\'t parse MessageEntity: Field "offset" must be of type Number')
        if entity["type"] not in KINDS:
            raise bad_request("can't parse MessageEntity: Unsupported type specified")
    kept = [entity for entity in entities if entity["length"] > 0][:MOST_ENTITIES]
    kept.sort(key=lambda entity: (entity["offset"], -entity["length"]))
    _check_bounds(text, kept)
    return kept


def _check_bounds(text: str, entities: list[Entity]) -> None:
    bounds = {0: 0}  # where a character begins: UTF-16 offset to byte offset
    offset = bytes_before = 0
    for character in text:
        offset += 2 if ord(character) > 0xFFFF else 1
        bytes_before += len(character.encode())
        bounds[offset] = bytes_before
    ends: list[int] = []
    for entity in entities:
        start, end = entity["offset"], entity["offset"] + entity["length"]
        while ends and ends[-1] <= start:
            ends.pop()
        beginning = f"entity beginning at UTF-16 offset {start} ends"
        if start < 0 or start >= offset:
            raise bad_request(f"entity begins after the end of the text at UTF-16 offset {start}")
        if start not in bounds:
            raise bad_request(f"entity begins in a middle of a UTF-16 symbol at byte offset {bounds[start - 1]}")
        if end > offset or (ends and end > ends[-1]):
            raise bad_request(f"{beginning} after the end of the text at UTF-16 offset {end}")
        if end not in bounds:
            raise bad_request(f"{beginning} in a middle of a UTF-16 symbol at byte offset {bounds[end - 1]}")
        ends.append(end)


def trimmed(text: str, entities: list[Entity]) -> tuple[str, list[Entity]]:
    """Without space at the ends, as the server keeps it."""
    text = text.rstrip(" \n\t\r")
    first = min((entity["offset"] for entity in entities), default=len(text))
    lead = min(len(text) - len(text.lstrip(" \n\t\r")), first)
    text = text[lead:]
    end = units(text)
    moved = [
        {**entity, "offset": start, "length": min(entity["length"], end - start)}
        for entity in entities
        if (start := entity["offset"] - lead) < end
    ]
    return text, moved


def parsed(text: str, mode: str) -> tuple[str, list[Entity]]:
    """Read MarkdownV2 or HTML."""
    match mode.lower():
        case "markdownv2":
            plain, entities = _Markdown(text).read()
        case "html":
            plain, entities = _Html(text).read()
        case _:
            raise bad_request("unsupported parse_mode")
    entities = [entity for entity in entities if entity["length"] > 0]
    return plain, sorted(entities, key=lambda entity: (entity["offset"], -entity["length"]))[:MOST_ENTITIES]


class _Markup:
    """A reader's place in the text, what it has read, and what is open."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0
        self.plain: list[str] = []
        self.length = 0
        self.open: list[tuple[str, int, int, dict[str, Any]]] = []  # kind, offset, where it began, more fields
        self.entities: list[Entity] = []

    def write(self, text: str) -> None:
        self.plain.append(text)
        self.length += units(text)

    def begin(self, kind: str, **more: Any) -> None:
        self.open.append((kind, self.length, self.at, more))

    def end(self, **more: Any) -> None:
        kind, offset, _, fields = self.open.pop()
        self.entities.append({"type": kind, "offset": offset, "length": self.length - offset, **fields, **more})

    def byte(self, at: int) -> int:
        return len(self.source[:at].encode())

    def refuse(self, what: str) -> Exception:
        return bad_request(f"can't parse entities: {what}")


_MARKS = {"*": "bold", "_": "italic", "__": "underline", "~": "strikethrough", "||": "spoiler", "`": "code"}
_NAMES = {"pre": "PreCode", "text_link": "TextUrl", "blockquote": "BlockQuote"}


class _Markdown(_Markup):
    def read(self) -> tuple[str, list[Entity]]:
        while self.at < len(self.source):
            self._step(self.source[self.at])
        if self.open and self.open[-1][0] == "blockquote":
            self.end()
        if self.open:
            kind, _, began, _ = self.open[-1]
            name = _NAMES.get(kind, kind.capitalize())
            raise self.refuse(f"Can't find end of {name} entity at byte offset {self.byte(began)}")
        return "".join(self.plain), self.entities

    def _step(self, character: str) -> None:
        inside = self.open[-1][0] if self.open else ""
        following = self.source[self.at + 1 : self.at + 2]
        if character == "\\" and following and ord(following) < 127:
            self.write(following)
            self.at += 2
        elif inside in ("code", "pre"):
            self._in_code(inside, character)
        elif character == "\n" and any(kind == "blockquote" for kind, *_ in self.open):
            self._quote_line(inside, following)
        elif character not in "_*[]()~`>#+-=|{}.!":
            self.write(character)
            self.at += 1
        else:
            self._mark(inside, character, following)

    def _in_code(self, inside: str, character: str) -> None:
        mark = "```" if inside == "pre" else "`"
        if self.source.startswith(mark, self.at):
            self.end()
            self.at += len(mark)
        else:
            self.write(character)
            self.at += 1

    def _quote_line(self, inside: str, following: str) -> None:
        if following == ">":
            self.write("\n")
            self.at += 2
            return
        if inside != "blockquote":
            _, _, began, _ = self.open[-1]
            raise self.refuse(f"Can't find end of {inside.capitalize()} entity at byte offset {self.byte(began)}")
        self.end()
        self.write("\n")
        self.at += 1

    def _mark(self, inside: str, character: str, following: str) -> None:
        mark = character * 2 if character in "_|" and following == character else character
        line_start = self.at == 0 or self.source[self.at - 1] == "\n"
        if mark in _MARKS and _MARKS[mark] == inside:
            self.end()
            self.at += len(mark)
        elif character == "]" and inside == "text_link":
            self._link()
        elif self.source.startswith("```", self.at):
            language = re.compile(r"([^\s`]*)\n").match(self.source, self.at + 3)
            self.begin("pre", **({"language": language[1]} if language and language[1] else {}))
            self.at = language.end() if language else self.at + 3
        elif mark in _MARKS:
            self.begin(_MARKS[mark])
            self.at += len(mark)
        elif character == "[":
            self.begin("text_link")
            self.at += 1
        elif character == ">" and line_start and not self.open:
            self.begin("blockquote")
            self.at += 1
        else:
            raise self.refuse(f"Character '{character}' is reserved and must be escaped with the preceding '\\'")

    def _link(self) -> None:
        target = re.compile(r"\]\(((?:[^\\)]|\\.)*)\)").match(self.source, self.at)
        if target is None:
            raise self.refuse(f"Can't find end of a URL at byte offset {self.byte(self.at)}")
        self.end(url=re.sub(r"\\(.)", r"\1", target[1]))
        self.at = target.end()


_TAGS = {
    "b": "bold",
    "strong": "bold",
    "i": "italic",
    "em": "italic",
    "u": "underline",
    "ins": "underline",
    "s": "strikethrough",
    "strike": "strikethrough",
    "del": "strikethrough",
    "tg-spoiler": "spoiler",
    "code": "code",
    "pre": "pre",
    "a": "text_link",
    "blockquote": "blockquote",
}


class _Html(_Markup):
    def read(self) -> tuple[str, list[Entity]]:
        self.tags: list[str] = []
        while self.at < len(self.source):
            if self.source[self.at] == "<":
                self._tag()
            elif reference := re.compile(r"&(?:#\d+|#x[0-9a-fA-F]+|lt|gt|amp|quot);").match(self.source, self.at):
                self.write(html.unescape(reference[0]))
                self.at = reference.end()
            else:
                self.write(self.source[self.at])
                self.at += 1
        if self.tags:
            raise self.refuse(f'Can\'t find end tag corresponding to start tag "{self.tags[-1]}"')
        return "".join(self.plain), self.entities

    def _tag(self) -> None:
        where = self.byte(self.at)
        tag = re.compile(r"<(/?)([^\s<>/]*)([^<>]*)>").match(self.source, self.at)
        if tag is None:
            raise self.refuse(f"Unclosed start tag at byte offset {where}")
        name = tag[2].lower()
        if tag[1]:
            if not self.tags:
                raise self.refuse(f"Unexpected end tag at byte offset {where}")
            if self.tags[-1] != name:
                expected, got = f'"</{self.tags[-1]}>"', f'"</{name}>"'
                raise self.refuse(f"Unmatched end tag at byte offset {where}, expected {expected}, found {got}")
            self.tags.pop()
            self._close()
        else:
            if name not in _TAGS and not (name == "span" and "tg-spoiler" in tag[3]):
                raise self.refuse(f'Unsupported start tag "{name}" at byte offset {where}')
            self.tags.append(name)
            self._open(name, dict(re.findall(r'([\w-]+)\s*=\s*"([^"]*)"', tag[3])), tag[3])
        self.at = tag.end()

    def _open(self, name: str, attributes: dict[str, str], rest: str) -> None:
        kind = _TAGS.get(name, "spoiler")
        if kind == "text_link":
            self.begin(kind, url=html.unescape(attributes.get("href", "")))
        elif kind == "blockquote" and "expandable" in rest:
            self.begin("expandable_blockquote")
        elif kind == "code" and attributes.get("class", "").startswith("language-") and self._in_pre():
            self.begin(kind, language=attributes["class"].removeprefix("language-"))
        else:
            self.begin(kind)

    def _in_pre(self) -> bool:
        return bool(self.open) and self.open[-1][0] == "pre"

    def _close(self) -> None:
        self.end()
        last = self.entities[-1]
        if last["type"] == "code" and self._in_pre():  # <pre><code>: one entity
            self.entities.pop()
            if "language" in last:
                self.open[-1][3]["language"] = last["language"]
        elif last["type"] == "text_link" and not last["url"]:
            self.entities.pop()
