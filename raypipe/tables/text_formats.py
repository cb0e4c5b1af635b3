"""Parse CSV and JSON lines strictly: a file that is not exactly what its name says is an error with a line number.

Values stay as they are written, so Arrow parses neither: it takes 007 for 7 and an id that looks like a date for one,
and an open quote in a CSV swallows all rows that follow.
"""

import csv
import io
import json
import reprlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc

_BATCH_ROWS = 65_536  # of a CSV that are in memory as Python texts at a time


@dataclass(frozen=True, slots=True)
class CsvRow:
    """The fields of one row, and the numbers of the lines where it begins and ends."""

    fields: list[str]
    first_line: int
    last_line: int


def parse_csv(data: io.BytesIO, *, empty_is_null: bool) -> pa.Table:
    """Parse every field as text. Only an empty text is null: NA is also a country.

    Raises:
        ValueError: a quote is not closed, a row has another number of fields, or a line is not UTF-8.
    """
    rows = _csv_fields(data)
    header = next(rows, None)
    if header is None:
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
        number = next(number for number, line in enumerate(data, start=1) if not _is_utf8(line))
        raise ValueError(not_utf8(number)) from None
    finally:
        lines.detach()


def csv_rows(lines: TextIO) -> Iterator[CsvRow]:
    """Yield the rows that are not blank; raises ValueError if quotes do not match, so that no end of a row is found."""
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
    """Say that a row has another number of fields than the header."""
    return f"line {row.first_line} has {len(row.fields)} fields, the header has {len(header)}"


def not_utf8(number: int) -> str:
    """Say that a line is not UTF-8."""
    return f"line {number} is not UTF-8. Save the file as UTF-8"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def parse_json_texts(lines: Iterable[bytes], columns: Sequence[str]) -> pa.Table:
    """Parse these columns as text, line by line; the values of all other columns are dropped."""
    keys: dict[str, None] = {}
    rows: list[list[str | None]] = []
    for number, row in _json_lines(lines):
        keys.update(dict.fromkeys(row))
        rows.append([_json_text(row.get(column), column=column, number=number) for column in columns])
    texts = dict(zip(columns, zip(*rows, strict=True), strict=False))
    return pa.table({key: pa.array(texts[key], pa.string()) if key in texts else pa.nulls(len(rows)) for key in keys})


def parse_json_table(lines: Iterable[bytes], text: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """Parse all columns, those of ``text`` as text. Also return the columns where only some values are numbers."""
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
    """Return values of one Arrow type as that type, otherwise each value as its JSON."""
    try:
        made = pa.array(values)
        if not pa.types.is_struct(made.type):
            return made
    except (pa.ArrowException, OverflowError):  # several types, or a whole number of more than 64 bits
        pass
    texts = (value if value is None or isinstance(value, str) else json.dumps(value) for value in values)
    return pa.array(list(texts), pa.string())


def _json_text(value: Any, *, column: str, number: int) -> str | None:  # noqa: ANN401 - whatever the line holds
    """Return a text as it is, and 7 as the text ``7``."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return json.dumps(value)
    msg = f"line {number}: {column} is {reprlib.repr(value)}, not a text"
    raise ValueError(msg)


def _json_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line that is not blank; raises ValueError if it is not an object."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json_object(line)
            if b"\\u" in line:  # half a surrogate pair is no text
                json.dumps(row, ensure_ascii=False).encode()
        except ValueError as error:
            msg = f"line {number} is not a JSON object: {error}"
            raise ValueError(msg) from None
        yield number, row


def json_object(line: bytes) -> dict[str, Any]:
    """Parse a line as an object whose keys are unique; raises ValueError if it is anything else."""
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
