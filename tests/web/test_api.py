"""The REST API, the health pages, and what every response carries."""

import asyncio
import re
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
import pytest_asyncio

from tests.bridge import API_KEY, SECRET, BridgeProcess, Chat, calling, running_bridge, visiting
from tests.conftest import fresh_database
from tests.observe import begun, call, ended, replies, rows, session_of, statuses

ENDLESS = "word " * 1000  # half a minute of the echo agent
SESSIONS = "/api/v1/sessions"
NOBODY = "01234567-89ab-7def-8123-456789abcdef"  # the id of no session


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def database() -> AsyncGenerator[str]:
    async with fresh_database("18", template=True) as dsn:
        yield dsn


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge(database: str) -> AsyncGenerator[BridgeProcess]:
    async with running_bridge(database, LEASE_SECONDS="600") as process:
        yield process


async def talked(chat: Chat, *texts: str) -> None:
    """Send these, each answered before the next."""
    for text in texts:
        await chat.send(text)
        await chat.answered()


async def headers_of(url: str, path: str) -> tuple[int, dict[str, str], str]:
    """Status, headers (names in lower case) and body of a page."""
    async with aiohttp.ClientSession(url) as http, http.get(path, allow_redirects=False) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return response.status, headers, await response.text()


# Sessions


async def test_a_session_is_listed_and_read(bridge: BridgeProcess) -> None:
    async with calling(bridge.url, f"room:{uuid4()}") as program:
        await program.post("hello", user={"id": "ann", "name": "Ann"})
        await program.answered()
        session = await session_of(bridge.url, program)
    assert session["conversation"] == program.conversation
    assert (session["platform"], session["account"], session["user_id"]) == ("webchat", "default", "ann")
    assert (session["status"], session["mode"], session["message_count"]) == ("active", "agent", 2)
    assert (session["parent_session_id"], session["pending_since"], session["metadata"]) == (None, None, {})
    assert await call(bridge.url, "GET", f"{SESSIONS}/{session['id']}") == (200, session)


