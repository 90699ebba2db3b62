"""Markdown as text with spans: what a chat user sees of it, and how it is cut into parts."""

import sys
import unicodedata
from collections.abc import Sequence
from types import FrameType
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_bridge.platforms.rich_text import Rendered, Span, plain_parts, rich_parts, utf16_ranges

Shown = tuple[str, ...]  # the kind of a span, the text below it and, if it has one, its argument

TELEGRAM: dict[str, Any] = {"most": 4096, "unit": "utf16", "most_spans": 100}


def whole(markdown: str) -> Rendered:
    """A text that is not split."""
    (part,) = rich_parts(markdown, None, "characters")
    return part


def shown(part: Rendered) -> list[Shown]:
    return [
        (span.kind, part.text[span.offset : span.end], *([span.argument] if span.argument is not None else []))
        for span in part.spans
    ]


def texts(parts: Sequence[Rendered]) -> list[str]:
    return [part.text for part in parts]


def units(text: str, unit: str) -> int:
    return len(text) if unit == "characters" else len(text.encode("utf-16-le", "surrogatepass")) // 2


def ink(text: str) -> str:
    """All but blanks."""
    return "".join(text.split())


@pytest.mark.parametrize(
    ("markdown", "text", "spans"),
    [
        # lines and paragraphs
        ("hello", "hello", []),
        ("one\n\n\n\ntwo", "one\n\ntwo", []),
        ("soft\nbreak", "soft\nbreak", []),
        ("hard  \nbreak\\\ntoo", "hard\nbreak\ntoo", []),
        ("  around  \n", "around", []),
        ("above\n\n***\nbelow", "above\n\n———\n\nbelow", []),
        # headings
        ("# Title\ntext", "Title\n\ntext", [("bold", "Title")]),
        ("text\n## Title ##", "text\n\nTitle", [("bold", "Title")]),
        ("Title\n=====\ntext", "Title\n\ntext", [("bold", "Title")]),
        ("# a **b** c", "a b c", [("bold", "a b c")]),
        # emphasis
        ("*a* _b_ ~~c~~", "a b c", [("italic", "a"), ("italic", "b"), ("strike", "c")]),
        ("**a** __b__", "a b", [("bold", "a"), ("bold", "b")]),
        ("***a***", "a", [("italic", "a"), ("bold", "a")]),
        ("**a *b* c**", "a b c", [("bold", "a b c"), ("italic", "b")]),
        ("*a *b* c*", "a b c", [("italic", "a b c")]),
        ("__a__**b**", "ab", [("bold", "ab")]),
        ("2 * 3 * 4 and snake_case_name", "2 * 3 * 4 and snake_case_name", []),
        ("**open and never closed", "**open and never closed", []),
        ("**&nbsp;a&nbsp;**", "\xa0a", [("bold", "a")]),
        ("**Xin chào**, **bạn**", "Xin chào, bạn", [("bold", "Xin chào"), ("bold", "bạn")]),
        ("**שלום** *عالم*", "שלום عالم", [("bold", "שלום"), ("italic", "عالم")]),
        ("**👩‍👩‍👧** 🙂", "👩‍👩‍👧 🙂", [("bold", "👩‍👩‍👧")]),
        # code
        ("a `b` c", "a b c", [("code", "b")]),
        ("` b `", "b", [("code", "b")]),
        ("``a`b``", "a`b", [("code", "a`b")]),
        ("`**a** [b](http://c.d)`", "**a** [b](http://c.d)", [("code", "**a** [b](http://c.d)")]),
        ("**a `b` c**", "a b c", [("bold", "a"), ("code", "b"), ("bold", "c")]),
        ("# `a` b", "a b", [("code", "a"), ("bold", "b")]),
        ("```py\nx = 1\n```", "x = 1", [("pre", "x = 1", "py")]),
        ("```\nx\n```\nafter", "x\n\nafter", [("pre", "x")]),
        ("~~~js title=\"a\"\nx\n~~~", "x", [("pre", "x", "js")]),
        ("```?!\nx\n```", "x", [("pre", "x")]),
        ("text\n```sh\nls\n\n  ls -l", "text\n\nls\n\n  ls -l", [("pre", "ls\n\n  ls -l", "sh")]),
        ("```\n\n    a\n  b\n\n```", "    a\n  b", [("pre", "    a\n  b")]),
        ("text\n\n    code\n      more\n\ntext", "text\n\ncode\n  more\n\ntext", [("pre", "code\n  more")]),
        ("a\n\n```\n```\n\nb", "a\n\nb", []),
        # links and images
        ("[a](https://b.c/d?e=f)", "a", [("link", "a", "https://b.c/d?e=f")]),
        ("[a](HTTP://b.c)", "a", [("link", "a", "HTTP://b.c")]),
        ("[a](mailto:b@c.d)", "a", [("link", "a", "mailto:b@c.d")]),
        ("[a](tg://user?id=1)", "a", [("link", "a", "tg://user?id=1")]),
        ("[a](https://b.c/ü \"title\")", "a", [("link", "a", "https://b.c/%C3%BC")]),
        ("[a]\n\n[a]: https://b.c", "a", [("link", "a", "https://b.c")]),
        ("[**a** b](https://c.d)", "a b", [("link", "a b", "https://c.d"), ("bold", "a")]),
        ("**[a](https://c.d)**", "a", [("bold", "a"), ("link", "a", "https://c.d")]),
        ("[`a`](https://b.c)", "a", [("link", "a", "https://b.c")]),
        ("[a](javascript:b)", "a (javascript:b)", []),
        ("[*a*](docs/ü.md)", "a (docs/ü.md)", [("italic", "a")]),
        ("[a](#a) [](b)", "a (#a) b", []),
        ("[a](a)", "a", []),
        ("[](https://b.c)", "https://b.c", [("link", "https://b.c", "https://b.c")]),
        ("[a](https://)", "a (https://)", []),
        ("[a]()", "a", []),
        ("<https://b.c/%20d> <e@f.g> https://h.i", "https://b.c/%20d e@f.g https://h.i", []),
        ("![a *b*](https://c.d/e.png)", "a b", [("link", "a b", "https://c.d/e.png"), ("italic", "b")]),
        ("![](https://c.d/e.png)", "https://c.d/e.png", [("link", "https://c.d/e.png", "https://c.d/e.png")]),
        ("![a](e.png)", "a (e.png)", []),
        ("[![a](https://b.c/d.png) e](https://f.g)", "a e", [("link", "a e", "https://f.g")]),
        # lists
        ("* a\n* b\n- c\n+ d", "• a\n• b\n\n• c\n\n• d", []),
        ("list:\n- a\n\ntext", "list:\n\n• a\n\ntext", []),
        ("3. a\n3. b\n3. c", "3. a\n4. b\n5. c", []),
        ("1) a\n2) b", "1) a\n2) b", []),
        ("- a\n\n- b", "• a\n\n• b", []),
        ("- a\n  - b\n    1. c\n       d\n- e", "• a\n  • b\n    1. c\n       d\n• e", []),
        ("- a\n  - b\n\n    c\n  - d\n- e", "• a\n  • b\n\n    c\n\n  • d\n• e", []),
        ("-\n- b\n-", "•\n• b\n•", []),
        ("- - a", "• • a", []),
        ("- [x] a\n- [ ] b\n- c", "☑ a\n☐ b\n• c", []),
        ("1. [ ] a\n2. b", "1. ☐ a\n2. b", []),
        ("- **a**\n- `b`", "• a\n• b", [("bold", "a"), ("code", "b")]),
        ("- a\n  ```\n  b\n    c\n  ```\n  d", "• a\nb\n  c\n  d", [("pre", "b\n  c")]),
        ("- ```\n  b\n  ```\n- c", "•\nb\n• c", [("pre", "b")]),
        # quotes
        ("> a\n> b\n\nc", "a\nb\n\nc", [("quote", "a\nb")]),
        ("> a\n>\n> - b\n>   c", "a\n\n• b\n  c", [("quote", "a\n\n• b\n  c")]),
        ("> a\n>> b\n>\n> c", "a\n\nb\n\nc", [("quote", "a\n\nb\n\nc")]),
        ("> **a** `b`", "a b", [("quote", "a b"), ("bold", "a"), ("code", "b")]),
        ("> ```\n> a\n> ```", "a", [("quote", "a"), ("pre", "a")]),
        ("- > a\n  > b\n- c", "•\na\nb\n• c", [("quote", "a\nb")]),
        ("> a\n\n> b", "a\n\nb", [("quote", "a"), ("quote", "b")]),
        # what stays as it is
        ("a <b>b</b><br> *c*", "a <b>b</b><br> c", [("italic", "c")]),
        ("<div>\n*a*\n</div>\n\nb", "<div>\n*a*\n</div>\n\nb", []),
        ("<script>alert(1)</script>", "<script>alert(1)</script>", []),
        ("&lt;b&gt; &amp; &copy; &nosuch;", "<b> & © &nosuch;", []),
        ("\\*a\\* \\# \\[b\\]", "*a* # [b]", []),
        ("a\x00b", "a\ufffdb", []),
        # nothing to see
        ("[a]: https://b.c", "[a]: https://b.c", []),
        ("<!-- a -->", "<!-- a -->", []),
        ("```\n```", "```\n```", []),
        ("&nbsp;", "&nbsp;", []),
        ("#", "#", []),
        (">", ">", []),
    ],
)  # fmt: skip
def test_what_is_seen_of_markdown(markdown: str, text: str, spans: list[Shown]) -> None:
    part = whole(markdown)
    assert part.text == text
    assert shown(part) == spans


