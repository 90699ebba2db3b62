"""Albums: what a platform sends as several messages is kept, and answered, as one."""

import asyncio
import random
from typing import Any

import pytest

from chat_bridge.model import Address, Attachment, BusyPolicy, EventKind, InboundEvent, Receipt, ReceiveStatus
from chat_bridge.storage import messages, sessions, turns
from chat_bridge.storage.messages import Arrival
from chat_bridge.storage.store import Store
from tests.storage.dialogue import (
    ADA,
    CHAT,
    HERE,
    answer_all,
    assert_consistent,
    chat,
    claimed,
    deadlocks,
    ending,
    holding_sessions,
    opened,
    opened_often,
    said,
    tell_deadlocks_soon,
    waiters,
    wish,
)

ACCEPTED, SKIPPED = ReceiveStatus.ACCEPTED, ReceiveStatus.SKIPPED
RECORDED, DUPLICATE = ReceiveStatus.RECORDED, ReceiveStatus.DUPLICATE


def part(name: str, text: str = "", *, album: str = "trip", **more: Any) -> Arrival:
    """A photo of an album."""
    return said(text, key=name, album=album, attachments=[Attachment("image", "image/png", name)], **more)


def names(message: Any) -> list[str]:
    return [attachment.ref for attachment in message.attachments]


async def inbound(store: Store, to: Address = CHAT) -> list[tuple[str, list[str], str]]:
    """Text, photos and state of each message."""
    history = await store.history(to.id, limit=1000)
    return [(each.text, names(each), each.status) for each in history if each.direction == "inbound"]


async def test_the_parts_of_an_album_become_one_message(any_database: str) -> None:
    async with opened(any_database) as store:
        first = await store.receive(part("a", "our trip"))
        second = await store.receive(part("b"))
        third = await store.receive(part("c", "the end"))
        assert (first.status, first.reason) == (ACCEPTED, None)
        for receipt in (second, third):
            assert receipt == Receipt(RECORDED, CHAT.id, first.session_id, first.message_id, first.seq)
        assert await inbound(store) == [("our trip\nthe end", ["a", "b", "c"], "pending")]
        (message,) = (await claimed(store)).messages
        assert (message.text, names(message)) == ("our trip\nthe end", ["a", "b", "c"])
    await assert_consistent(any_database)


async def test_albums_and_conversations_do_not_mix(database: str) -> None:
    async with opened(database) as store:
        for place in (chat(1), chat(2)):
            for name in ("a", "b"):
                for album in ("x", "y"):
                    await store.receive(part(f"{album}{name}", album=album, to=place))
            await store.receive(said("alone", to=place))
            assert await inbound(store, place) == [
                ("", ["xa", "xb"], "pending"),
                ("", ["ya", "yb"], "pending"),
                ("alone", [], "pending"),
            ]
    await assert_consistent(database)


async def test_a_part_that_comes_again_is_known(any_database: str) -> None:
    async with opened(any_database) as store:
        first = await store.receive(part("a"))
        await store.receive(part("b"))
        for name in ("a", "b", "a"):
            again = await store.receive(part(name))
            assert again == Receipt(DUPLICATE, CHAT.id, first.session_id, first.message_id, first.seq)
        await answer_all(store)
        assert (await store.receive(part("b"))).status is DUPLICATE
        assert await inbound(store) == [("", ["a", "b"], "answered")]
    await assert_consistent(any_database)


async def test_the_parts_of_an_album_at_once_in_several_processes(any_database: str) -> None:
    async with opened_often(any_database, 4) as stores:
        for round_ in range(5):
            keys = [f"{round_}-{number}" for number in range(10)]
            arrivals = [part(key, album=f"album-{round_}") for key in keys for _ in stores]
            random.Random(round_).shuffle(arrivals)
            receipts = await asyncio.gather(
                *(stores[number % 4].receive(arrival) for number, arrival in enumerate(arrivals))
            )
            found = [receipt.status for receipt in receipts]
            assert {status: found.count(status) for status in set(found)} == {ACCEPTED: 1, RECORDED: 9, DUPLICATE: 30}
            assert len({receipt.message_id for receipt in receipts}) == 1
            (message,) = (await claimed(stores[0])).messages
            assert sorted(names(message)) == sorted(keys)
            await turns.recover(stores[0].database, HERE, all_owners=True)
            await answer_all(stores[0])
    await assert_consistent(any_database)


