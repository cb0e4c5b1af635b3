"""Watch histories of users: read a file with one row per user in blocks of rows, and parse the users in these rows."""

import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.errors import ConfigError
from raypipe.schema import USER_ID
from raypipe.storage import Folder, StoredObject
from raypipe.tables.reader import CsvRow, csv_rows, json_object, not_utf8, refuse_changed, unreadable, wrong_length

HISTORY = "history"
LINE, ERROR = "line", "error"  # columns of a block: a line of JSON that is not parsed yet, and the error of a row
LINE_NUMBER = "line_number"  # column of a block: the number of the line in the file
IS_REPEATED = "is_repeated"  # column of a block: True if the user is in an earlier row of the file
SEPARATORS = ("|", ";", ",")  # characters that may separate the ids in a text, in addition to white space
_MAX_SHOWN = 80


@dataclass(frozen=True, slots=True)
class HistoryFile:
    """A history file: a table with the columns ``user_id`` and ``history``.

    ``history`` is a list of ids, or a text that ``parse_history`` and ``other_readings`` interpret. ``stored`` has the
    etag of the content that was found first. Reading fails if the content has changed since then.
    """

    folder: Folder
    name: str
    stored: StoredObject

    @classmethod
    def find(cls, folder: Folder, name: str) -> "HistoryFile":
        """Find a history file.

        Raises:
            ConfigError: the file does not exist.
        """
        if (stored := folder.stat(name)) is None:
            uri, remedy = folder.child(name), "Give a .parquet, .csv or .jsonl with user_id and history."
            msg = f"The history {uri} does not exist."
            raise ConfigError(msg, key="history", value=uri, remedy=remedy)
        return cls(folder, name, stored)

    def columns(self) -> list[str]:
        """Return the names of the columns, in a .jsonl the keys of the first row; raises like ``blocks``."""
        uri, name = self.folder.child(self.name), self.name.lower()
        with unreadable(uri, HISTORY), self.folder.open_input(self.name) as source:
            if name.endswith(".parquet"):
                return list(pq.read_schema(source).names)
            if name.endswith(".csv"):
                lines = io.TextIOWrapper(source, "utf-8-sig", errors="replace", newline="")
                try:
                    return [field.strip() for field in next(csv_rows(lines), CsvRow([], 1, 1)).fields]
                finally:
                    lines.detach()
            return list(json_object(next((line for line in source if line.strip()), b"{}")))

    def blocks(self, num_rows: int, *, only_ids: bool = False) -> Iterator[pa.Table]:
        """Yield the file as tables of ``num_rows`` rows, which ``parse`` accepts. The last table has the remainder.

        With ``only_ids``, the blocks of a Parquet file have no column ``history``.

        Raises:
            ConfigError: the file cannot be read, lacks a column, or has changed since it was found.
        """
        uri = self.folder.child(self.name)
        with unreadable(uri, HISTORY), self.folder.open_input(self.name) as source:
            refuse_changed(self.folder, self.stored, HISTORY)
            if self.name.lower().endswith(".parquet"):
                yield from _parquet_blocks(source, uri, [USER_ID] if only_ids else [USER_ID, HISTORY], num_rows)
            elif self.name.lower().endswith(".csv"):
                yield from _csv_blocks(source, uri, num_rows)
            else:
                yield from _json_blocks(source, num_rows)
            refuse_changed(self.folder, self.stored, HISTORY)


def _parquet_blocks(source: BinaryIO, uri: str, columns: list[str], num_rows: int) -> Iterator[pa.Table]:
    file = pq.ParquetFile(source)
    check_history_columns(uri, file.schema_arrow.names)
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
        check_history_columns(uri, names)
        users = _csv_users(rows, names)
        while block := list(islice(users, num_rows)):
            columns = dict(zip((USER_ID, HISTORY, ERROR), zip(*block, strict=True), strict=True))
            yield pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    finally:
        lines.detach()  # the caller closes the source


def _csv_users(rows: Iterable[CsvRow], names: list[str]) -> Iterator[tuple[str | None, str | None, str | None]]:
    """Yield the user id, the history and the error of each row. Values that cannot be read are None.

    Unmatched quotes are not an error of one row: ``csv_rows`` raises ValueError, because they affect the whole file.
    """
    user_at, history_at = names.index(USER_ID), names.index(HISTORY)
    for row in rows:
        fields = row.fields
        user_id = _utf8(fields[user_at]) if len(fields) > user_at else None
        if len(fields) != len(names):
            yield user_id, None, wrong_length(row, names)
        elif (text := "".join(fields)) != _utf8(text):
            yield user_id, None, not_utf8(row.first_line)
        elif "\n" in fields[user_at] or "\n" in fields[history_at]:
            message = f"the row that begins in line {row.first_line} has a field with several lines: close its quote"
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


def check_history_columns(uri: str, names: list[str]) -> None:
    for name in (USER_ID, HISTORY):
        if (count := names.count(name)) != 1:
            found = ", ".join(names) or "none"
            msg = f"{uri} has {count} columns named {name!r} but needs exactly one; its columns are {found}."
            raise ConfigError(msg, key=name, value=count, expected=1)


@dataclass(frozen=True, slots=True)
class User:
    """One row of a history file: the ids of the videos that a user watched, newest last, or the error of the row."""

    user_id: str | None
    video_ids: tuple[str, ...] = ()
    error: str | None = None
    text: str | None = field(default=None, compare=False)  # the history as text, if it was not a list