@pytest.mark.parametrize(
    ("markdown", "lines"),
    [
        ("| a | bc |\n|---|---|\n| def | g |\n| h |", ["a   | bc", "----+---", "def | g", "h   |"]),
        ("a|b|c\n:-|-:|:-:\n1|2|3\nxx|yy|zzz", ["a  |  b |  c", "---+----+----", "1  |  2 |  3", "xx | yy | zzz"]),
        ("|**a**|b|\n|-|-|\n|`c \\| d`|[e](http://f)|", ["a     | b", "------+-------------", "c | d | e (http://f)"]),
        ("|日本|é|\n|-|-|\n|a|b|", ["日本 | é", "-----+--", "a    | b"]),
        ("| | |\n|-|-|\n|a|b|", ["a | b"]),
        ("|||\n|-|-|\n|a|b|\n||c|", ["a | b", "  | c"]),
    ],
)  # fmt: skip
def test_a_table_is_code_with_equal_columns(markdown: str, lines: list[str]) -> None:
    part = whole(f"before\n\n{markdown}\n\n- after")
    table = "\n".join(lines)
    assert part.text == f"before\n\n{table}\n\n• after"
    assert shown(part) == [("pre", table)]


def test_a_table_in_a_list_has_its_own_lines() -> None:
    assert whole("- a\n\n  |b|\n  |-|\n  |c|\n- d").text == "• a\n\nb\n-\nc\n\n• d"


