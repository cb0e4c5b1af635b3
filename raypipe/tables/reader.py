"""Read a user's table from storage: some columns as text, or every column with a type."""

import csv
import io
import json
import reprlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe.errors import ConfigError, ObjectError
from raypipe.storage import StoredObject
from raypipe.storage.folder import Folder, place_of
from raypipe.tables.column_types import ColumnReading, Kind, read_column
from raypipe.text import one_line

_BATCH_ROWS = 65_536  # CSV rows that are in memory as Python strings at a time
TABLE_ENDINGS = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True, slots=True)
class CsvRow:
    """The fields of one CSV row, and the numbers of its first and last lines."""

    fields: list[str]
    first_line: int
    last_line: int


def parse_csv(data: io.BytesIO, *, empty_is_null: bool) -> pa.Table:
    """Parse a CSV file. Every field is read as text.

    If ``empty_is_null``, empty texts become null. No other text does, not even NA: it is also a country code.

    Raises:
        ValueError: a quote is not closed, a row has a wrong number of fields, or a line is not UTF-8.
    """
    rows = _csv_fields(data)
    if (header := next(rows, None)) is None:
        msg = "it is empty"
        raise ValueError(msg)
    has_spaces = any(name.startswith(" ") for name in header)  # "a, b": the space belongs to the separator
    schema = pa.schema([(name.strip(), pa.string()) for name in header])
    batches = []
    while batch := list(islice(rows, _BATCH_ROWS)):
        columns = [pa.array(texts, pa.string()) for texts in zip(*batch, strict=True)]
        batches.append(pa.record_batch(columns, schema=schema))
    table = pa.Table.from_batches(batches, schema)
    for at, field in enumerate(schema):
        texts = pc.utf8_ltrim(table[at], " ") if has_spaces else table[at]
        if empty_is_null:
            texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
        table = table.set_column(at, field, texts)
    return table


def _csv_fields(data: io.BytesIO) -> Iterator[list[str]]:
    """Yield the header, then rows of the same length. A byte order mark and blank lines are allowed."""
    lines = io.TextIOWrapper(data, "utf-8-sig", newline="")
    header: list[str] = []
    try:
        for row in csv_rows(lines):
            header = header or row.fields
            if len(row.fields) != len(header):
                raise ValueError(wrong_length(row, header))
            yield row.fields
    except UnicodeDecodeError:
        data.seek(0)
        numbered = enumerate(data, start=1)
        number = next(number for number, line in numbered if line.decode(errors="ignore").encode() != line)
        raise ValueError(not_utf8(number)) from None
    finally:
        lines.detach()


def csv_rows(lines: TextIO) -> Iterator[CsvRow]:
    """Yield the rows of a CSV file that are not blank.

    Raises:
        ValueError: unmatched quotes hide the end of a row.
    """
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(lines, strict=True)
    before = 0
    try:
        for fields in reader:
            if fields:
                yield CsvRow(fields, before + 1, reader.line_num)
            before = reader.line_num
    except csv.Error as error:
        msg = f"the row that begins in line {before + 1} has quotes that do not match: {error}"
        raise ValueError(msg) from None


def wrong_length(row: CsvRow, header: Sequence[str]) -> str:
    return f"line {row.first_line} has {len(row.fields)} fields, but the header has {len(header)}"


def not_utf8(number: int) -> str:
    return f"line {number} is not UTF-8. Save the file as UTF-8"


def parse_json_texts(lines: Iterable[bytes], columns: Sequence[str]) -> pa.Table:
    """Parse the given columns of a JSONL file as text. Other columns are kept, but all their values are null."""
    keys: dict[str, None] = {}
    rows: list[list[str | None]] = []
    for number, row in _json_lines(lines):
        keys.update(dict.fromkeys(row))
        rows.append([_json_text(row.get(column), column=column, number=number) for column in columns])
    texts = dict(zip(columns, zip(*rows, strict=True), strict=False))
    return pa.table({key: pa.array(texts[key], pa.string()) if key in texts else pa.nulls(len(rows)) for key in keys})


