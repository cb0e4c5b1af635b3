"""Read a user's table from storage: some columns as they are written, or every column with a type."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe.errors import ConfigError, ObjectError
from raypipe.storage.folder import Folder, place_of
from raypipe.tables.column_types import ColumnReading, Kind, read_column
from raypipe.tables.text_formats import parse_csv, parse_json_table, parse_json_texts

TABLE_ENDINGS = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True, slots=True)
class TypedTable:
    """A table, and how the columns were read whose values decide their type."""

    table: pa.Table
    readings: tuple[ColumnReading, ...]


def is_table(uri: str) -> bool:
    """Tell a table, such as a manifest, by its name."""
    return uri.lower().endswith(TABLE_ENDINGS)


def table_place(uri: str, *, what: str) -> tuple[Folder, str]:
    """Return the folder and name of the table that the key ``what`` holds; raises ConfigError for unknown formats."""
    if not is_table(uri):
        remedy = f"Give a file that ends in {', '.join(TABLE_ENDINGS)}."
        msg = f"{what}={uri!r} has an unknown format."
        raise ConfigError(msg, key=what, value=uri, remedy=remedy)
    return place_of(uri)


def read_text_columns(
    folder: Folder, name: str, columns: Sequence[str], *, required: Sequence[str], what: str
) -> pa.Table:
    """Read those of the columns that the table has, as strings exactly as they are written; ``what`` is the table.

    Raises:
        ConfigError: the table cannot be read, or lacks a required column.
    """
    with _unreadable(folder.child(name), what):
        table, _ = _parse(folder, name, columns, only_text=True)
        _check_columns(folder.child(name), table.column_names, used=columns, required=required)
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
    """Read every column: those of ``text`` as they are written, all others with the type of their values.

    Whole numbers become int64, others float64; codes such as 007, and ids that neither can hold exactly, stay text.
    ISO dates and times become timestamp[us] in UTC, which is also the zone of times without one. Lists of texts stay
    lists. An empty field, or a number that is not finite, is null. If a few values of a column are of another kind,
    the column keeps its type and they are null; if more are, it is text. The readings say so. ``expected`` names
    columns that should be of a kind: one of dates may also hold epoch numbers or years.

    Raises:
        ConfigError: the table cannot be read, lacks a required column, or a column holds something else.
    """
    with _unreadable(folder.child(name), what):
        table, untyped = _parse(folder, name, text, only_text=False)
        _check_columns(folder.child(name), table.column_names, used=table.column_names, required=required)
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
    """Return a table, and the columns whose type its format does not give."""
    data = io.BytesIO(folder.read(name))
    if name.lower().endswith(".parquet"):
        return pq.read_table(data), ()
    if name.lower().endswith(".csv"):
        table = parse_csv(data, empty_is_null=not only_text)
        return table, table.column_names
    return (parse_json_texts(data, text), ()) if only_text else parse_json_table(data, text)


def empty_rows(column: pa.ChunkedArray) -> list[int]:
    """Return the numbers of the rows that have no text in a column; 1 is the first row after the header."""
    is_empty = pc.equal(column, "").fill_null(True)  # noqa: FBT003 - Arrow's own signature
    return [at + 1 for at in pc.indices_nonzero(is_empty).to_pylist()]


@contextmanager
def _unreadable(uri: str, what: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ObjectError, OSError, KeyError, ValueError) as error:
        msg = f"Cannot read the {what} {uri}: {' '.join(str(error).split())}"
        raise ConfigError(msg, key=uri) from None


def _check_columns(uri: str, names: Sequence[str], *, used: Sequence[str], required: Sequence[str]) -> None:
    if repeated := [column for at, column in enumerate(names) if column in used and column in names[:at]]:
        msg, count = f"{uri} has two columns {repeated[0]!r}.", names.count(repeated[0])
        raise ConfigError(msg, key=repeated[0], value=count, expected=1, remedy="Rename one of them.")
    if missing := [column for column in required if column not in names]:
        msg = f"{uri} has no column {missing[0]!r}; its columns are {', '.join(names) or 'none'}."
        raise ConfigError(msg, key=missing[0], value=0, expected=1)
