"""The chat page and the launcher, in a real browser, before the real bridge."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, Route, expect

from tests.bridge import BridgeProcess, Chat, running_bridge
from tests.observe import call
from tests.web.browser import complaints_of, site

pytestmark = pytest.mark.asyncio(loop_scope="session")

MESSAGES = "**/api/v1/chat/*/messages"
EVENTS = "**/api/v1/chat/*/events"
CONVERSATIONS = "**/api/v1/chat/conversations"
FAILED = "Failed to load resource"  # what the console says of every answer that is not a 2xx
LONG = " ".join(f"word{number}" for number in range(200))  # the echo agent needs six seconds for it

expect.set_options(timeout=15_000)


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, bridge: BridgeProcess) -> AsyncGenerator[Page]:
    """The chat page. The browser must have nothing to complain of, unless the test has forgiven it."""
    page = await visit(browser, f"{bridge.url}/chat")
    yield page
    assert complaints[page] == []


complaints: dict[Page, list[str]] = {}


async def visit(browser: Browser, url: str, **options: Any) -> Page:
    """A new visitor opens a page."""
    context = await browser.new_context(**options)
    page = await context.new_page()
    page.set_default_timeout(15_000)
    complaints[page] = complaints_of(page)
    await page.goto(url)
    return page


def forgive(page: Page, *reasons: str) -> None:
    """Forget the complaints that this test has caused on purpose."""
    complaints[page][:] = [text for text in complaints[page] if not any(reason in text for reason in reasons)]


def box(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Your message")


def answers(page: Page) -> Locator:
    return page.locator("article.agent .body")


async def say(page: Page, text: str) -> None:
    await box(page).fill(text)
    await box(page).press("Enter")


async def shown(page: Page) -> list[str]:
    """The messages on the page: `> text` from the visitor, `text` from the bridge."""
    messages = "(all) => all.map((one) => `${one.matches('.own') ? '> ' : ''}${one.querySelector('.body').innerText}`)"
    return await page.locator("article").evaluate_all(messages)


async def until_shown(page: Page, *texts: str) -> None:
    """Wait until the page shows these messages, and no others."""
    deadline = time.monotonic() + 15
    while await shown(page) != list(texts) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert await shown(page) == list(texts)


async def stored(page: Page, bridge: BridgeProcess) -> list[str]:
    """The visitor's messages as the bridge has them."""
    kept = json.loads(await page.evaluate("localStorage.getItem('chat-bridge')"))
    async with aiohttp.ClientSession() as http:
        return await Chat(http, bridge.url, kept["conversation"], kept["token"]).texts()


def first_requests(count: int, act: Callable[[Route], Awaitable[None]]) -> Callable[[Route], Awaitable[None]]:
    """Have `act` handle the first POSTs; all other requests pass."""
    left = count

    async def handle(route: Route) -> None:
        nonlocal left
        if route.request.method == "POST" and left > 0:
            left -= 1
            await act(route)
        else:
            await route.continue_()

    return handle


# Reading


async def test_the_first_answer_streams_in(page: Page) -> None:
    await page.evaluate("""() => {
      const body = document.querySelector("#partial .body");
      window.states = [];
      new MutationObserver(() => window.states.push(body.innerHTML)).observe(body, { childList: true, subtree: true });
    }""")
    text = f"A **bold** word and {LONG[:199]}\n\n- a list\n- of two"
    await say(page, text)
    await expect(answers(page)).to_have_count(1)
    states: list[str] = await page.evaluate("window.states.filter(Boolean)")
    assert len(set(states)) >= 3
    assert any("<strong>bold</strong>" in state and "<li>" not in state for state in states)
    assert await answers(page).inner_html() == (
        f'<p dir="auto">A <strong>bold</strong> word and {LONG[:199]}</p>'
        '<ul dir="auto"><li><p>a list</p></li><li><p>of two</p></li></ul>'
    )
    await expect(page.locator("#partial")).to_be_hidden()
    await expect(page.locator("#typing")).to_be_hidden()
    assert await page.locator("article").count() == 2


