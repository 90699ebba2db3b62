"""The chat page's Markdown, in the real browser that has to show it. Whatever a message says, nothing of it may run."""

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from chat_bridge.web.pages import STATIC
from tests.web.browser import complaints_of, site

pytestmark = pytest.mark.asyncio(loop_scope="session")

POLICY = "default-src 'none'; script-src 'self'"

# The HTML that a text becomes, without the attributes that every element of its kind has.
SHAPE = """
async (text) => {
  const { renderMarkdown } = await import("/markdown.js");
  const box = document.createElement("div");
  box.append(renderMarkdown(text, "Copy"));
  for (const element of box.querySelectorAll("*")) {
    for (const name of ["dir", "tabindex", "target", "rel", "title"]) element.removeAttribute(name);
  }
  return box.innerHTML;
}
"""

# Puts a text on the page and measures it.
SHOW = """
async (text) => {
  const { renderMarkdown } = await import("/markdown.js");
  const began = performance.now();
  document.body.replaceChildren(renderMarkdown(text, "Copy"));
  const milliseconds = performance.now() - began;
  const depth = (element) => (element === document.body ? 0 : 1 + depth(element.parentElement));
  const elements = [...document.body.querySelectorAll("*")];
  return {
    milliseconds,
    deepest: Math.max(0, ...elements.slice(0, 50_000).map(depth)),
    tags: [...new Set(elements.map((element) => element.localName))],
    attributes: [...new Set(elements.flatMap((element) => element.getAttributeNames()))],
    links: elements.filter((element) => element.localName === "a").map((link) => link.protocol),
    text: document.body.textContent,
  };
}
"""

BLOCK_TAGS = {"p", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "figure", "figcaption", "pre"}
TABLE_TAGS = {"div", "table", "thead", "tbody", "tr", "th", "td"}
TAGS = BLOCK_TAGS | TABLE_TAGS | {"br", "strong", "em", "del", "code", "a", "input", "span", "button"}
LINK_ATTRIBUTES = {"href", "title", "target", "rel"}
ATTRIBUTES = LINK_ATTRIBUTES | {"dir", "class", "tabindex", "type", "start", "checked", "disabled", "aria-label"}
PROTOCOLS = {"http:", "https:", "mailto:"}


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser) -> AsyncGenerator[Page]:
    """A page that can import markdown.js and may run nothing else."""
    files = {"/": "<!doctype html><title>Markdown</title>", "/markdown.js": (STATIC / "markdown.js").read_text("utf-8")}
    with site(files, POLICY) as origin:
        page = await browser.new_page()
        complaints = complaints_of(page)
        await page.goto(origin)
        yield page
        assert complaints == []


def code(text: str, language: str = "") -> str:
    return (
        f'<figure class="code"><figcaption><span class="language">{language}</span>'
        f'<button class="copy" type="button">Copy</button></figcaption><pre><code>{text}</code></pre></figure>'
    )


def link(url: str, text: str | None = None) -> str:
    return f'<a href="{url}">{text or url}</a>'


