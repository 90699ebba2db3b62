"""The figures of what waits, and that they cost little however much there is."""

from chat_bridge.model import TurnOutcome
from chat_bridge.storage import dead_letters
from chat_bridge.storage.figures import Figures, read_figures
from chat_bridge.storage.outbox import DeliveryResult
from tests.storage.dialogue import chat, claimed, ending, looking, opened, replied, said
from tests.storage.test_plans import buffers, filled, nodes, plan

QUIET = Figures(0, 0.0, 0, 0.0, 0.0, 0, 0)


async def test_where_nothing_waits_there_is_nothing(any_database: str) -> None:
    async with opened(any_database) as store:
        assert await read_figures(store.database) == QUIET
        delivery = await replied(store)
        assert delivery is not None
        await store.finish_delivery(DeliveryResult(delivery, "sent"))
        assert await read_figures(store.database) == QUIET


async def test_conversations_that_wait_without_a_turn(database: str) -> None:
    async with opened(database) as store, looking(database) as connection:
        for name in ("a", "b", "c"):
            await store.receive(said(to=chat(name)))
        await claimed(store, chat("c"))
        await connection.execute(
            "update sessions set pending_since = now() - interval '1 hour' where platform_conversation_id = 'chat-b'"
        )
        figures = await read_figures(store.database)
    assert figures.waiting == 2
    assert 3600 <= figures.waiting_seconds < 7200


async def test_parts_that_are_not_sent(database: str) -> None:
    async with opened(database) as store, looking(database) as connection:
        await replied(store, chat("a"), parts=3)
        figures = await read_figures(store.database)
        assert (figures.outbox, figures.overdue_seconds) == (3, 0.0)
        await connection.execute(
            """update deliveries set give_up_at = give_up_at - interval '3 hours',
            next_attempt_at = now() - interval '1 hour' where part = 1"""
        )
        figures = await read_figures(store.database)
    assert 3 * 3600 <= figures.outbox_seconds < 4 * 3600
    assert 3600 <= figures.overdue_seconds < 7200


async def test_dead_letters_until_somebody_handles_them(database: str) -> None:
    async with opened(database) as store:
        delivery = await replied(store, chat("a"))
        assert delivery is not None
        await store.finish_delivery(DeliveryResult(delivery, "failed", error="refused"))
        received = await store.receive(said(to=chat("b")))
        turn = await claimed(store, chat("b"))
        await store.complete(ending(turn, "sorry", TurnOutcome.ERROR, parts=0))
        figures = await read_figures(store.database)
        assert (figures.dead_replies, figures.dead_messages) == (1, 1)
        for message in (delivery.message_id, received.message_id):
            assert await dead_letters.purge(store.database, message)
        figures = await read_figures(store.database)
        assert (figures.dead_replies, figures.dead_messages) == (0, 0)


async def test_no_table_is_read_whole(database: str) -> None:
    async with filled(database) as connection:
        found = await plan(connection, "figures", 10_000)
    scanned = {node["Relation Name"] for node in nodes(found) if node["Node Type"] == "Seq Scan"}
    assert scanned <= {"waiting"}  # it has only what waits
    assert buffers(found) < 100