async def test_html_does_nothing(page: Page) -> None:
    text = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script><b>bold</b>"
    await say(page, text)
    await until_shown(page, f"> {text}", text)
    assert await page.locator("#log").locator("img, script, b").count() == 0
    assert await page.title() == "Chat"


async def test_the_copy_button_copies_the_code(page: Page) -> None:
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await say(page, "```python\nprint('<hi>')\n  indented\n```")
    await answers(page).get_by_role("button", name="Copy").click()
    await expect(answers(page).get_by_role("button")).to_have_text("Copied")
    assert await page.evaluate("navigator.clipboard.readText()") == "print('<hi>')\n  indented"
    await expect(answers(page).get_by_role("button")).to_have_text("Copy")


async def test_code_is_copied_where_there_is_no_clipboard_api(page: Page) -> None:
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.evaluate("() => void (navigator.clipboard.writeText = () => Promise.reject(new Error('not here')))")
    await say(page, "```\nthe code\n```")
    await answers(page).get_by_role("button", name="Copy").click()
    await expect(answers(page).get_by_role("button")).to_have_text("Copied")
    assert await page.evaluate("navigator.clipboard.readText()") == "the code"


async def test_a_reload_shows_the_history_once(page: Page, bridge: BridgeProcess) -> None:
    await say(page, "one")
    await expect(answers(page)).to_have_count(1)
    await say(page, "two")
    await until_shown(page, "> one", "one", "> two", "two")
    for _ in range(2):
        await page.reload()
        await until_shown(page, "> one", "one", "> two", "two")
    await say(page, "three")
    await until_shown(page, "> one", "one", "> two", "two", "> three", "three")
    assert await stored(page, bridge) == ["> one", "one", "> two", "two", "> three", "three"]


async def test_a_reload_in_the_middle_of_an_answer_goes_on_with_it(page: Page) -> None:
    await say(page, LONG)
    await expect(page.locator("#partial")).to_contain_text("word20")
    await page.reload()
    await expect(page.locator("#partial")).to_contain_text("word0 word1 word2")
    await expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()
    await until_shown(page, f"> {LONG}", LONG)
    await expect(page.locator("#partial")).to_be_hidden()


async def test_earlier_messages_come_above_and_the_place_stays(page: Page, bridge: BridgeProcess) -> None:
    await say(page, "first")
    await expect(answers(page)).to_have_count(1)
    kept = json.loads(await page.evaluate("localStorage.getItem('chat-bridge')"))
    async with aiohttp.ClientSession() as http:
        chat = Chat(http, bridge.url, kept["conversation"], kept["token"])
        for number in range(110):
            await chat.send(f"message {number}")
        await chat.answered()
        texts = await chat.texts()
    assert 112 < len(texts) <= 200
    await page.reload()
    await expect(page.locator("article")).to_have_count(50)
    top = page.locator("article").first
    await page.locator("#scroller").evaluate("(scroller) => (scroller.scrollTop = 0)")
    seq, before = await top.get_attribute("data-seq"), (await top.bounding_box() or {})["y"]
    await page.get_by_role("button", name="Earlier messages").click()
    await expect(page.locator("article")).to_have_count(100)
    old_top = page.locator(f"article[data-seq='{seq}']")
    # The button's own place above the messages may change, the messages don't move by more than that.
    assert abs((await old_top.bounding_box() or {})["y"] - before) < 2
    while await page.get_by_role("button", name="Earlier messages").is_visible():
        await page.get_by_role("button", name="Earlier messages").click()
        await expect(page.get_by_role("button", name="Earlier messages", disabled=True)).to_have_count(0)
    assert (await shown(page))[0] == "> first"
    assert len(await shown(page)) == len(texts)
    seqs = await page.locator("article").evaluate_all("(all) => all.map((one) => Number(one.dataset.seq))")
    assert seqs == sorted(set(seqs))


