"""What a filter asks of a column: checked against its type, brought to one form, and evaluated into a bitmap."""

import datetime as dt
import math
import operator
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import QueryError
from raypipe.search.columns import Kind, kind_of
from raypipe.search.query import Filters

if TYPE_CHECKING:
    from raypipe.search.items import Items

Bitmap: TypeAlias = npt.NDArray[np.uint8]  # the lowest bit of a byte first
Operand: TypeAlias = str | int | float

_COMPARE = {"gt": pc.greater, "gte": pc.greater_equal, "lt": pc.less, "lte": pc.less_equal}
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_EXPECTED: Mapping[Kind, str] = {
    "text": "text",
    "boolean": "true or false",
    "integer": "numbers",
    "number": "numbers",
    "time": "times: write 2024-05-31 or 2024-05-31T12:00:00Z",
}


@dataclass(frozen=True)
class Condition:
    """One comparison of a column: ``in`` any of the operands, or one of the four operators with the only one."""

    column: str
    operator: str
    operands: tuple[Operand, ...]


def parse(items: "Items", filters: Filters) -> tuple[Condition, ...]:
    """The conditions that all must hold; filters that ask the same give the same.

    Raises:
        QueryError: a filter names no column, or compares it with what it does not hold.
    """
    found = {condition for column, value in filters.items() for condition in _conditions(items, column, value)}
    return tuple(sorted(found, key=operator.attrgetter("column", "operator", "operands")))


def mask_of(bitmap: Bitmap, size: int) -> npt.NDArray[np.bool_]:
    """The first ``size`` bits, each as true or false."""
    return np.unpackbits(bitmap, count=size, bitorder="little").view(np.bool_)


def bitmap_of(items: "Items", conditions: Sequence[Condition]) -> Bitmap:
    """A bit for each video, 1 where all conditions hold; bits past the last video are 0. Null never matches."""
    bitmap = np.full((len(items) + 7) // 8, 255, np.uint8)
    for condition in conditions:
        bitmap &= _evaluate(items, condition)
    if len(items) % 8:
        bitmap[-1] &= (1 << len(items) % 8) - 1
    return bitmap


def _evaluate(items: "Items", condition: Condition) -> Bitmap:
    """What the bits past the last video are is not said."""
    if few := items.few_values(condition.column):
        codes, values = few
        passed = np.append(_compare(values, condition).to_numpy(zero_copy_only=False), False)
        return np.packbits(passed[codes], bitorder="little")  # the code of null is -1: the last
    passed = _compare(items.comparable(condition.column), condition)
    return np.frombuffer(passed.buffers()[1], np.uint8, (len(items) + 7) // 8, passed.offset // 8)


def _compare(array: pa.Array, condition: Condition) -> pa.BooleanArray:
    zeros = (0.0, -0.0) if kind_of(array.type) == "number" and 0.0 in condition.operands else ()
    operands = pa.array((*condition.operands, *zeros), array.type)  # is_in tells the two zeros apart
    if condition.operator != "in":
        passed = _COMPARE[condition.operator](array, operands[0])
    elif len(condition.operands) == 1:
        passed = pc.equal(array, operands[0])
    else:
        passed = pc.is_in(array, operands)
    return passed.fill_null(False)  # noqa: FBT003 - Arrow's own signature


def _conditions(items: "Items", column: str, value: Any) -> list[Condition]:  # noqa: ANN401 - it came from outside
    if column not in items.columns:
        msg = f"Cannot filter by {column!r}."
        raise QueryError(msg, key="filters", value=column, choices=sorted(items.columns))
    kind = kind_of(items.columns[column])
    if isinstance(value, Mapping):
        if not value or not set(value) <= set(_COMPARE):
            given = ", ".join(map(repr, value)) or "no operator"
            msg = f"The filter of {column!r} has {given}."
            raise QueryError(msg, key=column, value=[*value], choices=_COMPARE)
        return [_range(column, kind, name, _operand(column, kind, operand)) for name, operand in value.items()]
    several = isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (str, bytes))
    operands = {_operand(column, kind, one) for one in (value if several else [value])}
    if kind == "integer":
        operands = {int(one) for one in operands if not isinstance(one, str) and _is_int64(one)}
    return [Condition(column, "in", tuple(sorted(operands)))]


def _range(column: str, kind: Kind | None, name: str, operand: Operand) -> Condition:
    """Whole numbers as a closed range, which is exact for 3.5, and for more than 64 bits hold."""
    if kind != "integer" or isinstance(operand, str):
        return Condition(column, name, (operand,))
    if name in {"gt", "gte"}:
        smallest = math.floor(operand) + 1 if name == "gt" else math.ceil(operand)
        return Condition(column, *(("in", ()) if smallest > _LARGEST else ("gte", (max(smallest, _SMALLEST),))))
    largest = math.ceil(operand) - 1 if name == "lt" else math.floor(operand)
    return Condition(column, *(("in", ()) if largest < _SMALLEST else ("lte", (min(largest, _LARGEST),))))


def _is_int64(value: float) -> bool:
    return value == math.floor(value) and _SMALLEST <= value <= _LARGEST


def _operand(column: str, kind: Kind | None, value: Any) -> Operand:  # noqa: ANN401 - it came from outside
    """The value as ``columns.comparable`` has that column, but for a whole number: any finite number.

    Raises:
        QueryError: it is of another type than the column.
    """
    match kind, value:
        case "text", str():
            return value.encode(errors="replace").decode()  # half a surrogate pair is in no catalogue
        case ("boolean", bool()):
            return int(value)
        case ("integer" | "number", int() | float()) if not isinstance(value, bool) and _is_finite(value):
            return value if kind == "integer" else float(value)
        case "time", str():
            try:
                return _microseconds(value)
            except ValueError:
                pass
    expected = _EXPECTED[kind] if kind else "nothing to compare with"
    msg = f"The filter of {column!r} compares with {reprlib.repr(value)}; that column holds {expected}."
    raise QueryError(msg, key=column, value=value, expected=kind)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number larger than any float
        return False


def _microseconds(text: str) -> int:
    moment = dt.datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return (moment - _EPOCH) // dt.timedelta(microseconds=1)
