"""Retention: what goes, what stays, and that the rest never notices."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from chat_bridge.errors import SettingsError
from chat_bridge.model import Address, Attachment, EventKind, InboundEvent, User
from chat_bridge.policies import Policies, load_policies
from chat_bridge.settings import load_settings
from chat_bridge.storage import attachments, messages, retention, sessions
from chat_bridge.storage.outbox import DeliveryResult
from chat_bridge.storage.store import Store
from chat_bridge.upkeep.retention import Effect, Retention
from tests.observe import rows
from tests.storage.dialogue import (
    ADA,
    CHAT,
    HERE,
    assert_consistent,
    chat,
    claimed,
    ending,
    holding_sessions,
    looking,
    opened,
    replied,
    said,
    waiters,
)

FILE = Attachment("image", "image/png", "file-1", "a cat.png", 17)
TABLES = ("sessions", "messages", "turns", "deliveries", "users", "attachments", "contents")


def policies(tmp_path: Path, text: str = "", **settings: str) -> Policies:
    environ = {name.upper(): value for name, value in settings.items()}
    if text:
        file = tmp_path / "retention.toml"
        file.write_text(text)
        environ["RETENTION_POLICIES"] = str(file)
    return load_policies(load_settings(environ, dotenv=None))


def days(number: int = 30, **settings: str) -> Policies:
    return load_policies(load_settings({"RETENTION_DAYS": str(number), **settings}, dotenv=None))


async def age(dsn: str, number: float) -> None:
    """Have so many days pass."""
    async with looking(dsn) as connection:
        for table, columns in {
            "sessions": ("created_at", "last_activity"),
            "messages": ("created_at",),
            "attachments": ("created_at",),
            "users": ("first_seen", "last_seen"),
        }.items():
            moved = ", ".join(f"{column} = {column} - $1::interval" for column in columns)
            await connection.execute(f"update {table} set {moved}", timedelta(days=number))


async def talked(store: Store, *texts: str, to: Address = CHAT) -> None:
    """Each is asked, answered, and the answer delivered."""
    for text in texts:
        delivery = await replied(store, to, text)
        assert delivery is not None
        await store.finish_delivery(DeliveryResult(delivery, "sent", "1"))


async def silent(store: Store, to: Address = CHAT) -> None:
    """What waits needs no reply."""
    await store.complete(ending(await claimed(store, to), "", message_id=None, parts=0))


async def applied(store: Store, rules: Policies) -> Effect:
    return await Retention(store.database, rules, None, "test").once()


async def texts(store: Store, to: Address = CHAT) -> list[str]:
    return [message.text for message in await store.history(to.id, limit=1000)]


async def sizes(dsn: str) -> Mapping[str, int]:
    return {table: (await rows(dsn, f"select count(*) as n from {table}"))[0]["n"] for table in TABLES}


async def fetched(store: Store) -> None:
    """Every file that waits was fetched: all have the same content."""
    for one in await attachments.take(store.database, HERE, 100):
        content = await attachments.begin_content(
            store.database, attachments.Facts(b"h" * 32, 17, "image/png", None, None, has_thumbnail=False)
        )
        assert await attachments.stored(store.database, one.conversation_id, one.id, content)


async def unused(dsn: str) -> int:
    query = """
        select from contents c
        where c.unused_since is not null and not exists (select from attachments a where a.content_id = c.id)"""
    return len(await rows(dsn, query))


async def test_old_messages_go_with_all_that_belongs_to_them(any_database: str) -> None:
    async with opened(any_database) as store:
        await talked(store, "one", "two")
        await age(any_database, 31)
        await talked(store, "three")
        effect = await applied(store, days(30))
        assert effect.messages == {"all others": 4}
        assert await texts(store) == ["hello", "three"]
        assert await sizes(any_database) == dict.fromkeys(TABLES, 0) | {
            "sessions": 1,
            "messages": 2,
            "turns": 1,
            "deliveries": 1,
            "users": 0,  # was known for 31 days, and nothing new was heard
        }
        await talked(store, "four")
        assert await texts(store) == ["hello", "three", "hello", "four"]
        assert (await rows(any_database, "select display_name from users")) == [{"display_name": "Ada"}]
        assert (await applied(store, days(30))).messages == {}
    await assert_consistent(any_database)


async def test_nothing_is_too_old_by_a_second(any_database: str) -> None:
    async with opened(any_database) as store:
        await talked(store, "one")
        await age(any_database, 29.999)
        assert await applied(store, days(30)) == Effect(conversations=1)
        await age(any_database, 0.001)
        assert (await applied(store, days(30))).messages == {"all others": 2}


async def test_a_conversation_of_which_nothing_is_left_goes_too(any_database: str) -> None:
    async with opened(any_database) as store:
        await talked(store, "one")
        await store.receive(said("a file", attachments=[FILE]))
        await fetched(store)
        await store.complete(ending(await claimed(store), "ok"))
        await age(any_database, 31)
        async with looking(any_database) as connection:
            await connection.execute("update deliveries set status = 'failed' where status = 'sending'")
        effect = await applied(store, days(30))
        assert (effect.messages.total(), effect.files.total(), effect.sessions, effect.people) == (4, 1, 1, 1)
        assert await sizes(any_database) == dict.fromkeys(TABLES, 0) | {"contents": 1}
        assert await unused(any_database) == 1, "its bytes are for the cleanup"
        await talked(store, "again")
        assert [message.seq for message in await store.history(CHAT.id)] == [1, 2]
    await assert_consistent(any_database)


async def test_what_is_not_done_with_stays(any_database: str) -> None:
    """A message without an answer, a turn that runs, a reply that is not sent: however old."""
    async with opened(any_database) as store:
        await store.receive(said("waits", to=chat("waiting")))
        await store.receive(said("is being answered", to=chat("running")))
        running = await claimed(store, chat("running"))
        sending = await replied(store, chat("sending"), "is being sent")
        assert sending is not None
        await age(any_database, 400)
        await applied(store, days(30))
        assert [len(await texts(store, chat(name))) for name in ("waiting", "running", "sending")] == [1, 1, 1]
        await assert_consistent(any_database)
        await store.finish_delivery(DeliveryResult(sending, "sent", "1"))
        assert await store.complete(ending(running)) is not None
        await applied(store, days(30))
        # The answer is of today, what it answers is not.
        assert [await texts(store, chat(name)) for name in ("waiting", "running", "sending")] == [
            ["waits"],
            ["the answer"],
            [],
        ]
    await assert_consistent(any_database)


async def test_what_stays_does_not_keep_what_follows(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        for number in range(151):
            await replied(store, text=f"answer {number}")
        await connection.execute("update deliveries set status = case when seq <= 202 then 'pending' else 'sent' end")
        await age(any_database, 31)
        await applied(store, days(30))
        assert await texts(store) == [f"answer {number}" for number in range(101)]
    await assert_consistent(any_database)


async def test_retention_waits_for_who_has_the_session_and_holds_nothing_meanwhile(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("a file", key="k", attachments=[FILE]))
        await fetched(store)
        await silent(store)
        await age(any_database, 31)
        async with asyncio.TaskGroup() as tasks, holding_sessions(any_database) as connection:
            expiring = tasks.create_task(applied(store, days(30)))
            await waiters(connection, 1)
            for table in ("messages", "attachments", "contents"):
                assert len(await connection.fetch(f"select from {table} for update skip locked")) == 1
        assert expiring.result().messages.total() == 1


async def test_an_edit_meanwhile_leaves_no_file_without_a_message(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        await store.receive(said("a file", key="k", attachments=[FILE]))
        await silent(store)
        await age(any_database, 31)
        await talked(store, "new")
        async with asyncio.TaskGroup() as tasks, store.database.transaction() as transaction:
            version = '{"key": "k/1", "text": "", "attachments": [{"kind": "image", "ref": "file-2"}]}'
            await transaction.fetch("edit", CHAT.id, "k", "k/1", version)
            tasks.create_task(applied(store, days(30)))
            await waiters(connection, 1)
        assert await texts(store) == ["hello", "new"]
        assert (await sizes(any_database))["attachments"] == 0


async def test_closed_sessions_go_one_by_one(any_database: str) -> None:
    async with opened(any_database) as store:
        for text in ("one", "two", "three"):
            await talked(store, text)
            (session,) = await rows(any_database, "select id from sessions where status = 'active'")
            if text != "three":
                await sessions.close_session(store.database, session["id"])
            await age(any_database, 20)
        assert (await applied(store, days(50))).sessions == 1
        assert await texts(store) == ["hello", "two", "hello", "three"]
        assert (await applied(store, days(30))).sessions == 1
        assert await texts(store) == ["hello", "three"]
        (left,) = await rows(any_database, "select status, next_seq from sessions")
        assert left == {"status": "active", "next_seq": 7}, "seq goes on"
    await assert_consistent(any_database)


ARCHIVED = """
with a as (
  insert into archives (id, status) values (gen_random_uuid(), 'stored') returning id
), m as (
  delete from messages where seq > 2 returning *
), s as (
  update sessions set status = 'archived' where id in (select session_id from m)
)
insert into archived_sessions
select m.conversation_id, m.session_id, a.id, min(m.seq), max(m.seq), 0, count(*) from m, a group by 1, 2, 3"""


@pytest.mark.parametrize("archived", [False, True])
async def test_seq_goes_on_while_an_older_session_stays(any_database: str, archived: bool) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        await replied(store, text="can't be sent")
        await sessions.close_session(store.database, (await rows(any_database, "select id from sessions"))[0]["id"])
        for _ in range(2):
            await store.receive(said())
            await silent(store)
        (session,) = await rows(any_database, "select id from sessions where status = 'active'")
        await sessions.close_session(store.database, session["id"])
        if archived:
            await connection.execute(ARCHIVED)
        await age(any_database, 31)
        assert (await applied(store, days(30))).messages.total() == 3
        assert await texts(store) == ["can't be sent"]
        await store.receive(said("goes on"))
        assert [message.seq for message in await store.history(CHAT.id)] == [2, 5]
        await silent(store)
        await connection.execute("update deliveries set status = 'failed'")
        await age(any_database, 31)
        await applied(store, days(30))
        assert (await sizes(any_database))["sessions"] == 0, "nothing keeps anything then"
    await assert_consistent(any_database)


async def test_an_upload_waits_for_its_message(any_database: str) -> None:
    async with opened(any_database) as store:
        await talked(store, "one")
        await age(any_database, 31)
        await attachments.add_upload(store.database, CHAT.id, FILE)
        assert (await applied(store, days(30))).sessions == 1
        assert (await sizes(any_database))["attachments"] == 1


async def test_where_a_conversation_moved_is_forgotten_with_it(any_database: str) -> None:
    middle, new = chat("middle"), chat("new")
    of_other = [replace(place, account="other") for place in (CHAT, middle, new)]
    async with opened(any_database) as store:
        for first, second, third in ((CHAT, middle, new), of_other):
            await store.receive(said(to=first))
            await sessions.move(store.database, first, second)
            await sessions.move(store.database, second, third)
        await silent(store, new)
        await age(any_database, 31)
        assert (await applied(store, days(30))).sessions == 1
        left = {row["conversation_id"] for row in await rows(any_database, "select conversation_id from moves")}
        assert left == {place.id for place in of_other[:2]}


async def test_many_go_piece_by_piece_and_as_planned(any_database: str) -> None:
    async with opened(any_database) as store:
        for number in range(25):
            await talked(store, "text", to=chat(number))
        for _ in range(60):
            await talked(store, "long")
        await age(any_database, 31)
        await talked(store, "new")
        retention = Retention(store.database, days(30), None, "test")
        plan = await retention.plan()
        assert plan.messages == {"all others": 170}
        assert plan.message_bytes["all others"] > 170 * 50
        assert (await sizes(any_database))["messages"] == 172, "a plan deletes nothing"
        steps: list[int] = []
        effect = await retention.once(lambda so_far: steps.append(so_far.messages.total()))
        assert effect.messages == plan.messages
        assert len(set(steps)) > 2
        assert await texts(store) == ["hello", "new"]
    await assert_consistent(any_database)


async def test_what_was_begun_is_finished_by_the_next_run(any_database: str) -> None:
    class StopError(Exception): ...

    def stop(effect: Effect) -> None:
        if effect.messages.total():
            raise StopError

    async with opened(any_database) as store:
        for number in range(25):
            await talked(store, "text", to=chat(number))
        await age(any_database, 31)
        with pytest.raises(StopError):
            await Retention(store.database, days(30), None, "test").once(stop)
        assert 0 < (await sizes(any_database))["messages"] < 50
        await assert_consistent(any_database)
        await applied(store, days(30))
        assert await sizes(any_database) == dict.fromkeys(TABLES, 0)


async def test_a_file_lives_as_long_as_the_newest_message_that_has_it(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("first", attachments=[FILE]))
        await fetched(store)
        await silent(store)
        await age(any_database, 31)
        await store.receive(said("once more", attachments=[FILE]))
        await silent(store)
        await applied(store, days(30))
        assert await texts(store) == ["once more"]
        assert [file.status for file in (await attachments.of(store.database, CHAT.id, [FILE])).values()] == ["stored"]
        assert await unused(any_database) == 0
        await age(any_database, 31)
        await applied(store, days(30))
        assert await unused(any_database) == 1


async def test_files_may_go_before_their_messages(any_database: str) -> None:
    rules = days(30, ATTACHMENT_RETENTION_DAYS="7")
    async with opened(any_database) as store:
        for to in (CHAT, chat("other")):
            await store.receive(said("a file", to=to, attachments=[FILE]))
            await fetched(store)
            await silent(store, to)
        await retention.hold(store.database, chat("other").id, "a dispute")
        await age(any_database, 8)
        plan = await Retention(store.database, rules, None, "test").plan()
        assert (plan.files, plan.file_bytes) == ({"all others": 1}, {"all others": 17})
        effect = await applied(store, rules)
        assert (effect.files, effect.messages.total()) == ({"all others": 1}, 0)
        (file,) = (await attachments.of(store.database, CHAT.id, [FILE])).values()
        assert (file.status, file.error, file.content) == ("failed", "files are kept for 7 days", None)
        assert await texts(store) == ["a file"]
        assert await unused(any_database) == 0, "the other conversation has it too, and is on hold"
        await retention.lift_hold(store.database, chat("other").id)
        await applied(store, rules)
        assert await unused(any_database) == 1


async def test_a_file_that_is_needed_stays_however_old(any_database: str) -> None:
    """It was sent again with a newer message, or is of one that still waits for its answer."""
    rules = load_policies(load_settings({"ATTACHMENT_RETENTION_DAYS": "7"}, dotenv=None))
    async with opened(any_database) as store:

        async def left() -> dict[str, str]:
            found = await rows(any_database, "select distinct conversation_id, status from attachments")
            return {row["conversation_id"]: row["status"] for row in found}

        for name in ("again", "waiting"):
            await store.receive(said("a file", to=chat(name), attachments=[FILE]))
        await fetched(store)
        await silent(store, chat("again"))
        await age(any_database, 8)
        await store.receive(said("once more", to=chat("again"), attachments=[FILE]))
        await silent(store, chat("again"))
        retention = Retention(store.database, rules, None, "test")
        assert (await retention.plan()).files.total() == 0
        assert (await retention.once()).files.total() == 0
        assert await left() == {chat("again").id: "stored", chat("waiting").id: "stored"}
        await silent(store, chat("waiting"))
        assert (await retention.plan()).files.total() == 1
        assert (await retention.once()).files.total() == 1
        assert await left() == {chat("again").id: "stored", chat("waiting").id: "failed"}
        await age(any_database, 8)
        assert (await retention.plan()).files.total() == 1
        assert (await retention.once()).files.total() == 1


@pytest.mark.parametrize("how", ["edit", "album"])
async def test_a_file_that_a_message_got_later_lives_as_long_as_that(any_database: str, how: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("first", attachments=[FILE]))
        await fetched(store)
        await silent(store)
        await age(any_database, 31)
        if how == "edit":
            await store.receive(said("second", key="k"))
            edit = InboundEvent(CHAT, "k/1", ADA, "second", kind=EventKind.EDIT, about="k", attachments=[FILE])
            assert await messages.edit(store.database, edit) is not None
        else:
            other = Attachment("image", "image/png", "file-2", "a dog.png", 18)
            await store.receive(said("second", album="album", attachments=[other]))
            await store.receive(said("", album="album", attachments=[FILE]))
        await silent(store)
        await applied(store, days(30))
        assert await texts(store) == ["second"]
        assert [file.status for file in (await attachments.of(store.database, CHAT.id, [FILE])).values()] == ["stored"]


async def test_lifetimes_of_one_policy_may_differ(any_database: str, tmp_path: Path) -> None:
    rules = policies(
        tmp_path,
        """
        [[policy]]
        account = "main"
        retention_days = 100
        [[policy]]
        conversations = "group"
        attachment_retention_days = 1
        """,
        attachment_retention_days="7",
    )
    async with opened(any_database) as store:
        for name in ("group", "private"):
            await store.receive(said("a file", to=chat(name), attachments=[FILE], group=name == "group"))
            await fetched(store)
            await silent(store, chat(name))
        await age(any_database, 8)
        await applied(store, rules)
        errors = {}
        for name in ("group", "private"):
            (file,) = (await attachments.of(store.database, chat(name).id, [FILE])).values()
            errors[name] = file.error
        assert errors == {"group": "files are kept for 1 day", "private": "files are kept for 7 days"}


async def test_what_is_on_hold_stays(any_database: str) -> None:
    async with opened(any_database) as store:
        await talked(store, "keep me")
        await retention.hold(store.database, CHAT.id, "a dispute")
        await age(any_database, 400)
        effect = await applied(store, days(30))
        assert (effect.conversations, effect.held, effect.messages.total(), effect.people) == (1, 1, 0, 0)
        assert len(await texts(store)) == 2
        # Also from a run that has looked before the hold was there.
        late = {CHAT.id: (await rows(any_database, "select now() as now"))[0]["now"]}
        assert await retention.expire_messages(store.database, late, 100) == ({}, 0)
        assert await retention.drop_empty_sessions(store.database, late) == []
        assert await retention.lift_hold(store.database, CHAT.id)
        assert not await retention.lift_hold(store.database, CHAT.id)
        assert (await applied(store, days(30))).messages.total() == 2


async def test_a_hold_goes_where_its_conversation_goes(any_database: str) -> None:
    new = chat("new")
    async with opened(any_database) as store:
        await talked(store, "keep me")
        await retention.hold(store.database, CHAT.id, "a dispute")
        await sessions.move(store.database, CHAT, new)
        await age(any_database, 400)
        await applied(store, days(30))
        assert len(await texts(store, new)) == 2
        assert {each.conversation_id for each in await retention.holds(store.database)} == {CHAT.id, new.id}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("named", [CHAT, chat("new")])
async def test_a_hold_is_of_all_ids_of_a_conversation(any_database: str, named: Address, before: bool) -> None:
    new = chat("new")
    async with opened(any_database) as store:
        for place in (CHAT, new):
            await talked(store, "keep me", to=place)
        if before:
            await retention.hold(store.database, named.id, "a dispute")
        await sessions.move(store.database, CHAT, new)
        if not before:
            await retention.hold(store.database, named.id, "a dispute")
        assert {each.conversation_id for each in await retention.holds(store.database)} == {CHAT.id, new.id}
        await age(any_database, 400)
        assert (await applied(store, days(30))).messages.total() == 0
        assert await retention.lift_hold(store.database, named.id)
        assert await retention.holds(store.database) == []


async def test_the_names_of_all_who_wrote_in_a_held_conversation_stay(any_database: str) -> None:
    async with opened(any_database) as store:
        for name in ("ada", "bob", "cid"):
            await store.receive(said(user=User(name, name), to=chat("other") if name == "cid" else CHAT))
        await store.receive(said(user=User("bob", "another Bob"), to=Address("webchat", "other", "elsewhere")))
        await retention.hold(store.database, CHAT.id, "a dispute")
        await age(any_database, 400)
        await applied(store, days(30))
        left = await rows(any_database, "select account, platform_user_id from users order by 2")
        assert left == [{"account": "main", "platform_user_id": name} for name in ("ada", "bob")]


async def test_a_group_is_one_though_its_first_message_does_not_say_so(any_database: str) -> None:
    async with opened(any_database) as store:
        for said_so in (False, True, False):
            await store.receive(said(group=said_so))
        await store.receive(said(to=chat("private")))
        found = await retention.conversations_after(store.database, retention.FIRST, 10)
        assert {each.conversation_id: each.group for each in found} == {CHAT.id: True, chat("private").id: False}


async def test_each_sort_of_conversation_by_its_policy(any_database: str, tmp_path: Path) -> None:
    rules = policies(
        tmp_path,
        """
        [[policy]]
        conversations = "group"
        retention_days = 10
        [[policy]]
        account = "other"
        retention_days = 0
        [[policy]]
        platform = "slack"
        retention_days = 20
        """,
        retention_days="40",
    )
    places = {
        "group": Address("slack", "other", "1"),
        "for ever": Address("slack", "other", "2"),
        "slack": Address("slack", "main", "3"),
        "rest": Address("webchat", "main", "4"),
    }
    async with opened(any_database) as store:
        for name, place in places.items():
            await store.receive(said(name, to=place, group=name == "group"))
            await silent(store, place)

        async def left() -> list[str]:
            return [name for name, place in places.items() if await texts(store, place)]

        gone: list[list[str]] = []
        for _ in range(5):
            await age(any_database, 10.5)
            await applied(store, rules)
            gone.append(await left())
        assert gone == [
            ["for ever", "slack", "rest"],
            ["for ever", "rest"],
            ["for ever", "rest"],
            ["for ever"],
            ["for ever"],
        ]
        assert await rows(any_database, "select platform, account from users") == [
            {"platform": "slack", "account": "other"}
        ]


def test_which_policy_decides(tmp_path: Path) -> None:
    rules = policies(
        tmp_path,
        """
        [[policy]]
        platform = "telegram"
        conversations = "group"
        attachment_retention_days = 3
        [[policy]]
        platform = "telegram"
        retention_days = 30
        """,
        retention_days="100",
        attachment_retention_days="50",
    )
    month, year = timedelta(days=30), timedelta(days=100)
    assert rules.of("telegram", "1", group=True) == ("telegram group", month, timedelta(days=3))
    assert rules.of("telegram", "1", group=False) == ("telegram", month, timedelta(days=50))
    assert rules.of("webchat", "main", group=False) == ("all others", year, timedelta(days=50))
    assert not rules.keeps_all
    assert policies(tmp_path).keeps_all
    assert policies(tmp_path, "[[policy]]\nretention_days = 0").keeps_all


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[policy]]\nretention_day = 3", "policy 1 retention_day: Extra inputs are not permitted"),
        ("[[policy]]\n[[policy]]\nretention_days = -1", "policy 2 retention_days: Input should be greater than"),
        ('[[policy]]\nconversations = "all"', "policy 1 conversations: Input should be 'private' or 'group'"),
        ("[[policy]", "is no TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=r"RETENTION_POLICIES: .*retention\.toml") as refused:
        policies(tmp_path, text)
    assert reason in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml can't be read"):
        policies(tmp_path, retention_policies=str(tmp_path / "nowhere.toml"))
