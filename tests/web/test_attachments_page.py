"""Files on the chat page, in a real browser, before the real bridge."""

import asyncio
import io
import json
import math
import struct
import wave
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image, ImageDraw
from playwright.async_api import Browser, FilePayload, Locator, Page, Route, expect

from tests.bridge import BridgeProcess, running_bridge
from tests.observe import rows
from tests.web.browser import site
from tests.web.test_attachments import HTML, PDF, SVG
from tests.web.test_chat_page import CONTRAST, FAILED, answers, box, complaints, forgive, say, shop, visit

pytestmark = pytest.mark.asyncio(loop_scope="session")

UPLOADS = "**/api/v1/chat/*/uploads*"
MESSAGES = "**/api/v1/chat/*/messages"
MOST = 400_000


@pytest.fixture
async def bridge(database: str) -> AsyncGenerator[BridgeProcess]:
    async with running_bridge(database, ATTACHMENT_MAX_BYTES=str(MOST)) as process:
        yield process


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, bridge: BridgeProcess) -> AsyncGenerator[Page]:
    """The chat page. The browser must have nothing to complain of, unless the test has forgiven it."""
    page = await visit(browser, f"{bridge.url}/chat")
    yield page
    assert complaints[page] == []


def photo(width: int = 1200, height: int = 800) -> bytes:
    image = Image.new("RGB", (width, height), "#7fb2e5")
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.7, height * 0.1, width * 0.85, height * 0.32), fill="#ffe08a")
    draw.polygon([(0, height), (width * 0.35, height * 0.3), (width * 0.7, height)], fill="#48657d")
    draw.polygon([(width * 0.4, height), (width * 0.75, height * 0.45), (width, height)], fill="#5d8a66")
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def sound() -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(n / 5))) for n in range(8000)))
    return written.getvalue()


def file(name: str, data: bytes, type_: str = "application/octet-stream") -> FilePayload:
    return {"name": name, "mimeType": type_, "buffer": data}


PHOTO = file("Núi và mặt trời.png", photo(), "image/png")
REPORT = file("A report of last year.pdf", PDF, "application/pdf")


async def pick(page: Page, *files: FilePayload) -> None:
    async with page.expect_file_chooser() as chooser:
        await page.get_by_role("button", name="Attach files").click()
    await (await chooser.value).set_files(list(files))


def tiles(page: Page) -> Locator:
    return page.get_by_role("list", name="Files to send").get_by_role("listitem")


def send(page: Page) -> Locator:
    return page.get_by_role("button", name="Send", exact=True)


def own(page: Page) -> Locator:
    return page.locator("article.own")


async def test_files_are_sent_and_shown(page: Page, bridge: BridgeProcess) -> None:
    await pick(page, PHOTO, REPORT, file("tone.wav", sound(), "audio/wav"))
    await expect(page.locator(".upload.done")).to_have_count(3)
    await expect(tiles(page).nth(0).locator("img")).to_have_js_property("naturalWidth", 1200)
    await expect(tiles(page).nth(1)).to_contain_text("A report of last year.pdf")
    await box(page).fill("Look at these")
    await box(page).press("Enter")
    await expect(tiles(page)).to_have_count(0)
    await expect(own(page).locator(".body")).to_have_text("Look at these")
    image = own(page).get_by_role("img", name="Núi và mặt trời.png")
    await expect(image).to_have_js_property("naturalWidth", 320)
    await expect(image).to_have_js_property("width", 320)
    await expect(own(page).locator("audio")).to_have_js_property("error", None)
    async with asyncio.timeout(10):
        while await own(page).locator("audio").evaluate("(it) => it.duration") != 1:
            await asyncio.sleep(0.05)
    link = own(page).get_by_role("link", name="A report of last year.pdf")
    async with page.expect_download() as started, page.context.expect_page():
        await link.click()
    download = await started.value
    assert download.suggested_filename == "A report of last year.pdf"
    assert Path(await download.path()).read_bytes() == PDF
    await page.reload()
    await expect(own(page).get_by_role("img", name="Núi và mặt trời.png")).to_have_js_property("naturalWidth", 320)
    await expect(tiles(page)).to_have_count(0)
    assert "key=" not in bridge.log.read_text()


