"""Files of messages: which are to be fetched, what became of them, and that their contents are kept once, and only as
long as something has them."""

import asyncio
import hashlib
import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image

from chat_bridge.bridge.keep import Keeper, Rules
from chat_bridge.errors import PlaceError
from chat_bridge.model import Address, Attachment, AttachmentId, BusyPolicy, EventKind, InboundEvent, ReceiveStatus
from chat_bridge.storage import attachments, dead_letters, messages, sessions
from chat_bridge.storage.attachments import Content, Wanted
from chat_bridge.storage.blobs import Blobs, open_blobs
from chat_bridge.storage.places import open_place
from chat_bridge.storage.store import Store
from chat_bridge.upkeep.cleanup import Cleanup
from tests.observe import rows
from tests.storage.dialogue import ADA, CHAT, HERE, chat, claimed, ending, looking, opened, said

PHOTO = Attachment("image", "image/png", "file-1", "a cat.png", 17)
ANOTHER = Attachment("image", "image/png", "file-2", "a dog.png", 18)


@asynccontextmanager
async def keeping(dsn: str, folder: Path) -> AsyncGenerator[tuple[Store, Keeper, Blobs]]:
    async with opened(dsn) as store:
        blobs = open_blobs(str(folder), folder, {})
        yield store, Keeper(store, blobs, Rules(1_000_000, ["*/*"]), None), blobs


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


async def wanted(store: Store, limit: int = 10) -> list[Wanted]:
    return sorted(await attachments.take(store.database, HERE, limit), key=lambda each: each.attachment.ref)


async def fetched(store: Store, keeper: Keeper, data: bytes) -> Content:
    """A message comes, and its file is fetched."""
    receipt = await store.receive(said(attachments=[replace(PHOTO, ref=str(uuid4()))]))
    (one,) = await wanted(store)
    assert one.seq == receipt.seq
    content = await keeper.keep(pieces(data), "image/png")
    assert await attachments.stored(store.database, one.conversation_id, one.id, content)
    return content


def objects(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


async def let_time_pass(dsn: str, hours: float) -> None:
    async with looking(dsn) as connection:
        await connection.execute(
            "update attachments set created_at = created_at - make_interval(mins => $1 * 60), "
            "next_attempt_at = next_attempt_at - make_interval(mins => $1 * 60)",
            hours,
        )
        await connection.execute(
            "update contents set unused_since = unused_since - make_interval(mins => $1 * 60)", hours
        )


async def test_files_are_taken_by_one_at_a_time(any_database: str) -> None:
    async with opened(any_database) as store:
        receipt = await store.receive(said(attachments=[PHOTO, ANOTHER]))
        await store.receive(said("no file"))
        await store.receive(said(to=Address("slack", "other", "elsewhere"), attachments=[PHOTO]))
        first = await wanted(store)
        assert [(each.attachment, each.seq, each.address, each.attempt) for each in first] == [
            (PHOTO, receipt.seq, CHAT, 1),
            (ANOTHER, receipt.seq, CHAT, 1),
        ]
        known = await attachments.of(store.database, CHAT.id, [PHOTO, ANOTHER, upload(AttachmentId(uuid4()))])
        assert [known[attachments.key(file)].id for file in (PHOTO, ANOTHER)] == [each.id for each in first]
        assert len(known) == 2
        assert await wanted(store) == []
        await let_time_pass(any_database, 1)  # who took them has died
        again = await wanted(store, limit=1)
        assert [each.attempt for each in again] == [2]
        assert len(await wanted(store)) == 1


async def test_files_of_accounts_that_nobody_serves_hold_up_no_others(database: str) -> None:
    async with opened(database) as store:
        for number in range(20):
            files = [replace(PHOTO, ref=f"{number}-{each}") for each in range(100)]
            await store.receive(said(to=Address("slack", "gone", str(number)), attachments=files))
        await store.receive(said(attachments=[PHOTO]))
        assert [each.attachment for each in await wanted(store, limit=1)] == [PHOTO]


async def test_a_try_without_a_result_is_counted(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said(attachments=[PHOTO]))
        for lost in range(3):
            (one,) = await wanted(store)
            assert one.lost == lost
            await let_time_pass(any_database, 1)
        (one,) = await attachments.take_in(store.database, CHAT.id, 10)
        assert (one.lost, one.attempt) == (3, 4)
        assert await attachments.failed(store.database, one, "not now", 0.0)
        (one,) = await wanted(store)
        assert (one.lost, one.attempt) == (0, 5)


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        ({"skip_reason": "user_not_allowed"}, "user_not_allowed"),
        ({"skip_reason": "group_not_allowed"}, "group_not_allowed"),
        ({"skip_reason": "groups_off"}, "groups_off"),
        ({"queue_cap": 1}, "queue_full"),
        ({"busy_policy": BusyPolicy.REJECT}, "busy"),
    ],
)
async def test_files_of_a_refused_message_are_not_fetched(
    database: str, tmp_path: Path, refused: dict[str, Any], reason: str
) -> None:
    async with keeping(database, tmp_path) as (store, keeper, blobs):
        await store.receive(said("waits"))
        file = upload(await uploaded(store, keeper))
        receipt = await store.receive(said(key="refused", attachments=[PHOTO, file], **refused))
        assert receipt.reason == reason
        edit = InboundEvent(CHAT, "edit", ADA, "edited", EventKind.EDIT, about="refused", attachments=[ANOTHER])
        assert await messages.edit(store.database, edit) is not None
        assert await wanted(store) == []
        assert list(await attachments.of(store.database, CHAT.id, [PHOTO, ANOTHER])) == []
        await store.receive(said("a message that is taken", attachments=[PHOTO]))
        assert [each.attachment for each in await wanted(store)] == [PHOTO]
        await let_time_pass(database, 25)
        await Cleanup(store, blobs).once()
        assert list(await attachments.of(store.database, CHAT.id, [file])) == []


