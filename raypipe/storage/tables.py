"""Tables that a user writes, ``.parquet``, ``.csv`` or ``.jsonl``: some columns, as the text that stands there."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from raypipe.errors import ConfigError, ObjectError
from raypipe.storage.folder import Folder, place_of

TABLE_ENDINGS = (".parquet", ".csv", ".jsonl")
_TIMESTAMP = pa.timestamp("us", tz="UTC")
_ZONE = r"[0-9](Z|[+-][0-9]{2}:?[0-9]{2})$"
_ISO_TIME = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?$"
)


def read_text_columns(
    folder: Folder, name: str, columns: Sequence[str], *, required: Sequence[str], what: str
) -> pa.Table:
    """Read those of the columns that the table has, as strings exactly as they are written; ``what`` the table is.

    Raises:
        ConfigError: the table cannot be read, or lacks a required column.
    """
    try:
        data = io.BytesIO(folder.read(name))
        if name.lower().endswith(".parquet"):
            table = pq.read_table(data)
        elif name.lower().endswith(".csv"):  # an id such as 007 is not a number
            table = _parse_csv(data, pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())))
        else:
            table = _read_json_lines(data, columns)
        _check_required(folder.child(name), table.column_names, required)
        names = [column for column in columns if column in table.column_names]
        return table.select(names).cast(pa.schema([(column, pa.string()) for column in names]))
    except (pa.ArrowException, ObjectError, OSError, KeyError, ValueError) as error:
        raise _unreadable(folder.child(name), what, error) from None


def _read_json_lines(lines: Iterable[bytes], columns: Sequence[str]) -> pa.Table:
    """Not by Arrow, which would take an id that looks like a date for one."""
    keys: dict[str, None] = {}
    rows: list[list[Any]] = []
    for _, row in json_lines(lines):
        keys.update(dict.fromkeys(row))
        rows.append([str(value) if isinstance(value := row.get(column), int) else value for column in columns])
    texts = dict(zip(columns, zip(*rows, strict=True), strict=False))
    return pa.table({key: pa.array(texts[key], pa.string()) if key in texts else pa.nulls(len(rows)) for key in keys})


def json_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line that is not blank.

    Raises:
        ValueError: a line is not a JSON object.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, dict(json.loads(line.decode("utf-8-sig")))
        except (TypeError, ValueError, RecursionError) as error:
            msg = f"line {number} is not a JSON object: {error}"
            raise ValueError(msg) from None


def table_place(uri: str, *, what: str) -> tuple[Folder, str]:
    """The folder and the name of a table that ``what``, a key of a configuration, names.

    Raises:
        ConfigError: its ending is of no known format.
    """
    if not uri.lower().endswith(TABLE_ENDINGS):
        remedy = f"Give a file that ends in {', '.join(TABLE_ENDINGS)}."
        msg = f"{what}={uri!r} has an unknown format."
        raise ConfigError(msg, key=what, value=uri, remedy=remedy)
    return place_of(uri)


def read_table(folder: Folder, name: str, *, text: Sequence[str], required: Sequence[str], what: str) -> pa.Table:
    """Read every column: those of ``text`` as they are written, the others as what their values are.

    Whole numbers become int64, others float64, ISO dates and times timestamp[us] in UTC, which is also meant where no
    zone is written. Lists of texts stay lists. An empty field, or a number that is not finite, is null.

    Raises:
        ConfigError: the table cannot be read, lacks a required column, or a column holds something else.
    """
    try:
        data = io.BytesIO(folder.read(name))
        if name.lower().endswith(".parquet"):
            table = pq.read_table(data)
        elif name.lower().endswith(".csv"):
            table = _read_csv(data, text)
        else:
            table = _read_json_table(data, text)
        _check_columns(folder.child(name), table.column_names, required)
        columns = {column: _typed(column, table[column], as_text=column in text) for column in table.column_names}
        return pa.table(columns)
    except (pa.ArrowException, ObjectError, OSError, KeyError, ValueError) as error:
        raise _unreadable(folder.child(name), what, error) from None


def _unreadable(uri: str, what: str, error: Exception) -> ConfigError:
    return ConfigError(f"Cannot read the {what} {uri}: {' '.join(str(error).split())}", key=uri)


def _check_columns(uri: str, names: Sequence[str], required: Sequence[str]) -> None:
    if repeated := [column for at, column in enumerate(names) if column in names[:at]]:
        msg, count = f"{uri} has two columns {repeated[0]!r}.", names.count(repeated[0])
        raise ConfigError(msg, key=repeated[0], value=count, expected=1, remedy="Rename one of them.")
    _check_required(uri, names, required)


def _check_required(uri: str, names: Sequence[str], required: Sequence[str]) -> None:
    if missing := [column for column in required if column not in names]:
        msg = f"{uri} has no column {missing[0]!r}; its columns are {', '.join(names) or 'none'}."
        raise ConfigError(msg, key=missing[0], value=0, expected=1)


def _read_csv(data: io.BytesIO, text: Sequence[str]) -> pa.Table:
    """A field is null where it is empty alone: ``NA`` is also a country."""
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(text, pa.string()), null_values=[""], strings_can_be_null=True
    )
    table = _parse_csv(data, options)
    for at, field in enumerate(table.schema):
        if pa.types.is_time(field.type):
            table = table.set_column(at, field.name, table[at].cast(pa.string()))
    return table


def _parse_csv(data: io.BytesIO, options: pyarrow.csv.ConvertOptions) -> pa.Table:
    """Parse with Arrow what ``_check_csv`` has found to be whole: alone, Arrow lets an open quote swallow every row."""
    header, num_lines = _check_csv(data)
    data.seek(0)
    table = pyarrow.csv.read_csv(
        data,
        read_options=pyarrow.csv.ReadOptions(column_names=[name.strip() for name in header], skip_rows=num_lines),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=options,
    )
    if any(name.startswith(" ") for name in header):  # "a, b": the space belongs to the separator
        for at, field in enumerate(table.schema):
            if pa.types.is_string(field.type):
                texts = pc.utf8_ltrim(table[at], " ")
                if options.strings_can_be_null:
                    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
                table = table.set_column(at, field.name, texts)
    return table


def _check_csv(data: io.BytesIO) -> tuple[list[str], int]:
    """Return the header, and how many lines come before the rows. A byte order mark and blank lines are fine.

    Raises:
        ValueError: a quote is not closed, a row has another number of fields, or a line is not UTF-8.
    """
    csv.field_size_limit(sys.maxsize)
    lines = io.TextIOWrapper(data, "utf-8-sig", newline="")
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    num_lines = start = 0  # lines up to the end of the header; lines before the current row
    try:
        for row in reader:
            if row and not header:
                header, num_lines = row, reader.line_num
            elif row and len(row) != len(header):
                msg = f"line {start + 1} has {len(row)} fields, the header has {len(header)}"
                raise ValueError(msg)
            start = reader.line_num
    except UnicodeDecodeError:
        data.seek(0)
        number = next(number for number, line in enumerate(data, start=1) if not _is_utf8(line))
        msg = f"line {number} is not UTF-8. Save the file as UTF-8"
        raise ValueError(msg) from None
    except csv.Error as error:
        msg = f"the row that begins in line {start + 1} has quotes that do not match: {error}"
        raise ValueError(msg) from None
    finally:
        lines.detach()
    if not header:
        msg = "it is empty"
        raise ValueError(msg)
    return header, num_lines


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_json_table(lines: Iterable[bytes], text: Sequence[str]) -> pa.Table:
    rows = [row for _, row in json_lines(lines)]
    names = dict.fromkeys(key for row in rows for key in row)
    return pa.table({name: _json_column([row.get(name) for row in rows], as_text=name in text) for name in names})


def _json_column(values: Sequence[Any], *, as_text: bool) -> pa.Array:
    """What Arrow takes as one type, else each value as the JSON that stands there."""
    if as_text:
        values = [str(value) if isinstance(value, int) else value for value in values]
        return pa.array(values, pa.string())
    try:
        made = pa.array(values)
        if not pa.types.is_struct(made.type):
            return made
    except pa.ArrowException:
        pass
    texts = (value if value is None or isinstance(value, str) else json.dumps(value) for value in values)
    return pa.array(list(texts), pa.string())


def _typed(name: str, column: pa.ChunkedArray, *, as_text: bool) -> pa.ChunkedArray:
    """A column in the one type of its kind.

    Raises:
        ValueError: it is of no kind that an index holds.
    """
    if as_text:
        return column.cast(pa.string())
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    for is_kind, convert in _KINDS:
        if is_kind(kind):
            return convert(column)
    msg = f"its column {name!r} holds {kind}. Give texts, numbers, true or false, dates, or lists of texts."
    raise ValueError(msg)


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    numbers = column.cast(pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))


def _timestamps(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.timestamp("us", tz=getattr(column.type, "tz", None)), safe=False).cast(_TIMESTAMP)


def _dates(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """The texts as timestamps if every one of them is an ISO date or time, else as they are."""
    if texts.null_count == len(texts) or not pc.all(pc.match_substring_regex(texts, _ISO_TIME)).as_py():
        return texts
    zoned = pc.match_substring_regex(texts, _ZONE)
    nothing = pa.scalar(None, pa.string())
    try:
        with_zone = pc.if_else(zoned, texts, nothing).cast(_TIMESTAMP)
        without = pc.if_else(zoned, nothing, texts).cast(pa.timestamp("us")).cast(_TIMESTAMP)
    except pa.ArrowInvalid:  # 2024-13-45
        return texts
    return pc.coalesce(with_zone, without)


_KINDS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.ChunkedArray], pa.ChunkedArray]], ...] = (
    (pa.types.is_null, lambda column: column.cast(pa.string())),
    (pa.types.is_boolean, lambda column: column),
    (pa.types.is_integer, lambda column: column.cast(pa.int64())),
    (lambda kind: pa.types.is_floating(kind) or pa.types.is_decimal(kind), _numbers),
    (
        lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind),
        lambda column: _dates(column.cast(pa.string())),
    ),
    (lambda kind: pa.types.is_date(kind) or pa.types.is_timestamp(kind), _timestamps),
    (
        lambda kind: pa.types.is_list(kind) or pa.types.is_large_list(kind),
        lambda column: column.cast(pa.list_(pa.string())),
    ),
)