SHAPES = {
    "": "",
    "\n \n": "",
    "one\n\ntwo": "<p>one</p><p>two</p>",
    # Hard breaks: every new line in a chat is meant as one.
    "one\ntwo": "<p>one<br>two</p>",
    "one  \ntwo\\\nthree": "<p>one<br>two<br>three</p>",
    "one\r\ntwo\rthree": "<p>one<br>two<br>three</p>",
    "before\u2028after": "<p>before\u2028after</p>",
    # Headings
    "# One": "<h2>One</h2>",
    "### *Three*\ntext": "<h4><em>Three</em></h4><p>text</p>",
    "###### Six": "<h6>Six</h6>",
    "####### Seven": "<p>####### Seven</p>",
    "#hashtag": "<p>#hashtag</p>",
    # Emphasis
    "**bold** *italic* ~~gone~~": "<p><strong>bold</strong> <em>italic</em> <del>gone</del></p>",
    "__bold__ _italic_": "<p><strong>bold</strong> <em>italic</em></p>",
    "***both***": "<p><em><strong>both</strong></em></p>",
    "**bold *and italic***": "<p><strong>bold <em>and italic</em></strong></p>",
    "*foo**bar*": "<p><em>foo**bar</em></p>",
    "snake_case_name and 2*3*4": "<p>snake_case_name and 2<em>3</em>4</p>",
    "a * b * c": "<p>a * b * c</p>",
    "**not closed": "<p>**not closed</p>",
    "~5 minutes~": "<p>~5 minutes~</p>",
    r"\*plain\* \`text\` \q": r"<p>*plain* `text` \q</p>",
    # Code
    "`a*b*`": "<p><code>a*b*</code></p>",
    "``a ` b``": "<p><code>a ` b</code></p>",
    "`` ` ``": "<p><code>`</code></p>",
    "`not closed": "<p>`not closed</p>",
    "```python\nprint(1)\n\n  # <b>\n```\nafter": code("print(1)\n\n  # &lt;b&gt;", "python") + "<p>after</p>",
    "~~~\n```\n~~~": code("```"),
    "````\n```\n````": code("```"),
    "```js\nnot closed yet": code("not closed yet", "js"),
    "```": code(""),
    "``` `a` ```": "<p><code>`a`</code></p>",
    "  ```\n  indented\n  ```": code("indented"),
    # Lists
    "- a\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "* a\n+ b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "1. a\n2. b": "<ol><li><p>a</p></li><li><p>b</p></li></ol>",
    "3) a": '<ol start="3"><li><p>a</p></li></ol>',
    "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "- a\n  - b\n    - c\n- d": (
        "<ul><li><p>a</p><ul><li><p>b</p><ul><li><p>c</p></li></ul></li></ul></li><li><p>d</p></li></ul>"
    ),
    "1. a\n  - b\n2. c": "<ol><li><p>a</p><ul><li><p>b</p></li></ul></li><li><p>c</p></li></ol>",
    "1. a\n\n   second paragraph\n\n\nend": "<ol><li><p>a</p><p>second paragraph</p></li></ol><p>end</p>",
    "- a\n\t- b": "<ul><li><p>a</p><ul><li><p>b</p></li></ul></li></ul>",
    "- a\ngoes on": "<ul><li><p>a<br>goes on</p></li></ul>",
    "1. a\n   ```\n   x\n   ```": f"<ol><li><p>a</p>{code('x')}</li></ol>",
    "- a\n1. b": "<ul><li><p>a</p></li></ul><ol><li><p>b</p></li></ol>",
    "Steps:\n- a": "<p>Steps:</p><ul><li><p>a</p></li></ul>",
    "It was in\n1986. A good year": "<p>It was in<br>1986. A good year</p>",
    "-": "<ul><li></li></ul>",
    "- [x] done\n- [ ] **to do**": (
        '<ul><li class="task"><input type="checkbox" disabled="" checked="" aria-label="done"><p>done</p></li>'
        '<li class="task"><input type="checkbox" disabled="" aria-label="**to do**">'
        "<p><strong>to do</strong></p></li></ul>"
    ),
    # Quotes and rules
    "> a\n> b\n>\n> - c": "<blockquote><p>a<br>b</p><ul><li><p>c</p></li></ul></blockquote>",
    "> > deep": "<blockquote><blockquote><p>deep</p></blockquote></blockquote>",
    "text\n---\n***\n_ _ _": "<p>text</p><hr><hr><hr>",
    # Tables
    "| a | b |\n|---|:-:|\n| 1 | *2* |\n| 3 |\nend": (
        '<div class="table"><table><thead><tr><th>a</th><th class="middle">b</th></tr></thead><tbody>'
        '<tr><td>1</td><td class="middle"><em>2</em></td></tr><tr><td>3</td></tr></tbody></table></div><p>end</p>'
    ),
    "a|b\n-|-:\n1\\|2||3": (
        '<div class="table"><table><thead><tr><th>a</th><th class="end">b</th></tr></thead><tbody>'
        '<tr><td>1|2</td><td class="end"></td></tr></tbody></table></div>'
    ),
    "a | b\n--- | --- | ---": "<p>a | b<br>--- | --- | ---</p>",
    # Links
    "[the *site*](https://a.example/b_c_d)": f"<p>{link('https://a.example/b_c_d', 'the <em>site</em>')}</p>",
    '[a](https://a.example "its title")': f"<p>{link('https://a.example/', 'a')}</p>",
    "[a](<https://a.example/x y>)": f"<p>{link('https://a.example/x%20y', 'a')}</p>",
    "[a](https://a.example/(b))!": f"<p>{link('https://a.example/(b)', 'a')}!</p>",
    "*[a*](https://a.example/)": f"<p>*{link('https://a.example/', 'a*')}</p>",
    "[a [b] c](https://a.example/)": f"<p>{link('https://a.example/', 'a [b] c')}</p>",
    "[`]`](https://a.example/)": f"<p>{link('https://a.example/', '<code>]</code>')}</p>",
    "[](https://a.example/)": f"<p>{link('https://a.example/')}</p>",
    "[mail](mailto:me@a.example)": f"<p>{link('mailto:me@a.example', 'mail')}</p>",
    "<https://a.example/> <me@a.example>": (
        f"<p>{link('https://a.example/')} {link('mailto:me@a.example', 'me@a.example')}</p>"
    ),
    "see https://a.example/x_y_z.": f"<p>see {link('https://a.example/x_y_z')}.</p>",
    "(https://a.example/b_(c))": f"<p>({link('https://a.example/b_(c)')})</p>",
    "**https://a.example/**": f"<p><strong>{link('https://a.example/')}</strong></p>",
    "![a cat](https://a.example/cat.png)": '<p><a class="image" href="https://a.example/cat.png">a cat</a></p>',
    # Not links
    "[a](/relative)": "<p>[a](/relative)</p>",
    "[a] (https:)": "<p>[a] (https:)</p>",
    "[a](ftp://a.example)": "<p>[a](ftp://a.example)</p>",
    "xhttps://a.example": "<p>xhttps://a.example</p>",
    "http://": "<p>http://</p>",
}