@pytest.mark.parametrize("blank", ["", " ", "\n\n", "\t\u3000\n"])
def test_a_blank_text_has_no_parts(blank: str) -> None:
    assert rich_parts(blank, 10, "utf16") == ()
    assert plain_parts(blank, 10, "utf16") == ()


def test_a_plain_text_that_fits_stays_as_it_is() -> None:
    text = "  **a**\n\n\n<b> `c` \n"
    assert plain_parts(text, len(text), "characters") == (Rendered(text),)
    assert plain_parts(text, None, "characters") == (Rendered(text),)


@pytest.mark.parametrize("mark", ["> ", "- ", "1. ", "> - "])
@pytest.mark.parametrize("depth", [1, 5, 8, 9, 10, 17, 18, 19, 20, 21, 100, 2000])
def test_nothing_is_lost_however_deeply_it_is_nested(mark: str, depth: int) -> None:
    text = whole(f"before\n\n{mark * depth}within\nlazy\n\n{'  ' * min(depth, 30)}- after\n\nend").text
    assert [text.count(word) for word in ("before", "within", "lazy", "after", "end")] == [1] * 5


def test_offsets_in_utf16() -> None:
    part = whole("🙂 **a🙂b** é *c*")
    data = part.text.encode("utf-16-le")
    ranges = utf16_ranges(part)
    assert ranges == [(3, 4), (10, 1)]
    assert [data[2 * start : 2 * (start + length)].decode("utf-16-le") for start, length in ranges] == ["a🙂b", "c"]


