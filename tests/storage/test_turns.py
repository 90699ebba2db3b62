"""Turns: one at a time, in order, fenced; a lost worker costs nothing but time."""

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest

from chat_bridge.model import Address, BusyPolicy, ConversationId, Turn, TurnId, TurnOutcome, User
from chat_bridge.storage import outbox, sessions, turns
from chat_bridge.storage.store import Store
from chat_bridge.storage.turns import Completed, Completion
from tests.storage.dialogue import (
    ACCOUNTS,
    CHAT,
    HERE,
    answer_all,
    assert_consistent,
    chat,
    claimed,
    command,
    deadlocks,
    ending,
    holding_sessions,
    looking,
    make_due,
    opened,
    opened_often,
    said,
    statuses,
    tell_deadlocks_soon,
    texts,
    waiters,
    wish,
)

COLLECT, FOLLOWUP, LATEST = BusyPolicy.COLLECT, BusyPolicy.FOLLOWUP, BusyPolicy.LATEST


async def turns_taken(store: Store, policy: BusyPolicy) -> list[list[str]]:
    """Answer everything, and tell what each turn took."""
    taken: list[list[str]] = []
    while (turn := await store.claim(wish(policy=policy))) is not None:
        taken.append(texts(turn))
        assert await store.complete(ending(turn)) is not None
    return taken


@pytest.mark.parametrize(
    ("policy", "waiting", "taken"),
    [
        (COLLECT, ["a", "b", "c"], [["a", "b", "c"]]),
        (FOLLOWUP, ["a", "b", "c"], [["a"], ["b"], ["c"]]),
        (LATEST, ["a", "b", "c"], [["c"]]),
        (COLLECT, ["/help", "a", "b"], [["/help"], ["a", "b"]]),
        (COLLECT, ["a", "b", "/help", "c"], [["a", "b"], ["/help"], ["c"]]),
        (LATEST, ["a", "b", "/help", "c", "d"], [["b"], ["/help"], ["d"]]),
        (FOLLOWUP, ["a", "/help", "b"], [["a"], ["/help"], ["b"]]),
        (COLLECT, ["a", "/help", "b", "/stop", "c"], [["/stop"], ["c"]]),
        (LATEST, ["a", "b", "/stop", "c"], [["/stop"], ["c"]]),
        (FOLLOWUP, ["a", "b", "/stop"], [["/stop"]]),
        (COLLECT, ["/stop", "a", "/stop"], [["/stop"]]),
    ],
)
async def test_what_a_turn_takes(
    any_database: str, policy: BusyPolicy, waiting: list[str], taken: list[list[str]]
) -> None:
    async with opened(any_database) as store:
        for text in waiting:
            await store.receive(command(text) if text.startswith("/") else said(text))
        assert await turns_taken(store, policy) == taken
        messages = await store.history(CHAT.id)
        dropped = Counter(message.text for message in messages if message.status in ("skipped", "cancelled"))
        assert dropped == Counter(waiting) - Counter(text for turn in taken for text in turn)
    await assert_consistent(any_database)


async def test_the_messages_that_latest_passes_over_say_why(database: str) -> None:
    async with opened(database) as store:
        for text in ("old", "new"):
            await store.receive(said(text))
        await claimed(store, policy=LATEST)
        assert [(m.status, m.metadata) for m in await store.history(CHAT.id)] == [
            ("skipped", {"reason": "newer_message"}),
            ("pending", {}),
        ]


async def test_a_turn_tells_all_an_agent_needs(database: str) -> None:
    address = Address("webchat", "main", "a-room", "a-thread")
    async with opened(database) as store:
        first = await store.receive(said("one", to=address, user=User("ada", "Ada")))
        await store.receive(said("two", to=address, user=User("bob")))
        await sessions.set_busy_policy(store.database, first.session_id, COLLECT)
        turn = await claimed(store, address)
    assert (turn.address, turn.conversation_id, turn.session_id) == (address, address.id, first.session_id)
    assert turn.metadata == {"busy_policy": "collect"}
    assert [(m.seq, m.sender_id, m.sender_name, m.is_command) for m in turn.messages] == [
        (1, "ada", "Ada", False),
        (2, "bob", None, False),
    ]


