"""Tables that a user writes, ``.parquet``, ``.csv`` or ``.jsonl``: some columns, as the text that stands there."""

import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from raypipe.errors import ConfigError, ObjectError
from raypipe.storage.folder import Folder

TABLE_ENDINGS = (".parquet", ".csv", ".jsonl")


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
        elif name.lower().endswith(".csv"):  # an id such as 007 is no number
            as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
            newlines = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(data, parse_options=newlines, convert_options=as_text)
        else:
            table = _read_json_lines(data, columns)
        for column in required:
            if column not in table.column_names:
                found = ", ".join(table.column_names) or "none"
                msg = f"{folder.child(name)} has no column {column!r}; its columns are {found}."
                raise ConfigError(msg)
        names = [column for column in columns if column in table.column_names]
        return table.select(names).cast(pa.schema([(column, pa.string()) for column in names]))
    except (pa.ArrowException, ObjectError, OSError, KeyError, ValueError) as error:
        msg = f"Cannot read the {what} {folder.child(name)}: {' '.join(str(error).split())}"
        raise ConfigError(msg) from None


def _read_json_lines(lines: Iterable[bytes], columns: Sequence[str]) -> pa.Table:
    """Not by Arrow, which would take an id that looks like a date for one."""
    keys: dict[str, None] = {}
    rows: list[list[Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = dict(json.loads(line.decode("utf-8-sig")))
        except (TypeError, ValueError, RecursionError) as error:
            msg = f"line {number} is not a JSON object: {error}"
            raise ValueError(msg) from None
        keys.update(dict.fromkeys(row))
        rows.append([str(value) if isinstance(value := row.get(column), int) else value for column in columns])
    texts = dict(zip(columns, zip(*rows, strict=True), strict=False))
    return pa.table({key: pa.array(texts[key], pa.string()) if key in texts else pa.nulls(len(rows)) for key in keys})