async def test_files_that_a_group_sends_to_others_are_fetched(database: str) -> None:
    async with opened(database) as store:
        await store.receive(said(key="a", skip_reason="not_addressed", attachments=[PHOTO]))
        edit = InboundEvent(CHAT, "edit", ADA, "edited", EventKind.EDIT, about="a", attachments=[ANOTHER])
        assert await messages.edit(store.database, edit) is not None
        assert [each.attachment for each in await wanted(store)] == [PHOTO, ANOTHER]


@pytest.mark.parametrize("way", ["message", "edit", "album"])
async def test_a_file_that_could_not_be_had_is_fetched_again_when_it_is_sent_again(database: str, way: str) -> None:
    later = replace(PHOTO, name="again.png")
    async with opened(database) as store:
        await store.receive(said(attachments=[PHOTO]))
        for _ in range(3):
            await wanted(store)
            await let_time_pass(database, 10)
        (one,) = await wanted(store)
        assert await attachments.failed(store.database, one, "gone", None)
        match way:
            case "message":
                receipt = await store.receive(said(attachments=[later]))
            case "edit":
                receipt = await store.receive(said(key="x"))
                edit = InboundEvent(CHAT, "e", ADA, "edited", EventKind.EDIT, about="x", attachments=[later])
                assert await messages.edit(store.database, edit) is not None
            case _:
                receipt = await store.receive(said(key="a", album="trip", attachments=[ANOTHER]))
                await store.receive(said(key="b", album="trip", attachments=[later]))
        found = (await attachments.of(store.database, CHAT.id, [PHOTO]))[attachments.key(PHOTO)]
        assert (found.id, found.status, found.error, found.seq) == (one.id, "waiting", None, receipt.seq)
        again = (await wanted(store))[0]
        assert (again.attachment, again.lost) == (later, 0)
        assert again.since > one.since


async def test_only_who_tried_last_says_that_it_failed(database: str) -> None:
    async with opened(database) as store:
        await store.receive(said(attachments=[PHOTO]))
        (first,) = await wanted(store)
        await let_time_pass(database, 1)
        (second,) = await wanted(store)
        assert not await attachments.failed(store.database, first, "late", None)
        assert await attachments.failed(store.database, second, "try again", 0.0)
        (third,) = await attachments.take_in(store.database, CHAT.id, 10)
        assert await attachments.failed(store.database, third, "gone \x00", None)
        assert await wanted(store) == []
        (found,) = (await attachments.of(store.database, CHAT.id, [PHOTO])).values()
        assert (found.status, found.error, found.content, found.attachment) == ("failed", "gone \ufffd", None, PHOTO)
        assert not await attachments.stored(store.database, CHAT.id, third.id, await some_content(store))


async def some_content(store: Store) -> Content:
    facts = attachments.Facts(hashlib.sha256(b"x").digest(), 1, "text/plain")
    return await attachments.begin_content(store.database, facts)