async def test_only_a_reader_at_the_bottom_is_taken_along(page: Page) -> None:
    await say(page, "\n\n".join(f"line {number}" for number in range(60)))
    await expect(answers(page)).to_have_count(1)
    await say(page, LONG)
    await expect(page.locator("#partial")).to_contain_text("word5")
    scroller, jump = page.locator("#scroller"), page.get_by_role("button", name="New messages")
    distance = "(it) => it.scrollHeight - it.scrollTop - it.clientHeight"
    await expect(jump).to_be_hidden()
    assert await scroller.evaluate(distance) < 60
    await scroller.evaluate("(scroller) => (scroller.scrollTop = 100)")
    await expect(answers(page)).to_have_count(2)
    assert await scroller.evaluate("(scroller) => scroller.scrollTop") == 100
    await jump.click()
    await expect(jump).to_be_hidden()
    assert await scroller.evaluate(distance) < 2


async def test_two_tabs_show_the_same(page: Page, bridge: BridgeProcess) -> None:
    await say(page, "one")
    await expect(answers(page)).to_have_count(1)
    other = await page.context.new_page()
    await other.goto(f"{bridge.url}/chat")
    await until_shown(other, "> one", "one")
    await say(other, "two")
    await until_shown(page, "> one", "one", "> two", "two")


# Losing the connection, losing answers


async def test_a_cut_connection_loses_and_doubles_nothing(page: Page) -> None:
    await say(page, LONG)
    await expect(page.locator("#partial")).to_contain_text("word20")
    await page.context.set_offline(True)
    await expect(page.locator("#connection")).to_have_text("You are offline")
    await say(page, "written offline")
    await asyncio.sleep(1)
    await page.context.set_offline(False)
    await expect(page.locator("#connection")).to_have_text("")
    await expect(answers(page)).to_have_count(2)
    assert sorted(await shown(page)) == sorted([f"> {LONG}", LONG, "> written offline", "written offline"])
    await page.reload()
    await expect(page.locator("article")).to_have_count(4)
    forgive(page, "net::ERR_INTERNET_DISCONNECTED", "net::ERR_ABORTED")


async def test_a_refused_event_stream_is_tried_again(page: Page) -> None:
    await page.route(EVENTS, lambda route: route.abort())
    await say(page, "one")
    await expect(page.locator("#connection")).to_have_text("Reconnecting…")
    await page.unroute(EVENTS)
    await until_shown(page, "> one", "one")
    await expect(page.locator("#connection")).to_have_text("")
    forgive(page, "net::ERR_FAILED")


async def test_a_silent_connection_is_given_up(page: Page) -> None:
    asked, over = 0, asyncio.Event()

    async def never_answer(route: Route) -> None:
        nonlocal asked
        asked += 1
        await over.wait()
        await route.abort()

    await page.clock.install()
    await page.route(EVENTS, never_answer)
    await page.reload()
    await say(page, "one")
    for count in (1, 2):
        async with asyncio.timeout(10):
            while asked < count:
                await asyncio.sleep(0.02)
        await page.clock.fast_forward(42_000)
    over.set()
    await page.unroute_all(behavior="wait")
    forgive(page, "net::ERR_")


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_restart_of_the_bridge_loses_and_doubles_nothing(page: Page, bridge: BridgeProcess, how: str) -> None:
    await say(page, "before")
    await expect(answers(page)).to_have_count(1)
    await (bridge.kill() if how == "kill" else bridge.stop())
    await say(page, "while it was down")
    await say(page, "and another")
    await expect(page.locator("#connection")).to_have_text("Reconnecting…")
    await expect(page.locator("article.waiting")).to_have_count(2)
    await bridge.start()
    await expect(page.locator("article.waiting")).to_have_count(0)
    await expect(page.locator("#partial")).to_be_hidden()
    async with asyncio.timeout(15):
        while "and another" not in "".join(text for text in await shown(page) if not text.startswith(">")):
            await asyncio.sleep(0.05)
    assert [text for text in await shown(page) if text.startswith(">")] == [
        "> before",
        "> while it was down",
        "> and another",
    ]
    assert await shown(page) == await stored(page, bridge)
    forgive(page, "net::ERR_")