async def test_sessions_are_listed_newest_first_in_pages(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as chat:
        await talked(chat, "one", "/new", "/new")
    seen: list[dict[str, Any]] = []
    before: dict[str, str] = {}
    while True:
        query = {"conversation": chat.conversation, "limit": "1", **before}
        status, page = await call(bridge.url, "GET", SESSIONS, params=query)
        assert status == 200
        assert len(page["sessions"]) == 1
        seen += page["sessions"]
        if page["next"] is None:
            break
        before = {"before": page["next"]}
    assert [session["status"] for session in seen] == ["active", "closed", "closed"]
    assert [session["id"] for session in seen] == sorted((session["id"] for session in seen), reverse=True)
    assert seen[0]["parent_session_id"] == seen[1]["id"]


async def test_filters_of_the_list(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as chat, visiting(bridge.url) as other:
        await talked(chat, "one", "/new")
        await talked(other, "two")
        session = await session_of(bridge.url, chat)

    async def found(**query: str) -> set[str]:
        _, page = await call(bridge.url, "GET", SESSIONS, params={"limit": "200", **query})
        return {listed["conversation"] for listed in page["sessions"]} & {chat.conversation, other.conversation}

    assert await found() == {chat.conversation, other.conversation}
    assert await found(platform="webchat") == {chat.conversation, other.conversation}
    assert await found(platform="telegram") == set()
    assert await found(user=chat.conversation) == {chat.conversation}
    assert await found(conversation_id=session["conversation_id"]) == {chat.conversation}
    assert await found(status="closed") == {chat.conversation}
    assert await found(status="archived") == set()
    now = datetime.now(UTC)
    assert await found(active_since=(now - timedelta(hours=1)).isoformat()) == {chat.conversation, other.conversation}
    assert await found(active_since=(now + timedelta(hours=1)).isoformat()) == set()


async def test_messages_of_a_session(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as chat:
        await talked(chat, "one", "/new", "two")
        session = await session_of(bridge.url, chat)
    path = f"{SESSIONS}/{session['id']}/messages"
    status, page = await call(bridge.url, "GET", path)
    assert (status, page["has_more"]) == (200, False)
    assert [message["text"] for message in page["messages"]] == ["two", "two"]
    _, page = await call(bridge.url, "GET", path, params={"limit": "1"})
    assert ([message["seq"] for message in page["messages"]], page["has_more"]) == ([6], True)
    _, page = await call(bridge.url, "GET", path, params={"before": "6"})
    assert ([message["seq"] for message in page["messages"]], page["has_more"]) == ([5], False)


async def test_a_closed_session_is_followed_by_another(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as chat:
        await talked(chat, "one")
        session = await session_of(bridge.url, chat)
        path = f"{SESSIONS}/{session['id']}/close"
        assert await call(bridge.url, "POST", path) == (200, session | {"status": "closed"})
        status, problem = await call(bridge.url, "POST", path)
        assert (status, problem["detail"]) == (409, "The session is closed already.")
        await talked(chat, "two")
        assert (await session_of(bridge.url, chat))["parent_session_id"] == session["id"]
        assert [message["seq"] for message in await chat.messages()] == [1, 2, 3, 4]


async def test_the_active_session_of_a_conversation(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as chat:
        path = f"{SESSIONS}/active?platform=webchat&conversation={chat.conversation}"
        assert (await call(bridge.url, "GET", path))[0] == 404
        await talked(chat, "one")
        session = await session_of(bridge.url, chat)
        for query in (path, f"{path}&account=default", f"{path}&account=default&thread="):
            status, found = await call(bridge.url, "GET", query)
            assert status == 200
            assert found == {name: session[name] for name in found}
            assert found["id"] == session["id"]
        assert (await call(bridge.url, "GET", f"{path}&account=another"))[0] == 404
        assert (await call(bridge.url, "GET", f"{path}&thread=another"))[0] == 404
        await talked(chat, "/new")
        status, successor = await call(bridge.url, "GET", path)
        assert (status, successor["parent_session_id"]) == (200, session["id"])
        await call(bridge.url, "POST", f"{SESSIONS}/{successor['id']}/close")
        assert (await call(bridge.url, "GET", path))[0] == 404
        status, problem = await call(bridge.url, "GET", f"{SESSIONS}/active?platform=none&conversation=1")
        assert (status, problem["detail"]) == (404, "The platform none is not served here: name the account.")


async def test_closing_a_session_cancels_what_waits_in_it(bridge: BridgeProcess, database: str) -> None:
    async with visiting(bridge.url) as chat:
        await chat.send(ENDLESS)
        await begun(chat)
        await chat.send("waits")
        session = await session_of(bridge.url, chat)
        assert (await call(bridge.url, "POST", f"{SESSIONS}/{session['id']}/close"))[0] == 200
        await chat.send("after")
        messages = await chat.answered()
    assert statuses(messages) == [
        (ENDLESS, "cancelled", "closed"),
        ("waits", "cancelled", "closed"),
        ("after", "answered", None),
    ]
    assert replies(messages) == ["after"]
    assert await ended(database, chat, 2) == ["cancelled", "answered"]


async def test_the_busy_policy_of_a_session(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as chat:
        await talked(chat, "one")
        session = await session_of(bridge.url, chat)
    path = f"{SESSIONS}/{session['id']}"
    for policy in ("latest", None):
        status, changed = await call(bridge.url, "PATCH", path, json={"busy_policy": policy})
        assert (status, changed["metadata"]) == (200, {"busy_policy": policy})
    for wrong in ({"busy_policy": "never"}, {}, []):
        assert (await call(bridge.url, "PATCH", path, json=wrong))[0] == 422


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/messages"), ("PATCH", ""), ("POST", "/close")],
)
async def test_a_session_that_is_not_there(bridge: BridgeProcess, method: str, path: str) -> None:
    body = {"busy_policy": "collect"} if method == "PATCH" else None
    status, problem = await call(bridge.url, method, f"{SESSIONS}/{NOBODY}{path}", json=body)
    assert (status, problem["detail"]) == (404, "There is no session with this id.")


@pytest.mark.parametrize(
    "path",
    [
        f"{SESSIONS}?limit=0",
        f"{SESSIONS}?limit=201",
        f"{SESSIONS}?status=open",
        f"{SESSIONS}?before=1",
        f"{SESSIONS}?conversation_id=x",
        f"{SESSIONS}?active_since=2026-01-01T00:00:00",
        f"{SESSIONS}?active_since=0001-01-01T00:00:00%2B14:00",
        f"{SESSIONS}/not-an-id",
        f"{SESSIONS}/{NOBODY}/messages?before=-1",
    ],
)
async def test_what_is_wrong_is_said_as_problem_details(bridge: BridgeProcess, path: str) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with aiohttp.ClientSession(bridge.url, headers=headers) as http, http.get(path) as response:
        assert (response.status, response.content_type) == (422, "application/problem+json")
        problem = await response.json()
    assert problem.keys() == {"type", "title", "status", "detail"}


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic wrong", f"Bearer {API_KEY[:-1]}"])
@pytest.mark.parametrize("path", ["", f"/{NOBODY}", f"/{NOBODY}/messages"])
async def test_only_with_the_api_key(bridge: BridgeProcess, authorization: str | None, path: str) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    async with aiohttp.ClientSession(bridge.url, headers=headers) as http, http.get(f"{SESSIONS}{path}") as response:
        assert (response.status, response.content_type) == (401, "application/problem+json")
        assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_a_visitors_token_opens_nothing_else(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as chat:
        headers = {"Authorization": f"Bearer {chat.token}"}
        async with aiohttp.ClientSession(bridge.url, headers=headers) as http, http.get(SESSIONS) as response:
            assert response.status == 401


async def test_unknown_paths_and_methods(bridge: BridgeProcess) -> None:
    assert (await call(bridge.url, "GET", "/api/v1/nothing"))[1]["status"] == 404
    assert (await call(bridge.url, "DELETE", SESSIONS))[1]["status"] == 405


# Health


async def test_health_and_readiness(bridge: BridgeProcess) -> None:
    assert await call(bridge.url, "GET", "/health") == (200, {"status": "ok"})
    assert await call(bridge.url, "GET", "/healthz") == (200, {"status": "ok"})
    checks = {"database": "ok", "migrations": "ok", "redis": "ok", "platforms.webchat": "ok"}
    assert await call(bridge.url, "GET", "/readyz") == (200, {"status": "ok", "checks": checks})


async def test_not_ready_with_a_schema_of_the_future() -> None:
    async with fresh_database("18", template=True) as database, running_bridge(database) as bridge:
        await rows(database, "update alembic_version set version_num = '9999'")
        await rows(database, "update schema_compatibility set oldest_code = '9999'")
        status, told = await call(bridge.url, "GET", "/readyz")
    assert (status, told["status"], told["checks"]["database"]) == (503, "unavailable", "ok")
    assert "9999" in told["checks"]["migrations"]


async def test_metrics(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as chat:
        await talked(chat, "hello", "hello again")
    _, headers, text = await headers_of(bridge.url, "/metrics")
    assert headers["content-type"].startswith("text/plain")

    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, name
        return float(found[1])

    assert value('chat_bridge_messages_total{platform="webchat",status="accepted"}') >= 2
    assert value('chat_bridge_turns_total{agent="echo",outcome="answered"}') >= 2
    assert value('chat_bridge_deliveries_total{platform="webchat",status="sent"}') >= 2
    assert value('chat_bridge_turn_seconds_count{agent="echo"}') >= 2
    assert value('chat_bridge_first_text_seconds_count{agent="echo"}') >= 2
    assert value("chat_bridge_active_conversations") >= 1
    assert value("chat_bridge_event_streams") == 0
    assert "chat_bridge_turns_running " in text
    assert chat.conversation not in text


# Pages and headers


async def test_the_docs_need_no_other_site(bridge: BridgeProcess) -> None:
    status, headers, html = await headers_of(bridge.url, "/docs")
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", html)
    for path in [*re.findall(r"(?:src|href)=[\"'](/[^\"']+)", html), "/openapi.json"]:
        status, _, body = await headers_of(bridge.url, path)
        assert (path, status) == (path, 200)
        assert body
    assert (await headers_of(bridge.url, "/redoc"))[0] == 404


@pytest.mark.parametrize(
    "path", ["/chat", "/docs", "/health", "/embed.js", "/static/chat.js", SESSIONS, "/nothing", "/openapi.json"]
)
async def test_headers_that_every_response_has(bridge: BridgeProcess, path: str) -> None:
    _, headers, _ = await headers_of(bridge.url, path)
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == ("cross-origin" if path == "/embed.js" else "same-origin")
    assert "camera=()" in headers["permissions-policy"]
    assert "server" not in headers


async def ancestors(url: str, path: str) -> str:
    """Who may show a page in a frame."""
    status, headers, _ = await headers_of(url, path)
    assert status == 200
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    return policy["frame-ancestors"]


async def test_who_may_embed_the_chat(bridge: BridgeProcess) -> None:
    assert await ancestors(bridge.url, "/chat") == "'none'"
    assert await ancestors(bridge.url, "/chat?embed=1") == "'self'"
    origins = "https://shop.example, http://localhost:8000"
    async with running_bridge(WEBCHAT_ORIGINS=origins, CHAT_BRIDGE_LANGUAGE="vi") as open_bridge:
        assert await ancestors(open_bridge.url, "/chat") == "'none'"
        assert await ancestors(open_bridge.url, "/chat?embed=1") == "'self' https://shop.example http://localhost:8000"
        _, _, html = await headers_of(open_bridge.url, "/chat")
        assert '<html lang="vi"' in html


async def test_the_launcher_is_for_other_sites(bridge: BridgeProcess) -> None:
    status, headers, script = await headers_of(bridge.url, "/embed.js")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/javascript")
    assert headers["cache-control"] == "public, max-age=300"
    assert script


async def test_the_start_page_leads_to_the_chat(bridge: BridgeProcess) -> None:
    status, headers, _ = await headers_of(bridge.url, "/")
    assert (status, headers["location"]) == (307, "/chat")


async def test_without_web_chat() -> None:
    async with fresh_database("18", template=True) as database:
        # What another process of the same database still has to deliver there stays as it is.
        conversation, session = uuid4(), uuid4()
        where = "'webchat', 'default', 'off'"
        await rows(
            database,
            f"""with session as (
              insert into sessions (conversation_id, id, platform, account, platform_conversation_id, next_seq)
              values ($1, $2, {where}, 2)
            ), reply as (
              insert into messages (conversation_id, seq, id, session_id, direction, status, content_text)
              values ($1, 1, gen_random_uuid(), $2, 'outbound', 'stored', 'hello')
            )
            insert into deliveries (conversation_id, seq, part, idempotency_key, status)
            values ($1, 1, 1, gen_random_uuid(), 'pending')""",
            conversation,
            session,
        )
        async with running_bridge(database, WEBCHAT_ENABLED="false") as bridge:
            assert (await headers_of(bridge.url, "/"))[1]["location"] == "/docs"
            assert (await headers_of(bridge.url, "/chat"))[0] == 404
            assert (await call(bridge.url, "POST", "/api/v1/chat/conversations"))[0] == 404
            assert (await call(bridge.url, "GET", f"{SESSIONS}/{session}"))[0] == 200
            assert await call(bridge.url, "GET", "/health") == (200, {"status": "ok"})
        async with running_bridge(database):
            delivery = "select status, attempts from deliveries where conversation_id = $1"
            while (found := (await rows(database, delivery, conversation))[0])["status"] != "sent":
                await asyncio.sleep(0.05)
            assert found["attempts"] == 1


async def test_the_api_is_closed_without_a_key(database: str) -> None:
    settings = {"CHAT_BRIDGE_API_KEY": "", "CHAT_BRIDGE_SECRET": SECRET}
    async with running_bridge(database, **settings) as bridge:
        status, problem = await call(bridge.url, "GET", SESSIONS)
        assert (status, problem["detail"]) == (401, "The API is closed: set CHAT_BRIDGE_API_KEY and restart.")
        async with visiting(bridge.url) as chat:
            await talked(chat, "hello")
