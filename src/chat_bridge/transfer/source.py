"""Files to import from: SQLite as it is; JSONL and CSV through a temporary SQLite file, which sorts what does not fit
into memory."""

import csv
import json
import sqlite3
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from chat_bridge.errors import ChatBridgeError
from chat_bridge.storage.text import storable
from chat_bridge.transfer.mapping import READY_MADE, load_mapping
from chat_bridge.transfer.mapping import Mapping as TableMapping
from chat_bridge.transfer.times import moment_of

Row: TypeAlias = dict[str, Any]
Kind: TypeAlias = Literal["sqlite", "jsonl", "csv"]
BATCH, BATCH_SIZE = 2000, 8_000_000  # rows, and bytes in about
_FETCH = 100
_LONGEST_FIELD = 2**27  # characters of a CSV file
_COLUMNS = 200  # of a JSONL or CSV file
_BIG = 2**63  # no integer of SQLite's
_OURS = ("_number", "_problem", "_line")  # columns of a JSONL or CSV file that are not its own
_SESSIONS, _BEGINNINGS = '"chat-bridge sessions"', '"chat-bridge beginnings"'  # no names of their tables
_PLACE, _PLACES = ("platform", "account", "conversation", "thread"), '"chat-bridge places"'
TOO_DEEP = "it is JSON that is nested too deeply"
_NO_SQLITE = "is not a SQLite database; for other files there are `import jsonl` and `import csv`"


@dataclass(frozen=True, slots=True)
class Columns:
    """Of a table: what is read, and what is not."""

    read: Sequence[str]
    left: Sequence[str]


