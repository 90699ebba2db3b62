"""What stops a turn that is being answered."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from chat_bridge.bridge.claim import Running, StopReason
from chat_bridge.model import Address, MessageId, PendingMessage, Seq, SessionId, Turn, TurnId

CHAT = Address("telegram", "7", "42")


def running(*seqs: int, is_command: bool = False) -> Running:
    """A turn that has taken these messages."""
    messages = [
        PendingMessage(
            MessageId(uuid4()), Seq(seq), "ada", None, "hi", (), datetime.now(UTC), {}, is_command=is_command
        )
        for seq in seqs
    ]
    return Running(Turn(TurnId(uuid4()), CHAT.id, SessionId(uuid4()), CHAT, "ada", messages, {}), 0.0)


@pytest.mark.parametrize(
    ("before", "reason", "holding", "stopped"),
    [
        (6, "cancelled", None, True),
        (5, "cancelled", None, False),  # the turn has newer messages than the word to stop is about
        (99, "superseded", 4, True),
        (99, "superseded", 6, False),  # an edit of a message that this turn does not have
    ],
)
def test_a_word_to_stop_is_about_some_messages(
    before: int, reason: StopReason, holding: int | None, stopped: bool
) -> None:
    turn = running(3, 4, 5)
    turn.stop_if(Seq(before), reason, None if holding is None else Seq(holding))
    assert turn.stopped == (reason if stopped else None)


@pytest.mark.parametrize(("reason", "stopped"), [("superseded", False), ("cancelled", True), ("lost", True)])
def test_a_command_is_not_superseded(reason: StopReason, stopped: bool) -> None:
    turn = running(3, is_command=True)
    turn.stop_if(Seq(99), reason, None)
    assert (turn.stopped is not None) == stopped