# Cutting


@pytest.mark.parametrize(
    ("text", "most", "parts"),
    [
        ("aaaa", 4, ["aaaa"]),
        ("aaaaa", 4, ["aaaa", "a"]),  # the last part may be a quarter
        ("aaaaaaaaa", 8, ["aaaaaaa", "aa"]),  # but not less
        ("aaaa bbbb", 9, ["aaaa bbbb"]),
        ("aaaa bbbb", 8, ["aaaa", "bbbb"]),
        ("aaaa     bbbb", 8, ["aaaa", "bbbb"]),
        ("aaaa" + " " * 100 + "bbbb", 8, ["aaaa", "bbbb"]),
        (" " * 100 + "aaaa", 8, ["aaaa"]),
        ("aaaa" + " " * 100, 8, ["aaaa"]),
        # a block goes before a line, a line before a sentence, a sentence before a word
        ("aaaaaaaa\n\nb\nc. d eeeeeeee", 16, ["aaaaaaaa", "b\nc. d eeeeeeee"]),
        ("aaaaaa\n\nb\nc. d eeeeeeeeee", 16, ["aaaaaa\n\nb", "c. d eeeeeeeeee"]),
        ("aaaaaaa\nb. c ddddddddd", 14, ["aaaaaaa", "b. c ddddddddd"]),
        ("aaaaaa. b c ddddddddd", 13, ["aaaaaa.", "b c ddddddddd"]),
        ("aaaaaa? b c ddddddddd", 13, ["aaaaaa?", "b c ddddddddd"]),
        ('aa aa." b c ddddddddd', 13, ['aa aa."', "b c ddddddddd"]),
        ("一二三四五。六 七八九十一二三", 10, ["一二三四五。", "六 七八九十一二三"]),
        ("a.b.c.d e.f.g.h", 12, ["a.b.c.d", "e.f.g.h"]),
        # unless that leaves less than half a part
        ("aa\n\nbbbbbbb. c ddddddddd", 16, ["aa\n\nbbbbbbb.", "c ddddddddd"]),
        ("aa\n\nbbbbbb\nc ddddddddd", 14, ["aa\n\nbbbbbb", "c ddddddddd"]),
        ("aa\n\nbbbbbbbbbbbbbbbbbb", 16, ["aa", "bbbbbbbbbbbbbb", "bbbb"]),
        # indentation stays, blank lines go
        ("aaaaa\n  \n\n  bbbbbb", 10, ["aaaaa", "  bbbbbb"]),
        ("aaaaa\r\n\r\nbbbbbbb", 10, ["aaaaa", "bbbbbbb"]),
        # characters
        ("🙂🙂🙂", 6, ["🙂🙂🙂"]),
        ("🙂🙂🙂", 5, ["🙂🙂", "🙂"]),
        ("a🙂🙂🙂", 4, ["a🙂", "🙂🙂"]),
        ("aae\u0301", 3, ["aa", "e\u0301"]),
        ("aa👍🏽", 5, ["aa", "👍🏽"]),
        ("aaaaaaa👩‍👩‍👧a", 14, ["aaaaaaa", "👩‍👩‍👧a"]),
        ("🇻🇳🇩🇪🇫🇷", 10, ["🇻🇳🇩🇪", "🇫🇷"]),
        ("🇻🇳🇩🇪🇫🇷", 7, ["🇻🇳", "🇩🇪", "🇫🇷"]),
        ("e" + "\u0301" * 9, 5, ["e" + "\u0301" * 4, "\u0301" * 5]),  # no way to keep it together
        ("\ud83d\ud83da", 2, ["\ud83d\ud83d", "a"]),
    ],
)  # fmt: skip
def test_where_a_text_is_cut(text: str, most: int, parts: list[str]) -> None:
    assert texts(plain_parts(text, most, "utf16")) == parts