async def test_files_of_the_agent_are_shown(page: Page, bridge: BridgeProcess) -> None:
    agent = page.locator("article.agent")
    await pick(page, PHOTO, REPORT)
    await expect(page.locator(".upload.done")).to_have_count(2)
    await send(page).click()
    image = agent.get_by_role("img", name="Núi và mặt trời.png")
    await expect(image).to_have_js_property("naturalWidth", 320)
    link = agent.get_by_role("link", name="A report of last year.pdf")
    async with page.expect_download() as started, page.context.expect_page():
        await link.click()
    assert Path(await (await started.value).path()).read_bytes() == PDF
    await page.reload()
    await expect(image).to_have_js_property("naturalWidth", 320)
    await expect(agent).to_have_count(1)


async def test_an_answer_of_files_alone_is_shown(page: Page, bridge: BridgeProcess, database: str) -> None:
    await pick(page, PHOTO)
    await expect(page.locator(".upload.done")).to_have_count(1)
    await send(page).click()
    agent = page.locator("article.agent")
    await expect(agent.get_by_role("img")).to_have_count(1)
    await rows(database, "update messages set content_text = '' where direction = 'outbound'")
    await page.reload()
    await expect(agent.get_by_role("img")).to_have_js_property("naturalWidth", 320)
    await expect(agent.locator(".body")).to_be_hidden()


async def test_an_image_opens_in_full(page: Page) -> None:
    await pick(page, PHOTO)
    await expect(page.locator(".upload.done")).to_have_count(1)
    await send(page).click()
    await expect(own(page).locator(".body")).to_be_hidden()
    async with page.context.expect_page() as opened:
        await own(page).locator("a.picture").click()
    full = await opened.value
    await full.wait_for_load_state()
    assert await full.locator("img").evaluate("(it) => it.naturalWidth") == 1200


@pytest.mark.parametrize(
    ("name", "data", "type_"),
    [
        ("a.svg", SVG, "image/svg+xml"),
        ("a.html", HTML, "text/html"),
        ("a.png", HTML, "image/png"),
        ("a.svg", SVG, "image/png"),
        ("a.mp3", HTML, "audio/mpeg"),
        ("a.xhtml", HTML.replace(b"<html>", b'<html xmlns="http://www.w3.org/1999/xhtml">'), "application/xhtml+xml"),
    ],
)
async def test_nothing_of_a_user_runs(page: Page, name: str, data: bytes, type_: str) -> None:
    await pick(page, file(name, data, type_))
    await expect(page.locator(".upload.done")).to_have_count(1)
    await send(page).click()
    link = own(page).get_by_role("link", name=name)
    await expect(link).to_be_visible()
    assert await own(page).locator("img, audio, video").count() == 0
    url = await link.evaluate("(it) => it.href")
    other = await page.context.new_page()
    seen: list[Any] = []
    other.on("console", lambda message: seen.append(message.text))
    async with other.expect_download():
        with pytest.raises(Exception, match=r"Download is starting|ERR_ABORTED"):
            await other.goto(url)
    framed = await page.context.new_page()
    await framed.goto(page.url)
    embed = "(url) => document.body.append(Object.assign(document.createElement('embed'), { src: url }))"
    await framed.evaluate(embed, url)
    await asyncio.sleep(0.3)
    assert await other.title() != "hacked"
    assert await framed.title() == "Chat"
    assert await page.title() == "Chat"


async def test_a_name_does_nothing(page: Page) -> None:
    name = "<img src=x onerror=\"document.title='hacked'\">$&{name}.txt"
    await pick(page, file(name, b"hello"))
    await expect(tiles(page)).to_contain_text(name)
    await expect(page.get_by_role("button", name=f"Remove {name}")).to_be_visible()
    await expect(page.locator(".upload.done")).to_have_count(1)
    await send(page).click()
    await expect(own(page).locator("a.file .name")).to_have_text(name.replace("/", ""))
    assert await page.title() == "Chat"


