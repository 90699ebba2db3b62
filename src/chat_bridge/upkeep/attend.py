"""Attend to the platforms: connect to each at the start, again while it can't be reached, and ask those that have to
be asked for their events. Of all processes one asks a platform; when it dies, another takes over."""

import asyncio
from collections.abc import Mapping

from uuid_utils.compat import uuid7

from chat_bridge.errors import SettingsError, StorageError
from chat_bridge.platforms.contract import Deliver, MisconfiguredError, Platform, UnreachableError
from chat_bridge.storage import leases
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import log

FIRST_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 60.0


class Attendance:
    """The platforms of this process. `states` tells of each whether it is connected, for people."""

    def __init__(self, store: Store, platforms: Mapping[str, Platform], deliver: Deliver, lease_seconds: float) -> None:
        self._store = store
        self._platforms = platforms
        self._deliver = deliver
        self._lease_seconds = lease_seconds
        self._owner = f"{store.owner}:{uuid7()}"
        self.states: dict[str, str] = dict.fromkeys(platforms, "not connected yet")

    async def begin(self) -> None:
        """Connect to every platform once. One that can't be reached is tried again by `run`. Raises SettingsError for
        one that refuses what is set."""
        await asyncio.gather(*(self._begin(name) for name in self._platforms))

    async def _begin(self, name: str) -> None:
        if (refusal := await self._try_to_connect(name, FIRST_SECONDS)) is not None:
            raise SettingsError(refusal)

    async def _try_to_connect(self, name: str, seconds: float) -> str | None:
        """Connect, and note what came of it; what a platform refuses is given back too."""
        try:
            async with asyncio.timeout(seconds):
                await self._platforms[name].connect()
        except MisconfiguredError as error:
            self._not_connected(name, str(error))
            return str(error)
        except UnreachableError as error:
            self._not_connected(name, str(error))
        except TimeoutError:
            self._not_connected(name, f"no answer within {seconds:g} s")
        except Exception as error:  # noqa: BLE001 - one adapter must not stop the others
            self._not_connected(name, type(error).__name__)
        else:
            self.states[name] = "ok"
        return None

    async def run(self) -> None:
        """Attend for ever."""
        async with asyncio.TaskGroup() as group:
            for name, platform in self._platforms.items():
                group.create_task(self._attend(name, platform), name=f"attend:{name}")
            await asyncio.Event().wait()  # though none may have to be asked

    async def _attend(self, name: str, platform: Platform) -> None:
        pause = 1.0
        while self.states[name] != "ok":
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            await self._try_to_connect(name, LONGEST_PAUSE_SECONDS)
        while platform.polls:
            await self._poll_in_turn(f"poll:{name}:{platform.account}", platform)
            await asyncio.sleep(self._lease_seconds / 3)

    def _not_connected(self, name: str, reason: str) -> None:
        self.states[name] = reason
        log.warning("platform.not_connected", platform=name, reason=reason, effect="it is tried again")

    async def _poll_in_turn(self, lease: str, platform: Platform) -> None:
        """Poll for as long as the lease is ours; return when it is another's."""
        database, seconds = self._store.database, self._lease_seconds
        try:
            if not await leases.take(database, lease, self._owner, seconds):
                return
        except StorageError as error:
            log.warning("poll.no_lease", platform=platform.capabilities.name, reason=str(error))
            return
        log.info("poll.began", platform=platform.capabilities.name)
        polling = asyncio.create_task(platform.poll(self._deliver), name=lease)
        try:
            await self._hold(lease, polling)
        finally:
            polling.cancel()
            await asyncio.wait([polling])
            if not polling.cancelled() and (error := polling.exception()) is not None:
                log.error("poll.crashed", platform=platform.capabilities.name, exc_info=error)
            await self._release(lease)

    async def _hold(self, lease: str, polling: asyncio.Task[None]) -> None:
        """Renew the lease until it is lost or the polling ends."""
        loop = asyncio.get_running_loop()
        trusted_until = loop.time() + self._lease_seconds
        pause = self._lease_seconds / 3
        while not (await asyncio.wait([polling], timeout=pause))[0]:
            pause = self._lease_seconds / 3
            asked_at = loop.time()
            try:
                # So that there is time for another try, on another connection.
                async with asyncio.timeout(self._lease_seconds / 4):
                    if not await leases.take(self._store.database, lease, self._owner, self._lease_seconds):
                        log.warning("poll.lost", lease=lease)
                        return
                trusted_until = asked_at + self._lease_seconds
            except (StorageError, TimeoutError) as error:
                log.warning("poll.renewal_failed", lease=lease, reason=str(error) or "no answer in time")
                pause = self._lease_seconds / 12
                if loop.time() >= trusted_until:
                    return

    async def _release(self, lease: str) -> None:
        try:
            await leases.release(self._store.database, lease, self._owner)
        except StorageError as error:
            log.warning("poll.not_released", lease=lease, reason=str(error))
