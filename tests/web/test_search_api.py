"""`GET /api/v1/search`, and search on the command line, beside a running bridge."""

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bridge import API_KEY, BridgeProcess, calling, running_bridge, visiting
from tests.conftest import fresh_database
from tests.observe import call, run_command, session_of
from tests.storage.dialogue import looking

SEARCH = "/api/v1/search"
NOBODY = "01234567-89ab-7def-8123-456789abcdef"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def database() -> AsyncGenerator[str]:
    async with fresh_database("18", template=True) as dsn:
        yield dsn


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge(database: str) -> AsyncGenerator[BridgeProcess]:
    async with running_bridge(database) as process:
        assert (await command(database, "search-index", "on"))[0] == 0
        yield process


async def command(dsn: str, *words: str) -> tuple[int, str, str]:
    return await run_command(*words, DATABASE_URL=dsn, WEBCHAT_ENABLED="false")


async def search(bridge: BridgeProcess, q: str, **query: str) -> Any:
    status, page = await call(bridge.url, "GET", SEARCH, params={"q": q, **query})
    assert status == 200, page
    return page


def shown(page: Any) -> list[str]:
    return ["".join(f"[{p['text']}]" if p["match"] else p["text"] for p in hit["snippet"]) for hit in page["messages"]]


async def test_off_on_another_language_and_off(database: str) -> None:
    async with fresh_database("15", template=True) as dsn, running_bridge(dsn) as bridge:
        async with visiting(bridge.url) as visitor:
            await visitor.send("The customers of Đà Nẵng")
            await visitor.answered()
        status, problem = await call(bridge.url, "GET", SEARCH, params={"q": "customers"})
        assert (status, problem["title"]) == (409, "Conflict")
        assert problem["detail"].startswith(
            "Search is off, or its index is not built yet: `chat-bridge search-index on`"
        )
        assert await command(dsn, "search-index", "status") == (0, "search is off\n", "")
        code, output, errors = await command(dsn, "search", "customers")
        assert (code, output) == (1, "")
        assert errors.startswith("chat-bridge: search is off, ")

        code, output, errors = await command(dsn, "search-index", "on", "--language", "klingon")
        assert code == 1
        assert "knows no language 'klingon' here; it knows arabic, " in errors
        code, output, _ = await command(dsn, "search-index", "on", "--language", "english")
        assert code == 0
        assert output.splitlines()[-1].startswith("search is on: english, 0.")
        assert shown(await search(bridge, "customer nang")) == ["The [customers] of Đà [Nẵng]"] * 2
        assert (await command(dsn, "search-index", "on"))[0] == 0
        assert shown(await search(bridge, "customer")) == []
        code, output, _ = await command(dsn, "search", "customers")
        assert (code, len(output.splitlines())) == (0, 2)

        assert await command(dsn, "search-index", "off") == (0, "search is off\n", "")
        assert (await call(bridge.url, "GET", SEARCH, params={"q": "customers"}))[0] == 409


async def test_what_is_found_tells_where_it_is(bridge: BridgeProcess) -> None:
    async with calling(bridge.url, "room:shown") as program:
        await program.post("zebra <b>crossing</b>", user={"id": "grace", "name": "Grace"})
        await program.answered()
        session = await session_of(bridge.url, program)
        reply, message = (await search(bridge, "zebra"))["messages"]
    assert message == {
        "id": message["id"],
        "seq": 1,
        "conversation_id": session["conversation_id"],
        "session_id": session["id"],
        "platform": "webchat",
        "account": session["account"],
        "conversation": "room:shown",
        "thread": "",
        "direction": "inbound",
        "created_at": message["created_at"],
        "sender": {"id": "grace", "name": "Grace"},
        "snippet": [{"text": "zebra", "match": True}, {"text": " <b>crossing</b>", "match": False}],
    }
    assert (reply["direction"], reply["seq"], reply["sender"]) == ("outbound", 2, None)
    assert datetime.fromisoformat(message["created_at"]) <= datetime.fromisoformat(reply["created_at"])


async def test_filters_and_pages(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as one, visiting(bridge.url) as two:
        for number in range(3):
            await one.send(f"giraffe {number}")
            await one.answered()
        await two.send("giraffe of another")
        await two.answered()
        session = await session_of(bridge.url, one)

    async def count(**query: str) -> int:
        return len((await search(bridge, "giraffe", **query))["messages"])

    now = datetime.now(UTC)
    assert await count() == 8
    assert await count(direction="inbound") == 4
    assert await count(platform="telegram") == 0
    assert await count(platform="webchat", account=session["account"]) == 8
    assert await count(account="another") == 0
    assert await count(conversation=one.conversation) == 6
    assert await count(conversation_id=session["conversation_id"]) == 6
    assert await count(session_id=session["id"]) == 6
    assert await count(session_id=NOBODY) == 0
    assert await count(person=two.conversation) == 1
    assert await count(since=(now - timedelta(hours=1)).isoformat()) == 8
    assert await count(until=(now - timedelta(hours=1)).isoformat()) == 0

    seen, before = list[str](), dict[str, str]()
    while True:
        page = await search(bridge, "giraffe", limit="3", **before)
        seen += [hit["id"] for hit in page["messages"]]
        if page["next"] is None:
            break
        before = {"before": page["next"]}
    assert seen == sorted(set(seen), reverse=True)
    assert len(seen) == 8


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("", "Field required"),
        ("q=", "There is nothing to search for"),
        ("q=-giraffe", "There is nothing to search for"),
        ("q=" + "a" * 501, "500"),
        ("q=" + "a%20" * 33, "Too many words"),
        ("q=a&limit=0", "limit"),
        ("q=a&limit=101", "limit"),
        ("q=a&since=yesterday", "since"),
        ("q=a&until=2026-01-01T00:00:00", "until"),
        ("q=a&session_id=1", "session_id"),
        ("q=a&direction=up", "direction"),
    ],
)
async def test_what_can_not_be_searched_for(bridge: BridgeProcess, query: str, why: str) -> None:
    status, problem = await call(bridge.url, "GET", f"{SEARCH}?{query}")
    assert status == 422
    assert why in problem["detail"]


