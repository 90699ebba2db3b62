"""The two platforms of a torture run: one knows the keys of what it was sent, the other does not."""

import json
from collections.abc import Mapping, Sequence

import aiohttp

from chat_bridge.model import Address, BusyPolicy, InboundEvent, User
from chat_bridge.platforms import contract
from chat_bridge.platforms.contract import RetryAfter, RetryLater, SendResult, Sent

KEYED, PLAIN = "torture_keyed", "torture_plain"
TIMEOUT = aiohttp.ClientTimeout(total=10, connect=3)


def make_keyed(environment: Mapping[str, str]) -> contract.Platform:
    """The platform that does nothing for a key it has seen."""
    return Torture(contract.Capabilities(KEYED, idempotent_send=True, webhook=True), environment["TORTURE_URL"])


def make_plain(environment: Mapping[str, str]) -> contract.Platform:
    """The platform that shows whatever it gets; here each message is answered alone."""
    alone = BusyPolicy.FOLLOWUP
    return Torture(contract.Capabilities(PLAIN, webhook=True, busy_policy=alone), environment["TORTURE_URL"])


class Torture(contract.Platform):
    """Events come to /webhooks/NAME, one a request; replies go to `url`."""

    account = "torture"

    def __init__(self, capabilities: contract.Capabilities, url: str) -> None:
        self.capabilities = capabilities
        self._url = url
        self._session: aiohttp.ClientSession | None = None

    def events(self, request: contract.WebhookRequest) -> Sequence[InboundEvent]:
        event = json.loads(request.body)
        address = Address(self.capabilities.name, self.account, event["conversation"])
        return [InboundEvent(address, event["key"], User("somebody"), event["text"], platform_message_id=event["key"])]

    async def send(self, part: contract.OutboundPart) -> SendResult:
        reply = {
            "platform": self.capabilities.name,
            "conversation": part.address.conversation,
            "key": part.idempotency_key,
            "text": part.content.text,
        }
        self._session = self._session or aiohttp.ClientSession(timeout=TIMEOUT)
        try:
            async with self._session.post(f"{self._url}/replies", json=reply) as response:
                if response.status == 200:
                    taken = await response.json()
                    return Sent(taken["id"], duplicate=taken["duplicate"])
                if response.status == 429:
                    return RetryAfter(float(response.headers["Retry-After"]), "HTTP 429")
                return RetryLater(f"HTTP {response.status}", maybe_sent=True)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return RetryLater(f"no connection ({type(error).__name__})")
        except (TimeoutError, aiohttp.ClientError) as error:
            return RetryLater(f"the answer was lost ({type(error).__name__})", maybe_sent=True)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