@pytest.mark.parametrize(("unit", "char"), [("utf16", "a"), ("utf16", "🙂"), ("characters", "a"), ("characters", "🙂")])
def test_the_limit_is_used_up(unit: Literal["utf16", "characters"], char: str) -> None:
    most = 4096
    fitting = char * (most // units(char, unit))
    assert texts(plain_parts(fitting, most, unit)) == [fitting]
    assert texts(rich_parts(fitting, most, unit)) == [fitting]
    for parts in (plain_parts(fitting + char, most, unit), rich_parts(fitting + "a", most, unit)):
        assert len(parts) == 2
        assert all(1024 <= units(part.text, unit) <= most for part in parts)


def test_spans_go_on_in_the_next_part() -> None:
    parts = rich_parts("> **aaaa [bbbb](https://c.d)**", 6, "characters")
    assert texts(parts) == ["aaaa", "bbbb"]
    assert [shown(part) for part in parts] == [
        [("quote", "aaaa"), ("bold", "aaaa")],
        [("quote", "bbbb"), ("bold", "bbbb"), ("link", "bbbb", "https://c.d")],
    ]


def test_code_goes_on_with_its_language_and_indentation() -> None:
    parts = rich_parts("```py\ndef f():\n    return 1\n```", 15, "characters")
    assert [shown(part) for part in parts] == [[("pre", "def f():", "py")], [("pre", "    return 1", "py")]]
    assert texts(parts) == ["def f():", "    return 1"]


def test_a_block_of_code_is_kept_together_if_it_can_be() -> None:
    parts = rich_parts("aaaa aaaa\n\n```\nb\n\nc\n```", 13, "characters")
    assert texts(parts) == ["aaaa aaaa", "b\n\nc"]


@pytest.mark.parametrize("title", ["# bb", "**bb**"])
def test_a_title_stays_with_what_is_below(title: str) -> None:
    parts = rich_parts(f"aaaa aaaa\n\n{title}\n\ncccc cccc", 18, "characters")
    assert texts(parts) == ["aaaa aaaa", "bb\n\ncccc cccc"]


def test_a_part_has_only_so_many_spans() -> None:
    markdown = " ".join(f"**a{number}**" for number in range(250))
    parts = rich_parts(markdown, **TELEGRAM)
    assert [len(part.spans) for part in parts] == [100, 100, 50]
    assert " ".join(texts(parts)) == whole(markdown).text


def test_spans_that_go_on_are_counted_too() -> None:
    markdown = "> " + " ".join(f"*a* **b{number}**" for number in range(110))
    parts = rich_parts(markdown, **TELEGRAM)
    assert [len(part.spans) for part in parts] == [100, 100, 23]
    assert all(part.spans[0].kind == "quote" for part in parts)


def test_a_long_cell_does_not_widen_every_row() -> None:
    rows = "|a|b|\n" * 1000
    assert len(whole(f"|x|y|\n|-|-|\n|{'z' * 10_000}|y|\n{rows}").text) < 100_000


# Whatever is written

PIECES = [
    "# ", "## T\n", "*", "**", "_", "__", "~~", "`", "``", "```", "\n```\n", "\n```py\n", "    ", "  ", " ", "\n",
    "\n\n", "- ", "* ", "1. ", "2) ", "- [x] ", "> ", ">> ", "---\n", "===\n", "|", "|a|b|\n|-|-:|\n|c|d|\n", "[", "]",
    "](", ")", "](https://a.b)", "[a](https://b.c)", "[a](x)", "![", "![i](https://j.k)", "[r]: https://s.t\n", "[r]",
    "<b>", "</b>", "<!--", "<div>\n", "&amp;", "&nbsp;", "&#10;", "&#8203;", "\\", "\t", "\r\n", "\x00", "\u2028",
    "<https://u.v>", "https://w.x/y_z_", "word", "Một câu. ", "hai! ", "三。", "שלום ", "🙂",
    "👩‍👩‍👧", "🇻🇳", "e\u0301", "\u0301",
    "\u200d", "\ufe0f", "\ud83d", "ж" * 30, "a b c d e f ",
]  # fmt: skip
MARKDOWN = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=60).map("".join)
UNITS: st.SearchStrategy[Literal["characters", "utf16"]] = st.sampled_from(["characters", "utf16"])