async def test_the_sessions_own_policy_decides_what_a_turn_takes(database: str) -> None:
    async with opened(database) as store:
        receipt = await store.receive(said("a"))
        await store.receive(said("b"))
        await sessions.set_busy_policy(store.database, receipt.session_id, FOLLOWUP)
        assert texts(await claimed(store, policy=COLLECT)) == ["a"]


async def test_a_turn_takes_no_more_than_it_may(database: str) -> None:
    async with opened(database) as store:
        for number in range(5):
            await store.receive(said(f"{number}"))
        turn = await store.claim(wish(most=3))
        assert turn is not None
        assert texts(turn) == ["0", "1", "2"]
        completed = await store.complete(ending(turn))
        assert completed is not None
        assert completed.more
        assert texts(await claimed(store)) == ["3", "4"]


# One at a time.


async def test_there_is_nothing_to_claim_twice(any_database: str) -> None:
    async with opened(any_database) as store:
        assert await store.claim(wish()) is None
        await store.receive(said())
        await claimed(store)
        assert await store.claim(wish()) is None


async def test_of_twenty_claims_in_five_processes_one_wins(any_database: str) -> None:
    async with opened_often(any_database, 5) as stores:
        for number in range(8):
            await stores[0].receive(said(f"{number}"))
            won = await asyncio.gather(*(store.claim(wish()) for store in stores for _ in range(4)))
            (turn,) = [turn for turn in won if turn is not None]
            assert texts(turn) == [f"{number}"]
            assert await stores[number % 5].complete(ending(turn)) is not None
    await assert_consistent(any_database)


async def test_messages_that_come_while_a_turn_runs_wait_for_the_next(database: str) -> None:
    async with opened(database) as store:
        await store.receive(said("one"))
        turn = await claimed(store)
        await store.receive(said("two"))
        completed = await store.complete(ending(turn, "answer one"))
        assert completed is not None
        assert (completed.seq, completed.more) == (3, True)
        assert texts(await claimed(store)) == ["two"]
    await assert_consistent(database)


# The end of a turn.


