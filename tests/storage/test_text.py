"""What goes into PostgreSQL comes back, but for what it can't hold."""

import json
import math
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_bridge.storage.text import from_jsonb, storable, storable_or_none, to_jsonb
from tests.storage.dialogue import looking

any_text = st.text(st.characters(exclude_categories=()), max_size=40)
scalars = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | any_text
any_json = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4), max_leaves=12
)
with_a_database = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(any_text)
def test_storable_text_is_stable_and_near_the_original(text: str) -> None:
    stored = storable(text)
    assert storable(stored) == stored
    assert "\x00" not in stored
    stored.encode()  # no half of a surrogate pair is left
    if "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text):
        assert stored == text


def test_halves_of_a_pair_find_each_other() -> None:
    assert storable("\ud83d\ude00") == "😀"
    assert storable("a\ud83d") == "a\ufffd"
    assert storable_or_none(None) is None


@with_a_database
@given(text=any_text)
async def test_postgresql_gives_text_back(database: str, text: str) -> None:
    async with looking(database) as connection:
        assert await connection.fetchval("select $1::text", storable(text)) == storable(text)


@with_a_database
@given(value=any_json)
async def test_postgresql_takes_any_json(database: str, value: Any) -> None:
    async with looking(database) as connection:
        stored = from_jsonb(await connection.fetchval("select $1::jsonb", to_jsonb(value)))
    assert plain(stored) == (plain(value) if value else None)


def plain(value: Any) -> Any:
    """The value as JSON can hold it, its numbers as floats: PostgreSQL writes 1e23 as a whole number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def test_empty_values_cost_nothing() -> None:
    assert to_jsonb({}) is to_jsonb([]) is to_jsonb(None) is None
    assert from_jsonb(None) is None


def test_a_number_that_json_does_not_have_becomes_null() -> None:
    text = to_jsonb({"cost": math.nan, "most": math.inf})
    assert text is not None
    assert json.loads(text, parse_constant=lambda name: f"not JSON: {name}") == {"cost": None, "most": None}
