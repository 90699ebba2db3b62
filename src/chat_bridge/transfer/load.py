"""Import: read a file batch by batch, store what is new, then read it again and compare."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from chat_bridge.errors import StatementRefusedError
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.transfer import HistoricMessage, Outcome, store_history
from chat_bridge.transfer.check import Check
from chat_bridge.transfer.formats import BadRowError
from chat_bridge.transfer.report import Report
from chat_bridge.transfer.rows import Converter
from chat_bridge.transfer.source import TOO_DEEP, Kind, Row, Source, opened
from chat_bridge.transfer.trouble import explained

Told = Callable[[str, int, int], None]
"""Hears how far the work is: what is done, so many rows, of so many."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to import. `source` names it in ids: the same name and the same rows are stored once. `values` are the
    platform and account where the rows have none."""

    kind: Kind
    file: Path
    folder: Path
    mapping: str | None = None
    source: str | None = None
    values: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Batch:
    read: int
    messages: Sequence[HistoricMessage]
    rows: Sequence[Row]  # of the messages
    bad: Sequence[tuple[Row, str]]


class Import:
    """One run. It leaves `report.json`, `rejects.jsonl` and `sample.md` in its folder."""

    def __init__(self, wish: Wish, told: Told) -> None:
        self._wish = wish
        self._told = told
        self._source_name = wish.source or wish.file.name

    async def run(self, database: Database | None) -> Report:
        """Import, or (without a database) only look what would be. Raises ChatBridgeError: what is stored stays, and
        another run goes on."""
        with explained(self._wish.file):
            return await self._run(database)

    async def _run(self, database: Database | None) -> Report:
        wish = self._wish
        # Opening reads all of a JSONL or CSV file.
        manager = opened(wish.kind, wish.file, wish.mapping)
        source = await asyncio.to_thread(manager.__enter__)
        try:
            wish.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            report = Report(str(wish.file), self._source_name, source.mapping.name, dry_run=database is None)
            report.rows = await asyncio.to_thread(source.count)
            report.columns = await asyncio.to_thread(source.columns)
            report.orphans = await asyncio.to_thread(source.orphans)
            report.empty_sessions = await asyncio.to_thread(source.empty_sessions)
            with _private(wish.folder / "rejects.jsonl") as rejects:
                await self._store_all(source, database, report, rejects)
            if database is not None:
                await self._check_all(source, database, report)
        finally:
            manager.__exit__(None, None, None)
        report.ended_at = datetime.now(UTC)
        with _private(wish.folder / "report.json") as file:
            json.dump(report.as_json(), file, indent=2, ensure_ascii=False)
        return report

    async def _store_all(self, source: Source, database: Database | None, report: Report, rejects: TextIO) -> None:
        converter = self._converter(source)
        async with aclosing(_batches(source, converter)) as batches:
            async for batch in batches:
                report.read += batch.read
                for row, reason in batch.bad:
                    _reject(report, rejects, row, reason)
                report.count(batch.messages)
                if database is not None:
                    outcome = await _store(database, batch.messages)
                    for number, reason in outcome.refused:
                        _reject(report, rejects, batch.rows[number], reason)
                    report.stored += outcome.stored
                    report.known += outcome.known
                    report.behind |= outcome.behind
                self._told("reading" if database is None else "storing", report.read, report.rows)
        report.notes = converter.notes

    async def _check_all(self, source: Source, database: Database, report: Report) -> None:
        """Read the file once more, and compare every row with what PostgreSQL has."""
        check = Check(database)
        read = 0
        async with aclosing(_batches(source, self._converter(source))) as batches:
            async for batch in batches:
                await check.compare(batch.messages)
                read += batch.read
                self._told("checking", read, report.rows)
        report.check = check.result()
        with _private(self._wish.folder / "sample.md") as file:
            file.write(await check.sample())

    def _converter(self, source: Source) -> Converter:
        written = datetime.fromtimestamp(self._wish.file.stat().st_mtime, UTC)
        return Converter(source.mapping, self._source_name, self._wish.values or {}, written)


async def _batches(source: Source, converter: Converter) -> AsyncGenerator[_Batch]:
    """The file's rows as messages; the next batch is made while PostgreSQL is at the last one."""
    rows = source.rows()
    coming = asyncio.create_task(asyncio.to_thread(_next, rows, converter), name="import.read")
    try:
        # What a thread has begun to read it reads to the end: the file must not be closed under it.
        while (batch := await asyncio.shield(coming)) is not None:
            coming = asyncio.create_task(asyncio.to_thread(_next, rows, converter), name="import.read")
            yield batch
    finally:
        await asyncio.wait([coming])


def _next(rows: Iterator[list[Row]], converter: Converter) -> _Batch | None:
    found = next(rows, None)
    if found is None:
        return None
    messages: list[HistoricMessage] = []
    good: list[Row] = []
    bad: list[tuple[Row, str]] = []
    for row in found:
        try:
            messages.append(converter.message(row))
            good.append(row)
        except BadRowError as error:
            bad.append((row, str(error)))
        except RecursionError:
            bad.append((row, TOO_DEEP))
    return _Batch(len(found), messages, good, bad)


async def _store(database: Database, messages: Sequence[HistoricMessage]) -> Outcome:
    """Store a batch. Of one that PostgreSQL refuses, the halves: so that a bad row fails alone, and a lock that
    somebody held is asked for again."""
    try:
        return await store_history(database, messages)
    except (StatementRefusedError, RecursionError) as error:
        if len(messages) == 1:
            return Outcome(refused=[(0, TOO_DEEP if isinstance(error, RecursionError) else str(error))])
    middle = len(messages) // 2
    first = await _store(database, messages[:middle])
    second = await _store(database, messages[middle:])
    refused = [*first.refused, *((number + middle, reason) for number, reason in second.refused)]
    return Outcome(first.stored + second.stored, first.known + second.known, refused, first.behind | second.behind)


def _reject(report: Report, rejects: TextIO, row: Row, reason: str) -> None:
    report.reject(reason)
    key = row["key"]
    values: dict[str, Any] = {name: value for name, value in row.items() if name != "key" and value is not None}
    json.dump({"key": key, "reason": reason, "row": values}, rejects, ensure_ascii=True, default=repr)
    rejects.write("\n")


def _private(path: Path) -> TextIO:
    """An empty file that only we may read, also where there was one: it holds what people said."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "w", encoding="utf-8", errors="replace")