async def test_unsent_messages_are_sent_once_and_in_order_after_a_reload(page: Page, bridge: BridgeProcess) -> None:
    await say(page, "sent")
    await expect(answers(page)).to_have_count(1)
    await page.route(MESSAGES, first_requests(1000, lambda route: route.abort()))
    await say(page, "unsent one")
    await say(page, "unsent two")
    await expect(page.locator("article.waiting").get_by_text("Sending…")).to_have_count(2)
    await page.reload()
    await expect(page.locator("article.waiting")).to_have_count(2)
    await page.unroute(MESSAGES)
    await expect(page.locator("article.waiting")).to_have_count(0)
    await expect(page.locator("#log")).to_contain_text("unsent two")
    await page.reload()
    await expect(page.locator("article.own")).to_have_count(3)
    own = [text for text in await stored(page, bridge) if text.startswith("> ")]
    assert own == ["> sent", "> unsent one", "> unsent two"]
    forgive(page, "net::ERR_FAILED")


async def test_a_lost_acknowledgement_makes_no_double(page: Page, bridge: BridgeProcess) -> None:
    async def lose(route: Route) -> None:
        await route.fetch()
        await route.abort()

    await page.route(MESSAGES, first_requests(2, lose))
    await say(page, "once")
    await until_shown(page, "> once", "once")
    await expect(page.locator("article.waiting")).to_have_count(0)
    await say(page, "twice")
    await until_shown(page, "> once", "once", "> twice", "twice")
    assert await stored(page, bridge) == ["> once", "once", "> twice", "twice"]
    forgive(page, "net::ERR_FAILED")


@pytest.mark.parametrize(
    ("status", "headers"), [(429, {"Retry-After": "1"}), (503, {}), (500, {"Content-Type": "text/html"})]
)
async def test_a_busy_bridge_is_asked_again(page: Page, status: int, headers: dict[str, str]) -> None:
    busy = first_requests(1, lambda route: route.fulfill(status=status, headers=headers, body="<h1>busy</h1>"))
    await page.route(CONVERSATIONS, busy)
    await page.route(MESSAGES, first_requests(1, lambda route: route.fulfill(status=status, headers=headers)))
    await say(page, "one")
    await expect(page.locator("article.waiting")).to_have_count(1)
    await until_shown(page, "> one", "one")
    forgive(page, FAILED)


async def test_a_refused_message_says_why_and_can_be_sent_again_or_discarded(page: Page) -> None:
    problem = json.dumps({"status": 422, "title": "Unprocessable", "detail": "These words are not taken."})
    await page.route(MESSAGES, first_requests(3, lambda route: route.fulfill(status=422, body=problem)))
    await say(page, "refused")
    refused = page.locator("article.refused")
    await expect(refused).to_contain_text("Not sent: These words are not taken.")
    await page.reload()
    await expect(refused).to_contain_text("Not sent: These words are not taken.")
    await refused.get_by_role("button", name="Try again").click()
    await expect(refused.get_by_role("button", name="Discard")).to_be_visible()
    await say(page, "discarded")
    await expect(refused).to_have_count(2)
    await refused.filter(has_text="discarded").get_by_role("button", name="Discard").click()
    await expect(refused).to_have_count(1)
    await refused.get_by_role("button", name="Try again").click()
    await until_shown(page, "> refused", "refused")
    await page.reload()
    await until_shown(page, "> refused", "refused")
    forgive(page, FAILED)


async def test_an_expired_token_begins_a_new_conversation(page: Page) -> None:
    await say(page, "one")
    await until_shown(page, "> one", "one")
    await page.evaluate("""() => {
      const kept = JSON.parse(localStorage.getItem("chat-bridge"));
      localStorage.setItem("chat-bridge", JSON.stringify({ ...kept, token: "no longer good" }));
    }""")
    await page.reload()
    await expect(page.locator("#log")).to_contain_text("has expired")
    await say(page, "two")
    await until_shown(page, "> two", "two")
    await page.reload()
    await until_shown(page, "> two", "two")
    forgive(page, "401")


async def test_it_works_where_storage_is_blocked(browser: Browser, bridge: BridgeProcess) -> None:
    context = await browser.new_context()
    await context.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    page = await context.new_page()
    found = complaints_of(page)
    await page.goto(f"{bridge.url}/chat")
    await say(page, "one")
    await until_shown(page, "> one", "one")
    assert found == []


