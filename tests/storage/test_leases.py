"""Leases: one owner at a time, by the database's clock."""

import asyncio

from chat_bridge.storage import leases
from tests.storage.dialogue import looking, opened, opened_often

MINUTE = 60.0


async def test_a_lease_has_one_owner_who_can_renew_it(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        assert await leases.take(store.database, "poll", "one", MINUTE)
        assert not await leases.take(store.database, "poll", "two", MINUTE)
        until = await connection.fetchval("select lease_until from leases")
        assert await leases.take(store.database, "poll", "one", 2 * MINUTE), "renewed"
        assert await connection.fetchval("select lease_until from leases") > until
        assert not await leases.take(store.database, "poll", "two", MINUTE)
        assert await leases.take(store.database, "another", "two", MINUTE)


async def test_a_lease_that_ran_out_is_the_next_ones_and_not_renewed_any_more(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        assert await leases.take(store.database, "poll", "one", MINUTE)
        await connection.execute("update leases set lease_until = clock_timestamp() - interval '1 ms'")
        assert await leases.take(store.database, "poll", "two", MINUTE)
        assert not await leases.take(store.database, "poll", "one", MINUTE), "it came back too late"
        assert await connection.fetchval("select owner from leases") == "two"


async def test_the_clock_of_the_database_decides(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        assert await leases.take(store.database, "poll", "one", MINUTE)
        assert await connection.fetchval(
            "select lease_until between now() + interval '50 s' and now() + interval '60 s' from leases"
        )
        # An owner of whom nothing was heard may come back, while nobody else wanted it.
        await connection.execute("update leases set lease_until = clock_timestamp() - interval '1 hour'")
        assert await leases.take(store.database, "poll", "one", MINUTE)
        assert not await leases.take(store.database, "poll", "two", MINUTE)


async def test_a_lease_is_given_back_by_its_owner_only(any_database: str) -> None:
    async with opened(any_database) as store:
        await leases.release(store.database, "poll", "one")
        assert await leases.take(store.database, "poll", "one", MINUTE)
        await leases.release(store.database, "poll", "two")
        assert not await leases.take(store.database, "poll", "two", MINUTE)
        await leases.release(store.database, "poll", "one")
        assert await leases.take(store.database, "poll", "two", MINUTE)


async def test_of_many_who_want_it_at_once_one_gets_it(any_database: str) -> None:
    async with opened_often(any_database, 4) as stores, looking(any_database) as connection:

        async def rush() -> list[int]:
            taken = await asyncio.gather(
                *(leases.take(stores[n % 4].database, "poll", f"owner-{n}", MINUTE) for n in range(24))
            )
            return [number for number, had in enumerate(taken) if had]

        (first,) = await rush()
        assert await rush() == [first], "a new one and a renewed one look alike to the others"
        await connection.execute("update leases set lease_until = clock_timestamp() - interval '1 ms'")
        (second,) = await rush()
        assert await connection.fetchval("select owner from leases") == f"owner-{second}"
        await leases.release(stores[0].database, "poll", f"owner-{second}")
        assert len(await rush()) == 1
        assert await connection.fetchval("select count(*) from leases") == 1