class Source:
    """The rows of a file as a mapping sees them: sessions in the order of time, one after the other."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, mapping: TableMapping, *, staged: bool = False
    ) -> None:
        self._staged = staged
        self.mapping = mapping
        self.path = path
        self._connection = connection
        connection.create_function("moment", 1, moment_of, deterministic=True)
        self._messages = self._columns(mapping.messages_table, mapping.messages, "messages")
        self._sessions: Mapping[str, tuple[str, ...]] = {}
        if mapping.sessions_table is not None:
            self._sessions = self._columns(mapping.sessions_table, mapping.sessions, "sessions")
            if "id" not in self._sessions or "session" not in self._messages:
                self._sessions = {}
        if "id" not in self._messages and not self._has_rowid():
            raise ChatBridgeError(
                f"the mapping {mapping.name} needs an id for {mapping.messages_table}: it has no rowid"
            )

    def count(self) -> int:
        """How many rows there are."""
        return self._value(f"select count(*) from {_quoted(self.mapping.messages_table)}")  # noqa: S608

    def columns(self) -> Mapping[str, Columns]:
        """Of each table, which columns are read and which are not."""
        read = {self.mapping.messages_table: {*chain(*self._messages.values()), *self.mapping.order}}
        if self.mapping.sessions_table is not None:
            read[self.mapping.sessions_table] = {*chain(*self._sessions.values())}
        found: dict[str, Columns] = {}
        for table, wanted in read.items():
            there = table_columns(self._connection, table)
            if self._staged:
                there = [name for name in there if name not in _OURS]
            if there:
                found[table] = Columns(
                    [name for name in there if name in wanted], [name for name in there if name not in wanted]
                )
        return found

    def empty_sessions(self) -> int:
        """How many sessions have no message: there is nothing in them to import."""
        return self._without(self._session_ids, self._message_sessions) if self._sessions else 0

    def orphans(self) -> int:
        """How many rows name a session that has no row."""
        return self._without(self._message_sessions, self._session_ids) if self._sessions else 0

    @property
    def _session_ids(self) -> tuple[str, str]:
        return self.mapping.sessions_table or "", self._sessions["id"][0]

    @property
    def _message_sessions(self) -> tuple[str, str]:
        return self.mapping.messages_table, self._messages["session"][0]

    def _without(self, one: tuple[str, str], other: tuple[str, str]) -> int:
        (table, column), (other_table, other_column) = one, other
        return self._value(
            f"select count(*) from {_quoted(table)} where {_as_text(_quoted(column))} not in "  # noqa: S608
            f"(select {_as_text(_quoted(other_column))} from {_quoted(other_table)} "
            f"where {_quoted(other_column)} is not null)"
        )

    def rows(self) -> Iterator[list[Row]]:
        """All rows, some thousand at a time: values by `messages.FIELD` and `sessions.FIELD`, metadata as a dict."""
        names = [(f"messages.{name}", column) for name, columns in self._messages.items() for column in columns]
        if self._staged:
            names.append(("line", "_line"))
        expressions = [f"m.{_quoted(column)}" for _, column in names]
        names.append(("problem", "_problem"))
        expressions.append(self._problem())
        session_names = [(f"sessions.{name}", column) for name, columns in self._sessions.items() for column in columns]
        expressions += [f"s.{_quoted(f'{name}.{column}')}" for name, column in session_names]
        names += session_names
        cursor = self._connection.execute(self._query([*expressions, f"m.{self._key}"], session_names))
        batch: list[Row] = []
        size = 0
        while found := cursor.fetchmany(_FETCH):
            size += sum(len(value) for values in found for value in values if isinstance(value, (str, bytes)))
            batch += [_row(names, values) for values in found]
            if len(batch) >= BATCH or size >= BATCH_SIZE:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _problem(self) -> str:
        """Why a row can't be imported, or null."""
        of_line = ["m._problem"] if self._staged else []
        own = f"nullif({_as_text(self._of_message('conversation'))}, '')"
        several = f"s.{_PLACES} > 1 and {own} is null"
        reason = f"case when {several} then 'its session has several rows, of different conversations' end"
        known = [*of_line, *([reason] if self._sessions else [])]
        return f"coalesce({', '.join(known)}, null)" if known else "null"

    @property
    def _key(self) -> str:
        return _quoted(*self._messages["id"]) if "id" in self._messages else "rowid"

    def _query(self, expressions: Sequence[str], session_names: Sequence[tuple[str, str]]) -> str:
        """All rows in their order: by conversation, by when the session began, by session."""
        source = f"{_quoted(self.mapping.messages_table)} m"
        tables: list[str] = []
        if self._sessions:
            # Ids are compared as text: one table may have them as numbers, the other as text.
            id_ = f"{_as_text(_quoted(*self._sessions['id']))} as id"
            columns = [f"{_quoted(column)} as {_quoted(f'{name}.{column}')}" for name, column in session_names]
            told = [_as_text(_quoted(*self._sessions[name])) for name in _PLACE if name in self._sessions]
            place = " || char(0) || ".join(f"coalesce({each}, '')" for each in told)
            columns.append(f"count(distinct {place or 1}) as {_PLACES}")
            whence = _quoted(self.mapping.sessions_table or "")
            tables.append(f"{_SESSIONS} as materialized (select {', '.join([id_, *columns])} from {whence} group by 1)")  # noqa: S608
            source += f" left join {_SESSIONS} s on s.id = {_as_text(self._of_message('session'))}"
        session = _as_text(self._of_message("session"))
        own, of_session = _as_text(self._of_message("conversation")), _as_text(self._of_session("conversation"))
        conversation = f"coalesce(nullif({own}, ''), nullif({of_session}, ''), {session}, '')"
        began = _moment(self._of_session("created_at"))
        groups = [began, session]
        if "conversation" in self._messages or "conversation" in self._sessions:
            # A session whose time nothing says began with its first message.
            first = f"min({_moment(self._of_message('created_at'))})"
            named = f"coalesce({session}, '')"
            tables.append(
                f"{_BEGINNINGS} as materialized (select {conversation} as place, {named} as id, {first} as began "  # noqa: S608
                f"from {source} group by 1, 2)"
            )
            source += f" left join {_BEGINNINGS} f on f.place = {conversation} and f.id = {named}"
            groups = [conversation, f"coalesce({began}, f.began)", session]
        query = f"select {', '.join(expressions)} from {source} order by {', '.join([*groups, *self._order()])}"  # noqa: S608
        return f"with {', '.join(tables)} {query}" if tables else query

    def _order(self) -> list[str]:
        """What messages of a session follow each other by."""
        if self.mapping.order:
            return [f"m.{_quoted(column)}" for column in self.mapping.order]
        return [_moment(self._of_message("created_at")), f"m.{'rowid' if self._has_rowid() else self._key}"]

    def _of_message(self, field: str) -> str:
        return f"m.{_quoted(*self._messages[field])}" if field in self._messages else "null"

    def _of_session(self, field: str) -> str:
        return f"s.{_quoted(f'sessions.{field}.{self._sessions[field][0]}')}" if field in self._sessions else "null"

    def _has_rowid(self) -> bool:
        table = self.mapping.messages_table
        if self._connection.execute(
            "select 1 from sqlite_master where type = 'view' and name = ?", (table,)
        ).fetchone():
            return False
        try:
            self._connection.execute(f"select rowid from {_quoted(table)} limit 0")  # noqa: S608
        except sqlite3.OperationalError:
            return False
        return True

    def _columns(self, table: str, wanted: Mapping[str, tuple[str, ...]], where: str) -> Mapping[str, tuple[str, ...]]:
        """The columns to read. Raises ChatBridgeError when the table or a column is not there."""
        there = table_columns(self._connection, table)
        if not there:
            if self.mapping.lenient and where == "sessions":
                return {}
            known = ", ".join(tables(self._connection)) or "none"
            raise ChatBridgeError(
                f"{self.path} has no table {table} for the mapping {self.mapping.name}; it has {known}"
            )
        extra = self.mapping.order if where == "messages" else ()
        missing = {column for columns in (*wanted.values(), extra) for column in columns} - {*there}
        if missing and not self.mapping.lenient:
            raise ChatBridgeError(f"{self.path}: the table {table} has no column {', '.join(sorted(missing))}")
        kept = {name: columns for name, columns in wanted.items() if not missing & {*columns}}
        if where == "messages":
            needed = [("text",), ("direction",) if self.mapping.format == "plain" else (), ("session", "conversation")]
            for names in needed:
                if names and not {*names} & kept.keys():
                    raise ChatBridgeError(
                        f"{self.path}: nothing says what the {' or '.join(names)} of a message is; write a mapping and "
                        "name it with --mapping"
                    )
        return kept

    def _value(self, query: str) -> int:
        return self._connection.execute(query).fetchone()[0]