async def drop(page: Page, *names: str) -> None:
    """Drag files over the page and drop them."""
    await page.evaluate(
        """(names) => {
          const data = new DataTransfer();
          for (const name of names) data.items.add(new File(["hello"], name, { type: "text/plain" }));
          window.dragged = data;
          const event = { dataTransfer: data, bubbles: true, cancelable: true };
          document.body.dispatchEvent(new DragEvent("dragenter", event));
        }""",
        names,
    )
    await expect(page.get_by_text("Drop files here")).to_be_visible()
    leave = "new DragEvent('dragleave', { dataTransfer: window.dragged, bubbles: true, relatedTarget: null })"
    await page.evaluate(f"document.body.dispatchEvent({leave})")
    await expect(page.get_by_text("Drop files here")).to_be_hidden()
    for kind in ("dragover", "drop"):
        event = f"new DragEvent('{kind}', {{ dataTransfer: window.dragged, bubbles: true, cancelable: true }})"
        assert await page.evaluate(f"document.querySelector('#scroller').dispatchEvent({event})") is False
    await expect(page.get_by_text("Drop files here")).to_be_hidden()


async def test_files_can_be_dropped(page: Page) -> None:
    await drop(page, "one.txt", "two.txt")
    await expect(page.locator(".upload.done .name")).to_have_text(["one.txt", "two.txt"])


PASTE = """([types, withFile]) => {
  const data = new DataTransfer();
  for (const type of types) data.setData(type, "text");
  if (withFile) data.items.add(new File(["hello"], "image.png", { type: "image/png" }));
  const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
  document.querySelector("#text").dispatchEvent(event);
  return event.defaultPrevented;
}"""


async def test_files_can_be_pasted_and_texts_stay_texts(page: Page) -> None:
    assert await page.evaluate(PASTE, [["text/plain"], False]) is False
    assert await page.evaluate(PASTE, [["text/plain", "text/html"], True]) is False
    await expect(tiles(page)).to_have_count(0)
    assert await page.evaluate(PASTE, [["text/html"], True]) is True
    await expect(page.locator(".upload.done .name")).to_have_text(["image.png"])


async def test_what_is_not_taken_says_why(browser: Browser, database: str) -> None:
    async with running_bridge(database, ATTACHMENT_MAX_BYTES="1000000", ATTACHMENT_TYPES="image/*") as bridge:
        page = await visit(browser, f"{bridge.url}/chat")
        await pick(page, file("big.bin", b"x" * 1_000_001), REPORT, file("empty.png", b""), PHOTO)
        await expect(tiles(page).nth(0)).to_contain_text("Too large: 977 kB is the most")
        await expect(tiles(page).nth(1)).to_contain_text("Files of this type are not taken")
        await expect(tiles(page).nth(2)).to_contain_text("Not uploaded: The file was not kept: it is empty.")
        await expect(tiles(page).nth(3)).to_have_class("upload done")
        await box(page).fill("hello")
        await expect(send(page)).to_be_disabled()
        for name in ("big.bin", "A report of last year.pdf", "empty.png"):
            await page.get_by_role("button", name=f"Remove {name}").click()
            await expect(page.locator("button.remove:focus")).to_have_count(1)
        await expect(send(page)).to_be_enabled()
        await page.keyboard.press("Enter")
        await expect(tiles(page)).to_have_count(0)
        await expect(box(page)).to_be_focused()
        forgive(page, FAILED)
        assert complaints[page] == []


async def test_more_than_ten_files(page: Page) -> None:
    await pick(page, *(file(f"{number}.txt", b"%d" % number) for number in range(12)))
    await expect(page.get_by_text("10 files are the most for one message")).to_be_visible()
    await expect(page.locator(".upload.done")).to_have_count(10)
    await send(page).click()
    await expect(own(page).locator("a.file")).to_have_count(10)