async def test_an_answer_is_stored_with_its_deliveries(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        await store.receive(said())
        turn = await claimed(store)
        completion = ending(
            turn,
            "an answer",
            parts=2,
            agent_request_id="request-1",
            usage={"tokens": 3},
            metadata={"a": 1},
            session_metadata={"approval": {"id": "x"}},
        )
        completed = await store.complete(completion)
        assert completed is not None
        assert (completed.seq, completed.more) == (2, False)
        reply = (await store.history(CHAT.id))[-1]
        assert (reply.id, reply.text, reply.direction, reply.status, reply.metadata) == (
            completion.message_id,
            "an answer",
            "outbound",
            "stored",
            {"a": 1},
        )
        row = await connection.fetchrow("select * from turns")
        assert (row["status"], row["outcome"], row["agent_request_id"], row["usage"], row["owner"]) == (
            "done",
            "answered",
            "request-1",
            '{"tokens": 3}',
            "library",
        )
        assert await connection.fetchval("select agent_request_id from messages where seq = 2") == "request-1"
        deliveries = await connection.fetch("select part, status, attempts, idempotency_key from deliveries order by 1")
        assert [tuple(each)[:3] for each in deliveries] == [(1, "sending", 1), (2, "pending", 0)]
        assert deliveries[0]["idempotency_key"] == completed.send_key != deliveries[1]["idempotency_key"]
        await store.receive(said())
        assert (await claimed(store)).metadata == {"approval": {"id": "x"}}
    await assert_consistent(any_database)


async def test_ending_a_turn_twice_changes_nothing(database: str) -> None:
    async with opened(database) as store:
        await store.receive(said())
        turn = await claimed(store)
        both = await asyncio.gather(*(store.complete(ending(turn)) for _ in range(2)))
        assert [done is not None for done in both] == [True, False]
        assert await store.complete(ending(turn), follow_with_new_session=True) is None
        assert [message.text for message in await store.history(CHAT.id)] == ["hello", "the answer"]
        active = await sessions.active_session(store.database, CHAT.id)
        assert active is not None
        assert active[1] == 2
    await assert_consistent(database)


@pytest.mark.parametrize(
    ("outcome", "fate"),
    [(TurnOutcome.ERROR, "failed"), (TurnOutcome.TIMEOUT, "failed"), (TurnOutcome.CANCELLED, "cancelled")],
)
async def test_a_turn_without_an_answer_marks_its_messages_with_the_reason(
    any_database: str, outcome: TurnOutcome, fate: str
) -> None:
    async with opened(any_database) as store:
        for text in ("one", "two"):
            await store.receive(said(text, metadata={"kept": text}))
        turn = await claimed(store)
        await store.receive(said("later"))
        assert await store.complete(ending(turn, outcome=outcome)) is not None
        one, two, later, _ = await store.history(CHAT.id)
        assert [(one.status, one.metadata), (two.status, two.metadata), later.status] == [
            (fate, {"kept": "one", "reason": outcome.value}),
            (fate, {"kept": "two", "reason": outcome.value}),
            "pending",
        ]
    await assert_consistent(any_database)


async def test_an_answer_that_is_not_told_has_nothing_to_send(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        await store.receive(said())
        done = await store.complete(Completion(await claimed(store), TurnOutcome.EMPTY))
        assert done is not None
        assert (done.seq, done.send_key) == (None, None)
        assert await connection.fetchval("select count(*) from deliveries") == 0
    await assert_consistent(any_database)


async def test_an_error_is_told_at_most_once_a_minute(any_database: str) -> None:
    async def fail(text: str) -> int | None:
        await store.receive(said())
        done = await store.complete(ending(await claimed(store), text, TurnOutcome.ERROR, error_text=True, error="why"))
        assert done is not None
        told = await connection.fetchval(
            "select idempotency_key from deliveries where seq = $1 and status = 'sending'", done.seq
        )
        assert done.send_key == told
        await connection.execute("update deliveries set status = 'sent'")
        return done.seq

    async with opened(any_database) as store, looking(any_database) as connection:
        assert await fail("first") == 2
        assert await fail("second") is None
        await store.receive(said())
        answered = await store.complete(ending(await claimed(store), "an answer is always told"))
        assert answered is not None
        assert answered.seq == 5
        await connection.execute("update sessions set error_told_at = error_told_at - interval '61 seconds'")
        assert await fail("third") == 7
        replies = [message.text for message in await store.history(CHAT.id) if message.direction == "outbound"]
        assert replies == ["first", "an answer is always told", "third"]
        assert await connection.fetchval("select count(*) from turns where error = 'why'") == 3
    await assert_consistent(any_database)


@pytest.mark.parametrize("new_session", [False, True])
async def test_a_reply_whose_commit_was_not_heard_of_is_found(any_database: str, new_session: bool) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        await store.receive(said())
        completion = ending(await claimed(store), parts=2)
        assert await turns.stored_reply(store.database, completion) is None
        done = await store.complete(completion, follow_with_new_session=new_session)
        assert done is not None
        assert done.send_key is not None
        assert await turns.stored_reply(store.database, completion) == replace(done, more=True)
        await make_due(connection)
        assert len(await outbox.due_deliveries(store.database, HERE, ["webchat"])) == 1
        found = await turns.stored_reply(store.database, completion)
        assert found == Completed(done.seq, more=True, send_key=None), "another sends it"


async def test_there_is_no_stored_reply_of_a_turn_that_was_lost_or_said_nothing(database: str) -> None:
    async with opened(database) as store:
        await store.receive(said())
        lost = ending(await claimed(store))
        await turns.supersede(store.database, CHAT.id, "taken away")
        assert await store.complete(lost) is None
        await store.complete(ending(await claimed(store), "of another"))
        assert await turns.stored_reply(store.database, lost) is None
        await store.receive(said())
        silent = Completion(await claimed(store), TurnOutcome.EMPTY)
        assert await store.complete(silent) is not None
        assert await turns.stored_reply(store.database, silent) is None


# What was shown of an answer as it grew.


async def preview(store: Store) -> object:
    session = (await sessions.list_sessions(store.database, sessions.SessionFilter(conversation_id=CHAT.id), 1))[0]
    return session.metadata.get("preview", "never")


async def test_whoever_answers_in_the_end_knows_what_is_shown(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said())
        turn = await claimed(store)
        assert await turns.note(store.database, turn, {"preview": "shown\x00", "other": 1})
        await turns.supersede(store.database, CHAT.id, "the worker died", turn.id)
        following = await claimed(store)
        assert following.metadata == {"preview": "shown\ufffd", "other": 1}
        assert not await turns.note(store.database, turn, {"preview": "stale"})
        assert await preview(store) == "shown\ufffd"
        assert await turns.note(store.database, following, {"preview": None})
        assert await preview(store) is None
        await store.complete(ending(following))
        for ended in (turn, following):
            assert not await turns.note(store.database, ended, {"preview": "stale"})
        assert await preview(store) is None
    await assert_consistent(any_database)


async def test_a_note_that_waits_while_its_turn_ends_is_dropped(any_database: str) -> None:
    async with opened_often(any_database, 2) as (one, other):
        await one.receive(said())
        turn = await claimed(one)
        async with holding_sessions(any_database) as connection:
            completing = asyncio.ensure_future(one.complete(ending(turn, session_metadata={"preview": None})))
            await waiters(connection, 1)
            noting = asyncio.ensure_future(turns.note(other.database, turn, {"preview": "stale"}))
            await waiters(connection, 2)
        assert await completing is not None
        assert not await noting
        assert await preview(one) is None
    await assert_consistent(any_database)


async def test_noting_and_ending_and_renewing_at_once_never_deadlocks(database: str) -> None:
    await tell_deadlocks_soon(database)
    async with opened_often(database, 2) as (one, other):
        for _ in range(30):
            await one.receive(said())
            turn = await claimed(one)
            await asyncio.gather(
                one.complete(ending(turn, session_metadata={"preview": None})),
                *(turns.note(store.database, turn, {"preview": "shown"}) for store in (one, other)),
                turns.renew(other.database, [turn], 30),
                turns.recover(other.database, HERE),
            )
            assert await preview(one) is None
    assert await deadlocks(database) == 0
    await assert_consistent(database)


# Fences and leases.


async def test_messages_of_a_superseded_turn_wait_again_together_with_newer_ones(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("one"))
        turn = await claimed(store)
        await store.receive(said("two"))
        assert await turns.supersede(store.database, CHAT.id, "a newer message", turn.id) == turn.id
        assert await turns.supersede(store.database, CHAT.id, "again", turn.id) is None
        assert await store.complete(ending(turn)) is None
        assert texts(await claimed(store)) == ["one", "two"]
        assert await turns.supersede(store.database, CHAT.id, "whichever runs") is not None
    await assert_consistent(any_database)


async def test_a_worker_without_lease_is_replaced_and_can_change_nothing(any_database: str) -> None:
    async with opened_often(any_database, 2) as (slow, quick), looking(any_database) as connection:
        await slow.receive(said("hello"))
        lost = await claimed(slow)
        assert await turns.recover(quick.database, HERE) == []
        await connection.execute("update turns set lease_until = now() - interval '1 second'")
        assert await turns.recover(quick.database, HERE) == [(CHAT.id, lost.id)]
        assert await turns.recover(quick.database, HERE) == []
        assert await slow.complete(ending(lost, "stale")) is None
        turn = await claimed(quick)
        assert texts(turn) == ["hello"]
        for stale in (ending(lost, "stale"), ending(lost, "stale", TurnOutcome.ERROR)):
            assert await slow.complete(stale) is None
        assert await slow.complete(ending(lost, "stale"), follow_with_new_session=True) is None
        assert await quick.complete(ending(turn, "fresh")) is not None
        assert [message.text for message in await quick.history(CHAT.id)] == ["hello", "fresh"]
    await assert_consistent(any_database)


async def test_a_process_that_is_alone_recovers_everything(database: str) -> None:
    async with opened(database) as store:
        held: set[tuple[ConversationId, TurnId]] = set()
        for number in range(3):
            await store.receive(said(to=chat(number)))
            held.add((chat(number).id, (await claimed(store, chat(number))).id))
        assert set(await turns.recover(store.database, HERE, all_owners=True)) == held


async def test_only_turns_of_the_given_accounts_are_recovered(any_database: str) -> None:
    places = [replace(CHAT, platform=platform, account=account) for platform, account in ACCOUNTS]
    async with opened(any_database) as store, looking(any_database) as connection:
        held: list[tuple[ConversationId, TurnId]] = []
        for place in places:
            await store.receive(said(to=place))
            held.append((place.id, (await claimed(store, place)).id))
        await connection.execute("update turns set lease_until = now() - interval '1 second'")
        assert await turns.recover(store.database, []) == []
        assert await turns.recover(store.database, ACCOUNTS[1:2]) == held[1:2]
        assert await turns.recover(store.database, ACCOUNTS[:1], all_owners=True) == held[:1]
        assert await connection.fetchval("select count(*) from turns where status = 'running'") == 2


async def test_a_renewed_lease_holds_and_a_lost_one_is_told(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        held: list[Turn] = []
        for number in range(3):
            await store.receive(said(to=chat(number)))
            held.append(await claimed(store, chat(number)))
        await turns.supersede(store.database, chat(1).id, "taken away")
        await connection.execute("update turns set lease_until = now() - interval '1 second'")
        assert await turns.renew(store.database, held, 30) == {held[0].id, held[2].id}
        assert await turns.recover(store.database, HERE) == []


async def test_pending_conversations_are_found_longest_waiting_first(any_database: str) -> None:
    async with opened(any_database) as store:
        for number in (2, 0, 1, 3):
            await store.receive(said(to=chat(number)))
        running = await claimed(store, chat(0))
        await answer_all(store, chat(3))
        found = [(chat(2).id, "webchat"), (chat(1).id, "webchat")]
        assert await turns.find_pending(store.database, HERE) == found
        assert await turns.find_pending(store.database, HERE, 1) == found[:1]
        await turns.supersede(store.database, chat(0).id, "", running.id)
        assert {conversation for conversation, _ in await turns.find_pending(store.database, HERE)} == {
            chat(number).id for number in range(3)
        }


async def test_only_the_given_accounts_are_found(any_database: str) -> None:
    places = [replace(CHAT, platform=platform, account=account) for platform, account in ACCOUNTS]
    async with opened(any_database) as store:
        for place in places:
            await store.receive(said(to=place))
        found = await turns.find_pending(store.database, [ACCOUNTS[1], ACCOUNTS[2]])
        assert found == [(places[1].id, "slack"), (places[2].id, "webchat")]
        assert await turns.find_pending(store.database, []) == []


async def test_closing_a_session_cancels_its_turn_and_what_waits(any_database: str) -> None:
    async with opened(any_database) as store:
        first = await store.receive(said("taken"))
        turn = await claimed(store)
        await store.receive(said("waiting"))
        assert await sessions.close_session(store.database, first.session_id)
        assert await turns.renew(store.database, [turn], 30) == set(), "its worker is told to stop"
        for new_session in (False, True):
            assert await store.complete(ending(turn, "stale"), follow_with_new_session=new_session) is None
        assert await store.claim(wish()) is None
        assert await turns.find_pending(store.database, HERE) == []
        await store.receive(said("new"))
        assert texts(await claimed(store)) == ["new"]
        assert [(m.text, m.seq, m.status, m.metadata) for m in await store.history(CHAT.id)] == [
            ("taken", 1, "cancelled", {"reason": "closed"}),
            ("waiting", 2, "cancelled", {"reason": "closed"}),
            ("new", 3, "pending", {}),
        ]
    await assert_consistent(any_database)


# Asynchronous commit of the claim.


async def test_only_the_claim_does_not_wait_for_the_disk(any_database: str) -> None:
    async with opened(any_database, pool_size=1) as store, looking(any_database) as connection:
        # The statement after the claim, on the same connection, tells under which setting it was committed.
        await connection.execute("""
            create table seen (what text, setting text);
            create function note() returns trigger language plpgsql as $$ begin
              insert into seen values (tg_argv[0], current_setting('synchronous_commit')); return null; end $$;
            create constraint trigger t after insert on turns deferrable initially deferred
              for each row execute function note('claim');
            create constraint trigger m after insert on messages deferrable initially deferred
              for each row execute function note('message');
        """)
        await store.receive(said())
        turn = await claimed(store)
        await store.complete(ending(turn))
        await store.receive(said())
        seen = [tuple(row) for row in await connection.fetch("select what, setting from seen")]
    assert seen == [("message", "on"), ("claim", "off"), ("message", "on"), ("message", "on")]


# All at once.

CONVERSATIONS = [chat(number) for number in range(20)]


async def test_no_deadlock_and_no_contradiction_when_everything_happens_at_once(database: str) -> None:
    await tell_deadlocks_soon(database)
    async with opened_often(database, 3) as stores:
        for round_ in range(4):
            chance = random.Random(round_)
            await asyncio.gather(*(busy(stores[n % 3], chance) for n in range(200)))
        await turns.recover(stores[0].database, HERE, all_owners=True)
        for address in CONVERSATIONS:
            await answer_all(stores[0], address)
            assert "pending" not in (await statuses(stores[0], address)).values()
    assert await deadlocks(database) == 0
    await assert_consistent(database)


async def busy(store: Store, chance: random.Random) -> None:
    """A short life of one client: it does everything a bridge does, now and then on many conversations at once."""
    address = chance.choice(CONVERSATIONS)
    what = chance.choice(["receive", "receive", "turn", "turn", "turn", "stop", "renew", "close", "say", "new"])
    match what:
        case "receive":
            several = chance.sample(CONVERSATIONS, 5)
            await asyncio.gather(*(store.receive(said(to=each, queue_cap=1000)) for each in several))
        case "stop":
            await turns.supersede(store.database, address.id, "stopped")
        case "close" | "say":
            if (receipt := await store.receive(said(to=address))) and what == "close":
                await sessions.close_session(store.database, receipt.session_id)
            else:
                await sessions.say(store.database, address.id, receipt.session_id, "busy", {"notice": "busy"}, 1)
        case _:
            several = chance.sample(CONVERSATIONS, 8)
            held = [turn for turn in await asyncio.gather(*(store.claim(wish(each)) for each in several)) if turn]
            if what == "renew" and held:
                await turns.renew(store.database, held, 30)
            await asyncio.gather(
                *(store.complete(ending(turn), follow_with_new_session=what == "new") for turn in reversed(held))
            )


async def test_renewing_and_ending_many_turns_at_once_never_deadlocks(database: str) -> None:
    await tell_deadlocks_soon(database)
    async with opened(database) as store:
        for _ in range(15):
            await asyncio.gather(*(store.receive(said(to=each)) for each in CONVERSATIONS))
            held = [
                turn
                for turn in await turns.claim(
                    store.database, [wish(each) for each in CONVERSATIONS], owner="one", lease_seconds=30
                )
                if turn
            ]
            assert len(held) == 20
            endings = [ending(turn) for turn in sorted(held, key=lambda turn: str(turn.id))]
            done, *_ = await asyncio.gather(
                turns.complete(store.database, endings),
                turns.renew(store.database, held, 30),
                turns.renew(store.database, held[::-1], 30),
                turns.recover(store.database, HERE),
                *(store.claim(wish(each)) for each in CONVERSATIONS),
            )
            assert Counter(each is None for each in done) == {False: 20}
    await assert_consistent(database)
