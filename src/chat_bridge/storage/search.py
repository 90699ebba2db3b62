"""Full text search: what is asked of the index, and what of the messages is shown.

Newest first, and by nothing else: ids are in the order of time, so that a page ends where the next one begins, whatever
is stored meanwhile. An order by relevance would have to compute it for every message that has the words.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple
from uuid import UUID

from chat_bridge.errors import SlowStatementError
from chat_bridge.model import Address, ConversationId, MessageId, Seq, SessionId
from chat_bridge.storage.postgres import Database, Record, Transaction
from chat_bridge.storage.search_index import (
    DOCUMENT,
    NAME,
    SHOWN,
    SPAN,
    SPAN_BITS,
    SearchError,
    folded,
    in_language,
)
from chat_bridge.storage.text import storable, storable_or_none

SEARCH_SECONDS = 5
MOST_WORDS = 32
_TRIES = 3

# Each word or phrase as PostgreSQL's language has it, and as it stands: a prefix of a word is often none of its stem.
_WORDS = f"""select
  phraseto_tsquery('pg_catalog.LANGUAGE'::regconfig, folded)::text as stemmed,
  phraseto_tsquery('pg_catalog.simple'::regconfig, folded)::text as plain
from unnest($1::text[]) with ordinality as w (word, ord)
cross join lateral (select {folded("word")} as folded) f
order by ord"""  # noqa: S608 - of our own parts

# "is true" hides a condition from other indexes: one of those alone would leave most of the work to computing what the
# index has in it. Without that index nothing is read, for it may be gone since it was looked up.
_FIND = f"""select
  messages.id, messages.seq, messages.conversation_id, messages.session_id, messages.direction, messages.created_at,
  messages.sender_id, u.display_name, left({SHOWN}, 10000) as shown,
  s.platform, s.account, s.platform_conversation_id, s.thread
from (
  select *
  from messages
  where content_type = 'text' and {DOCUMENT} @@ $1::text::tsquery
    and ($2::text[] is null or {SPAN} && $2)
    and (id >= $3::uuid) is true and (id < $4::uuid) is true
    and ($5::uuid[] is null or conversation_id = any ($5))
    and ($6::uuid is null or (session_id = $6) is true)
    and ($7::text is null or direction = $7)
    and ($8::timestamptz is null or created_at >= $8)
    and ($9::timestamptz is null or created_at < $9)
    and ($10::text is null and $11::text is null or exists (
      select from sessions s
      where s.conversation_id = messages.conversation_id and s.id = messages.session_id
        and ($10 is null or s.platform = $10) and ($11 is null or s.account = $11)
    ))
    and ($12::text is null or sender_id = $12 or exists (
      select from sessions s
      join users u on u.platform = s.platform and u.account = s.account and u.platform_user_id = messages.sender_id
      where s.conversation_id = messages.conversation_id and s.id = messages.session_id
        and (lower(u.display_name) = lower($12) or lower(u.username) = lower(ltrim($12, '@')))
    ))
    and exists (select from pg_index where indexrelid = $13 and indisvalid)
  order by id desc
  limit $14
) messages
join sessions s on s.conversation_id = messages.conversation_id and s.id = messages.session_id
left join users u on u.platform = s.platform and u.account = s.account and u.platform_user_id = messages.sender_id
order by messages.id desc"""  # noqa: S608 - of our own parts

_MATCHING = f"""select word
from unnest($1::text[]) as w (word)
where to_tsvector('pg_catalog.LANGUAGE'::regconfig, {folded("word")}) @@ $2::text::tsquery"""  # noqa: S608 - of our own parts

_PART = re.compile(r'(-?)(?:"([^"]*)(?:"|$)|([^\s"]+))')
_QUOTES = str.maketrans("“”„«»", '"""""')
_FOLLOWED_BY = re.compile(r" <(?:-|\d+)> ")
_WORD = re.compile(r"[^\W_](?:[^\W_]|[\u0300-\u036f])*")
_SNIPPET, _BEFORE = 200, 40

# How many spans of three days are looked at together: most searches end in the first, and a word that nearly all
# messages have must not make the server read all of them.
_STEPS = (2, 16, 128)
_SLACK = timedelta(days=1)  # the clock in an id is of the process that made it


class SearchOffError(SearchError):
    """There is no index to search in."""

    def __init__(self) -> None:
        super().__init__(
            "search is off, or its index is not built yet: `chat-bridge search-index on` builds it, "
            "`chat-bridge search-index status` tells how far it is"
        )


