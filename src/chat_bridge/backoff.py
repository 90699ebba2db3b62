"""How long to wait before the next try."""

import random


def backoff(tries: int, first: float, longest: float, factor: float = 2.0) -> float:
    """Seconds: `first` after one try, `factor` times as long after each more, `longest` at the most; spread over the
    upper half, so that many who wait do not come back at once."""
    return random.uniform(0.5, 1.0) * min(longest, first * factor ** min(tries - 1, 20))  # noqa: S311 - it only spreads