@contextmanager
def opened(kind: Kind, path: Path, mapping: str | None) -> Generator[Source]:
    """Open a file with a mapping; with none, the one whose tables it has. Raises ChatBridgeError."""
    if not path.is_file():
        raise ChatBridgeError(f"there is no file {path}")
    if kind == "sqlite":
        with closing(_connect(path)) as connection:
            yield Source(connection, path, load_mapping(mapping or _guess(connection, path)))
        return
    with (
        tempfile.TemporaryDirectory(prefix="chat-bridge-import-") as folder,
        closing(sqlite3.connect(Path(folder) / "rows.sqlite", check_same_thread=False)) as connection,
    ):
        _stage(connection, path, kind)
        connection.text_factory = _text
        yield Source(connection, path, load_mapping(mapping or "bridge"), staged=True)


def tables(connection: sqlite3.Connection) -> list[str]:
    """The names of the tables."""
    found = connection.execute("select name from sqlite_master where type in ('table', 'view') order by name")
    return [str(_text(name) if isinstance(name, bytes) else name) for (name,) in found]


def table_columns(connection: sqlite3.Connection, table: str) -> list[str]:
    """The names of a table's columns; none when it is not there."""
    return [name for (name,) in connection.execute("select name from pragma_table_info(?)", (table,))]


def _connect(path: Path) -> sqlite3.Connection:
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\0":
            raise ChatBridgeError(f"{path} {_NO_SQLITE}")
    # Batches are read in threads, one at a time.
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    connection.text_factory = _text
    # Both passes see the same rows, though another program writes meanwhile.
    connection.isolation_level = None
    connection.execute("begin")
    connection.execute("select count(*) from sqlite_master")
    return connection


def _guess(connection: sqlite3.Connection, path: Path) -> str:
    there = set(tables(connection))
    for name in READY_MADE:
        mapping = load_mapping(name)
        if mapping.messages_table in there and (mapping.sessions_table in there or name != "bridge"):
            return name
    if not there:
        raise ChatBridgeError(
            f"{path} has no tables; was it copied without its -wal file? Close the program that writes it, or copy both"
        )
    raise ChatBridgeError(
        f"{path} has the tables {', '.join(sorted(there))}, and no ready-made mapping fits: write one, and "
        "name it with --mapping; docs/operate/import.md shows how"
    )