def parse_json_table(lines: Iterable[bytes], text: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """Parse all columns of a JSONL file. The columns in ``text`` are read as text.

    Also return the names of the columns that mix numbers and texts.
    """
    rows = list(_json_lines(lines))
    columns, mixed = {}, []
    for name in dict.fromkeys(key for _, row in rows for key in row):
        if name in text:
            texts = [_json_text(row.get(name), column=name, number=number) for number, row in rows]
            columns[name] = pa.array(texts, pa.string())
            continue
        values = [row.get(name) for _, row in rows]
        columns[name] = _json_column(values)
        if pa.types.is_string(columns[name].type) and any(isinstance(value, int | float) for value in values):
            mixed.append(name)
    return pa.table(columns), mixed


def _json_column(values: Sequence[Any]) -> pa.Array:
    """Return the values as an Arrow array of their common type.

    If they have no common type, or are objects, return them as text. Values that are not texts are then written as
    JSON.
    """
    try:
        made = pa.array(values)
        if not pa.types.is_struct(made.type):
            return made
    except (pa.ArrowException, OverflowError):  # several types, or an integer of more than 64 bits
        pass
    texts = (value if value is None or isinstance(value, str) else json.dumps(value) for value in values)
    return pa.array(list(texts), pa.string())


def _json_text(value: Any, *, column: str, number: int) -> str | None:  # noqa: ANN401 - whatever the line holds
    """Return a text or null unchanged, and an integer as text: 7 becomes ``7``.

    Raises:
        ValueError: the value has another type.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return json.dumps(value)
    msg = f"line {number}: {column} is {reprlib.repr(value)}, not a text"
    raise ValueError(msg)


def _json_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the object of each line that is not blank.

    Raises:
        ValueError: a line is not a JSON object.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json_object(line)
            if b"\\u" in line:  # half a surrogate pair is not a valid text
                json.dumps(row, ensure_ascii=False).encode()
        except ValueError as error:
            msg = f"line {number} is not a JSON object: {error}"
            raise ValueError(msg) from None
        yield number, row


def json_object(line: bytes) -> dict[str, Any]:
    """Parse a line as a JSON object.

    Raises:
        ValueError: the line is not a JSON object, or two of its keys are equal.
    """
    try:
        found = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_unique)
    except RecursionError:
        msg = "it is nested too deeply"
        raise ValueError(msg) from None
    if not isinstance(found, dict):
        msg = f"it holds {reprlib.repr(found)}"
        raise ValueError(msg)  # noqa: TRY004 - the data is wrong, not the caller
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for at, name in enumerate(names) if name in names[:at])
        msg = f"it has two values for {repeated!r}"
        raise ValueError(msg)
    return found


@dataclass(frozen=True, slots=True)
class TypedTable:
    """A table with typed columns. ``readings`` says how the columns with an inferred type were read."""

    table: pa.Table
    readings: tuple[ColumnReading, ...]


def is_table(uri: str) -> bool:
    """Return whether a URI names a table, such as a manifest, by its extension."""
    return uri.lower().endswith(TABLE_ENDINGS)


def table_place(uri: str, *, what: str) -> tuple[Folder, str]:
    """Return the folder and the name of a table. ``what`` is the configuration key that holds its URI.

    Raises:
        ConfigError: the format is unknown.
    """
    if not is_table(uri):
        remedy = f"Give a file that ends in {', '.join(TABLE_ENDINGS)}."
        msg = f"{what}={uri!r} has an unknown format."
        raise ConfigError(msg, key=what, value=uri, remedy=remedy)
    return place_of(uri)


def read_text_columns(
    folder: Folder, name: str, columns: Sequence[str], *, required: Sequence[str], what: str
) -> pa.Table:
    """Read the given columns as strings, exactly as written. Columns that the table does not have are left out.

    ``what`` says which table this is in error messages.

    Raises:
        ConfigError: the table cannot be read, or lacks a required column.
    """
    with unreadable(folder.child(name), what):
        table, _ = _parse(folder, name, columns, only_text=True)
        check_columns(folder.child(name), table.column_names, used=columns, required=required)
        names = [column for column in columns if column in table.column_names]
        return table.select(names).cast(pa.schema([(column, pa.string()) for column in names]))


def read_table(
    folder: Folder,
    name: str,
    *,
    text: Sequence[str],
    required: Sequence[str],
    what: str,
    expected: Mapping[str, Kind] = MappingProxyType({}),
) -> TypedTable:
    """Read every column: the columns in ``text`` exactly as written, all others with the type of their values.

    Integers become int64, and other numbers float64. Codes such as 007, and ids that neither type can hold exactly,
    stay text. ISO dates and times become timestamp[us] in UTC. Times without a zone are taken to be UTC. Lists of texts
    stay lists. Empty fields and numbers that are not finite become null.

    If a few values of a column are of another kind, they become null and the column keeps its type. If more values are,
    the whole column becomes text. The readings report both cases.

    ``expected`` maps columns to their expected kinds. A column that should hold dates may also hold epoch numbers or
    years. ``what`` says which table this is in error messages.

    Raises:
        ConfigError: the table cannot be read, lacks a required column, or has a column of an unsupported type.
    """
    with unreadable(folder.child(name), what):
        table, untyped = _parse(folder, name, text, only_text=False)
        check_columns(folder.child(name), table.column_names, used=table.column_names, required=required)
        columns, readings = {}, []
        for column in table.column_names:
            if column in text:
                columns[column] = table[column].cast(pa.string())
                continue
            columns[column], reading = read_column(
                column, table[column], expected=expected.get(column), is_untyped=column in untyped
            )
            readings += [reading] if reading else []
        return TypedTable(pa.table(columns), tuple(readings))


def _parse(folder: Folder, name: str, text: Sequence[str], *, only_text: bool) -> tuple[pa.Table, Sequence[str]]:
    """Return a table, and the names of the columns whose type the file does not give."""
    data = io.BytesIO(folder.read(name))
    if name.lower().endswith(".parquet"):
        return pq.read_table(data), ()
    if name.lower().endswith(".csv"):
        table = parse_csv(data, empty_is_null=not only_text)
        return table, table.column_names
    return (parse_json_texts(data, text), ()) if only_text else parse_json_table(data, text)


def empty_rows(column: pa.ChunkedArray) -> list[int]:
    """Return the numbers of the rows in which a column is empty or null. Row 1 is the first row after the header."""
    is_empty = pc.equal(column, "").fill_null(True)  # noqa: FBT003 - Arrow's own signature
    return [at + 1 for at in pc.indices_nonzero(is_empty).to_pylist()]


@contextmanager
def unreadable(uri: str, what: str) -> Iterator[None]:
    """Turn an error of reading into a ConfigError. ``what`` is the name of the table."""
    try:
        yield
    except (pa.ArrowException, ObjectError, OSError, KeyError, ValueError) as error:
        msg = f"Cannot read the {what} {uri}: {one_line(error)}"
        raise ConfigError(msg, key=uri) from None


def refuse_changed(folder: Folder, stored: StoredObject, what: str) -> None:
    """Raise ConfigError if an object is no longer the one that ``stored`` describes. ``what`` is its name."""
    found = folder.stat(stored.key)
    if found is None or found.etag != stored.etag:
        msg, remedy = f"The {what} {stored.uri} changed while it was read.", "Run the same command again."
        etag = None if found is None else found.etag
        raise ConfigError(msg, key=stored.uri, value=etag, expected=stored.etag, remedy=remedy)


def check_columns(uri: str, names: Sequence[str], *, used: Sequence[str], required: Sequence[str]) -> None:
    if repeated := [column for at, column in enumerate(names) if column in used and column in names[:at]]:
        msg, count = f"{uri} has two columns {repeated[0]!r}.", names.count(repeated[0])
        raise ConfigError(msg, key=repeated[0], value=count, expected=1, remedy="Rename one of them.")
    if missing := [column for column in required if column not in names]:
        msg = f"{uri} has no column {missing[0]!r}; its columns are {', '.join(names) or 'none'}."
        raise ConfigError(msg, key=missing[0], value=0, expected=1)
