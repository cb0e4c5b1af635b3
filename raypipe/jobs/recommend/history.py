"""A file of what users watched, as blocks of rows as they stand there."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.errors import ConfigError, ObjectError
from raypipe.jobs.recommend.users import ERROR, HISTORY, LINE, LINE_NUMBER, USER_ID
from raypipe.storage import Folder, StoredObject
from raypipe.storage.tables import CsvRow, csv_rows, not_utf8, wrong_length


@dataclass(frozen=True, slots=True)
class HistoryFile:
    """A table of ``user_id`` and ``history``, of one content.

    ``history`` is a list of ids, or a text that ``users.parse_history`` and ``users.other_readings`` read.
    """

    folder: Folder
    name: str
    stored: StoredObject

    @classmethod
    def find(cls, folder: Folder, name: str) -> "HistoryFile":
        """Raises ConfigError where there is no such file."""
        if (stored := folder.stat(name)) is None:
            uri, remedy = folder.child(name), "Give a .parquet, .csv or .jsonl with user_id and history."
            msg = f"There is no history {uri}."
            raise ConfigError(msg, key="history", value=uri, remedy=remedy)
        return cls(folder, name, stored)

    def blocks(self, num_rows: int, *, only_ids: bool = False) -> Iterator[pa.Table]:
        """Yield tables of so many rows, the last one of fewer; ``parse`` reads them.

        Raises:
            ConfigError: the file cannot be read, lacks a column, or is no longer what it was.
        """
        uri = self.folder.child(self.name)
        with self._problems(uri), self.folder.open_input(self.name) as source:
            self._check_same()
            if self.name.lower().endswith(".parquet"):
                yield from _parquet_blocks(source, uri, [USER_ID] if only_ids else [USER_ID, HISTORY], num_rows)
            elif self.name.lower().endswith(".csv"):
                yield from _csv_blocks(source, uri, num_rows)
            else:
                yield from _json_blocks(source, num_rows)
            self._check_same()

    def _check_same(self) -> None:
        if (found := self.folder.stat(self.name)) is None or found.etag != self.stored.etag:
            uri, found_etag = self.folder.child(self.name), found and found.etag
            msg, remedy = f"The history {uri} changed while it was read.", "Run the same command again."
            raise ConfigError(msg, key=uri, value=found_etag, expected=self.stored.etag, remedy=remedy)

    @contextmanager
    def _problems(self, uri: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, ObjectError, OSError, ValueError) as error:
            msg = f"Cannot read the history {uri}: {' '.join(str(error).split())}"
            raise ConfigError(msg, key=uri) from None


def _parquet_blocks(source: BinaryIO, uri: str, columns: list[str], num_rows: int) -> Iterator[pa.Table]:
    file = pq.ParquetFile(source)
    _check_columns(uri, file.schema_arrow.names)
    for batch in file.iter_batches(batch_size=num_rows, columns=columns):  # across row groups
        yield pa.Table.from_batches([batch])


def _csv_blocks(source: BinaryIO, uri: str, num_rows: int) -> Iterator[pa.Table]:
    lines = io.TextIOWrapper(source, "utf-8-sig", errors="surrogateescape", newline="")
    try:
        rows = csv_rows(lines)
        first = next(rows, CsvRow([], 1, 1))
        names = [name.strip() for name in first.fields]
        if any(_utf8(name) != name for name in names):
            raise ValueError(not_utf8(first.first_line))
        _check_columns(uri, names)
        users = _csv_users(rows, names)
        while block := list(islice(users, num_rows)):
            columns = dict(zip((USER_ID, HISTORY, ERROR), zip(*block, strict=True), strict=True))
            yield pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    finally:
        lines.detach()  # whoever opened the source closes it


def _csv_users(rows: Iterable[CsvRow], names: list[str]) -> Iterator[tuple[str | None, str | None, str | None]]:
    """The user, the history and the error of each row; quotes that do not match are an error of the whole file."""
    user_at, history_at = names.index(USER_ID), names.index(HISTORY)
    for row in rows:
        fields = row.fields
        user_id = _utf8(fields[user_at]) if len(fields) > user_at else None
        if len(fields) != len(names):
            yield user_id, None, wrong_length(row, names)
        elif (text := "".join(fields)) != _utf8(text):
            yield user_id, None, not_utf8(row.first_line)
        elif "\n" in fields[user_at] or "\n" in fields[history_at]:
            message = f"the row that begins in line {row.first_line} has a field of several lines: close its quote"
            yield None, None, message
        else:
            yield user_id, fields[history_at], None


def _utf8(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _json_blocks(source: BinaryIO, num_rows: int) -> Iterator[pa.Table]:
    lines = ((number, line) for number, line in enumerate(source, start=1) if line.strip())
    while block := list(islice(lines, num_rows)):
        numbers, texts = zip(*block, strict=True)
        yield pa.table({LINE_NUMBER: pa.array(numbers, pa.int64()), LINE: pa.array(texts, pa.large_binary())})


def _check_columns(uri: str, names: list[str]) -> None:
    for name in (USER_ID, HISTORY):
        if (count := names.count(name)) != 1:
            found = ", ".join(names) or "none"
            msg = f"{uri} has {count} columns {name!r}, and needs one; its columns are {found}."
            raise ConfigError(msg, key=name, value=count, expected=1)