def _text(raw: bytes) -> str | bytes:
    """Text that is not UTF-8 stays bytes, so that only its own row is refused."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _as_text(expression: str) -> str:
    return f"cast({expression} as text)"


def _moment(expression: str) -> str:
    """A time as a number. Text goes as its bytes, which need not be UTF-8."""
    return f"moment(case typeof({expression}) when 'text' then cast({expression} as blob) else {expression} end)"


def _row(names: Sequence[tuple[str, str]], values: Sequence[Any]) -> Row:
    row: Row = {"key": values[-1]}
    for (name, column), value in zip(names, values[:-1], strict=True):
        if name in row or name.endswith(".metadata"):
            row.setdefault(name, {})[column] = value
        else:
            row[name] = value
    return row


# JSONL and CSV


def _stage(connection: sqlite3.Connection, path: Path, kind: Kind) -> None:
    """Copy a file's rows into tables `messages` and, of our own exports, `sessions`; each row's key is its line's id or
    number."""
    connection.execute("pragma journal_mode = off")
    connection.execute("pragma synchronous = off")
    made = {"messages": _Table(connection, "messages"), "sessions": _Table(connection, "sessions")}
    try:
        with path.open(encoding="utf-8-sig", newline="" if kind == "csv" else None, errors="surrogateescape") as file:
            for number, row in _csv_rows(file) if kind == "csv" else _json_rows(file):
                kind_of_line = row.pop("type") if row.get("type") in ("session", "message") else "message"
                made[f"{kind_of_line}s"].add(number, row)
    except csv.Error as error:
        raise ChatBridgeError(f"{path} can't be read: {error}") from error
    for table in made.values():
        table.flush()
    connection.commit()


def _csv_rows(file: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.DictReader(file, strict=True)
    for row in reader:
        filled = {name: value for name, value in row.items() if value}
        extra = filled.pop(None, None)
        yield reader.line_num, filled | ({"_problem": "it has more fields than the header"} if extra else {})


def _json_rows(file: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        problem = "it is not a JSON object"
        try:
            row = json.loads(line)
        except RecursionError:
            row, problem = None, TOO_DEEP
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield number, cast("dict[str, Any]", row)
        else:
            yield number, {"_problem": problem, "_line": line}


class _Table:
    """A table that gets a column when a row first has it."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._there: set[str] = set()
        self._rows: list[tuple[int, dict[str, Any]]] = []

    def add(self, number: int, row: dict[str, Any]) -> None:
        self._rows.append((number, row))
        if len(self._rows) >= _FETCH:
            self.flush()

    def flush(self) -> None:
        """Write what has come."""
        if not self._rows:
            return
        if not self._there:
            self._connection.execute(f"create table {self._name} (_number integer primary key, _problem, _line)")
            self._there = {"_problem", "_line"}
        names = list(dict.fromkeys(name for _, row in self._rows for name in row))
        for name in names:
            if name not in self._there:
                if len(self._there) >= _COLUMNS:
                    raise ChatBridgeError(f"more than {_COLUMNS} columns: is this a file of messages?")
                self._connection.execute(f"alter table {self._name} add column {_quoted(name)}")
                self._there.add(name)
        columns = "".join(f", {_quoted(name)}" for name in names)
        places = ", ?" * len(names)
        self._connection.executemany(
            f"insert into {self._name} (_number{columns}) values (?{places})",  # noqa: S608
            ([number, *(_plain(row.get(name)) for name in names)] for number, row in self._rows),
        )
        self._rows = []


def _plain(value: object) -> object:
    """A value as SQLite can hold it: what is not text or a number, as JSON; text that was not UTF-8, as its bytes."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            halves = [character for character in value if "\ud800" <= character <= "\udfff"]
            escaped = all("\udc80" <= character <= "\udcff" for character in halves)
            return value.encode(errors="surrogateescape") if escaped else storable(value)
        return value
    if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < _BIG):
        return value
    return json.dumps(value)
