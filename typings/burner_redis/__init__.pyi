# The in-process Redis ships no types; it is used as redis.asyncio.Redis is.
from typing import Any

def BurnerRedis() -> Any: ...