async def test_events_are_read_however_the_network_cuts_them(page: Page) -> None:
    text = 'id: 7\r\nevent: message\r\ndata: {"a":1}\r\n\r\n: ping\n\ndata: x\ndata: y\n\nevent: typing\rdata:z\r\r\n'
    read = """async ([text, size]) => {
      const { EventParser } = await import("/static/stream.js");
      const parser = new EventParser();
      const pieces = text.match(new RegExp(`[^]{1,${size}}`, "g"));
      return pieces.flatMap((piece) => parser.push(piece)).map(({ id, type, data }) => [id, type, data]);
    }"""
    for size in (1, 2, 3, 5, 1000):
        assert await page.evaluate(read, [text, size]) == [
            ["7", "message", '{"a":1}'],
            [None, "message", "x\ny"],
            [None, "typing", "z"],
        ]


# Writing


async def test_stop_ends_the_answer(page: Page) -> None:
    stop = page.get_by_role("button", name="Stop the answer")
    await expect(stop).to_be_hidden()
    await say(page, LONG)
    await expect(page.locator("#partial")).to_contain_text("word10")
    await stop.click()
    await expect(answers(page).last).to_have_text("Stopped.")
    await expect(stop).to_be_hidden()
    await expect(page.locator("#partial")).to_be_hidden()
    texts = await shown(page)
    assert texts[0] == f"> {LONG}"
    assert "word199" not in "".join(texts[1:])
    await say(page, "and on")
    await expect(answers(page).last).to_have_text("and on")


async def test_a_new_conversation_is_one_click_away(page: Page) -> None:
    await say(page, "one")
    await expect(answers(page)).to_have_count(1)
    await page.get_by_role("button", name="New conversation").click()
    notice = page.locator("article.agent.quieter")
    await expect(notice).to_contain_text("A new conversation has begun.")
    await expect(page.locator("article.own.command .body")).to_have_text("/new")
    await expect(box(page)).to_be_focused()


async def test_everything_works_by_keyboard(page: Page) -> None:
    await expect(box(page)).to_be_focused()
    for name in ("Attach files", "Messages", "New conversation"):
        await page.keyboard.press("Shift+Tab")
        assert await page.evaluate("document.activeElement.ariaLabel") == name
        assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    await page.keyboard.press("Shift+Tab")
    await expect(page.get_by_role("link", name="Skip to the message box")).to_be_focused()
    await expect(page.get_by_role("link", name="Skip to the message box")).to_be_in_viewport()
    await page.keyboard.press("Enter")
    await expect(box(page)).to_be_focused()
    await page.keyboard.type("two")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("lines")
    await page.keyboard.press("Enter")
    await until_shown(page, "> two\nlines", "two\nlines")
    await page.keyboard.press("Enter")  # with nothing to send
    assert len(await shown(page)) == 2


async def test_commands_are_offered(page: Page) -> None:
    options = page.get_by_role("option")
    await expect(options).to_have_count(0)
    await box(page).press_sequentially("/")
    await expect(options).to_have_count(4)
    await box(page).press_sequentially("st")
    await expect(options).to_have_text(["/stop Stop the running answer", "/status About this conversation"])
    await box(page).press("ArrowDown")
    await box(page).press("ArrowDown")
    await expect(options.nth(1)).to_have_attribute("aria-selected", "true")
    await expect(box(page)).to_have_attribute("aria-activedescendant", "command-status")
    await box(page).press("Tab")
    await expect(box(page)).to_have_value("/status")
    await expect(options).to_have_count(0)
    await box(page).fill("/h")
    await box(page).press("Escape")
    await expect(options).to_have_count(0)
    await box(page).fill("/he")
    await box(page).press("ArrowUp")
    await box(page).press("Enter")
    await expect(page.locator("article.agent.quieter")).to_contain_text("/new starts a new conversation")
    await box(page).fill("/n")
    await options.click()
    await expect(page.locator("article.agent.quieter")).to_have_count(2)
    await expect(box(page)).to_have_value("")


