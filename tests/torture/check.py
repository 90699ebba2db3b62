"""The checker: which promises the record of a run breaks, with examples. It knows nothing of the bridge's code."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from tests.torture.adapters import KEYED
from tests.torture.record import Record, Reply, Turn

T = TypeVar("T")
SAME_MOMENT = 0.02  # seconds; a turn takes its times just before its row changes


def stored_once(record: Record) -> Iterator[str]:
    """Every event that was acknowledged is stored, and no event twice."""
    stored = Counter((message.conversation, message.key) for message in record.messages)
    for event in record.events:
        if event.acknowledged is None:
            yield f"{event.text} was never acknowledged"
        elif stored[event.conversation, event.key] == 0:
            yield f"{event.text} was acknowledged, but is not stored"
    for (conversation, key), count in stored.items():
        if count > 1:
            yield f"{conversation}: {key} is stored {count} times"


def all_final(record: Record) -> Iterator[str]:
    """Every message is answered, or failed or skipped with a reason."""
    for message in record.messages:
        if message.status == "accepted" and not message.passed:
            yield f"{message.text} still waits"
        elif message.status != "accepted" and not message.reason:
            yield f"{message.text} is {message.status}, but no reason is stored"


def one_reply(record: Record) -> Iterator[str]:
    """Every answered message has one done turn, which has one stored reply, which is to the messages of that turn."""
    replies = grouped(record.replies, lambda reply: reply.turn or "")
    done = grouped((turn for turn in record.turns if turn.status == "done"), lambda turn: turn.conversation)
    taken: dict[str, list[str]] = defaultdict(list)
    for message in record.messages:
        if message.status == "accepted" and message.passed:
            turns = [turn for turn in done[message.conversation] if turn.first_seq <= message.seq <= turn.last_seq]
            if len(turns) != 1:
                yield f"{message.text} was answered by {len(turns)} turns"
            for turn in turns:
                taken[turn.id].append(message.text)
        if message.status == "failed":
            for turn in done[message.conversation]:
                if turn.first_seq <= message.seq <= turn.last_seq:
                    yield f"{message.text} is failed, and was answered by {told(turn)}"
    for turn in record.turns:
        stored = replies[turn.id]
        if len(stored) > 1 or (not stored and turn.status == "done") or (stored and turn.status == "superseded"):
            yield f"{told(turn)} has {len(stored)} replies"
        if turn.outcome == "answered":
            for reply in stored:
                if reply.text != (right := f"answer to {' '.join(taken[turn.id])}"):
                    yield f"{told(turn)} said {reply.text!r} and not {right!r}"


def one_id(record: Record) -> Iterator[str]:
    """The agent got a message under one id, however often it got it."""
    for text, heard in grouped(record.heard, lambda each: each.text).items():
        if len({each.id for each in heard}) > 1:
            yield f"the agent got {text} under {len({each.id for each in heard})} ids"


def in_order(record: Record) -> Iterator[str]:
    """Messages are stored as they came, turns take them in this order, and replies are stored and shown in it."""
    seq = {(message.conversation, message.key): message.seq for message in record.messages}
    for conversation, events in grouped(record.events, lambda event: event.conversation).items():
        known = [event for event in events if (conversation, event.key) in seq]
        for one in known:
            for other in known:
                after = one.acknowledged is not None and other.first_sent > one.acknowledged
                if after and seq[conversation, other.key] < seq[conversation, one.key]:
                    yield f"{other.text} was sent after {one.text} was acknowledged, but is stored before it"
    turns = {turn.id: turn for turn in record.turns}
    ended = [turn for turn in record.turns if turn.status in ("done", "failed")]
    for in_conversation in grouped(ended, lambda turn: turn.conversation).values():
        for one, other in pairwise(sorted(in_conversation, key=lambda turn: turn.started)):
            if other.first_seq <= one.last_seq:
                yield f"{told(other)} began after {told(one)}"
    for replies in grouped(record.replies, lambda reply: reply.conversation).values():
        of_turns = [(reply, turns[reply.turn]) for reply in by_seq(replies) if reply.turn in turns]
        for (one, first), (other, second) in pairwise(of_turns):
            if second.first_seq <= first.last_seq:
                yield f"{other.text!r} is stored after {one.text!r}"
    yield from shown_in_order(record)


def shown_in_order(record: Record) -> Iterator[str]:
    """The platform took replies, each the first time, in the order in which they are stored."""
    seq = {reply.key: reply.seq for reply in record.replies}
    for taken in grouped(record.taken, lambda each: each.conversation).values():
        first = list({each.key: each for each in sorted(taken, key=lambda each: each.at, reverse=True)}.values())
        known = sorted((each for each in first if each.key in seq), key=lambda each: each.at)
        for one, other in pairwise(known):
            if seq[other.key] < seq[one.key]:
                yield f"{other.text!r} was shown after {one.text!r}"


def one_turn_at_a_time(record: Record) -> Iterator[str]:
    """No turn of a conversation begins before the one before it has ended."""
    for turns in grouped(record.turns, lambda turn: turn.conversation).values():
        for one, other in pairwise(sorted(turns, key=lambda turn: turn.started)):
            if one.finished is None or other.started < one.finished - SAME_MOMENT:
                yield f"{told(one)} and {told(other)} ran at the same time"


def delivered(record: Record) -> Iterator[str]:
    """What is marked sent has arrived, as it is stored; what has arrived was stored; a message has one reply to see."""
    arrived = grouped(record.taken, lambda each: each.key)
    stored = {reply.key: reply for reply in record.replies}
    for reply in record.replies:
        if reply.status == "sent" and not arrived[reply.key]:
            yield f"{reply.text!r} in {reply.conversation} is marked as sent, but never arrived"
    for taken in record.taken:
        reply = stored.get(taken.key)
        if reply is None:
            yield f"{taken.text!r} arrived in {taken.conversation}, but is not stored"
        elif (reply.conversation, reply.text) != (taken.conversation, taken.text):
            yield f"{taken.text!r} arrived in {taken.conversation} with the key of {reply.text!r}"
    shown = [each for each in record.taken if each.platform == KEYED and not each.duplicate]
    for key, count in Counter(each.key for each in shown).items():
        if count > 1:
            yield f"the reply with the key {key} was shown {count} times where keys are known"
    answers = {(word, each.key) for each in record.taken for word in each.text.split() if "#" in word}
    for word, count in Counter(word for word, _ in answers).items():
        if count > 1:
            yield f"{word} was answered in {count} replies"


def nothing_stuck(record: Record) -> Iterable[str]:
    """When the faults have ended, all work comes to its end."""
    return record.stuck


PROMISES: Mapping[str, Callable[[Record], Iterable[str]]] = {
    "acknowledged messages are stored, once": stored_once,
    "every message has a final state": all_final,
    "one reply to each message": one_reply,
    "the agent knows a message by one id": one_id,
    "nothing is out of order": in_order,
    "one running turn at most": one_turn_at_a_time,
    "replies are delivered, once by key": delivered,
    "nothing is stuck": nothing_stuck,
}


def check(record: Record) -> Mapping[str, Sequence[str]]:
    """How each promise was broken; nothing where it was kept."""
    return {promise: list(broken(record)) for promise, broken in PROMISES.items()}


def shown_twice(record: Record) -> int:
    """How often the platform without keys showed a reply again: not promised never to happen, but counted."""
    taken = [each.key for each in record.taken if each.platform != KEYED]
    return len(taken) - len(set(taken))


def told(turn: Turn) -> str:
    """A turn in words."""
    return f"turn {turn.id[-6:]} ({turn.status}) for {turn.conversation} {turn.first_seq}..{turn.last_seq}"


def by_seq(replies: Sequence[Reply]) -> Sequence[Reply]:
    """In the order in which they are stored."""
    return sorted(replies, key=lambda reply: reply.seq)


def grouped(items: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    """The items by key, in their order; a key without items has none."""
    groups: dict[str, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