async def test_sending_waits_for_the_uploads(page: Page) -> None:
    gate = asyncio.Event()

    async def wait(route: Route) -> None:
        await gate.wait()
        await route.continue_()

    await page.route(UPLOADS, wait)
    await pick(page, REPORT)
    await box(page).fill("with a file")
    await box(page).press("Enter")
    await expect(page.get_by_text("Will be sent when the files are uploaded")).to_be_visible()
    await expect(tiles(page).get_by_role("progressbar")).to_be_visible()
    await expect(own(page)).to_have_count(0)
    gate.set()
    await expect(own(page).locator(".body")).to_have_text("with a file")
    await expect(own(page).get_by_role("link", name="A report of last year.pdf")).to_be_visible()
    await expect(page.get_by_text("Will be sent when")).to_be_hidden()
    await page.unroute_all(behavior="wait")


async def test_what_is_written_after_the_press_is_not_sent_with_it(page: Page) -> None:
    gate = asyncio.Event()

    async def wait(route: Route) -> None:
        await gate.wait()
        await route.continue_()

    await page.route(UPLOADS, wait)
    await pick(page, REPORT)
    await box(page).fill("with a file")
    await box(page).press("Enter")
    await expect(page.get_by_text("Will be sent when the files are uploaded")).to_be_visible()
    await box(page).fill("/status")
    await box(page).press("Enter")
    await expect(own(page).locator(".body")).to_have_text(["/status"])
    await expect(own(page).locator("a.file")).to_have_count(0)
    await box(page).fill("with a file and half")
    gate.set()
    await expect(own(page).locator(".body")).to_have_text(["/status", "with a file"])
    await expect(own(page).get_by_role("link", name="A report of last year.pdf")).to_be_visible()
    await expect(box(page)).to_have_value("and half")
    await page.unroute_all(behavior="wait")


async def test_what_is_removed_is_taken_back(page: Page, database: str) -> None:
    await pick(page, REPORT, PHOTO)
    await expect(page.locator(".upload.done")).to_have_count(2)
    async with page.expect_response(lambda response: response.request.method == "DELETE") as taken_back:
        await page.get_by_role("button", name="Remove A report of last year.pdf").click()
    assert (await taken_back.value).status == 204
    assert len(await rows(database, "select 1 from attachments")) == 1


async def test_a_file_that_is_removed_before_there_is_a_conversation_is_not_uploaded(page: Page) -> None:
    gate, uploads = asyncio.Event(), list[str]()

    async def wait(route: Route) -> None:
        await gate.wait()
        await route.continue_()

    page.on("request", lambda request: uploads.append(request.url) if "/uploads" in request.url else None)
    await page.route("**/api/v1/chat/conversations", wait)
    await pick(page, REPORT)
    await page.get_by_role("button", name="Remove A report of last year.pdf").click()
    await pick(page, PHOTO)
    gate.set()
    await expect(page.locator(".upload.done")).to_have_count(1)
    await page.unroute_all(behavior="wait")
    assert len(uploads) == 1


async def test_a_message_whose_files_have_ended_can_only_be_given_up(page: Page, database: str) -> None:
    await pick(page, REPORT)
    await expect(page.locator(".upload.done")).to_have_count(1)
    await rows(database, "delete from attachments")
    await box(page).fill("look")
    await send(page).click()
    await expect(page.locator("article.refused")).to_contain_text("it may have expired")
    await expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    await page.reload()
    await expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    await page.get_by_role("button", name="Discard").click()
    await expect(own(page)).to_have_count(0)
    forgive(page, FAILED)


async def test_a_lost_upload_is_tried_again(page: Page) -> None:
    tries = 0

    async def lose(route: Route) -> None:
        nonlocal tries
        tries += 1
        await (route.abort() if tries <= 2 else route.continue_())

    await page.route(UPLOADS, lose)
    await pick(page, REPORT)
    await expect(page.locator(".upload.done")).to_have_count(1)
    assert tries == 3
    forgive(page, "net::ERR_FAILED")