async def test_enter_that_ends_a_composed_word_sends_nothing(page: Page) -> None:
    await box(page).fill("に")
    await box(page).evaluate(
        "(it) => it.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true }))"
    )
    await expect(box(page)).to_have_value("に")
    assert await shown(page) == []


async def test_the_limit_is_told_before_it_is_reached(page: Page) -> None:
    send, counter = page.get_by_role("button", name="Send"), page.locator("#counter")
    await expect(send).to_be_disabled()
    await box(page).fill("x" * 7000)
    await expect(counter).to_be_hidden()
    await box(page).fill("😀" * 7990)
    await expect(counter).to_have_text("10 characters left")
    await expect(send).to_be_enabled()
    await box(page).fill("x" * 8001)
    await expect(counter).to_have_text("1 characters too long")
    await expect(send).to_be_disabled()
    await box(page).press("Enter")
    assert await shown(page) == []


async def test_the_box_grows_with_its_text(page: Page) -> None:
    async def height() -> float:
        return (await box(page).bounding_box() or {})["height"]

    empty = await height()
    await box(page).fill("1\n2\n3")
    assert await height() > empty * 1.5
    await box(page).fill("\n" * 100)
    assert await height() <= 200
    await box(page).fill("")
    assert await height() == empty


# For everybody


async def test_roles_and_names_tell_what_is_what(page: Page) -> None:
    await say(page, "one")
    await expect(answers(page)).to_have_count(1)
    log = page.get_by_role("log", name="Messages")
    await expect(log).to_have_attribute("aria-live", "polite")
    await expect(log.get_by_role("article")).to_have_count(2)
    await expect(log.locator("#partial")).to_have_count(0)  # deltas are not read out, the whole message is
    await expect(log.get_by_role("article").nth(0)).to_contain_text("You")
    await expect(log.get_by_role("article").nth(1)).to_contain_text("Assistant")
    await expect(page.get_by_role("heading", level=1, name="Chat")).to_be_visible()
    await expect(page.get_by_role("main")).to_have_count(1)
    await expect(page.get_by_role("banner")).to_have_count(1)
    assert await page.locator("html").get_attribute("lang") == "en"
    nameless = "(all) => all.filter((one) => !one.ariaLabel && !one.innerText.trim()).length"
    assert await page.get_by_role("button").evaluate_all(nameless) == 0


