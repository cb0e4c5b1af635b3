"""Convert the columns of a catalogue to the few types that an index compares and returns."""

import datetime as dt
import decimal
import math
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Kind: TypeAlias = Literal["text", "boolean", "integer", "number", "time"]

MICROSECONDS = 1_000_000
_UTC = pa.timestamp("us", tz="UTC")


def kind_of(column_type: pa.DataType) -> Kind | None:
    """Return what a filter may compare the column with; None for lists, structs and bytes, which it cannot compare."""
    types = pa.types
    if types.is_large_string(column_type):
        return "text"
    if types.is_boolean(column_type):
        return "boolean"
    if types.is_integer(column_type):
        return "integer"
    if types.is_floating(column_type):
        return "number"
    return "time" if types.is_timestamp(column_type) or types.is_date(column_type) else None


def plain_column(column: pa.ChunkedArray) -> pa.Array:
    """Return the column as one array: text as large strings, times as microseconds in UTC, decimals as floats.

    A time without a zone is read as UTC.
    """
    types, found = pa.types, column.type
    if types.is_dictionary(found):
        return plain_column(column.cast(found.value_type))
    if types.is_string(found) or types.is_null(found) or found == pa.string_view():
        column = column.cast(pa.large_string())
    elif types.is_timestamp(found):
        column = column.cast(_UTC, safe=False)
    elif types.is_date64(found):
        column = column.cast(pa.date32())
    elif types.is_decimal(found) or types.is_float16(found):
        column = column.cast(pa.float64())
    elif types.is_uint64(found):
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid:
            column = column.cast(pa.float64(), safe=False)
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def comparable(array: pa.Array) -> pa.Array:
    """Convert a plain column for filters: large string, int64 (times: microseconds since 1970), float64 or int8."""
    kind = kind_of(array.type)
    if kind == "time":
        return array.cast(_UTC).cast(pa.int64())
    if kind == "boolean":
        return array.cast(pa.int8())
    if kind == "integer":
        return array.cast(pa.int64())
    return array.cast(pa.float64()) if kind == "number" else array


def as_numbers(array: pa.Array) -> npt.NDArray[np.float64] | None:
    """Convert to float64: times as seconds since 1970, null as NaN. Return None if the column is not numeric."""
    kind = kind_of(array.type)
    if kind not in {"number", "integer", "time"}:
        return None
    whole = comparable(array).cast(pa.float64(), safe=False)
    numbers: npt.NDArray[np.float64] = whole.fill_null(math.nan).to_numpy(zero_copy_only=False)
    return numbers / MICROSECONDS if kind == "time" else numbers


def as_json(scalar: pa.Scalar) -> Any:  # noqa: ANN401 - any value of a catalogue
    """Return the value for JSON: times as ISO text; null for NaN, infinity and years outside the calendar."""
    try:
        return _json_value(scalar.as_py())
    except (ValueError, OverflowError):
        return None


def _json_value(value: Any) -> Any:  # noqa: ANN401 - any value of a catalogue
    match value:
        case None | bool() | int() | str():
            plain: Any = value
        case float() | decimal.Decimal():
            plain = float(value) if math.isfinite(value) else None
        case dt.date() | dt.time():
            plain = value.isoformat()
        case bytes():
            plain = value.decode(errors="replace")
        case dict():
            plain = {str(key): _json_value(inner) for key, inner in value.items()}
        case list() | tuple():
            plain = [_json_value(inner) for inner in value]
        case _:
            plain = str(value)
    return plain
