"""Formatted text as a plain text and spans over it, split into parts that a platform takes.

An agent answers in Markdown. It is parsed by a library, written down as what a chat user should see, and only then
split: so no part holds half a mark, and each platform writes the spans in its own way, or leaves them out.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.common.normalize_url import normalizeLink
from markdown_it.rules_block import StateBlock
from markdown_it.token import Token

SpanKind = Literal["bold", "italic", "underline", "strike", "spoiler", "code", "pre", "link", "quote"]
Unit = Literal["characters", "utf16"]

NESTING = 20  # deeper quotes, lists and links are shown as they were written; more would cost time and stack
COLUMN_WIDTH = 40  # a column of a table is filled up with spaces to this at most, so that one long cell costs one line

_LINKS = re.compile(r"https?://[^\s/?#]|mailto:\S|tg:\S", re.IGNORECASE)
_BLANKS = re.compile(r"\s*")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_SENTENCE_END = re.compile(r"""[.!?…]['"”’»)\]]*(?=\s)|[。！？]['"”’»）」』]*""")  # noqa: RUF001 - they are meant
_LANGUAGE = re.compile(r"\s*([\w+#.-]{1,40})(?!\S)")
_INLINE_KINDS: dict[str, SpanKind] = {"strong_open": "bold", "em_open": "italic", "s_open": "strike"}
_JOINABLE: frozenset[SpanKind] = frozenset({"bold", "italic", "strike", "link"})


@dataclass(frozen=True, slots=True)
class Span:
    """Formatting of `length` characters from `offset`, in Python's characters. `argument` is a link's URL or the
    language of a code block."""

    kind: SpanKind
    offset: int
    length: int
    argument: str | None = None

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Rendered:
    """One part of a reply: its text, and formatting where the platform takes it apart from the text.

    Spans are in order, the outer before the inner one, and never overlap in part. None begins or ends with blanks,
    but that code keeps the indentation of its first line. Code holds no other span, nor does any but a quote hold
    code; there is no quote in a quote and no link in a link.
    """

    text: str
    spans: Sequence[Span] = ()


def rich_parts(text: str, most: int | None, unit: Unit, *, most_spans: int | None = None) -> Sequence[Rendered]:
    """Markdown as parts of `most` units and `most_spans` spans each, or of any size where that is None.

    `most` must be 2 at least and `most_spans` 10, so that any character fits with all that can be said about it.
    A blank text has no parts. A text of which nothing would be seen is shown as it was written.
    """
    rendered = _render(text)
    if not rendered.text.strip():
        return plain_parts(text.strip(), most, unit)
    return _Splitter(rendered, most, unit, most_spans).parts()


def plain_parts(text: str, most: int | None, unit: Unit) -> Sequence[Rendered]:
    """A text without formatting, split; one that fits stays as it is. A blank text has no parts."""
    if not text.strip():
        return ()
    if most is None or _units(text, unit)[-1] <= most:
        return (Rendered(text),)
    return _Splitter(Rendered(text), most, unit, None).parts()


def utf16_ranges(part: Rendered) -> Sequence[tuple[int, int]]:
    """Offset and length of each span in UTF-16 units."""
    units = _units(part.text, "utf16")
    return [(units[span.offset], units[span.end] - units[span.offset]) for span in part.spans]


def _units(text: str, unit: Unit) -> Sequence[int]:
    """How many units come before each character, and at last how many there are."""
    if unit == "characters" or max(text, default="") <= "\uffff":
        return range(len(text) + 1)
    return list(accumulate((2 if char > "\uffff" else 1 for char in text), initial=0))


# Rendering


class _Parser(MarkdownIt):
    """Leaves URLs as they were written: which ones become links is decided when they are shown."""

    def __init__(self) -> None:
        super().__init__("commonmark", {"maxNesting": NESTING, "tasklists": True})
        self.enable(["table", "strikethrough"])
        self.block.ruler.before("table", "too_deep", _too_deep)

    def validateLink(self, url: str) -> bool:  # noqa: N802 - the library's name
        return True

    def normalizeLink(self, url: str) -> str:  # noqa: N802 - the library's name
        return url

    def normalizeLinkText(self, link: str) -> str:  # noqa: N802 - the library's name
        return link