async def test_a_visitor_may_try_again_when_the_page_has_given_up(page: Page) -> None:
    problem = json.dumps({"detail": "The scanner is away."})
    await page.route(UPLOADS, lambda route: route.fulfill(status=503, body=problem))
    await pick(page, REPORT)
    await expect(tiles(page)).to_contain_text("Not uploaded: The scanner is away.")
    await page.unroute(UPLOADS)
    await tiles(page).get_by_role("button", name="Try again").click()
    await expect(page.locator(".upload.done")).to_have_count(1)
    forgive(page, FAILED)


async def test_an_upload_that_is_removed_is_not_sent(page: Page) -> None:
    gate = asyncio.Event()

    async def wait(route: Route) -> None:
        await gate.wait()
        await route.continue_()

    await page.route(UPLOADS, wait)
    await pick(page, REPORT, PHOTO, file("third.txt", b"3"))
    await page.get_by_role("button", name="Remove A report of last year.pdf").click()
    gate.set()
    await expect(page.locator(".upload.done .name")).to_have_text(["Núi và mặt trời.png", "third.txt"])
    await page.unroute_all(behavior="wait")
    await page.get_by_role("button", name="Remove Núi và mặt trời.png").click()
    await send(page).click()
    await expect(own(page).locator("a.file .name")).to_have_text(["third.txt"])
    forgive(page, "net::ERR_ABORTED", FAILED)


async def test_unsent_files_are_sent_after_a_reload(page: Page) -> None:
    await pick(page, PHOTO)
    await expect(page.locator(".upload.done")).to_have_count(1)
    await page.route(MESSAGES, lambda route: route.abort() if route.request.method == "POST" else route.continue_())
    await send(page).click()
    await expect(page.locator("article.waiting .file")).to_contain_text("Núi và mặt trời.png")
    await page.reload()
    await expect(page.locator("article.waiting .file")).to_contain_text("Núi và mặt trời.png")
    await page.unroute(MESSAGES)
    await expect(own(page).get_by_role("img")).to_have_js_property("naturalWidth", 320)
    await expect(page.locator("article.waiting")).to_have_count(0)
    forgive(page, "net::ERR_FAILED")


async def test_what_is_being_fetched_or_can_not_be_had_says_so(page: Page) -> None:
    await say(page, "one")
    await expect(answers(page)).to_have_count(1)
    asked: list[str] = []

    async def with_files(route: Route) -> None:
        response = await route.fetch()
        body = await response.json()
        told = {
            "kind": "file",
            "mime_type": "application/pdf",
            "name": "a.pdf",
            "size": 5,
            "width": None,
            "height": None,
        }
        links = {"url": None, "thumbnail_url": None, "width": None, "height": None}
        for message in body["messages"][:1]:
            message["attachments"] = [
                told | links | {"id": "1", "status": "waiting", "reason": None},
                told | links | {"id": "2", "status": "failed", "reason": "it is not kept", "name": None},
            ]
        asked.append(route.request.url)
        await route.fulfill(response=response, json=body)

    await page.route("**/api/v1/chat/*/messages?*", with_files)
    await page.reload()
    texts = ["a.pdfBeing fetched…", "FileNot available: it is not kept"]
    await expect(own(page).locator("span.file")).to_have_text(texts)
    async with asyncio.timeout(10):
        while len(asked) < 2:  # what became of it while the stream was not open
            await asyncio.sleep(0.02)


async def test_links_that_have_ended_are_renewed(browser: Browser, bridge: BridgeProcess) -> None:
    page = await visit(browser, f"{bridge.url}/chat")
    await page.clock.install()
    await page.reload()
    await pick(page, PHOTO)
    await expect(page.locator(".upload.done")).to_have_count(1)
    await send(page).click()
    await expect(own(page).get_by_role("img")).to_have_js_property("naturalWidth", 320)
    await page.clock.set_system_time(await page.evaluate("Date.now() + 3500_000"))
    async with page.context.expect_page() as opened, page.expect_request("**/messages?after=0&limit=1"):
        await own(page).locator("a.picture").click()
    full = await opened.value
    await full.wait_for_load_state()
    assert await full.locator("img").evaluate("(it) => it.naturalWidth") == 1200