async def test_every_construct_becomes_its_elements(page: Page) -> None:
    shapes = {text: await page.evaluate(SHAPE, text) for text in SHAPES}
    assert shapes == SHAPES


async def test_a_link_opens_elsewhere_and_tells_nothing(page: Page) -> None:
    await page.evaluate(SHOW, "[a](https://a.example/)")
    assert await page.locator("a").evaluate("({ target, rel, title }) => [target, rel, title]") == [
        "_blank",
        "noopener noreferrer nofollow",
        "https://a.example/",
    ]


async def test_text_of_any_direction_finds_its_side(page: Page) -> None:
    await page.evaluate(SHOW, "שלום\n\n- مرحبا\n\n```\ncode\n```")
    directions = "(element) => [element.localName, getComputedStyle(element).direction]"
    assert [await element.evaluate(directions) for element in await page.locator("p, li, pre").all()] == [
        ["p", "rtl"],
        ["li", "rtl"],
        ["p", "rtl"],
        ["pre", "ltr"],
    ]


HOSTILE_MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<a href='javascript:alert(1)'>x</a>",
    "<style>*{display:none}</style>",
    "<b onmouseover=alert(1)>x",
    "</div></body><script>alert(1)</script>",
    "<!-- <script>alert(1)</script> -->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    '```"><script>alert(1)</script>\n</code></pre><script>alert(1)</script>',
    "`<script>alert(1)</script>`",
    "# <img src=x onerror=alert(1)>",
    "- <img src=x onerror=alert(1)>\n  > <img src=x onerror=alert(1)>",
    "|<img src=x onerror=alert(1)>|b|\n|-|-|\n|<script>alert(1)</script>|",
    "- [x] <img src=x onerror=alert(1)>",
    '[a](https://a.example/"onclick="alert(1))',
    "[a](https://a.example/ \"x' onclick='alert(1)\")",
    "[<img src=x onerror=alert(1)>](https://a.example/)",
    '![" onerror="alert(1)](https://a.example/x.png)',
    '![x](https://a.example/x.png"onerror="alert(1))',
    '<https://a.example/"onclick=alert(1)>',
    "<https://a.example/><script>alert(1)</script>",
    "\0<script\0>alert(1)</script>",
]


async def test_html_in_a_message_is_text(page: Page) -> None:
    for text in HOSTILE_MARKUP:
        shown = await page.evaluate(SHOW, text)
        assert set(shown["tags"]) <= TAGS, text
        assert set(shown["attributes"]) <= ATTRIBUTES, text
        await page.locator("body").hover()
        for element in await page.locator("a").all():
            await element.evaluate("(link) => link.dispatchEvent(new MouseEvent('click', { cancelable: true }))")
        if "<script>" in text:
            assert "<script>" in shown["text"], text


SCHEMES = [
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    " javascript:alert(1)",
    "java\tscript:alert(1)",
    "java\nscript:alert(1)",
    "\x01javascript:alert(1)",
    "\u00a0javascript:alert(1)",
    "javascript\u200b:alert(1)",
    "javascript&colon;alert(1)",
    "&#106;avascript:alert(1)",
    "&#x6A;avascript:alert(1)",
    "javascript%3Aalert(1)",
    "java\\script:alert(1)",
    "\\javascript:alert(1)",
    "javascript\\:alert(1)",
    "javascript://a.example/%0aalert(1)",
    "data:text/html,<script>alert(1)</script>",
    "data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==",
    "vbscript:msgbox(1)",
    "blob:https://a.example/1",
    "file:///etc/passwd",
    "about:blank",
    "//a.example",
    "https:javascript:alert(1)",
    "mailto:javascript:alert(1)",
    "view-source:https://a.example",
]


async def test_only_harmless_schemes_become_links(page: Page) -> None:
    for target in SCHEMES:
        for text in (
            f"[x]({target})",
            f"[x](<{target}>)",
            f"![x]({target})",
            f"[![x]({target})]({target})",
            f"**[x]({target})**",
            f"<{target}>",
            target,
            f"[x]({target}",
            f"[x]: {target}\n\n[x]",
        ):
            shown = await page.evaluate(SHOW, text)
            assert set(shown["links"]) <= PROTOCOLS, text


