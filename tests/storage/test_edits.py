"""Edits and deletions: versions of a message, which itself stays as it was received; and what a group said."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chat_bridge.model import Address, Attachment, EventKind, InboundEvent, ReceiveStatus, Seq, TurnOutcome, User
from chat_bridge.storage import messages, sessions, turns
from chat_bridge.storage.messages import Edited
from chat_bridge.storage.store import Store
from tests.storage.dialogue import (
    ADA,
    CHAT,
    answer_all,
    assert_consistent,
    claimed,
    deadlocks,
    ending,
    looking,
    opened,
    opened_often,
    said,
    tell_deadlocks_soon,
    texts,
    wish,
)

PHOTO = Attachment("image", "image/png", "file-1", "a cat.png", 17)
ANOTHER = Attachment("image", "image/png", "file-2", "a dog.png", 18)


def edit(text: str, about: str | None, key: str, *, to: Address = CHAT, **more: Any) -> InboundEvent:
    return InboundEvent(to, key, ADA, text, **{"kind": EventKind.EDIT, "about": about, **more})


def deletion(about: str, key: str) -> InboundEvent:
    return edit("", about, key, kind=EventKind.DELETE)


async def edited(store: Store, event: InboundEvent) -> Edited:
    found = await messages.edit(store.database, event)
    assert found is not None
    return found


async def versions(store: Store) -> list[dict[str, Any]]:
    return (await store.history(CHAT.id))[0].metadata.get("versions", [])


async def test_an_edit_is_a_version_that_a_turn_gets(any_database: str) -> None:
    sent_at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    async with opened(any_database) as store:
        receipt = await store.receive(said("helo", key="k", metadata={"kept": True}))
        expected = Edited(receipt.message_id, receipt.session_id, receipt.seq, changed=True, waiting=True)
        assert await edited(store, edit("hello", "k", "k/1", sent_at=sent_at)) == expected
        assert await edited(store, edit("hello you", "k", "k/2")) == expected
        (stored,) = await store.history(CHAT.id)
        assert stored.text == "helo"
        assert stored.metadata == {
            "kept": True,
            "versions": [
                {"key": "k/1", "text": "hello", "at": "2026-01-02T03:04:05+00:00"},
                {"key": "k/2", "text": "hello you"},
            ],
        }
        turn = await claimed(store)
        assert texts(turn) == ["hello you"]
        assert not turn.messages[0].deleted
    await assert_consistent(any_database)


async def test_an_edit_of_what_is_not_there_tells_so(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("helo", key="k"))
        for about in ("other", None, "album:k"):
            assert await messages.edit(store.database, edit("hello", about, "k/1")) is None
        assert (
            await messages.edit(store.database, edit("hello", "k", "k/1", to=Address("webchat", "main", "b"))) is None
        )
        assert texts(await claimed(store)) == ["helo"]


async def test_the_same_edit_again_changes_nothing_even_after_others(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("a", key="k"))
        assert (await edited(store, edit("b", "k", "k/1"))).changed
        assert (await edited(store, edit("c", "k", "k/2"))).changed
        assert not (await edited(store, edit("b", "k", "k/1"))).changed
        assert not (await edited(store, edit("c", "k", "k/2"))).changed
        assert [each["text"] for each in await versions(store)] == ["b", "c"]
        assert texts(await claimed(store)) == ["c"]


async def test_an_edit_that_shows_nothing_new_is_no_version(any_database: str) -> None:
    later = replace(PHOTO, ref="file-3")
    async with opened(any_database) as store:
        await store.receive(said("a", key="k", attachments=[PHOTO]))
        assert not (await edited(store, edit("a", "k", "k/1", attachments=[PHOTO]))).changed, "a link got its preview"
        assert not (await edited(store, edit("a", "k", "k/2"))).changed, "it says nothing of files"
        assert await versions(store) == []
        assert (await edited(store, edit("a", "k", "k/3", attachments=[later]))).changed
        assert not (await edited(store, edit("a", "k", "k/4", attachments=[later]))).changed
        assert (await edited(store, edit("b", "k", "k/5", attachments=[later]))).changed
        assert not (await edited(store, edit("b", "k", "k/6", attachments=[later]))).changed
        assert (await edited(store, edit("a", "k", "k/7", attachments=[PHOTO]))).changed, "as it was at first"
        assert len(await versions(store)) == 3


async def test_a_turn_gets_the_newest_files(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("look", key="k", attachments=[PHOTO]))
        await edited(store, edit("look there", "k", "k/1", attachments=[ANOTHER]))
        (message,) = (await claimed(store)).messages
        assert (message.text, message.attachments) == ("look there", (ANOTHER,))
        (stored,) = await store.history(CHAT.id)
        assert (stored.text, stored.attachments) == ("look", (PHOTO,))


async def test_an_edit_of_the_text_alone_leaves_the_newest_files(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("look", key="k", attachments=[PHOTO]))
        await edited(store, edit("look there", "k", "k/1", attachments=[ANOTHER]))
        await edited(store, edit("look here", "k", "k/2"))
        assert not (await edited(store, edit("look here", "k", "k/3", attachments=[ANOTHER]))).changed
        (message,) = (await claimed(store)).messages
        assert (message.text, message.attachments) == ("look here", (ANOTHER,))


async def test_a_deleted_message_says_so_to_a_turn(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("a secret", key="k"))
        await store.receive(said("a question"))
        gone = await edited(store, deletion("k", "k/gone"))
        assert (gone.changed, gone.waiting) == (True, True)
        assert not (await edited(store, deletion("k", "k/gone"))).changed
        first, second = (await claimed(store)).messages
        assert (first.text, first.deleted, second.text, second.deleted) == ("", True, "a question", False)
        assert (await store.history(CHAT.id))[0].text == "a secret", "it is kept"
    await assert_consistent(any_database)


async def test_a_deletion_of_an_empty_message_with_a_file_is_a_change(database: str) -> None:
    async with opened(database) as store:
        await store.receive(said("", key="k", attachments=[PHOTO]))
        assert (await edited(store, deletion("k", "k/gone"))).changed
        assert (await claimed(store)).messages[0].deleted


async def test_no_more_than_a_hundred_versions_are_kept(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("0", key="k"))
        for number in range(1, 104):
            assert (await edited(store, edit(f"{number}", "k", f"k/{number}"))).changed
        assert [each["text"] for each in await versions(store)] == [f"{number}" for number in range(4, 104)]
        assert not (await edited(store, edit("50", "k", "k/50"))).changed
        assert texts(await claimed(store)) == ["103"]


async def test_a_command_stays_what_it_was(database: str) -> None:
    async with opened(database) as store:
        await store.receive(said("/new", key="k", content_type="command"))
        for event in (edit("hello", "k", "k/1"), deletion("k", "k/gone")):
            await edited(store, event)
            (message,) = (await claimed(store)).messages
            assert (message.text, message.is_command, message.deleted) == ("/new", True, False)
            await turns.supersede(store.database, CHAT.id, "edited")


@pytest.mark.parametrize(
    "key",
    ["k\x00", "\ud800", "k" * 5000, "é" * 900, "'; drop table messages; --", '"}], "'],
    ids=["NUL", "half a pair", "long", "long in bytes", "SQL", "JSON"],
)
async def test_any_key_can_be_edited(database: str, key: str) -> None:
    async with opened(database) as store:
        await store.receive(said("a", key=key))
        for number in range(2):
            found = await edited(store, edit("b \x00", key, f"{key}/1", attachments=[replace(PHOTO, name="\x00")]))
            assert found.changed == (number == 0)
        (message,) = (await claimed(store)).messages
        assert (message.text, message.attachments[0].name) == ("b \ufffd", "\ufffd")


async def test_waiting_says_whether_the_message_has_no_answer_yet(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("a", key="a"))
        await store.receive(said("not for us", key="skipped", skip_reason="not_addressed"))

        async def waiting(about: str) -> bool:
            return (await edited(store, edit("new", about, "e"))).waiting

        assert (await waiting("a"), await waiting("skipped")) == (True, False)
        turn = await claimed(store)
        await store.receive(said("b", key="b"))
        assert (await waiting("a"), await waiting("b")) == (True, True), "a turn has it"
        await store.complete(ending(turn))
        assert (await waiting("a"), await waiting("b")) == (False, True)
        await store.complete(ending(await claimed(store), outcome=TurnOutcome.ERROR))
        assert not await waiting("b")
        receipt = await store.receive(said("c", key="c"))
        await sessions.close_session(store.database, receipt.session_id)
        assert not await waiting("c")
        await store.receive(said("d", key="d"))
        assert (await waiting("d"), await waiting("c"), await waiting("b")) == (True, False, False)
    await assert_consistent(any_database)


async def test_an_edited_message_is_still_a_duplicate(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("a", key="k"))
        await edited(store, edit("b", "k", "k/1"))
        assert (await store.receive(said("a", key="k"))).status is ReceiveStatus.DUPLICATE
        assert (await store.receive(said("b", key="k"))).status is ReceiveStatus.CONFLICT


async def test_versions_stay_when_the_message_gets_its_final_state(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("a", key="k"))
        await edited(store, edit("b", "k", "k/1"))
        turn = await claimed(store)
        await edited(store, edit("c", "k", "k/2"))
        await turns.supersede(store.database, CHAT.id, "edited", turn.id)
        turn = await claimed(store)
        assert texts(turn) == ["c"]
        await store.complete(ending(turn, outcome=TurnOutcome.ERROR))
        (stored, _) = await store.history(CHAT.id)
        assert stored.metadata["reason"] == "error"
        assert [each["text"] for each in stored.metadata["versions"]] == ["b", "c"]
        await edited(store, edit("d", "k", "k/3"))
        assert (await store.history(CHAT.id))[0].metadata["reason"] == "error"
    await assert_consistent(any_database)


async def test_edits_at_once_in_several_processes_are_each_kept_once(any_database: str) -> None:
    async with opened_often(any_database, 4) as stores:
        await stores[0].receive(said("a", key="k"))
        found = await asyncio.gather(
            *(edited(store, edit(f"{number}", "k", f"k/{number}")) for number in range(10) for store in stores)
        )
        assert sum(each.changed for each in found) == 10
        kept = await versions(stores[0])
        assert sorted(each["text"] for each in kept) == [f"{number}" for number in range(10)]
        assert texts(await claimed(stores[1])) == [kept[-1]["text"]]
    await assert_consistent(any_database)


async def test_edits_while_turns_come_and_go_lose_nothing(database: str) -> None:
    await tell_deadlocks_soon(database)
    async with opened_often(database, 3) as (one, two, three):

        async def converse() -> None:
            for number in range(40):
                await one.receive(said(f"{number}", key=f"m{number}"))
                if number % 4 == 3 and (turn := await one.claim(wish())):
                    outcome = TurnOutcome.ERROR if number % 8 == 3 else TurnOutcome.ANSWERED
                    await one.complete(ending(turn, outcome=outcome), follow_with_new_session=number % 12 == 3)

        async def change(store: Store, who: str) -> int:
            changed = 0
            for number in range(40):
                while (found := await messages.edit(store.database, edit(who, f"m{number}", f"{who}{number}"))) is None:
                    await asyncio.sleep(0)
                changed += found.changed
            return changed

        _, *changed = await asyncio.gather(converse(), change(two, "x"), change(three, "y"))
        await answer_all(one)
        inbound = [each for each in await one.history(CHAT.id, limit=1000) if each.direction == "inbound"]
        assert changed == [40, 40]
        assert {tuple(sorted(v["text"] for v in each.metadata["versions"])) for each in inbound} == {("x", "y")}
    assert await deadlocks(database) == 0
    await assert_consistent(database)


# Files.


@pytest.mark.parametrize(
    "file",
    [
        PHOTO,
        Attachment("file", "application/pdf", "ref"),
        Attachment("audio", "audio/ogg", "ref", None, 0, "same", True, datetime(2026, 5, 6, 7, 8, 9, 123456, UTC)),
        Attachment("video", "", "", "", 2**40, "", False, datetime(2026, 5, 6).astimezone(UTC) + timedelta(hours=5)),
        Attachment("image", "image/\ufffd", "ref", "\"'{}[]", 1, "é😀", True),
    ],
    ids=["some", "least", "all", "empty", "odd"],
)
async def test_a_file_comes_back_as_it_was(any_database: str, file: Attachment) -> None:
    async with opened(any_database) as store:
        await store.receive(said("look", key="k", attachments=[file]))
        await store.receive(said("look", key="edited"))
        await edited(store, edit("look", "edited", "e", attachments=[file, file]))
        assert (await store.history(CHAT.id))[0].attachments == (file,)
        first, second = (await claimed(store)).messages
        assert (first.attachments, second.attachments) == ((file,), (file, file))


async def test_files_that_were_stored_by_an_older_program_are_read(database: str) -> None:
    async with opened(database) as store, looking(database) as connection:
        await store.receive(said("look"))
        old = '[{"kind": "image", "mime_type": "image/png", "ref": "r", "name": null, "size": null}]'
        await connection.execute("update messages set attachments = $1", old)
        assert (await store.history(CHAT.id))[0].attachments == (Attachment("image", "image/png", "r"),)


# What was written, and what the agent gets.


async def test_what_was_written_is_kept_where_it_differs(any_database: str) -> None:
    async with opened(any_database) as store:
        arrival = said("hello", key="k", raw_text="@bot hello", about="m1", platform_message_id="17")
        await store.receive(arrival)
        await store.receive(said("same", raw_text="same"))
        first, second = (await claimed(store)).messages
        assert first.metadata == {"raw_text": "@bot hello", "about": "m1"}
        assert (first.platform_message_id, second.platform_message_id, second.metadata) == ("17", None, {})
        assert (await store.receive(arrival)).status is ReceiveStatus.DUPLICATE
        other = said("hello", key="k", raw_text="hello @bot")
        assert (await store.receive(other)).status is ReceiveStatus.CONFLICT
        assert (await store.receive(said("hello", key="k"))).status is ReceiveStatus.CONFLICT
    await assert_consistent(any_database)


# What was said and not to the bot.


async def test_what_was_overheard_since_the_agent_last_heard_the_group(any_database: str) -> None:
    async def overhear(text: str, **more: Any) -> None:
        await store.receive(said(text, user=User("bob", "Bob"), skip_reason="not_addressed", group=True, **more))

    async with opened(any_database) as store:
        await overhear("long ago")
        await store.receive(said("first question"))
        await store.complete(ending(await claimed(store), session_metadata={"heard_seq": 2}))
        await overhear("one", key="one", attachments=[PHOTO], platform_message_id="5")
        await store.receive(said("nothing", skip_reason="empty"))
        await overhear("two")
        await edited(store, edit("one, edited", "one", "one/1", attachments=[ANOTHER]))
        await store.receive(said("question"))
        await overhear("meanwhile")
        turn = await claimed(store)

        async def overheard(limit: int = 50, before: Seq = turn.messages[-1].seq) -> list[str]:
            found = await messages.overheard(store.database, CHAT.id, turn.session_id, before, limit)
            return [message.text for message in found]

        assert await overheard() == ["one, edited", "two"]
        assert await overheard(1) == ["two"]
        assert await overheard(before=Seq(10**9)) == ["one, edited", "two", "meanwhile"]
        (one, _) = await messages.overheard(store.database, CHAT.id, turn.session_id, turn.messages[-1].seq)
        assert (one.sender_id, one.sender_name, one.attachments, one.platform_message_id) == (
            "bob",
            "Bob",
            (ANOTHER,),
            "5",
        )
        await store.complete(ending(turn, outcome=TurnOutcome.ERROR))
        await store.receive(said("next question"))
        failed, turn = turn, await claimed(store)
        assert await overheard(before=turn.messages[-1].seq) == ["one, edited", "two", "meanwhile"], "it heard nothing"
        await store.complete(ending(turn, session_metadata={"heard_seq": failed.messages[-1].seq}))
        await store.receive(said("last question"))
        turn = await claimed(store)
        assert await overheard(before=turn.messages[-1].seq) == ["meanwhile"], "it was not there for the last answer"
    await assert_consistent(any_database)


async def test_what_was_overheard_in_another_session_is_forgotten(database: str) -> None:
    async with opened(database) as store:
        receipt = await store.receive(said("old", skip_reason="not_addressed"))
        await sessions.close_session(store.database, receipt.session_id)
        await store.receive(said("question"))
        turn = await claimed(store)
        assert await messages.overheard(store.database, CHAT.id, turn.session_id, turn.messages[-1].seq) == []
