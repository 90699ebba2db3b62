"""The words of the bridge and of its page, in every language."""

import re
from collections.abc import Mapping

import pytest

from chat_bridge.bridge.resolve import COMMANDS, DECISIONS
from chat_bridge.model import TurnOutcome
from chat_bridge.texts import TEXTS, Texts
from chat_bridge.web.page_texts import PAGE_TEXTS


def placeholders(text: str) -> set[str]:
    return set(re.findall(r"\{\w*\}", text))


@pytest.mark.parametrize("texts", [TEXTS, PAGE_TEXTS], ids=["bridge", "page"])
@pytest.mark.parametrize("language", TEXTS)
def test_every_language_says_the_same_things(texts: Mapping[str, Mapping[str, str]], language: str) -> None:
    english, other = texts["en"], texts[language]
    assert other.keys() == english.keys()
    for name, text in other.items():
        assert text.strip() == text != ""
        assert placeholders(text) == placeholders(english[name]), name


def test_there_is_a_text_for_each_failure_and_command() -> None:
    failures = {outcome.value for outcome in TurnOutcome if outcome.turn_status == "failed"}
    assert failures | {"empty", "blocked", "truncated", "approval"} <= TEXTS["en"].keys()
    assert {command.removeprefix("/") for command in COMMANDS - DECISIONS - {"/stop"}} <= TEXTS["en"].keys()


def test_help_names_every_command() -> None:
    for texts in TEXTS.values():
        assert {word for word in COMMANDS if word in texts["help"]} == COMMANDS - DECISIONS - {"/start"}
        assert {word for word in DECISIONS if word in texts["approval_commands"]} == DECISIONS


def test_own_words_come_first() -> None:
    texts = Texts("vi", {"stopped": "Thôi!", "status": "{agent}: {messages} {unknown}"})
    assert texts.say("stopped") == "Thôi!"
    assert texts.say("status", agent="echo", messages=3, began="now") == "echo: 3 {unknown}"
    assert texts.say("busy") == TEXTS["vi"]["busy"]