def parse(block: pa.Table) -> Iterator[User]:
    """Yield the user of each row of a block. A bad row has an error and does not affect the other rows.

    A row is also bad if its user is in an earlier row of the file.
    """
    users = _users_of_lines(block) if LINE in block.column_names else _users_of_columns(block)
    if IS_REPEATED not in block.column_names:
        yield from users
        return
    for user, is_repeated in zip(users, block[IS_REPEATED].to_pylist(), strict=True):
        error = user.error or f"this {USER_ID} is in an earlier row too"
        yield User(user.user_id, error=error) if is_repeated else user


def _users_of_columns(block: pa.Table) -> Iterator[User]:
    nothing = [None] * block.num_rows
    columns = (block[name].to_pylist() if name in block.column_names else nothing for name in (USER_ID, HISTORY, ERROR))
    return itertools.starmap(_user, zip(*columns, strict=True))


def _users_of_lines(block: pa.Table) -> Iterator[User]:
    return itertools.starmap(
        _user_of_json, zip(*(block[name].to_pylist() for name in (LINE, LINE_NUMBER)), strict=True)
    )


def _user_of_json(line: bytes, number: int) -> User:
    try:
        row = json_object(line)
    except ValueError as error:
        return User(None, error=f"line {number} is not a JSON object with {USER_ID} and {HISTORY}: {error}")
    missing = None if HISTORY in row else f"line {number} has no {HISTORY}"
    return _user(row.get(USER_ID), row.get(HISTORY), missing)


def _user(user_id: Any, history: Any, error: str | None) -> User:  # noqa: ANN401 - any value in the file
    try:
        known = _text(user_id)
    except ValueError:
        return User(None, error=error or f"{USER_ID} is {_short(user_id)}; it should be a string or an integer")
    if error or not known:
        return User(known or None, error=error or f"the row has no {USER_ID}")
    try:
        return User(known, parse_history(history), text=history if isinstance(history, str) else None)
    except (TypeError, ValueError) as problem:
        return User(known, error=str(problem))


def parse_history(history: Any) -> tuple[str, ...]:  # noqa: ANN401 - any value in the file
    """Return the ids of a history, in order.

    ``history`` is a list, or a text with either a JSON array or ids that are separated by ``|`` or by white space. Null
    and an empty text mean an empty history.

    Raises:
        TypeError: the history is neither a list nor a text.
        ValueError: the history contains something that is not an id, or the JSON is invalid.
    """
    if history is None:
        return ()
    ids = history
    if isinstance(history, str):
        text = history.strip()
        if _is_json(text):
            try:
                ids = json.loads(text)
            except (ValueError, RecursionError) as error:
                msg = f"{HISTORY} {_short(history)} is not a JSON array: {error}"
                raise ValueError(msg) from None
        else:
            ids = _split(text, "|" if "|" in text else None)
    if not isinstance(ids, list):
        msg = f"{HISTORY} is {_short(history)}; it should be a list of video ids"
        raise TypeError(msg)
    if all(type(video_id) is str for video_id in ids) and "".join(ids).isascii():  # a fast path for the usual case
        return tuple(ids)
    return tuple(_text(video_id, what=HISTORY) for video_id in ids)


def watched(user: User, positions: Callable[[Sequence[str]], Sequence[int | None]]) -> tuple[str, ...]:
    """Return the ids of a history. If its text is ambiguous, choose the reading with the most ids in the index.

    ``positions`` returns the position of each id in the index, and None for ids that the index does not have.
    """

    def num_known(ids: tuple[str, ...]) -> int:
        return sum(position is not None for position in positions(ids))

    if user.text is None or num_known(user.video_ids) == len(user.video_ids):
        return user.video_ids
    return max((user.video_ids, *other_readings(user.text)), key=num_known)


def other_readings(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the ids that other interpretations of a history's text would give.

    The text may be a single id, or it may use another separator than ``parse_history`` has assumed. A JSON array has no
    other interpretation.
    """
    text = text.strip()
    if text and not _is_json(text):
        yield (text,)
        for separator in (*SEPARATORS, None):
            if separator is None or separator in text:
                yield tuple(_split(text, separator))


def _is_json(text: str) -> bool:
    return text.startswith("[")


def _split(text: str, separator: str | None) -> list[str]:
    return [part for one in text.split(separator) if (part := one.strip())]


def _text(value: Any, *, what: str = USER_ID) -> str:  # noqa: ANN401 - any value in the file
    """Return an id as a string. The integer 7 becomes ``"7"``, and a user id that is null becomes an empty string.

    Raises:
        ValueError: the value is not an id.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None and what == USER_ID:
        return ""
    if not isinstance(value, str) or _utf8_of(value) != value:
        msg = f"{what} contains {_short(value)}, which is not an id"
        raise ValueError(msg)
    return value


def _utf8_of(text: str) -> str:
    return text.encode(errors="replace").decode()


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def repeated_rows(users: Iterable[str | None]) -> tuple[int, frozenset[int]]:
    """Return the number of rows, and the numbers of the rows whose user is also in an earlier row.

    Users are compared by a hash of 8 bytes, so that the memory for many rows stays small.
    """
    hashes = np.fromiter((0 if user is None else hash(user) or 1 for user in users), np.int64)
    _, first = np.unique(hashes, return_index=True)
    is_first = np.zeros(len(hashes), np.bool_)
    is_first[first] = True
    return len(hashes), frozenset(np.flatnonzero(~is_first & (hashes != 0)).tolist())
