"""The metrics of a running bridge, as Prometheus reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Scrape:
    """What one look at /metrics gave."""

    families: Sequence[Metric]

    def value(self, name: str, **labels: str) -> float:
        """The value of the one sample with this name and exactly these labels."""
        (found,) = [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        return found


async def scraped(url: str) -> Scrape:
    """Look at a bridge's metrics."""
    async with aiohttp.ClientSession(url) as http, http.get("/metrics") as response:
        assert response.status == 200
        return Scrape(list(text_string_to_metric_families(await response.text())))