def assert_valid(part: Rendered) -> None:
    """What Telegram demands of a message, and a little more."""
    assert part.text.strip()
    assert part.text == part.text.rstrip()
    assert list(part.spans) == sorted(part.spans, key=lambda span: (span.offset, -span.length))
    for span in part.spans:
        inside = part.text[span.offset : span.end]
        assert 0 <= span.offset < span.end <= len(part.text)
        assert inside == inside.rstrip()
        assert inside == inside.lstrip() or (span.kind == "pre" and not inside.startswith("\n") and inside.strip())
    for number, outer in enumerate(part.spans):
        for inner in part.spans[number + 1 :]:
            if inner.offset < outer.end:
                assert_nested(outer, inner)


def assert_nested(outer: Span, inner: Span) -> None:
    assert inner.end <= outer.end
    assert outer.kind not in ("code", "pre")
    assert inner.kind != outer.kind
    assert inner.kind not in ("code", "pre") or outer.kind == "quote"
    assert inner.kind != "quote"


def looks(parts: Sequence[Rendered]) -> list[tuple[str, frozenset[tuple[str, str | None]]]]:
    """Each character but blanks, with all that is said about it."""
    seen: list[tuple[str, frozenset[tuple[str, str | None]]]] = []
    for part in parts:
        about: list[set[tuple[str, str | None]]] = [set() for _ in part.text]
        for span in part.spans:
            for place in range(span.offset, span.end):
                about[place].add((span.kind, span.argument))
        seen += [(char, frozenset(what)) for char, what in zip(part.text, about, strict=True) if not char.isspace()]
    return seen


@given(MARKDOWN, st.integers(2, 80), UNITS, st.integers(10, 20))
def test_parts_are_valid_and_together_they_are_the_whole(
    markdown: str, most: int, unit: Literal["characters", "utf16"], most_spans: int
) -> None:
    parts = rich_parts(markdown, most, unit, most_spans=most_spans)
    for part in parts:
        assert_valid(part)
        assert units(part.text, unit) <= most
        assert len(part.spans) <= most_spans
    assert looks(parts) == looks(rich_parts(markdown, None, unit))
    assert bool(parts) == bool(markdown.strip())
    assert parts == rich_parts(markdown, most, unit, most_spans=most_spans)


@given(MARKDOWN, st.integers(2, 80), UNITS)
def test_a_plain_text_is_only_cut(text: str, most: int, unit: Literal["characters", "utf16"]) -> None:
    parts = plain_parts(text, most, unit)
    assert ink("".join(texts(parts))) == ink(text)
    for part in parts:
        assert part.text.strip()
        assert part.text in text
        assert units(part.text, unit) <= most
        assert not part.spans


@given(st.text())
def test_words_are_never_lost(text: str) -> None:
    letters = [char for char in text if unicodedata.category(char).startswith("L")]
    assert ink("".join(texts(rich_parts("".join(letters), 7, "utf16")))) == "".join(letters)