def _too_deep(state: StateBlock, start: int, end: int, _silent: bool) -> bool:
    """Takes what is nested too deeply as it is. The library would drop it."""
    if state.level < NESTING - 2:  # a list takes two levels at once
        return False
    line = start + 1
    while line < end and (state.isEmpty(line) or state.sCount[line] >= state.blkIndent):
        line += 1
    state.push("too_deep", "", 0).content = state.getLines(start, line, state.blkIndent, False)
    state.line = line
    return True


_parser = _Parser()


def _render(markdown: str) -> Rendered:
    writer = _Writer()
    writer.blocks(_parser.parse(markdown))
    return writer.rendered()


class _Writer:
    """Writes the library's tokens as text, and notes spans.

    `_gap` is what stands between the text so far and what comes next: it is written only if something comes.
    """

    def __init__(self, *, links: bool = True) -> None:
        self._links = links
        self._pieces: list[str] = []
        self._length = 0
        self._gap = ""
        self._indents = [""]
        self._gaps = ["\n\n"]  # between the blocks of what is open: the text, a quote, a list
        self._numbers: list[int | None] = []  # of the next item of each open list
        self._opened: list[SpanKind | None] = []  # None for what changes nothing, as bold in bold
        self._open: dict[SpanKind, tuple[int, str | None]] = {}  # where it began, outermost first
        self._hrefs: list[tuple[str | None, int]] = []  # of open links: what to show after it, and from which piece on
        self._spans: list[Span] = []

    def rendered(self) -> Rendered:
        """All that was written."""
        text = "".join(self._pieces).rstrip()
        # What was closed later is further out.
        spans = [trimmed for span in reversed(self._spans) if (trimmed := _clip(span, text, 0, len(text)))]
        return Rendered(text, _joined(sorted(spans, key=lambda span: (span.offset, -span.length))))

    def blocks(self, tokens: Sequence[Token]) -> None:
        """Write block tokens."""
        loose = _loose_lists(tokens)
        stream = iter(enumerate(tokens))
        for index, token in stream:
            match token.type:
                case "paragraph_close":
                    self._end_block()
                case "heading_open":
                    self._begin("bold")
                case "heading_close":
                    self._end()
                    self._end_block()
                case "inline":
                    self._inline(token.children or ())
                case "bullet_list_open" | "ordered_list_open":
                    self._gaps.append("\n\n" if index in loose else "\n")
                    self._numbers.append(int(token.attrs.get("start", 1)) if token.type.startswith("ordered") else None)
                case "bullet_list_close" | "ordered_list_close":
                    self._gaps.pop()
                    self._numbers.pop()
                    self._end_block()
                case "list_item_open":
                    self._begin_item(token)
                case "list_item_close":
                    self._indents.pop()
                    self._gap = ""  # an empty item has one yet
                    self._end_block()
                case "blockquote_open":
                    self._begin_quote()
                case "blockquote_close":
                    self._end()
                    self._gaps.pop()
                    self._indents.pop()
                    self._end_block()
                case "fence" | "code_block":
                    self._pre(token.content, _language(token.info))
                case "table_open":
                    self._table(inner for _, inner in takewhile(lambda item: item[1].type != "table_close", stream))
                case "html_block" | "too_deep":
                    self._write(token.content.rstrip())
                    self._end_block()
                case "hr":
                    self._write("———")
                    self._end_block()
                case _:
                    pass

    def inline_text(self, tokens: Iterable[Token]) -> str:
        """Write inline tokens and nothing else, and give the text."""
        self._inline(tokens)
        return "".join(self._pieces)

    def _inline(self, tokens: Iterable[Token]) -> None:
        for token in tokens:
            match token.type:
                case "text" | "html_inline":
                    self._write(token.content)
                case "softbreak" | "hardbreak":
                    self._write("\n")
                case "code_inline":
                    self._code(token.content)
                case "strong_open" | "em_open" | "s_open":
                    self._begin(_INLINE_KINDS[token.type])
                case "strong_close" | "em_close" | "s_close":
                    self._end()
                case "link_open" if token.info != "auto":  # those are their own text
                    self._begin_link(str(token.attrs["href"]))
                case "link_close" if token.info != "auto":
                    self._end_link()
                case "image":
                    self._begin_link(str(token.attrs["src"]))
                    self._inline(token.children or ())
                    self._end_link()
                case _:
                    pass

    def _end_block(self) -> None:
        """What comes next is another block. The first one of an item stands beside the mark."""
        if self._gap != " ":
            self._gap = self._gaps[-1]

    def _own_line(self) -> None:
        """What comes next does not stand beside a mark."""
        if self._gap == " ":
            self._gap = "\n"

    def _write_gap(self) -> None:
        if self._gap and self._length:
            self._put(f"{self._gap}{self._indents[-1]}" if "\n" in self._gap else self._gap)
        self._gap = ""

    def _write(self, text: str) -> None:
        if text:
            self._write_gap()
            self._put(text.replace("\n", f"\n{self._indents[-1]}"))

    def _put(self, text: str) -> None:
        self._pieces.append(text)
        self._length += len(text)

    def _begin(self, kind: SpanKind, argument: str | None = None) -> None:
        if kind in self._open:
            self._opened.append(None)
        else:
            self._opened.append(kind)
            self._open[kind] = (self._length, argument)

    def _end(self) -> None:
        if kind := self._opened.pop():
            start, argument = self._open.pop(kind)
            self._note(kind, start, argument)

    def _note(self, kind: SpanKind, start: int, argument: str | None) -> None:
        if start < self._length:
            self._spans.append(Span(kind, start, self._length - start, argument))

    def _code(self, text: str) -> None:
        """Code in a line. Other spans end before it and begin anew after it, but in a link it is only text."""
        if "link" in self._open:
            self._write(text)
            return
        self._write_gap()
        around: list[tuple[SpanKind, str | None]] = [
            (kind, argument) for kind, (_, argument) in self._open.items() if kind != "quote"
        ]
        for kind, argument in reversed(around):
            self._note(kind, self._open[kind][0], argument)
        start = self._length
        self._write(text)
        self._note("code", start, None)
        for kind, argument in around:
            self._open[kind] = (self._length, argument)

    def _begin_link(self, url: str) -> None:
        is_link = self._links and _LINKS.match(url) is not None
        self._hrefs.append((None if is_link or "link" in self._open else url, len(self._pieces)))
        if is_link:
            self._begin("link", normalizeLink(url))
        else:
            self._opened.append(None)

    def _end_link(self) -> None:
        """One without a label is shown by its URL."""
        shown, piece = self._hrefs.pop()
        label = "".join(self._pieces[piece:]).strip()
        kind = self._opened[-1]
        if not label:
            self._write(shown or (self._open[kind][1] if kind else None) or "")
        self._end()
        if label and shown and shown != label:
            self._write(f" ({shown})")

    def _begin_item(self, token: Token) -> None:
        number = self._numbers[-1]
        mark = "•"
        if number is not None:
            mark = f"{number}{token.markup}"
            self._numbers[-1] = number + 1
        if "checked" in token.meta:
            box = "☑" if token.meta["checked"] else "☐"
            mark = box if number is None else f"{mark} {box}"
        self._write(mark)
        self._gap = " "
        self._indents.append(self._indents[-1] + " " * (len(mark) + 1))

    def _begin_quote(self) -> None:
        """A quote has its own left edge: no indentation reaches into it."""
        self._own_line()
        self._begin("quote")
        self._gaps.append("\n\n")
        self._indents.append("")

    def _pre(self, text: str, language: str | None) -> None:
        """Code keeps its own indentation, and gets no other."""
        text = _without_blank_lines(text)
        if not text:
            return
        self._own_line()
        self._indents.append("")
        self._write_gap()
        start = self._length
        self._write(text)
        self._note("pre", start, language)
        self._indents.pop()
        self._end_block()

    def _table(self, tokens: Iterable[Token]) -> None:
        rows: list[list[str]] = []
        aligns: list[str] = []
        for token in tokens:
            match token.type:
                case "tr_open":
                    rows.append([])
                case "th_open":
                    aligns.append(str(token.attrs.get("style", "")).removeprefix("text-align:"))
                case "inline":
                    # Code can hold no links.
                    cell = _Writer(links=False).inline_text(token.children or ())
                    rows[-1].append(" ".join(cell.split()))
                case _:
                    pass
        self._pre("\n".join(_table_lines(rows, aligns)), None)