CONTRAST = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = parse(color).map((v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return parse(color)[3] === 0 ? ground(element.parentElement) : color;
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const visible = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility());
  const texts = visible.filter(hasText);
  return texts.map((element) => {
    const [one, two] = [light(getComputedStyle(element).color), light(ground(element))];
    return [(Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05), element.outerHTML];
  }).sort(([a], [b]) => a - b)[0];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_contrast_is_enough_in_both_schemes(browser: Browser, bridge: BridgeProcess, scheme: Any) -> None:
    page = await visit(browser, f"{bridge.url}/chat", color_scheme=scheme)
    await say(
        page, "text `code` [link](https://a.example/)\n\n> quote\n\n```py\ncode\n```\n\n- [x] task\n\n|a|\n|-|\n|b|"
    )
    await expect(answers(page)).to_have_count(1)
    await say(page, "/help")
    await expect(answers(page)).to_have_count(2)
    problem = json.dumps({"detail": "No."})
    await page.route(MESSAGES, first_requests(1, lambda route: route.fulfill(status=422, body=problem)))
    await say(page, "refused")
    await expect(page.locator("article.refused")).to_have_count(1)
    await box(page).fill("/")
    worst, element = await page.evaluate(CONTRAST)
    assert worst >= 4.5, element
    ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(19, 21, 25)") is (scheme == "dark")
    forgive(page, FAILED)
    assert complaints[page] == []


async def test_a_phone_has_nothing_to_scroll_sideways(browser: Browser, bridge: BridgeProcess) -> None:
    phone = {"viewport": {"width": 320, "height": 640}, "is_mobile": True, "has_touch": True}
    page = await visit(browser, f"{bridge.url}/chat", **phone)
    wide = "x" * 300
    await say(page, f"{wide}\n\n`{wide}`\n\n```\n{wide}\n```\n\n|{wide}|b|\n|-|-|\n|c|d|\n\nhttps://a.example/{wide}")
    await expect(answers(page)).to_have_count(1)
    await box(page).fill("/")
    await expect(page.get_by_role("option")).to_have_count(4)
    assert await page.evaluate("document.documentElement.scrollWidth") == 320
    assert await page.evaluate("document.documentElement.scrollHeight") == 640
    scroller = page.locator("#scroller")
    assert await scroller.evaluate("(it) => it.scrollWidth === it.clientWidth")
    assert await box(page).evaluate("(it) => parseFloat(getComputedStyle(it).fontSize)") >= 16
    for button in await page.locator("button:visible:not(.copy)").all():
        size = await button.bounding_box() or {}
        assert min(size["width"], size["height"]) >= 40
    assert complaints[page] == []


async def test_text_from_right_to_left_stands_on_its_side(page: Page) -> None:
    await say(page, "שלום עולם")
    await expect(answers(page)).to_have_count(1)
    directions = "(all) => all.map((one) => getComputedStyle(one).direction)"
    assert await page.locator("article.own .body, article.agent p").evaluate_all(directions) == ["rtl", "rtl"]


async def test_the_page_speaks_vietnamese(browser: Browser, database: str) -> None:
    async with running_bridge(database, CHAT_BRIDGE_LANGUAGE="vi") as bridge:
        page = await visit(browser, f"{bridge.url}/chat")
        assert await page.locator("html").get_attribute("lang") == "vi"
        await page.get_by_role("textbox", name="Tin nhắn của bạn").fill("xin chào")
        await page.get_by_role("button", name="Gửi").click()
        await until_shown(page, "> xin chào", "xin chào")
        assert complaints[page] == []


# On other sites


def shop(bridge: BridgeProcess, attributes: str = "") -> str:
    styles = "<style>* { display: none !important; } html, body, script { display: block !important; }</style>"
    return f'<!doctype html>{styles}<script src="{bridge.url}/embed.js" {attributes} async></script><p>A shop</p>'


async def test_an_allowed_site_can_embed_the_chat(browser: Browser, database: str) -> None:
    pages: dict[str, str] = {}
    with site(pages) as origin:
        async with running_bridge(database, WEBCHAT_ORIGINS=origin) as bridge:
            pages["/"] = shop(bridge, 'data-title="Ask us" data-color="#ffd400" data-position="left"')
            page = await visit(browser, "about:blank")
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url) if bridge.url in request.url else None)
            await page.goto(origin)
            launcher = page.get_by_role("button", name="Ask us")
            await expect(launcher).to_have_attribute("aria-expanded", "false")
            assert (await launcher.bounding_box() or {})["x"] < 100
            assert asked == [f"{bridge.url}/embed.js"]

            await launcher.click()
            await expect(launcher).to_have_attribute("aria-expanded", "true")
            chat = page.frame_locator("iframe")
            text = chat.get_by_role("textbox", name="Your message")
            await expect(text).to_be_focused()
            await text.fill("one")
            await text.press("Enter")
            await expect(chat.locator("article.agent")).to_have_count(1)
            await text.press("Escape")
            await expect(page.get_by_role("dialog")).to_be_hidden()
            await expect(launcher).to_be_focused()

            # What comes while it is closed is told by a dot.
            await launcher.click()
            await text.fill("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20")
            await text.press("Enter")
            await expect(chat.locator("article.own")).to_have_count(2)
            await chat.get_by_role("button", name="Close the chat").click()
            await expect(page.get_by_role("dialog")).to_be_hidden()
            unread = page.get_by_role("button", name="Ask us (1)")
            await expect(unread.locator(".dot")).to_be_visible()
            await unread.click()
            await expect(page.locator(".dot")).to_be_hidden()
            await expect(chat.locator("article.agent")).to_have_count(2)
            assert complaints[page] == []