async def test_the_same_bytes_are_kept_once(database: str, tmp_path: Path) -> None:
    async with keeping(database, tmp_path) as (store, keeper, blobs):
        one = await fetched(store, keeper, b"the same bytes")
        other = await fetched(store, keeper, b"the same bytes")
        different = await fetched(store, keeper, b"other bytes")
        assert (one.id, one.size, one.mime_type) == (other.id, 14, "text/plain")
        assert objects(tmp_path) == {one.name, different.name}
        assert await blobs.read(one.name) == b"the same bytes"
        assert b"".join([block async for block in blobs.stream(one.name, 4, 4)]) == b"same"
        await let_time_pass(database, 100)
        assert await Cleanup(store, blobs).once() == 0


async def test_an_image_has_a_size_and_a_thumbnail(database: str, tmp_path: Path) -> None:
    written = io.BytesIO()
    Image.new("RGB", (800, 400), "red").save(written, "JPEG")
    async with keeping(database, tmp_path) as (store, keeper, blobs):
        content = await fetched(store, keeper, written.getvalue())
        assert (content.mime_type, content.width, content.height) == ("image/jpeg", 800, 400)
        assert objects(tmp_path) == {content.name, content.thumbnail_name}
        with Image.open(io.BytesIO(await blobs.read(content.thumbnail_name))) as thumbnail:
            assert thumbnail.size == (320, 160)


async def test_what_nothing_has_goes_after_an_hour(database: str, tmp_path: Path) -> None:
    async with keeping(database, tmp_path) as (store, keeper, blobs):
        content = await keeper.keep(pieces(b"half done"), "text/plain")  # and then the process dies
        assert objects(tmp_path) == {content.name}
        assert await Cleanup(store, blobs).once() == 0
        await let_time_pass(database, 2)
        assert await Cleanup(store, blobs).once() == 1
        assert objects(tmp_path) == set()
        assert await rows(database, "select from contents") == []
        # A file that is stored now gets another name, and one that was begun before is told so.
        assert not await attachments.stored(store.database, CHAT.id, AttachmentId(uuid4()), content)
        again = await fetched(store, keeper, b"half done")
        assert again.name != content.name
        assert objects(tmp_path) == {again.name}


class Hindered(Blobs):
    """Deletes nothing."""

    async def delete(self, names: Any) -> None:
        raise PlaceError("the bucket can't be used")


async def test_deleting_that_was_hindered_is_finished_and_meets_no_new_file(database: str, tmp_path: Path) -> None:
    async with keeping(database, tmp_path) as (store, keeper, blobs):
        old = await keeper.keep(pieces(b"the bytes"), "text/plain")
        await let_time_pass(database, 2)
        assert await Cleanup(store, Hindered(open_place(str(tmp_path), {}))).once() == 0
        assert objects(tmp_path) == {old.name}
        new = await fetched(store, keeper, b"the bytes")  # the same bytes come, while the old object is being deleted
        assert new.name != old.name
        await let_time_pass(database, 2)
        assert await Cleanup(store, blobs).once() == 1
        assert objects(tmp_path) == {new.name}
        assert await blobs.read(new.name) == b"the bytes"


async def test_what_is_found_again_is_not_deleted(database: str, tmp_path: Path) -> None:
    async with keeping(database, tmp_path) as (store, keeper, blobs):
        await keeper.keep(pieces(b"the bytes"), "text/plain")
        await let_time_pass(database, 2)
        again = await keeper.keep(pieces(b"the bytes"), "text/plain")  # just before the cleanup comes
        assert await Cleanup(store, blobs).once() == 0
        await store.receive(said(attachments=[PHOTO]))
        (one,) = await wanted(store)
        assert await attachments.stored(store.database, CHAT.id, one.id, again)


def upload(id_: AttachmentId) -> Attachment:
    """As a message has it."""
    return replace(PHOTO, ref=attachments.upload_ref(id_))


async def uploaded(store: Store, keeper: Keeper, data: bytes = b"uploaded") -> AttachmentId:
    id_ = await attachments.add_upload(store.database, CHAT.id, PHOTO)
    assert await attachments.stored(store.database, CHAT.id, id_, await keeper.keep(pieces(data), "text/plain"))
    return id_


async def test_an_upload_belongs_to_the_first_message_that_has_it(database: str, tmp_path: Path) -> None:
    async with keeping(database, tmp_path) as (store, keeper, blobs):
        file = await uploaded(store, keeper)
        assert await wanted(store) == [], "there is nothing to fetch"
        first = await store.receive(said("first", attachments=[upload(file)]))
        await store.receive(said("second", attachments=[upload(file)]))
        found = await attachments.find(store.database, file)
        assert found is not None
        assert (found.conversation_id, found.seq, found.status) == (CHAT.id, first.seq, "stored")
        await let_time_pass(database, 48)
        assert await Cleanup(store, blobs).once() == 0
        assert len(objects(tmp_path)) == 1