@dataclass(frozen=True, slots=True)
class SearchFilter:
    """Where to search; None means everywhere. `person` is a platform's id, a user name or a shown name; `before` the
    last message of the page before."""

    before: MessageId | None = None
    platform: str | None = None
    account: str | None = None
    conversation: str | None = None
    conversation_id: ConversationId | None = None
    session_id: SessionId | None = None
    person: str | None = None
    direction: Literal["inbound", "outbound"] | None = None
    since: datetime | None = None
    until: datetime | None = None


class Piece(NamedTuple):
    """A piece of a text. `match`: it is a word that was searched for."""

    text: str
    match: bool


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that was found, and what of its text to show."""

    id: MessageId
    seq: Seq
    conversation_id: ConversationId
    session_id: SessionId
    address: Address
    direction: Literal["inbound", "outbound"]
    created_at: datetime
    sender_id: str | None
    sender_name: str | None
    snippet: Sequence[Piece]


class Page(NamedTuple):
    """Messages, newest first. `more`: there are others, before the last one."""

    hits: Sequence[Hit]
    more: bool


@dataclass(frozen=True, slots=True)
class Question:
    """What to search for, as PostgreSQL understands it. `any_word` finds the words to show as found."""

    matches: str
    any_word: str


class _Term(NamedTuple):
    text: str
    negative: bool
    prefix: bool


async def search(database: Database, query: str, wanted: SearchFilter, limit: int) -> Page:
    """The newest messages that have all words of the query: `word`, `prefix*`, `"a phrase"`, `-not this`. Raises
    SearchError."""
    terms = _terms(query)
    try:
        # The server's limit is one of each statement, and it ends even if nobody waits for it any more.
        async with asyncio.timeout(SEARCH_SECONDS):
            for _ in range(_TRIES):
                async with database.transaction() as transaction:
                    await transaction.fetch("search_limits", f"{SEARCH_SECONDS}s")
                    index = await _index(transaction)
                    question = await _question(transaction, index["language"], terms)
                    rows = await _find(transaction, index, question, wanted, limit + 1)
                    # Without its index a search finds nothing: with another language there is a new one.
                    if len(rows) > limit or (await _index(transaction))["id"] == index["id"]:
                        matching = await _matching(transaction, index["language"], question, rows[:limit])
                        return Page([_hit(row, matching) for row in rows[:limit]], len(rows) > limit)
    except (SlowStatementError, TimeoutError) as error:
        raise SearchError(
            f"this would take longer than {SEARCH_SECONDS} s, as so many messages have these words: search for more "
            "words, in one conversation or in less time (since, until)"
        ) from error
    raise SearchOffError


async def _index(transaction: Transaction) -> Record:
    rows = await transaction.fetch("search_index", NAME)
    if not rows:
        raise SearchOffError
    return rows[0]


def _terms(query: str) -> Sequence[_Term]:
    terms: list[_Term] = []
    for minus, phrase, word in _PART.findall(storable(query).translate(_QUOTES)):
        terms.append(_Term((phrase or word).rstrip("*"), bool(minus), not phrase and word.endswith("*")))
    if len(terms) > MOST_WORDS:
        raise SearchError(f"too many words to search for: {MOST_WORDS} are the most")
    return terms


async def _question(transaction: Transaction, language: str, terms: Sequence[_Term]) -> Question:
    """Put together from what PostgreSQL made of each term, where every word is in quotation marks; never from what
    somebody wrote."""
    rows = await transaction.run(in_language(_WORDS, language), [term.text for term in terms])
    having, without = list[str](), list[str]()
    for term, row in zip(terms, rows, strict=True):
        forms = dict.fromkeys((f"{row['stemmed']}:*", f"{row['plain']}:*") if term.prefix else (row["stemmed"],))
        if known := [form for form in forms if form not in ("", ":*")]:
            (without if term.negative else having).append(f"({' | '.join(known)})")
    if not having:
        raise SearchError(
            "there is nothing to search for: give at least one word without a minus, of letters or digits"
            + ("" if language == "simple" else f", that is more than a filler in the language {language}")
        )
    matches = " & ".join([*having, *(f"!{each}" for each in without)])
    return Question(matches, _FOLLOWED_BY.sub(" | ", " | ".join(having)))


async def _find(
    transaction: Transaction, index: Record, question: Question, wanted: SearchFilter, limit: int
) -> Sequence[Record]:
    conversations = await _conversations(transaction, wanted)
    if conversations is not None and not conversations:
        return []
    statement = in_language(_FIND, index["language"])
    rows: list[Record] = []
    for spans, lowest, highest in _steps(wanted):
        rows += await transaction.run(
            statement, question.matches, spans, lowest, highest, conversations, wanted.session_id, wanted.direction,
            wanted.since, wanted.until, storable_or_none(wanted.platform), storable_or_none(wanted.account),
            storable_or_none(wanted.person), index["id"], limit - len(rows),
        )  # fmt: skip
        if len(rows) == limit:
            break
    return rows


async def _conversations(transaction: Transaction, wanted: SearchFilter) -> Sequence[ConversationId] | None:
    """Where to search, by the index on conversations; None: everywhere."""
    if wanted.session_id is None and wanted.conversation is None:
        return None if wanted.conversation_id is None else [wanted.conversation_id]
    rows = await transaction.fetch(
        "search_conversations",
        wanted.session_id,
        storable_or_none(wanted.conversation),
        storable_or_none(wanted.platform),
        storable_or_none(wanted.account),
        wanted.conversation_id,
    )
    return [row["conversation_id"] for row in rows]


def _steps(wanted: SearchFilter) -> Sequence[tuple[Sequence[str] | None, UUID, UUID]]:
    """The spans of time to search, newest first, each with its lowest id and the one it ends before."""
    now = datetime.now(UTC)
    highest = _first_id(min(wanted.until or now, now), _SLACK).int
    if wanted.before is not None:
        highest = min(highest, wanted.before.int)
    lowest = 0 if wanted.since is None else _first_id(wanted.since, -_SLACK).int
    steps: list[tuple[Sequence[str] | None, UUID, UUID]] = []
    for size in _STEPS:
        if highest <= lowest:
            break
        newest = highest - 1 >> SPAN_BITS
        oldest = max(lowest >> SPAN_BITS, newest - size + 1, 0)
        spans = [f"{number:05x}" for number in range(oldest, newest + 1)]
        start = max(lowest, oldest << SPAN_BITS)
        steps.append((spans, UUID(int=start), UUID(int=highest)))
        highest = start
    if highest > lowest:
        steps.append((None, UUID(int=lowest), UUID(int=highest)))
    return steps


def _first_id(moment: datetime, later: timedelta) -> UUID:
    """The lowest id of a message of this time."""
    milliseconds = int((moment.timestamp() + later.total_seconds()) * 1000)
    return UUID(int=min(max(milliseconds, 0), 2**48 - 1) << 80)


async def _matching(
    transaction: Transaction, language: str, question: Question, rows: Sequence[Record]
) -> frozenset[str]:
    """The words of these texts that were searched for."""
    words = {word for row in rows for word in _WORD.findall(row["shown"])}
    found = await transaction.run(in_language(_MATCHING, language), list(words), question.any_word)
    return frozenset(row["word"] for row in found)


def _hit(row: Record, matching: frozenset[str]) -> Hit:
    return Hit(
        id=row["id"],
        seq=row["seq"],
        conversation_id=row["conversation_id"],
        session_id=row["session_id"],
        address=Address(row["platform"], row["account"], row["platform_conversation_id"], row["thread"]),
        direction=row["direction"],
        created_at=row["created_at"],
        sender_id=row["sender_id"],
        sender_name=row["display_name"],
        snippet=_snippet(row["shown"], matching),
    )


def _snippet(text: str, matching: frozenset[str]) -> Sequence[Piece]:
    """The part of a text that has the most of the words, in pieces."""
    places = [place.span() for place in _WORD.finditer(text) if place[0] in matching]
    start = best = 0
    for number, (begin, _) in enumerate(places):
        near = sum(1 for other, _ in places[number : number + 20] if other < begin + _SNIPPET - _BEFORE)
        if near > best:
            start, best = begin, near
    start = 0 if start <= _BEFORE else text.find(" ", start - _BEFORE, start) + 1 or start
    end = start + _SNIPPET
    end = len(text) if end >= len(text) else text.rfind(" ", end - _BEFORE, end) + 1 or end
    pieces = [Piece("…", match=False)] if start else []
    at = start
    for begin, finish in places:
        if begin >= start and finish <= end:
            pieces += [Piece(text[at:begin], match=False), Piece(text[begin:finish], match=True)]
            at = finish
    pieces += [Piece(text[at:end], match=False), Piece("…" if end < len(text) else "", match=False)]
    return [Piece(" ".join(re.split(r"\s+", piece.text)), piece.match) for piece in pieces if piece.text]