def _loose_lists(tokens: Sequence[Token]) -> set[int]:
    """Where the lists begin that have blank lines between their items."""
    loose: set[int] = set()
    lists: list[int] = []
    for index, token in enumerate(tokens):
        match token.type:
            case "bullet_list_open" | "ordered_list_open":
                lists.append(index)
            case "bullet_list_close" | "ordered_list_close":
                lists.pop()
            case "paragraph_open" if lists and not token.hidden and token.level == tokens[lists[-1]].level + 2:
                loose.add(lists[-1])
            case _:
                pass
    return loose


def _language(info: str) -> str | None:
    """The first word of what is said about a block of code, if it looks like a name."""
    match = _LANGUAGE.match(info)
    return match.group(1) if match else None


def _without_blank_lines(text: str) -> str:
    """Without those at the beginning and the end."""
    text = text.rstrip()
    return text[text.rfind("\n", 0, len(text) - len(text.lstrip())) + 1 :]


def _table_lines(rows: Sequence[Sequence[str]], aligns: Sequence[str]) -> Iterator[str]:
    """Lines of equal columns, with a rule below the header if there is one."""
    widths = [min(COLUMN_WIDTH, max(map(_width, column))) for column in zip(*rows, strict=True)]
    header, *body = rows
    if any(header):
        yield _table_line(header, widths, aligns)
        yield "-+-".join("-" * width for width in widths)
    for row in body:
        yield _table_line(row, widths, aligns)