async def test_only_with_the_api_key(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as visitor:
        for authorization in (None, "Bearer wrong", f"Bearer {visitor.token}", f"Bearer {API_KEY[:-1]}"):
            headers = {"Authorization": authorization} if authorization else {}
            async with (
                aiohttp.ClientSession(bridge.url, headers=headers) as http,
                http.get(SEARCH, params={"q": "a"}) as answer,
            ):
                assert answer.status == 401


async def test_any_query_has_an_answer(bridge: BridgeProcess) -> None:
    loop = asyncio.get_running_loop()

    @settings(max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.text(max_size=60), st.one_of(st.none(), st.text(max_size=30)))
    def ask(query: str, person: str | None) -> None:
        params = {"q": query.encode("utf-8", "replace").decode()}
        params |= {"person": person.encode("utf-8", "replace").decode()} if person is not None else {}
        answer = call(bridge.url, "GET", SEARCH, params=params)
        assert asyncio.run_coroutine_threadsafe(answer, loop).result()[0] in (200, 422)

    await asyncio.to_thread(ask)


async def test_long_searches_keep_no_connections_from_messages(bridge: BridgeProcess, database: str) -> None:
    async with visiting(bridge.url) as visitor:
        await visitor.send("elephant")
        await visitor.answered()
        async with looking(database) as holder:
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("lock table pg_index in access exclusive mode")
            asking = [asyncio.create_task(call(bridge.url, "GET", SEARCH, params={"q": "elephant"})) for _ in range(30)]
            status, _ = await call(bridge.url, "GET", "/api/v1/sessions?limit=1")
            assert status == 200
            answers = [status for status, _ in await asyncio.gather(*asking)]
            await transaction.rollback()
    assert set(answers) <= {422, 503}
    assert answers.count(422) >= 2
    assert len((await search(bridge, "elephant"))["messages"]) == 2


# The command line


async def test_the_command_shows_lines_or_json(bridge: BridgeProcess, database: str) -> None:
    async with calling(bridge.url, "room:cli") as program:
        await program.post("lion \x1b[2J roars\nloudly", user={"id": "grace", "name": "Gra\x1bce"})
        await program.answered()
    code, output, errors = await command(database, "search", "lion -tiger", "--direction", "inbound")
    assert (code, errors) == (0, "")
    (line,) = output.splitlines()
    assert line.endswith("  webchat room:cli  Gra ce: lion  [2J roars loudly")
    code, output, _ = await command(database, "search", "lion", "--json", "--person", "grace")
    found = json.loads(output)
    assert (code, found["sender_id"], found["conversation"]) == (0, "grace", "room:cli")
    assert found["snippet"][0] == {"text": "lion", "match": True}
    assert await command(database, "search", "lion", "--until", "2020-01-01") == (0, "nothing was found\n", "")
    assert await command(database, "search", "lion", "--until", "2020-01-01", "--json") == (0, "", "")
    assert (await command(database, "search", "lion", "--limit", "1"))[1].count("\n") == 1
    code, _, errors = await command(database, "search", "-x")
    assert code != 0
    assert "Traceback" not in errors
    code, _, errors = await command(database, "search", "--", "-x")
    assert (code, "nothing to search for" in errors) == (1, True)


async def test_a_build_that_was_interrupted_is_told(bridge: BridgeProcess, database: str) -> None:
    async with looking(database) as connection:
        set_valid = "update pg_index set indisvalid = {} where indexrelid = 'messages_search_1_simple'::regclass"
        await connection.execute(set_valid.format("false"))
        code, output, _ = await command(database, "search-index", "status")
        assert output.startswith("unfinished: simple, ")
        assert output.splitlines()[-1] == "search is off"
        code, output, _ = await command(database, "doctor")
        assert "warning  search" in output
        assert (await call(bridge.url, "GET", SEARCH, params={"q": "a"}))[0] == 409
    assert (await command(database, "search-index", "on"))[0] == 0
    code, output, _ = await command(database, "search-index", "status")
    assert (code, output.startswith("search is on: simple, ")) == (0, True)