async def test_an_upload_that_no_message_takes_goes_after_a_day(database: str, tmp_path: Path) -> None:
    async with keeping(database, tmp_path) as (store, keeper, blobs):
        file = await uploaded(store, keeper)
        unfinished = await attachments.add_upload(store.database, CHAT.id, PHOTO)
        shared = await uploaded(store, keeper, b"of another message too")
        await fetched(store, keeper, b"of another message too")
        await let_time_pass(database, 23)
        assert await Cleanup(store, blobs).once() == 0
        await let_time_pass(database, 2)
        assert await Cleanup(store, blobs).once() == 0, "the content was in use until now"
        assert await attachments.of(store.database, CHAT.id, [upload(one) for one in (file, unfinished, shared)]) == {}
        await let_time_pass(database, 2)
        assert await Cleanup(store, blobs).once() == 1
        assert len(objects(tmp_path)) == 1


async def test_an_upload_that_did_not_come_in_whole_is_dropped(database: str, tmp_path: Path) -> None:
    async with keeping(database, tmp_path) as (store, keeper, _):
        whole = await uploaded(store, keeper)
        file = await attachments.add_upload(store.database, CHAT.id, PHOTO)
        for each in (file, whole):
            await attachments.drop_upload(store.database, CHAT.id, each)
        known = await attachments.of(store.database, CHAT.id, [upload(file), upload(whole)])
        assert [each.id for each in known.values()] == [whole]


async def test_messages_that_name_one_upload_at_once_disturb_nobody(database: str, tmp_path: Path) -> None:
    async with keeping(database, tmp_path) as (store, keeper, _):
        file = upload(await uploaded(store, keeper))
        arrivals = [said("a", attachments=[file, file]), said("b", attachments=[file])]
        arrivals += [said("other", to=chat(n)) for n in range(5)]
        receipts = await asyncio.gather(*(store.receive(each) for each in arrivals))
        assert [receipt.status for receipt in receipts] == [ReceiveStatus.ACCEPTED] * 7
        (found,) = (await attachments.of(store.database, CHAT.id, [file])).values()
        assert found.seq == receipts[0].seq


async def test_a_content_of_a_file_that_became_something_else_is_deleted(database: str, tmp_path: Path) -> None:
    async with keeping(database, tmp_path) as (store, keeper, blobs):
        await store.receive(said(attachments=[PHOTO]))
        (one,) = await wanted(store)
        content = await keeper.keep(pieces(b"late"), "text/plain")
        assert await attachments.failed(store.database, one, "no", None)
        assert not await attachments.stored(store.database, CHAT.id, one.id, content)
        await let_time_pass(database, 2)
        assert await Cleanup(store, blobs).once() == 1
        assert objects(tmp_path) == set()


async def test_an_object_that_can_not_be_deleted_keeps_none_from_it(database: str, tmp_path: Path) -> None:
    async with keeping(database, tmp_path) as (store, keeper, blobs):
        stuck, *others = [await keeper.keep(pieces(b"%d" % n), "text/plain") for n in range(120)]
        (tmp_path / stuck.name).unlink()
        (tmp_path / stuck.name / "in the way").mkdir(parents=True)
        await let_time_pass(database, 2)
        assert await Cleanup(store, blobs).once() == len(others)
        (tmp_path / stuck.name / "in the way").rmdir()
        (tmp_path / stuck.name).rmdir()
        assert await Cleanup(store, blobs).once() == 0
        await let_time_pass(database, 2)
        assert await Cleanup(store, blobs).once() == 1


async def test_files_of_an_account_that_nobody_serves_are_given_up(database: str, tmp_path: Path) -> None:
    async with keeping(database, tmp_path) as (store, _, blobs):
        away = Address("slack", "gone", "c")
        await store.receive(said(to=away, attachments=[PHOTO]))
        await let_time_pass(database, 36)
        await Cleanup(store, blobs).once()
        (found,) = (await attachments.of(store.database, away.id, [PHOTO])).values()
        assert found.status == "waiting"
        await let_time_pass(database, 36)
        await Cleanup(store, blobs).once()
        (found,) = (await attachments.of(store.database, away.id, [PHOTO])).values()
        assert (found.status, found.error) == ("failed", "nobody fetched it in time")