async def test_nothing_jumps_when_a_picture_comes(page: Page) -> None:
    gate = asyncio.Event()

    async def wait(route: Route) -> None:
        await gate.wait()
        await route.continue_()

    await page.route("**/thumbnail?*", wait)
    await pick(page, PHOTO)
    await expect(page.locator(".upload.done")).to_have_count(1)
    await send(page).click()
    image = own(page).get_by_role("img")
    await expect(image).to_have_js_property("complete", False)
    before = await own(page).bounding_box()
    gate.set()
    await expect(image).to_have_js_property("naturalWidth", 320)
    assert await own(page).bounding_box() == before
    await page.unroute_all(behavior="wait")


async def test_files_by_keyboard(page: Page) -> None:
    await expect(box(page)).to_be_focused()
    await page.keyboard.press("Shift+Tab")
    await expect(page.get_by_role("button", name="Attach files")).to_be_focused()
    await page.evaluate("document.querySelector('#file').onclick = () => ((window.asked = true), false)")
    await page.keyboard.press("Enter")
    assert await page.evaluate("window.asked") is True
    await page.locator("#file").set_input_files([REPORT])
    await box(page).focus()
    await expect(page.locator(".upload.done")).to_have_count(1)
    for _ in range(2):
        await page.keyboard.press("Shift+Tab")
    await expect(page.get_by_role("button", name="Remove A report of last year.pdf")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(tiles(page)).to_have_count(0)
    await expect(box(page)).to_be_focused()


async def test_files_in_the_embedded_chat(browser: Browser, database: str) -> None:
    pages: dict[str, str] = {}
    with site(pages) as origin:
        async with running_bridge(database, WEBCHAT_ORIGINS=origin) as bridge:
            pages["/"] = shop(bridge, 'data-open="true"')
            page = await visit(browser, origin)
            chat = page.frame_locator("iframe")
            async with page.expect_file_chooser() as chooser:
                await chat.get_by_role("button", name="Attach files").click()
            await (await chooser.value).set_files([PHOTO])
            await expect(chat.locator(".upload.done")).to_have_count(1)
            await chat.get_by_role("button", name="Send", exact=True).click()
            image = chat.locator("article.own").get_by_role("img")
            await expect(image).to_have_js_property("naturalWidth", 320)
            assert complaints[page] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_files_are_readable_in_both_schemes_and_fit_a_phone(
    browser: Browser, bridge: BridgeProcess, scheme: Any, tmp_path: Path
) -> None:
    phone = {"viewport": {"width": 320, "height": 640}, "is_mobile": True, "has_touch": True, "color_scheme": scheme}
    page = await visit(browser, f"{bridge.url}/chat", **phone)
    await pick(page, PHOTO, file("x" * 200 + ".pdf", PDF), file("tone.wav", sound(), "audio/wav"))
    await expect(page.locator(".upload.done")).to_have_count(3)
    await box(page).fill("text")
    await send(page).click()
    await expect(own(page).locator("img, audio, a.file")).to_have_count(4)
    await expect(answers(page)).to_have_count(1)
    await expect(page.get_by_role("button", name="Stop the answer")).to_be_hidden()
    await pick(page, PHOTO, file("large.bin", b"x" * (MOST + 1)), REPORT)
    await expect(page.locator(".upload.done")).to_have_count(2)
    assert await page.evaluate("document.documentElement.scrollWidth") == 320
    assert await page.locator("#scroller").evaluate("(it) => it.scrollWidth === it.clientWidth")
    for button in await page.locator("button:visible").all():
        size = await button.bounding_box() or {}
        assert min(size["width"], size["height"]) >= 40
    worst, element = await page.evaluate(CONTRAST)
    assert worst >= 4.5, element
    assert complaints[page] == []
