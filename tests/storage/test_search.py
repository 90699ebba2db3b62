"""Full text search: what is found, what never is, the index being switched on and off, and how it is read."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from chat_bridge.model import Address, EventKind, InboundEvent, User
from chat_bridge.storage import messages, sessions
from chat_bridge.storage import search as searching
from chat_bridge.storage import search_index as indexing
from chat_bridge.storage.migrate import migrate
from chat_bridge.storage.postgres import _PLANNING
from chat_bridge.storage.search import SearchFilter, SearchOffError, search
from chat_bridge.storage.search_index import (
    DOCUMENT,
    NAME,
    SPAN,
    SearchError,
    in_language,
    search_indexes,
    switch_off,
    switch_on,
)
from chat_bridge.storage.store import Store
from tests.conftest import fresh_database
from tests.storage.dialogue import ADA, CHAT, chat, claimed, command, ending, looking, opened, said
from tests.storage.test_pgbouncer import running_pgbouncer

SIMPLE = f"{NAME}simple"
GRACE = User("77", "Grace Hopper", "amazing_grace")


@asynccontextmanager
async def searchable(dsn: str, *texts: str, language: str = "simple") -> AsyncGenerator[Store]:
    """A store with these messages and an index."""
    async with opened(dsn) as store:
        for text in texts:
            await store.receive(said(text))
        await switch_on(store.database, dsn, language)
        yield store


async def found(store: Store, query: str, limit: int = 50, **wanted: Any) -> list[str]:
    """The texts that a search shows, newest first."""
    page = await search(store.database, query, SearchFilter(**wanted), limit)
    return ["".join(piece.text for piece in hit.snippet) for hit in page.hits]


async def marked(store: Store, query: str) -> list[str]:
    """The newest text that is found, its pieces that match in brackets."""
    page = await search(store.database, query, SearchFilter(), 1)
    return ["".join(f"[{piece.text}]" if piece.match else piece.text for piece in hit.snippet) for hit in page.hits]


async def indexes(dsn: str) -> dict[str, bool]:
    """The indexes of searches, and whether they are valid."""
    async with looking(dsn) as connection:
        rows = await connection.fetch(
            "select relname, indisvalid from pg_index, pg_class where oid = indexrelid and relname ~ '^messages_search'"
        )
    return {row["relname"]: row["indisvalid"] for row in rows}


# What is found


async def test_all_words_must_be_there(any_database: str) -> None:
    async with searchable(any_database, "red apple", "green apple", "red car") as store:
        assert await found(store, "apple") == ["green apple", "red apple"]
        assert await found(store, "apple RED") == ["red apple"]
        assert await found(store, "appl") == []
        assert await found(store, "apple boat") == []


async def test_phrases_prefixes_and_what_must_not_be_there(any_database: str) -> None:
    texts = ("late payment", "payment late", "the payments of july", "no payment, e-mail to ann@example.com/x")
    async with searchable(any_database, *texts) as store:
        assert await found(store, '"late payment"') == ["late payment"]
        assert await found(store, "“late payment”") == ["late payment"]
        assert await found(store, '"late pay') == []
        assert await found(store, "pay* -late") == [texts[3], texts[2]]
        assert await found(store, 'payment -"late payment"') == [texts[3], "payment late"]
        assert await found(store, "payment -e-mail -late") == []
        assert await found(store, "ann@example.com") == [texts[3]], "a word with signs is a phrase"
        assert await found(store, "exam*") == [texts[3]]
        assert await found(store, "e-ma*") == [texts[3]]
        assert await found(store, '"no payment" "of july"') == []


async def test_accents_do_not_matter(any_database: str) -> None:
    texts = ("Đơn hàng của khách ở Đà Nẵng", "Don hang cua khach", "Straße, Ærø, Łódź, cœur, İstanbul")
    decomposed = "Nguye\u0302\u0303n"
    async with searchable(any_database, *texts, decomposed) as store:
        for query in ("đơn hàng", "don hang", "ĐƠN HÀNG", "Đơn hàng", "d\u01a1n ha\u0300ng"):
            assert await found(store, query) == [texts[1], texts[0]], query
        assert await found(store, "da nang") == await found(store, "Đà Nẵ*") == [texts[0]]
        for query in ("strasse", "straße", "aero", "lodz", "coeur", "CŒUR", "istanbul"):
            assert await found(store, query) == [texts[2]], query
        assert await found(store, "nguyễn") == await found(store, "nguyen") == [decomposed]


async def test_signs_only_part_words(any_database: str) -> None:
    text = "<b>bold</b> a<b and c>d “quoted”—dash 👍thumb 3.14 a_bar #tag \ufb01ne \uff37\uff29\uff24\uff25 x\u00adray"
    async with searchable(any_database, text) as store:
        for word in ("bold", "and", "quoted", "dash", "thumb", "14", "3.14", "bar", "#tag", "fine", "wide", "xray"):
            assert len(await found(store, word)) == 1, word


async def test_in_the_locale_c(any_database: str) -> None:
    """As the embedded server has it: to the parser everything that is not ASCII is a letter there."""
    async with looking(any_database) as connection:
        name = f"c_{await connection.fetchval('select current_database()')}"
        await connection.execute(f"create database {name} template template0 encoding 'UTF8' locale 'C'")
        try:
            dsn = any_database.replace("/test_", "/c_test_", 1)
            await migrate(dsn)
            async with searchable(dsn, "“Đơn hàng”—ở Đà Nẵng… 👍️thumb हाँ। \ufffdend", "Æsop") as store:
                for query in ("don hang", "ĐƠN", "o da", "nang", "thumb", "end", "हाँ"):
                    assert len(await found(store, query)) == 1, query
        finally:
            await connection.execute(f"drop database {name} with (force)")


async def test_a_language_knows_forms_and_fillers(any_database: str) -> None:
    async with searchable(any_database, "The customers are happy", "happyland", language="english") as store:
        assert await found(store, "customer") == ["The customers are happy"]
        assert await found(store, '"the customer"') == ["The customers are happy"]
        assert await found(store, "happy*") == ["happyland", "The customers are happy"]
        assert await found(store, "the customers") == ["The customers are happy"], "a filler is passed over"
        with pytest.raises(SearchError, match="filler in the language english"):
            await found(store, "the")
        assert await marked(store, "customer") == ["The [customers] are happy"]


@pytest.mark.parametrize("query", ["", " ", "-", "-apple", "👍️", '""', "*", "-*", "...", "'", "\x00", "\ud800"])
async def test_nothing_to_search_for(database: str, query: str) -> None:
    async with searchable(database, "apple") as store:
        with pytest.raises(SearchError, match="nothing to search for"):
            await found(store, query)


async def test_too_many_words(database: str) -> None:
    async with searchable(database, "a") as store:
        assert await found(store, "a " * 32) == ["a"]
        with pytest.raises(SearchError, match="32 are the most"):
            await found(store, "a " * 33)


async def test_any_query_has_an_answer(database: str) -> None:
    async with searchable(database, "late payment of order 42, it's \\ 'quoted' & (done) | !x <-> y:*") as store:

        @settings(
            max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(st.one_of(st.text(max_size=60), st.text("ab'\"\\&|!()<>:*- \u0301đ\u200b%", max_size=30)))
        @example("' | 'late")
        @example("late:A & !late")
        @example("\\")
        def ask(query: str) -> None:
            try:
                runner.run_until_complete(found(store, query))
            except SearchError:
                return

        # The test's own loop is at work: hypothesis calls what is not a coroutine.
        runner = _Passing(asyncio.get_running_loop())
        await asyncio.to_thread(ask)


class _Passing:
    """Runs coroutines in the loop of another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run_until_complete(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def test_what_was_edited_is_found_by_its_newest_text_alone(any_database: str) -> None:
    def change(text: str, key: str, kind: EventKind = EventKind.EDIT) -> InboundEvent:
        return InboundEvent(CHAT, key, ADA, text, kind=kind, about="m")

    async with opened(any_database) as store:
        await store.receive(said("first draft", key="m"))
        await switch_on(store.database, any_database, "simple")
        assert await found(store, "draft") == ["first draft"]
        assert await messages.edit(store.database, change("second secret", "m/1"))
        assert (await found(store, "draft"), await found(store, "secret")) == ([], ["second secret"])
        assert await messages.edit(store.database, change("second secret", "m/2", EventKind.DELETE))
        for word in ("draft", "secret", "first"):
            assert await found(store, word) == []
        # Neither is what an index built later holds.
        await switch_on(store.database, any_database, "english")
        assert await found(store, "secret") == await found(store, "draft") == []


async def test_what_people_see_is_searched(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("hello", raw_text="@thebot hello"))
        turn = await claimed(store)
        await store.complete(ending(turn, "hello human"))
        await store.receive(command("/hello"))
        await store.receive(said("hello event", content_type="event", skip_reason="kind:reaction"))
        await store.receive(said("hello overheard", skip_reason="not_addressed"))
        await switch_on(store.database, any_database, "simple")
        assert await found(store, "hello") == ["hello overheard", "hello human", "@thebot hello"]
        assert await found(store, "thebot") == ["@thebot hello"]


async def test_messages_are_found_as_soon_as_they_are_stored(any_database: str) -> None:
    async with searchable(any_database) as store:
        for number in range(20):
            await store.receive(said(f"number {number}"))
            assert await found(store, f"{number}") == [f"number {number}"]


async def test_no_message_is_too_long_or_too_odd_to_be_stored(any_database: str) -> None:
    many = " ".join(
        f"{number:x}\u0950{number:x}" for number in range(200_000)
    )  # words of 4 bytes a sign, all different
    expanding = "".join(chr(0xFDFA) + chr(0x4E00 + number) for number in range(20_000)) * 10
    texts = [many[:1_000_000], expanding, "x" * 1_000_000, "\U0001d400" * 300_000, "a\u0301" * 300_000]
    texts += ["".join(f"{chr(0x20000 + n)} " for n in range(40_000)), "\ufffd", "\u200b" * 100]
    async with searchable(any_database) as store:
        for text in texts:
            await store.receive(said(f"{text} the end"))
        assert len(await found(store, "the end")) == 2, "what is after 50,000 characters is not looked at"
        assert [len(text) < 250 for text in await found(store, "the end")] == [True, True]


# Snippets


async def test_a_snippet_shows_where_the_words_are(database: str) -> None:
    far = "payment " + "word " * 200 + "the late\n\tpayment of Đà Nẵng " + "more " * 100
    async with searchable(database, far, "<b>x</b> payment") as store:
        assert await marked(store, "payment <b>") == ["<[b]>x</[b]> [payment]"]
        (text,) = await marked(store, '"late payment" nang')
        assert text.startswith("…word word word word word word word the [late] [payment] of Đà [Nẵng] more more")
        assert text.endswith("more …")


async def test_a_snippet_of_what_is_far_behind_is_the_beginning(database: str) -> None:
    async with searchable(database, "word " * 3000 + "payment") as store:
        (text,) = await marked(store, "payment")
        assert text.startswith("word word")
        assert "[" not in text


# Filters and pages


async def test_filters(any_database: str) -> None:
    other = Address("slack", "second", "room")
    async with opened(any_database) as store:
        mine = await store.receive(said("apple one", to=CHAT))
        await store.complete(ending(await claimed(store), "apple reply"))
        await store.receive(said("apple two", to=other, user=GRACE))
        await store.receive(said("apple three", to=chat(3), user=replace(ADA, id="other-ada")))
        await switch_on(store.database, any_database, "simple")

        assert await found(store, "apple") == ["apple three", "apple two", "apple reply", "apple one"]
        assert await found(store, "apple", platform="slack") == ["apple two"]
        assert await found(store, "apple", account="second") == ["apple two"]
        assert await found(store, "apple", account="main", platform="slack") == []
        assert await found(store, "apple", conversation="room") == ["apple two"]
        assert await found(store, "apple", conversation="room", platform="webchat") == []
        assert await found(store, "apple", conversation="nowhere") == []
        assert await found(store, "apple", conversation_id=CHAT.id) == ["apple reply", "apple one"]
        assert await found(store, "apple", session_id=mine.session_id) == ["apple reply", "apple one"]
        assert await found(store, "apple", session_id=UUID(int=1)) == []
        assert await found(store, "apple", session_id=mine.session_id, conversation_id=other.id) == []
        assert await found(store, "apple", direction="outbound") == ["apple reply"]
        assert await found(store, "apple", direction="inbound", platform="webchat") == ["apple three", "apple one"]
        for person in ("77", "grace hopper", "@Amazing_Grace", "amazing_grace"):
            assert await found(store, "apple", person=person) == ["apple two"], person
        assert await found(store, "apple", person="ada") == ["apple three", "apple one"], "an id and a name"
        assert await found(store, "apple", person="nobody") == []


async def test_a_session_of_two(any_database: str) -> None:
    async with opened(any_database) as store:
        first = await store.receive(said("apple one"))
        await sessions.close_session(store.database, first.session_id)
        second = await store.receive(said("apple two"))
        await switch_on(store.database, any_database, "simple")
        assert await found(store, "apple", session_id=first.session_id) == ["apple one"]
        assert await found(store, "apple", session_id=second.session_id) == ["apple two"]


def id_of(moment: datetime, number: int = 0) -> UUID:
    return UUID(int=int(moment.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | number)


async def store_at(dsn: str, moments: Sequence[datetime]) -> None:
    """A message for each of these times in one conversation: `apple 0` and so on."""
    async with looking(dsn) as connection:
        session = UUID(int=1)
        await connection.execute(
            "insert into sessions (conversation_id, id, platform, account, platform_conversation_id) "
            "values ($1, $2, 'webchat', 'main', 'a-chat')",
            CHAT.id,
            session,
        )
        await connection.executemany(
            """insert into messages (conversation_id, seq, id, session_id, direction, status, content_text, created_at)
            values ($1, $2, $3, $4, 'inbound', 'accepted', $5, $6)""",
            [
                (CHAT.id, number + 1, id_of(moment, number), session, f"apple {number}", moment)
                for number, moment in enumerate(moments)
            ],
        )


NOW = datetime.now(UTC).replace(microsecond=0)
AGO = [0.01, 0.5, 2, 4, 30, 31, 200, 500, 501, 2000, 9000, 20_000]  # days


async def test_time(any_database: str) -> None:
    await store_at(any_database, [NOW - timedelta(days=days) for days in AGO])
    async with searchable(any_database) as store:
        every = [f"apple {number}" for number in range(len(AGO))]
        assert await found(store, "apple") == every
        for first in range(len(AGO)):
            since = NOW - timedelta(days=AGO[first])
            assert await found(store, "apple", since=since) == every[: first + 1]
            assert await found(store, "apple", until=since) == every[first + 1 :]
            assert await found(store, "apple", since=since, until=since + timedelta(seconds=1)) == [every[first]]
        year_1 = datetime(1, 1, 1, tzinfo=UTC)
        year_9999 = datetime(9999, 12, 31, 23, 59, tzinfo=UTC)
        assert await found(store, "apple", since=year_1, until=year_9999) == every
        assert await found(store, "apple", since=year_9999, until=year_1) == []


LONG_AGO = datetime(1970, 1, 2, 0, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [
        (SearchFilter(), 4),
        (SearchFilter(since=NOW - timedelta(hours=1)), 1),
        (SearchFilter(since=NOW - timedelta(days=30)), 2),
        (SearchFilter(since=LONG_AGO), 4),
        (SearchFilter(until=LONG_AGO), 1),
        (SearchFilter(since=LONG_AGO, until=NOW - timedelta(days=300), before=id_of(NOW - timedelta(days=400))), 4),
        (SearchFilter(before=UUID(int=1)), 1),
        (SearchFilter(before=UUID(int=0)), 0),
        (SearchFilter(before=UUID(int=2**128 - 1)), 4),
    ],
)
def test_the_steps_back_in_time_leave_nothing_out(wanted: SearchFilter, steps: int) -> None:
    found = searching._steps(wanted)
    assert len(found) == steps
    for (_, lowest, _), (_, _, highest) in pairwise(found):
        assert lowest == highest, "each goes on where the one before ended"
    for spans, lowest, highest in found:
        assert lowest < highest
        if spans is not None:
            assert spans[0] == str(lowest)[:5]
            assert spans[-1] == str(UUID(int=highest.int - 1))[:5]
            assert len(spans) == int(spans[-1], 16) - int(spans[0], 16) + 1 <= 128
    if found:
        since = 0 if wanted.since is None else id_of(wanted.since - timedelta(days=1)).int >> 80 << 80
        assert found[-1][1].int == max(since, 0)


@pytest.mark.parametrize("limit", [1, 2, 5, 11])
async def test_pages_have_every_message_once(any_database: str, limit: int) -> None:
    await store_at(any_database, [NOW - timedelta(days=days) for days in AGO])
    async with searchable(any_database) as store:
        seen: list[str] = []
        wanted = SearchFilter()
        more = True
        while more:
            hits, more = await search(store.database, "apple", wanted, limit)
            seen += ["".join(piece.text for piece in hit.snippet) for hit in hits]
            assert len(hits) == limit or not more
            wanted = replace(wanted, before=hits[-1].id)
            await store.receive(said("apple later", to=chat("later")))  # what comes meanwhile changes no page
        assert seen == [f"apple {number}" for number in range(len(AGO))]


# On and off


async def test_off_at_first_on_and_off_again(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("apple"))
        with pytest.raises(SearchOffError, match="chat-bridge search-index on"):
            await found(store, "apple")
        assert await search_indexes(store.database) == []
        await switch_on(store.database, any_database, "simple")
        await switch_on(store.database, any_database, "simple")
        (index,) = await search_indexes(store.database)
        assert (index.language, index.ready, index.building) == ("simple", True, False)
        assert index.bytes > 0
        assert await found(store, "apple") == ["apple"]
        assert await switch_off(store.database, any_database)
        assert not await switch_off(store.database, any_database)
        assert await indexes(any_database) == {}
        with pytest.raises(SearchOffError):
            await found(store, "apple")


@pytest.mark.parametrize("language", ["vietnamese", "", "simple'; drop table messages; --", "SIMPLE", "public.x"])
async def test_a_language_that_there_is_not(database: str, language: str) -> None:
    async with opened(database) as store:
        with pytest.raises(SearchError, match=r"it knows arabic, .*english.*simple"):
            await switch_on(store.database, database, language)
    assert await indexes(database) == {}


async def test_searches_go_on_while_the_language_changes(any_database: str) -> None:
    async with searchable(any_database, *(f"customers {number}" for number in range(30))) as store:
        answers: list[int] = []
        done = asyncio.Event()

        async def ask() -> None:
            while not done.is_set():
                answers.append(len(await found(store, "customers")))

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        for language in ("english", "simple", "english"):
            await switch_on(store.database, any_database, language)
        done.set()
        await asyncio.gather(*asking)
        assert len(answers) > 4
        assert set(answers) == {30}
        assert await indexes(any_database) == {f"{NAME}english": True}
        assert len(await found(store, "customer")) == 30


async def test_an_index_that_goes_away_during_a_search(any_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with searchable(any_database, "customers") as store:
        conversations = searching._conversations

        async def just_then(*arguments: Any) -> Any:
            monkeypatch.setattr(searching, "_conversations", conversations)
            # As the first step of dropping does; the second waits for this search.
            async with looking(any_database) as connection:
                await connection.execute(
                    "update pg_index set indisvalid = false where indexrelid = $1::regclass", SIMPLE
                )
            return await conversations(*arguments)

        run, read = searching.Transaction.run, list[Any]()

        async def watched(self: Any, statement: str, *arguments: object) -> Any:
            rows = await run(self, statement, *arguments)
            read.extend(rows if statement.startswith(FIND) else ())
            return rows

        monkeypatch.setattr(searching, "_conversations", just_then)
        monkeypatch.setattr(searching.Transaction, "run", watched)
        with pytest.raises(SearchOffError):
            await found(store, "customers")
        assert not read, "without the index no message is looked at"

        async def another(*arguments: Any) -> Any:
            monkeypatch.setattr(searching, "_conversations", conversations)
            async with looking(any_database) as connection:
                await connection.execute("set statement_timeout = '10s'")
                await connection.execute(
                    in_language(indexing._CREATE, "english")
                    .replace("NAME", f"{NAME}english")
                    .replace("concurrently", "")
                )
                await connection.execute(
                    "update pg_index set indisvalid = false where indexrelid = $1::regclass", SIMPLE
                )
            return await conversations(*arguments)

        await switch_on(store.database, any_database, "simple")
        monkeypatch.setattr(searching, "_conversations", another)
        assert await found(store, "customers") == ["customers"], "it looked again, in the other index"


async def test_a_build_that_is_interrupted_leaves_nothing(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as other:
        await store.receive(said("apple"))
        async with other.transaction(isolation="repeatable_read"):
            await other.execute("select from messages")
            building = asyncio.create_task(switch_on(store.database, any_database, "simple"))
            while not await indexes(any_database):
                await asyncio.sleep(0.01)
            (index,) = await search_indexes(store.database)
            assert (index.ready, index.building, index.language) == (False, True, "simple")
            assert index.phase
            await store.receive(said("apple while it is being built"))
            building.cancel()
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.CancelledError):
            await building
        assert await indexes(any_database) == {}


async def test_an_index_that_a_killed_build_left_is_made_anew(any_database: str) -> None:
    async with searchable(any_database, "apple") as store:
        async with looking(any_database) as connection:
            await connection.execute("update pg_index set indisvalid = false where indexrelid = $1::regclass", SIMPLE)
        (index,) = await search_indexes(store.database)
        assert (index.ready, index.building) == (False, False)
        with pytest.raises(SearchOffError):
            await found(store, "apple")
        await switch_on(store.database, any_database, "simple")
        assert await indexes(any_database) == {SIMPLE: True}
        assert await found(store, "apple") == ["apple"]
        async with looking(any_database) as connection:
            await connection.execute("update pg_index set indisvalid = false where indexrelid = $1::regclass", SIMPLE)
        assert await switch_off(store.database, any_database)
        assert await indexes(any_database) == {}


async def test_one_command_at_a_time(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("apple"))
        outcomes = await asyncio.gather(
            *(switch_on(store.database, any_database, language) for language in ("simple", "english") * 3),
            return_exceptions=True,
        )
        refused = [outcome for outcome in outcomes if outcome is not None]
        assert len(refused) < 6
        assert all(isinstance(outcome, SearchError) and "already" in str(outcome) for outcome in refused)
        (one,) = (await indexes(any_database)).items()
        assert one[1]
        assert await found(store, "apple") == ["apple"]


async def test_a_build_whose_command_was_killed_is_left_alone(database: str) -> None:
    async with opened(database) as store, looking(database) as other, looking(database) as ghost:
        async with other.transaction(isolation="repeatable_read"):
            await other.execute("select from messages")
            building = asyncio.create_task(
                ghost.execute(in_language(indexing._CREATE, "simple").replace("NAME", SIMPLE))
            )
            while not await indexes(database):
                await asyncio.sleep(0.01)
            for work in (switch_on(store.database, database, "simple"), switch_off(store.database, database)):
                with pytest.raises(SearchError, match="already"):
                    await work
        await building
        assert await indexes(database) == {SIMPLE: True}


async def test_the_index_of_another_release(any_database: str) -> None:
    async with searchable(any_database, "apple") as store:
        async with looking(any_database) as connection:
            await connection.execute(f"alter index {SIMPLE} rename to messages_search_0_simple")
        (index,) = await search_indexes(store.database)
        assert (index.language, index.ready) == (None, True)
        with pytest.raises(SearchOffError):
            await found(store, "apple")
        await switch_on(store.database, any_database, "simple")
        assert await indexes(any_database) == {SIMPLE: True}


async def test_behind_pgbouncer(database: str) -> None:
    async with running_pgbouncer(database) as pooled, opened(pooled, pgbouncer=True) as store:
        await store.receive(said("Đơn hàng"))
        await switch_on(store.database, pooled, "simple", pgbouncer=True)
        async with looking(pooled) as other:
            assert await asyncio.gather(*(found(store, "don hang") for _ in range(8))) == [["Đơn hàng"]] * 8
            assert await other.fetchval("show plan_cache_mode") == "auto"
            assert await other.fetchval("show statement_timeout") == "0"
        assert await switch_off(store.database, pooled, pgbouncer=True)


async def test_messages_are_stored_while_it_is_built(any_database: str) -> None:
    async with opened(any_database) as store:
        done = asyncio.Event()

        async def talk() -> int:
            number = 0
            while not done.is_set():
                await store.receive(said(f"apple {number}", to=chat(number)))
                number += 1
            return number

        talking = asyncio.create_task(talk())
        await asyncio.sleep(0.1)
        await switch_on(store.database, any_database, "simple")
        done.set()
        count = await talking
        assert len(await found(store, "apple", limit=count + 1)) == count


async def test_a_search_that_takes_long_is_ended(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "SEARCH_SECONDS", 0.2)
    async with searchable(database, "apple") as store, looking(database) as other:
        async with other.transaction():
            await other.execute("lock table messages in access exclusive mode")
            with pytest.raises(SearchError, match=r"longer than 0\.2 s"):
                await found(store, "apple")
        assert await found(store, "apple") == ["apple"]


# How it is read

FIND = "select\n  messages.id"  # how that statement begins
# What came after the last look of the planner, who believes that there is nothing.
FILL_MORE = """
insert into messages (conversation_id, seq, id, session_id, direction, status, content_text, sender_id, created_at)
select md5('c' || n % 1000)::uuid, n,
  (lpad(to_hex(ms), 12, '0') || '7000' || '8000' || lpad(to_hex(n), 12, '0'))::uuid,
  md5('s' || n % 1000)::uuid, 'inbound', 'accepted', 'recent word' || n % 5000, 'u' || n % 100,
  to_timestamp(ms / 1000.0)
from generate_series(50001, 60000) n
cross join lateral (select (extract(epoch from now()) * 1000 - (60000 - n) * 10)::bigint as ms) t;
"""
FILL = """
insert into sessions (conversation_id, id, platform, account, platform_conversation_id)
select md5('c' || n)::uuid, md5('s' || n)::uuid, 'webchat', 'main', 'c' || n from generate_series(0, 999) n;
insert into messages (conversation_id, seq, id, session_id, direction, status, content_text, sender_id, created_at)
select md5('c' || c)::uuid, n,
  (lpad(to_hex(ms), 12, '0') || '7000' || '8000' || lpad(to_hex(n), 12, '0'))::uuid,
  md5('s' || c)::uuid, 'inbound', 'accepted', 'every word' || n % 5000 || ' and ' || md5(n::text),
  'u' || n % 100, to_timestamp(ms / 1000.0)
from generate_series(1, 50000) n
cross join lateral (select case when n % 5 = 0 then 0 else n % 1000 end as c,
  (extract(epoch from now()) * 1000 - (50000 - n) * 600000::bigint)::bigint as ms) t;
"""
WANTED = {
    "everywhere": SearchFilter(),
    "a person": SearchFilter(person="u7"),
    "a platform": SearchFilter(platform="webchat", account="main"),
    "a short conversation": SearchFilter(conversation="c7"),
    "a long conversation": SearchFilter(conversation="c0"),
    "a time": SearchFilter(since=NOW - timedelta(days=100), until=NOW - timedelta(days=50)),
    "the next page": SearchFilter(before=id_of(NOW - timedelta(days=60))),
}


@pytest.mark.parametrize("analysed", [True, False])
async def test_no_search_reads_messages_without_the_index(
    any_database: str, monkeypatch: pytest.MonkeyPatch, analysed: bool
) -> None:
    plans: list[dict[str, Any]] = []
    async with opened(any_database) as store, looking(any_database) as connection:
        await connection.execute(FILL)
        await switch_on(store.database, any_database, "simple")
        await connection.execute(FILL_MORE)
        await connection.execute("select brin_summarize_new_values('messages_id')")
        if not analysed:
            await connection.execute(
                "delete from pg_statistic where starelid in ('messages'::regclass, $1::regclass)".replace(
                    "$1", f"'{SIMPLE}'"
                )
            )
        run = searching.Transaction.run

        async def explained(self: Any, statement: str, *arguments: object) -> Any:
            if statement.startswith(FIND):
                ((answer,),) = await run(self, f"explain (analyze, format json) {statement}", *arguments)
                plans.append(json.loads(answer)[0]["Plan"])
            return await run(self, statement, *arguments)

        monkeypatch.setattr(searching.Transaction, "run", explained)
        for name, wanted in WANTED.items():
            for query in ("every", "word77", '"every word77"', "every -word77", "wor*", "recent", "nothing"):
                plans.clear()
                page = await search(store.database, query, wanted, 20)
                assert plans or not page.hits
                for plan in plans:
                    assert reads(plan) <= {"Bitmap Heap Scan", "Index Scan"}, (name, query, plan)
                    # The messages of a short conversation may be looked at one by one.
                    short = name == "a short conversation" or (name == "a long conversation" and not analysed)
                    assert "messages_id" not in index_names(plan), (name, query, plan)
                    assert SIMPLE in index_names(plan) or short, (name, query, plan)
                if query == "every" and name not in ("a person", "a short conversation"):
                    assert len(plans) <= 3, "the newest have it: the others are not looked at"
                    assert visited(plans) < 3000, (name, visited(plans))


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for part in plan.get("Plans", ()) for node in nodes(part))]


def reads(plan: dict[str, Any]) -> set[str]:
    return {
        node["Node Type"] for node in nodes(plan) if node.get("Relation Name") == "messages" and node["Actual Loops"]
    }


def index_names(plan: dict[str, Any]) -> set[str]:
    names = {node["Index Name"] for node in nodes(plan) if "Index Name" in node}
    return {name for name in names if name.startswith("messages")}


def visited(plans: Sequence[dict[str, Any]]) -> int:
    """Rows of messages that were looked at."""
    return sum(
        node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        for plan in plans
        for node in nodes(plan)
        if node.get("Relation Name") == "messages"
    )


async def test_the_planner_settings_of_the_bridge_are_those_that_were_tried(database: str) -> None:
    async with opened(database) as store, store.database.transaction() as transaction:
        for name, value in _PLANNING.items():
            ((now,),) = await transaction.run("select current_setting($1)", name)
            assert now == value


def test_another_content_of_the_index_needs_another_name() -> None:
    """Change NAME with what is indexed, or programs would search in an index that holds something else."""
    assert (NAME, hash_of(DOCUMENT), hash_of(SPAN)) == ("messages_search_1_", "1b058dda", "20bfcb08")


def hash_of(text: str) -> str:
    from hashlib import sha256

    return sha256(" ".join(text.split()).encode()).hexdigest()[:8]


async def test_a_build_in_a_copy_of_the_database_is_another_one(database: str) -> None:
    """Copies have the same oids."""
    async with fresh_database("18", template=True) as copy, looking(copy) as holder, looking(copy) as builder:
        async with holder.transaction():
            await holder.execute("lock table messages in row exclusive mode")
            building = asyncio.create_task(builder.execute("create index concurrently slow on messages (created_at)"))
            progress = "select 1 from pg_stat_progress_create_index where datname = current_database()"
            async with looking(copy) as watcher:
                while not await watcher.fetchval(progress):
                    await asyncio.sleep(0.01)
            async with opened(database) as store, opened(copy) as other:
                await switch_on(store.database, database, "simple")
                with pytest.raises(SearchError, match="being built or dropped already"):
                    await switch_on(other.database, copy, "simple")
        await building