async def test_files_of_albums_and_edits_are_fetched_too(any_database: str) -> None:
    async with opened(any_database) as store:
        for name in ("a", "b"):
            await store.receive(said(key=name, album="trip", attachments=[replace(PHOTO, ref=name)]))
        await store.receive(said("x", key="x", attachments=[PHOTO]))
        for key, file in (("x/1", PHOTO), ("x/2", ANOTHER), ("x/2", ANOTHER)):
            event = InboundEvent(CHAT, key, ADA, f"edited by {key}", EventKind.EDIT, about="x", attachments=[file])
            assert await messages.edit(store.database, event) is not None
        assert [(each.seq, each.attachment.ref) for each in await wanted(store)] == [
            (1, "a"),
            (1, "b"),
            (2, "file-1"),
            (2, "file-2"),
        ]


async def test_a_message_that_is_received_once_more_keeps_its_files(database: str, tmp_path: Path) -> None:
    async with keeping(database, tmp_path) as (store, keeper, _):
        content = await fetched(store, keeper, b"the bytes")
        await claimed(store)
        (message,) = await store.history(CHAT.id)
        async with looking(database) as connection:
            await connection.execute("update messages set status = 'failed'")
        assert await dead_letters.retry(store, message.id)
        again = (await store.history(CHAT.id))[-1]
        assert again.metadata["replay_of"] == str(message.id)
        assert again.attachments == message.attachments
        assert await wanted(store) == [], "the platform may have forgotten it by now"
        (found,) = (await attachments.of(store.database, CHAT.id, again.attachments)).values()
        assert (found.status, found.content) == ("stored", replace(content, written=True))


async def test_files_move_with_their_conversation(database: str, tmp_path: Path) -> None:
    async with keeping(database, tmp_path) as (store, keeper, _):
        await fetched(store, keeper, b"the bytes")
        await store.receive(said(attachments=[ANOTHER]))
        assert await sessions.move(store.database, CHAT, chat("new"))
        (one,) = await wanted(store)
        assert (one.address, one.attachment) == (chat("new"), ANOTHER)
        history = await store.history(chat("new").id)
        files = [file for message in history for file in message.attachments]
        assert len(await attachments.of(store.database, chat("new").id, files)) == 2
        assert await store.complete(ending(await claimed(store, chat("new")))) is not None


# Places


async def test_a_bucket_of_s3(bucket: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    url, environment = bucket
    blobs = open_blobs(url, tmp_path, {f"ATTACHMENT_{name}": value for name, value in environment.items()})
    await blobs.check()
    big = bytes(range(256)) * 100_000
    await blobs.write("big", io.BytesIO(big))
    assert await blobs.read("big") == big
    assert b"".join([block async for block in blobs.stream("big", 1000, 3_000_000)]) == big[1000:3_001_000]
    await blobs.delete(["big", "big", "never there"])
    with pytest.raises(PlaceError):
        await blobs.read("big")


async def test_credentials_come_from_files_too(bucket: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    url, environment = bucket
    (tmp_path / "key").write_text(f"{environment.pop('AWS_SECRET_ACCESS_KEY')}\n")
    environment["AWS_SECRET_ACCESS_KEY_FILE"] = str(tmp_path / "key")
    await open_blobs(url, tmp_path, environment).check()
    environment["AWS_SECRET_ACCESS_KEY_FILE"] = str(tmp_path / "missing")
    with pytest.raises(PlaceError, match=r"AWS_SECRET_ACCESS_KEY_FILE: .*missing can't be read"):
        open_blobs(url, tmp_path, environment)


@pytest.mark.parametrize("bucket", ["s3://nowhere/x", "nowhere"])
async def test_a_bucket_that_is_not_there(bucket: str, tmp_path: Path) -> None:
    blobs = open_blobs(
        bucket,
        tmp_path,
        {
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            "AWS_REGION": "x",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
        },
    )
    with pytest.raises(PlaceError, match="s3://nowhere") as refused:
        await blobs.check()
    assert "secret-of-the-test" not in str(refused.value)


async def test_a_folder_that_can_not_be_used(tmp_path: Path) -> None:
    await open_blobs(None, tmp_path / "not" / "yet", {}).check()
    (tmp_path / "file").touch()
    blobs = open_blobs(None, tmp_path / "file", {})
    with pytest.raises(PlaceError, match="can't be used"):
        await blobs.check()
    with pytest.raises(PlaceError, match="can't be used"):
        await blobs.write(str(uuid4()), io.BytesIO(b"x"))