@given(
    st.lists(st.sampled_from(["a", "🙂", "e\u0301", "👩‍👩‍👧", "🇻🇳", "👍🏽", "✈️", "1️⃣", "🏴󠁧󠁢󠁷󠁬󠁳󠁿", "ệ"])),
    st.integers(20, 40),  # the longest of them has 14 units, and the last cut may be at three quarters
)
def test_what_is_seen_as_one_character_is_not_torn(characters: list[str], most: int) -> None:
    ends = {0}
    for character in characters:
        ends.add(max(ends) + len(character))
    place = 0
    for part in plain_parts("".join(characters), most, "utf16"):
        place += len(part.text)
        assert place in ends


@given(st.lists(st.text("abc", min_size=1, max_size=10), min_size=30), st.integers(40, 60))
def test_no_part_is_tiny(words: list[str], most: int) -> None:
    text = " ".join(words)
    for part in plain_parts(text, most, "characters"):
        assert len(part.text) >= most // 4 - 1  # without the space at the cut
        assert set(part.text.split()) <= set(words)


@given(MARKDOWN)
def test_utf16_offsets_point_at_the_same_text(markdown: str) -> None:
    for part in rich_parts(markdown, 50, "utf16"):
        data = part.text.encode("utf-16-le", "surrogatepass")
        for span, (offset, length) in zip(part.spans, utf16_ranges(part), strict=True):
            inside = data[2 * offset : 2 * (offset + length)]
            assert inside == part.text[span.offset : span.end].encode("utf-16-le", "surrogatepass")


# Malice

HOSTILE = {
    "stars": "*", "openings": "[", "images": "![", "destinations": "[a](", "closings": "a](b", "references": "[a][",
    "emphasis": "**a *b ", "alternating": "*_", "strikes": "~~a", "ticks": "`", "tags": "<a ", "comments": "<!--",
    "quotes": ">", "quoted lines": "> a\n", "deep quotes": ">>>>>>>>>>>>>>>>>>>>>>>>a\n", "bullets": "- ",
    "items": "- a\n", "numbers": "1) ", "fences": "```\n", "headings": "# a\n", "underlines": "a\n=\n", "pipes": "|",
    "cells": "|a|\n|-|\n", "definitions": "[a]: b\n", "entities": "&amp;", "spaces": "a     ", "lines": "\n",
    "marks": "e\u0301\u0301\u0301", "flags": "🇻🇳", "joiners": "\u200d", "dots": "...\"",
    "code": "**a `b` c** ", "blank lines": "a\n \n",
}  # fmt: skip


def calls(markdown: str) -> int:
    """How many functions are called, of Python and C, to make parts of a text."""
    count = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        rich_parts(markdown, **TELEGRAM)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
def test_twice_the_text_is_no_more_than_twice_the_work(piece: str) -> None:
    once = piece * (6000 // len(piece))
    assert calls(once + once) < 2.5 * calls(once) + 1000


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_text_is_too_much(piece: str) -> None:
    markdown = piece * (20_000 // len(piece))
    for part in rich_parts(markdown, **TELEGRAM):
        assert units(part.text, "utf16") <= 4096
        assert len(part.spans) <= 100


@pytest.mark.parametrize(
    "markdown",
    [
        "[" * 5000 + "a" + "](https://b.c)" * 5000,
        "![" * 5000 + "a" + "](https://b.c)" * 5000,
        "".join(f"{'  ' * depth}- a\n" for depth in range(300)),
        "*" * 20_000 + "a" + "*" * 20_000,
        "".join("`" * length + " " for length in range(300)),
    ],
    ids=["links", "images", "lists", "stars", "ticks"],
)
def test_deep_nesting_breaks_nothing(markdown: str) -> None:
    assert ink("".join(texts(rich_parts(markdown, **TELEGRAM)))) == ink(whole(markdown).text)