async def test_the_same_part_twice_at_once_is_there_once(any_database: str) -> None:
    async with opened_often(any_database, 2) as stores:
        await stores[0].receive(part("a"))
        async with holding_sessions(any_database) as connection:
            tasks = [asyncio.ensure_future(store.receive(part("b"))) for store in stores]
            await waiters(connection, 2)
        assert sorted(receipt.status.value for receipt in await asyncio.gather(*tasks)) == ["duplicate", "recorded"]
        assert await inbound(stores[0]) == [("", ["a", "b"], "pending")]
    await assert_consistent(any_database)


async def test_a_part_that_comes_while_a_turn_waits_for_the_session_is_in_it(any_database: str) -> None:
    async with opened_often(any_database, 2) as (one, other):
        await one.receive(part("a"))
        async with holding_sessions(any_database) as connection:
            adding = asyncio.ensure_future(one.receive(part("b")))
            await waiters(connection, 1)
            claiming = asyncio.ensure_future(claimed(other))
            await waiters(connection, 2)
        assert (await adding).status is RECORDED
        assert [names(message) for message in (await claiming).messages] == [["a", "b"]]
    await assert_consistent(any_database)


# Late parts.


async def test_a_part_that_comes_when_a_turn_has_the_others_is_a_message_of_its_own(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(part("a", "look"))
        turn = await claimed(store)
        late = await store.receive(part("b"))
        assert (late.status, late.seq) == (ACCEPTED, 2)
        assert (await store.receive(part("b"))).status is DUPLICATE
        assert (await store.receive(part("a", "look"))).status is DUPLICATE
        await store.complete(ending(turn))
        assert (await store.receive(part("c"))).status is ACCEPTED
        following = await claimed(store)
        assert [names(message) for message in following.messages] == [["b"], ["c"]]
    await assert_consistent(any_database)


async def test_a_late_part_that_comes_again_when_the_others_wait_again_is_known(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(part("a"))
        turn = await claimed(store)
        late = await store.receive(part("b"))
        await turns.supersede(store.database, CHAT.id, "a newer message", turn.id)
        again = await store.receive(part("b"))
        assert (again.status, again.message_id) == (DUPLICATE, late.message_id)
        assert (await store.receive(part("c"))).status is RECORDED, "the album waits again"
        assert [names(message) for message in (await claimed(store)).messages] == [["a", "c"], ["b"]]
    await assert_consistent(any_database)


async def test_a_part_that_comes_after_the_session_was_closed(any_database: str) -> None:
    async with opened(any_database) as store:
        first = await store.receive(part("a"))
        await sessions.close_session(store.database, first.session_id)
        late = await store.receive(part("b"))
        assert late.status is ACCEPTED
        assert late.session_id != first.session_id
        assert await inbound(store) == [("", ["a"], "cancelled"), ("", ["b"], "pending")]
    await assert_consistent(any_database)


async def test_an_album_that_moves_to_the_next_session_goes_on_there(any_database: str) -> None:
    async with opened_often(any_database, 2) as (one, other):
        await one.receive(said("/new"))
        turn = await claimed(one)
        first = await one.receive(part("a"))
        # It asks for the session while the next one is being opened.
        async with holding_sessions(any_database) as connection:
            rotating = asyncio.ensure_future(one.complete(ending(turn), follow_with_new_session=True))
            await waiters(connection, 1)
            adding = asyncio.ensure_future(other.receive(part("b")))
            await waiters(connection, 2)
        await asyncio.gather(rotating, adding)
        assert (await adding).status is RECORDED
        assert (await adding).message_id == first.message_id
        assert (await adding).session_id != first.session_id
        assert (await one.receive(part("c"))).status is RECORDED
        assert [names(message) for message in (await claimed(one)).messages] == [["a", "b", "c"]]
    await assert_consistent(any_database)


# Albums that are not answered.


async def test_an_album_that_is_not_for_the_bot_is_overheard_whole(any_database: str) -> None:
    async with opened(any_database) as store:
        first = await store.receive(part("a", "mountains", skip_reason="not_addressed"))
        second = await store.receive(part("b", skip_reason="not_addressed"))
        assert (first.status, second.status, second.reason) == (SKIPPED, RECORDED, "not_addressed")
        await store.receive(said("what is this?"))
        turn = await claimed(store)
        (album,) = await messages.overheard(store.database, CHAT.id, turn.session_id, turn.messages[-1].seq)
        assert (album.text, names(album)) == ("mountains", ["a", "b"])
    await assert_consistent(any_database)


async def test_a_part_for_the_bot_after_one_that_was_not_is_answered(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(part("a", skip_reason="not_addressed"))
        answered = await store.receive(part("b", "@bot look"))
        assert (answered.status, answered.seq) == (ACCEPTED, 2)
        assert (await store.receive(part("b", "@bot look"))).status is DUPLICATE
        assert (await store.receive(part("c", skip_reason="not_addressed"))).status is RECORDED
        assert await inbound(store) == [("", ["a", "c"], "skipped"), ("@bot look", ["b"], "pending")]
    await assert_consistent(any_database)


async def test_parts_that_are_not_for_the_bot_go_with_a_first_that_was(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(part("a", "@bot look"))
        assert (await store.receive(part("b", skip_reason="not_addressed"))).status is RECORDED
        assert await inbound(store) == [("@bot look", ["a", "b"], "pending")]
    await assert_consistent(any_database)


async def test_an_album_counts_as_one_in_the_queue(any_database: str) -> None:
    async with opened(any_database) as store:
        for name in ("a", "b", "c"):
            assert (await store.receive(part(name, queue_cap=1))).status is not SKIPPED
        assert (await store.receive(said(queue_cap=1))).reason == "queue_full"
        await answer_all(store)
        for name in ("d", "e", "f"):
            receipt = await store.receive(part(name, album="next", busy_policy=BusyPolicy.REJECT))
            assert receipt.status in (ACCEPTED, RECORDED)
    await assert_consistent(any_database)


# Edits.


async def test_the_text_of_an_album_can_be_edited_and_its_photos_stay(any_database: str) -> None:
    def edit(text: str, about: str, key: str) -> InboundEvent:
        photo = [Attachment("image", "image/png", about)]
        return InboundEvent(CHAT, key, ADA, text, EventKind.EDIT, about=about, attachments=photo, album="trip")

    async with opened(any_database) as store:
        await store.receive(part("a", "trip"))
        await store.receive(part("b"))
        assert await messages.edit(store.database, edit("", "b", "b/1")) is None, "no text, nothing to see"
        for text, key, changed in (("trip", "a/1", False), ("Trip", "a/2", True), ("Trip", "a/2", False)):
            found = await messages.edit(store.database, edit(text, "a", key))
            assert found is not None
            assert found.changed == changed
        (message,) = (await claimed(store)).messages
        assert (message.text, names(message)) == ("Trip", ["a", "b"])
    await assert_consistent(any_database)


# What may be in a key.


@pytest.mark.parametrize("odd", ["\x00", "\ud800", "é" * 900, '"}], "', "parts"])
async def test_any_key_and_any_album(database: str, odd: str) -> None:
    async with opened(database) as store:
        assert (await store.receive(part(f"a{odd}", odd, album=odd))).status is ACCEPTED
        for status in (RECORDED, DUPLICATE):
            assert (await store.receive(part(f"b{odd}", odd, album=odd))).status is status
        (message,) = (await claimed(store)).messages
        assert len(message.attachments) == 2
        for status in (ACCEPTED, DUPLICATE):
            assert (await store.receive(part(f"c{odd}", odd, album=odd))).status is status
    await assert_consistent(database)


# Everything at once.


async def test_no_part_is_lost_or_doubled_while_turns_come_and_go(database: str) -> None:
    await tell_deadlocks_soon(database)
    places = [chat(number) for number in range(4)]
    answered: dict[Address, list[str]] = {place: [] for place in places}
    async with opened_often(database, 3) as stores:
        chance = random.Random(7)
        arrivals = [
            part(f"{album}-{number}", album=f"{album}", to=place)
            for place in places
            for album in range(6)
            for number in range(6)
            for _ in range(2)
        ]
        chance.shuffle(arrivals)
        receiving = asyncio.gather(*(stores[n % 3].receive(each) for n, each in enumerate(arrivals)))

        async def answer(store: Store) -> None:
            """One turn in each conversation; some are taken away, some are followed by a new session."""
            for place in places:
                if turn := await store.claim(wish(place)):
                    if chance.random() < 0.3:
                        await turns.supersede(store.database, place.id, "edited", turn.id)
                    elif await store.complete(ending(turn), follow_with_new_session=chance.random() < 0.3):
                        answered[place] += [name for message in turn.messages for name in names(message)]

        while not receiving.done():
            await asyncio.gather(*(answer(store) for store in stores))
        await receiving
        while await turns.find_pending(stores[0].database, HERE):
            await answer(stores[0])
    expected = sorted(f"{album}-{number}" for album in range(6) for number in range(6))
    wrong = {
        place.conversation: [(name, found.count(name)) for name in {*found, *expected} if found.count(name) != 1]
        for place, found in answered.items()
    }
    assert wrong == {place.conversation: [] for place in places}
    assert await deadlocks(database) == 0
    await assert_consistent(database)