SIZE = 200_000
HOSTILE_PIECES = (
    *("[", "]", "![", "](", "[](", "[a](", "[a](b", "[a](https://a.example/(", "[[a](b)](", "![[]()", "[](()"),
    *("*", "**", "*a", "*a ", "a* ", "**a *b ", "a** b* ", "*a_b", "_a ", "__", "***a** ", "*a **b "),
    *("~~", "~~a ", "a~~ ", "`", "`a", "a`b``c```d", "``` ", "```\n", "~~~\n", "\\", "\\`", "\\["),
    *(">", "> ", ">\n", "> a\n", "> > a\n\n", "- ", "- a\n", "1. ", "- - a\n", "* ", "+\n", "-\n\n", "\t- a\n"),
    *(" ", "  \n", "\n", "\t", "#", "# ", "#\n", "-", "- -", "---\n", "_ ", "= "),
    *("|", "|\n", "|-", "a|b\n", "a|b\n-|-\n", "|a|\n|-|\n|", "-|", ":-"),
    *("<", "<a", "<a@b", "<https://", "<!--", "[a](<b", "&", "&#", "\0", "\u2028", "\U0001f600", "שלום "),
    *("http://", "http://a.", "http://%", "http://a)", "http://a* ", "https://a.example/((", "mailto:", "mailto:a@b,"),
    "![a](https://a.example/x.png)",
)
HOSTILE_TEXTS = {
    **{f"{piece!r} again and again": piece * (SIZE // len(piece)) for piece in HOSTILE_PIECES},
    "deeper and deeper quotes": "\n".join(">" * depth for depth in range(600)),
    "deeper and deeper lists": "\n".join("  " * depth + "- a" for depth in range(440)),
    "opened, then closed emphasis": "*a " * 33_000 + "b* " * 33_000,
    "opened, then closed brackets": "[" * 60_000 + "]" * 60_000 + "(https://a.example/)",
    "backticks of every length": "a".join("`" * length for length in range(630)),
    "a wide table": "|" * 60_000 + "\n" + "|-" * 30_000 + "\n" + "a|\n" * 20_000,
    "a long table": "a|b\n-|-\n" + "|\n" * 99_000,
    "a long row of dashes": "a|b\n" + "-" * 190_000 + "x",
    "spaces before a mark": "a" + " " * 190_000 + "#",
    "a fence with a long name": "```" + "a" * 190_000 + "`",
    "a fence before a line separator": "`" * 190_000 + "\u2028",
    "a long address": "[a](https://a.example/" + "b" * 190_000 + ")",
    "a list that goes on": "- a\n" + "b\n" * 90_000,
    "a list with blank lines": "- a\n" + "\n" * 90_000 + "  b" + "\n" * 90_000,
    "indented blank items": ("-" + " " * 300 + "\n") * 600,
}


@pytest.mark.timeout(300)
async def test_hostile_texts_take_no_time(page: Page) -> None:
    slow: dict[str, float] = {}
    await page.evaluate("document.body.hidden = true")  # how fast a browser lays out pages is not the question
    for name, text in HOSTILE_TEXTS.items():
        shown = await page.evaluate(SHOW, text)
        assert shown["deepest"] < 60, name
        assert set(shown["tags"]) <= TAGS, name
        if shown["milliseconds"] > 3000:
            slow[name] = shown["milliseconds"]
    assert slow == {}


FUZZ = """
async ([seed, count]) => {
  const { renderMarkdown } = await import("/markdown.js");
  const pieces = [
    "*", "**", "_", "~~", "`", "```", "\\n", "\\n\\n", " ", "  ", "- ", "1. ", "> ", "# ", "|", "|-|-|\\n", "[",
    "]", "](", ")", "![", "<", ">", "https://a.example/", "javascript:", "mailto:a@b", "\\\\", "a", "b c", "<b>",
    "[x] ", "---", "é", "😀",
  ];
  const random = () => ((seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648);
  const bad = [];
  for (let n = 0; n < count; n += 1) {
    const text = Array.from({ length: 40 }, () => pieces[Math.floor(random() * pieces.length)]).join("");
    const box = document.createElement("div");
    box.append(renderMarkdown(text, ""));
    const links = [...box.querySelectorAll("a")].every((link) => /^(https|mailto):$/.test(link.protocol));
    // A fence's language, a link's address and a table's surplus cells are not shown, but no letter may be made up.
    let at = 0;
    const shown = [...box.textContent.replace(/[^bcé😀]/gu, "")];
    for (const letter of text) if (letter === shown[at]) at += 1;
    if (!links || at < shown.length || box.querySelector("b, script, img")) bad.push(text);
  }
  return bad;
}
"""


async def test_random_texts_make_no_foreign_element(page: Page) -> None:
    assert await page.evaluate(FUZZ, [20260101, 4000]) == []