def _table_line(cells: Sequence[str], widths: Sequence[int], aligns: Sequence[str]) -> str:
    return " | ".join(map(_aligned, cells, widths, aligns)).rstrip()


def _aligned(cell: str, width: int, align: str) -> str:
    missing = max(0, width - _width(cell))
    left = {"right": missing, "center": missing // 2}.get(align, 0)
    return f"{' ' * left}{cell}{' ' * (missing - left)}"


def _width(text: str) -> int:
    """In columns of a terminal."""
    return len(text) if text.isascii() else sum(map(_char_width, text))


def _char_width(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def _joined(spans: Iterable[Span]) -> Sequence[Span]:
    """Equal spans that touch each other as one. They come and go in order, the outer before the inner one."""
    joined: list[Span] = []
    around: list[int] = []  # where in `joined` the ones are that the next span may be in
    for span in spans:
        before: int | None = None
        while around and joined[around[-1]].end <= span.offset:
            before = around.pop()
        if before is not None and _continues(joined[before], span):
            joined[before] = replace(joined[before], length=span.end - joined[before].offset)
            around.append(before)
        else:
            around.append(len(joined))
            joined.append(span)
    return tuple(joined)


def _continues(first: Span, second: Span) -> bool:
    same = (first.kind, first.argument, first.end) == (second.kind, second.argument, second.offset)
    return same and first.kind in _JOINABLE


def _clip(span: Span, text: str, start: int, end: int) -> Span | None:
    """What is left of a span between two places, without blanks around it. Code keeps its indentation."""
    start = max(span.offset, start)
    end = min(span.end, end)
    while end > start and text[end - 1].isspace():
        end -= 1
    while span.kind != "pre" and start < end and text[start].isspace():
        start += 1
    return replace(span, offset=start, length=end - start) if start < end else None


# Splitting


class _Splitter:
    """Cuts a text and its spans into parts. What it looks at again and again is never more than a part."""

    def __init__(self, whole: Rendered, most: int | None, unit: Unit, most_spans: int | None) -> None:
        self._text = whole.text
        self._end = len(whole.text.rstrip())
        self._units = _units(whole.text, unit)
        self._most = 2 * self._units[-1] if most is None else most
        self._spans = whole.spans
        self._most_spans = len(whole.spans) if most_spans is None else most_spans
        codes = [span for span in whole.spans if span.kind == "pre"]
        self._code_starts = [span.offset for span in codes]
        self._code_ends = [span.end for span in codes]
        self._below_titles = {
            place for span in whole.spans if self._is_title(span) for place in (span.end, span.end + 1)
        }

    def parts(self) -> Sequence[Rendered]:
        """The parts, none of them blank."""
        parts: list[Rendered] = []
        begun: list[Span] = []  # spans that go on in the next part
        ahead = 0  # the first span that begins in the next part or later
        start = self._next_start(0)
        while start < self._end:
            stop = self._furthest(start, ahead + self._most_spans - len(begun))
            cut = self._end if stop == self._end else self._cut(start, stop)
            following = self._next_start(cut)
            first = ahead
            ahead = bisect_left(self._spans, following, lo=first, key=lambda span: span.offset)
            begun += self._spans[first:ahead]
            parts.append(self._part(begun, start, cut))
            begun = [span for span in begun if span.end > following]
            start = following
        return tuple(parts)

    def _part(self, spans: Iterable[Span], start: int, cut: int) -> Rendered:
        text = self._text[start:cut].rstrip()
        clipped = (_clip(span, self._text, start, start + len(text)) for span in spans)
        return Rendered(text, tuple(replace(span, offset=span.offset - start) for span in clipped if span))

    def _next_start(self, cut: int) -> int:
        """Where the text goes on after a cut. Blank lines are dropped, but not a line's indentation."""
        after = min(self._blanks_end(cut), self._end)
        line = self._text.rfind("\n", cut, after) + 1
        if (line or not cut) and after - line < self._most // 2:
            return line
        return after

    def _blanks_end(self, position: int) -> int:
        match = _BLANKS.match(self._text, position)
        assert match is not None
        return match.end()

    def _furthest(self, start: int, excess: int) -> int:
        """Where a part must end at the latest. `excess` is the first span that is one too many."""
        limit = self._units[start] + self._most
        stop = self._end
        if self._units[stop] > limit:
            limit = min(limit, self._units[stop] - self._most // 4)  # so that the last part is not tiny
            stop = bisect_right(self._units, limit, lo=start, hi=stop) - 1
        if excess < len(self._spans):
            stop = min(stop, self._spans[excess].offset)
        return max(stop, self._blanks_end(start) + 1)

    def _cut(self, start: int, stop: int) -> int:
        """The best place to cut, in the second half of the part if there is any."""
        low = self._blanks_end(start) + 1
        middle = bisect_left(self._units, (self._units[start] + self._units[stop]) // 2, lo=start, hi=stop)
        for first, last in ((max(low, middle), stop), (low, middle - 1)):
            for find in (self._block_end, self._line_end, self._sentence_end, self._word_end):
                if (cut := find(first, last)) is not None:
                    return cut
        return self._character_end(start, low, stop)

    def _block_end(self, first: int, last: int) -> int | None:
        found = None
        for match in _BLANK_LINE.finditer(self._text, first, last + 2):
            if match.start() <= last and not self._parts_nothing(match.start()):
                found = match.start()
        return found

    def _parts_nothing(self, position: int) -> bool:
        """Whether a blank line is below a title or within code, so that it is no end of a block."""
        return position in self._below_titles or self._in_code(position)

    def _is_title(self, span: Span) -> bool:
        """Whether it is a bold line with a blank one below, which should not be the last one of a part."""
        begins_line = self._text[span.offset - 1 : span.offset] in ("", "\n")
        return span.kind == "bold" and begins_line and self._text.startswith("\n\n", span.end)

    def _in_code(self, position: int) -> bool:
        index = bisect_left(self._code_starts, position) - 1
        return index >= 0 and position < self._code_ends[index]

    def _line_end(self, first: int, last: int) -> int | None:
        found = self._text.rfind("\n", first, last + 1)
        while found in self._below_titles:
            found = self._text.rfind("\n", first, found)
        return None if found < 0 else found

    def _sentence_end(self, first: int, last: int) -> int | None:
        found = None
        for match in _SENTENCE_END.finditer(self._text, max(0, first - 3), last + 1):  # its marks may begin before
            if first <= match.end() <= last:
                found = match.end()
        return found

    def _word_end(self, first: int, last: int) -> int | None:
        return next((cut for cut in range(last, first - 1, -1) if self._text[cut].isspace()), None)

    def _character_end(self, start: int, low: int, stop: int) -> int:
        """Not within what is seen as one character, unless that is longer than a part."""
        for cut in range(stop, low - 1, -1):
            if not self._is_joined(start, cut):
                return cut
        return stop

    def _is_joined(self, start: int, cut: int) -> bool:
        """Whether the characters around a place are seen as one: a letter and its accent, an emoji of several."""
        before, after = self._text[cut - 1], self._text[cut]
        if _is_flag_half(before) and _is_flag_half(after):
            halves = takewhile(_is_flag_half, (self._text[place] for place in range(cut - 1, start - 1, -1)))
            return sum(1 for _ in halves) % 2 == 1
        return (
            before == "\u200d"
            or after == "\u200d"
            or unicodedata.category(after).startswith("M")
            or "\U0001f3fb" <= after <= "\U0001f3ff"  # skin tones
            or "\U000e0020" <= after <= "\U000e007f"  # tags, as in the flag of Wales
        )


def _is_flag_half(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"