async def test_a_phone_shows_the_embedded_chat_on_the_whole_screen(browser: Browser, database: str) -> None:
    pages: dict[str, str] = {}
    with site(pages) as origin:
        async with running_bridge(database, WEBCHAT_ORIGINS=origin) as bridge:
            pages["/"] = shop(bridge, 'data-open="true"').replace(
                "<p>", '<meta name="viewport" content="width=device-width"><p>'
            )
            phone = {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True}
            page = await visit(browser, origin, **phone)
            panel = page.get_by_role("dialog")
            await expect(panel).to_be_visible()
            await panel.evaluate(
                "(panel) => Promise.all(panel.getAnimations().map((each) => each.finished)).then(() => {})"
            )
            assert await panel.bounding_box() == {"x": 0, "y": 0, "width": 390, "height": 780}
            await expect(page.get_by_role("button", name="Chat", exact=True)).to_be_hidden()
            await page.frame_locator("iframe").get_by_role("button", name="Close the chat").tap()
            await expect(panel).to_be_hidden()
            await expect(page.get_by_role("button", name="Chat", exact=True)).to_be_visible()
            assert complaints[page] == []


async def test_other_sites_can_not_embed_the_chat(browser: Browser, bridge: BridgeProcess) -> None:
    with site({"/": shop(bridge)}) as origin:
        page = await visit(browser, origin)
        await page.get_by_role("button", name="Chat").click()
        await expect(page.get_by_role("dialog")).to_be_visible()
        async with asyncio.timeout(10):
            while not any("frame-ancestors" in text for text in complaints[page]):
                await asyncio.sleep(0.02)
        await expect(page.frame_locator("iframe").get_by_role("textbox")).to_have_count(0)
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Chat").click()
        await expect(page.get_by_role("dialog")).to_be_hidden()


async def test_the_launcher_believes_only_the_chat(browser: Browser, database: str) -> None:
    pages: dict[str, str] = {}
    with site(pages) as origin:
        async with running_bridge(database, WEBCHAT_ORIGINS=origin) as bridge:
            pages["/"] = shop(bridge)
            page = await visit(browser, origin)
            await page.get_by_role("button", name="Chat").click()
            chat = page.frame_locator("iframe")
            await expect(chat.get_by_role("textbox")).to_be_focused()
            await page.evaluate("window.postMessage({ type: 'chat-bridge:close' }, '*')")
            await page.evaluate("window.postMessage({ type: 'chat-bridge:unread', count: 5 }, '*')")
            await asyncio.sleep(0.2)
            await expect(page.get_by_role("dialog")).to_be_visible()
            await expect(page.locator(".dot")).to_be_hidden()


async def test_what_a_program_sends_leaves_the_growing_answer_alone(page: Page, bridge: BridgeProcess) -> None:
    await say(page, LONG)
    await expect(page.locator("#partial")).to_contain_text("word20")
    await page.evaluate("""() => {
      const partial = document.querySelector("#partial");
      window.hidden = 0;
      new MutationObserver(() => (window.hidden += partial.hidden)).observe(partial, { attributes: true });
    }""")
    kept = json.loads(await page.evaluate("localStorage.getItem('chat-bridge')"))
    where = {"conversation": kept["conversation"], "platform": "webchat"}
    _, session = await call(bridge.url, "GET", "/api/v1/sessions/active", params=where)
    path, message = f"/api/v1/sessions/{session['id']}/messages", {"client_msg_id": "1", "text": "**News**"}
    assert (await call(bridge.url, "POST", path, json=message))[0] == 202
    await until_shown(page, f"> {LONG}", "News")
    assert await page.evaluate("window.hidden") == 0
    await until_shown(page, f"> {LONG}", "News", LONG)
    await expect(page.locator("#partial")).to_be_hidden()


async def test_what_was_erased_leaves_the_page(page: Page, bridge: BridgeProcess) -> None:
    await say(page, "a secret")
    await until_shown(page, "> a secret", "a secret")
    kept = json.loads(await page.evaluate("localStorage.getItem('chat-bridge')"))
    person = {"platform": "webchat", "user": kept["conversation"]}
    status, _ = await call(bridge.url, "POST", "/api/v1/erasures", json={"person": person})
    assert status == 202
    await until_shown(page)
    await say(page, "new")
    await until_shown(page, "> new", "new")
    await page.reload()
    await until_shown(page, "> new", "new")
