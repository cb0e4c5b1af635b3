"""Evaluate filters and exclusions to bitmaps of the eligible videos. faiss reads these bitmaps without a copy."""

import datetime as dt
import math
import operator
import reprlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import QueryError
from raypipe.search.items import Items, Kind, kind_of
from raypipe.search.query import Filters
from raypipe.search.vectors import Positions

Bitmap: TypeAlias = npt.NDArray[np.uint8]  # video i is bit i % 8 (0 is the lowest) of byte i // 8
Operand: TypeAlias = str | int | float

CACHE_BYTES = 268_435_456
_SPARSE = 16  # if fewer than one video in 16 is eligible, most bytes of the bitmap are zero
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


@dataclass(frozen=True, eq=False)
class Eligible:
    """A bitmap of the eligible videos, and the number of set bits. It is read-only, because threads share it."""

    bitmap: Bitmap  # [ceil(size / 8)]; the bits after ``size`` are 0
    count: int
    size: int
    parent: "Eligible | None" = None  # with the videos that ``without`` excluded

    def __post_init__(self) -> None:
        self.bitmap.flags.writeable = False

    @classmethod
    def of(cls, mask: npt.NDArray[np.bool_]) -> Self:
        """Pack a boolean mask ``[size]`` into a bitmap."""
        return cls(np.packbits(mask, bitorder="little"), int(np.count_nonzero(mask)), len(mask))

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return the bits as a boolean mask ``[size]``."""
        return _unpacked(self.bitmap, self.size)

    def positions(self) -> Positions:
        """Return the positions of the eligible videos in ascending order."""
        if self.count * _SPARSE < self.size:  # skip the zero bytes
            held = np.flatnonzero(self.bitmap != 0)
            bits = np.flatnonzero(_unpacked(self.bitmap[held], 8 * len(held)))
            return np.asarray(held[bits >> 3] * 8 + bits % 8, np.int64)
        return np.flatnonzero(self.mask())

    def contains(self, positions: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        """Return a mask of the positions that are eligible. Positions outside the index, such as -1, are not."""
        held: npt.NDArray[np.bool_] = (positions >= 0) & (positions < self.size)
        there = positions[held].astype(np.int64)
        held[held] = (self.bitmap[there >> 3] >> (there & 7).astype(np.uint8)) & 1
        return held

    def without(self, excluded: Positions) -> "Eligible":
        """Return a copy without the videos at the excluded positions. The excluded positions must be distinct."""
        gone = excluded[self.contains(excluded)]
        bitmap = self.bitmap.copy()
        np.bitwise_and.at(bitmap, gone >> 3, ~(np.uint8(1) << (gone & 7).astype(np.uint8)))
        return Eligible(bitmap, self.count - len(gone), self.size, self.parent or self)


def eligible_positions(eligible: Eligible | None, size: int) -> Positions:
    """Return the positions of the eligible videos, ascending: all ``size`` of them if there is no filter."""
    return np.arange(size) if eligible is None else eligible.positions()


@dataclass(frozen=True)
class Condition:
    """One comparison of a column. ``in`` takes any number of operands; ``gt``, ``gte``, ``lt`` and ``lte`` take one."""

    column: str
    operator: str
    operands: tuple[Operand, ...]


class FilterMasks:
    """Evaluates filters, with an LRU cache of at most ``cache_size`` bitmaps and 256 MiB. Thread-safe."""

    def __init__(self, items: Items, *, cache_size: int = 256) -> None:
        self._items = items
        self._capacity = max(1, min(cache_size, CACHE_BYTES // max(1, len(items) // 8)))
        self._cache: OrderedDict[tuple[Condition, ...], Eligible] = OrderedDict()
        self._lock = threading.Lock()

    def eligible(self, filters: Filters, *, exclude: npt.ArrayLike = ()) -> Eligible | None:
        """Return the videos that pass every filter and are not at a position in ``exclude``.

        Return None if there are no filters and no exclusions: then every video is eligible.

        Raises:
            QueryError: a filter names an unknown column, or compares it with a value of another type.
        """
        excluded = np.unique(np.asarray(exclude, np.int64))
        if not filters and not len(excluded):
            return None
        found = self._cached(_parse(self._items, filters))
        return found.without(excluded) if len(excluded) else found

    def _cached(self, conditions: tuple[Condition, ...]) -> Eligible:
        with self._lock:
            if (found := self._cache.get(conditions)) is not None:
                self._cache.move_to_end(conditions)
                return found
        size = len(self._items)
        bitmap = np.full((size + 7) // 8, 255, np.uint8)
        if size % 8:
            bitmap[-1] = (1 << size % 8) - 1
        for condition in conditions:  # cache each one alone too: other filters are likely to contain it
            bitmap &= self._cached((condition,)).bitmap if len(conditions) > 1 else _evaluate(self._items, condition)
        found = Eligible(bitmap, int(np.bitwise_count(bitmap).sum(dtype=np.int64)), size)
        with self._lock:
            self._cache[conditions] = found
            while len(self._cache) > self._capacity:
                self._cache.popitem(last=False)
        return found


def _parse(items: Items, filters: Filters) -> tuple[Condition, ...]:
    """Convert filters to conditions that must all be true. Equivalent filters give the same conditions."""
    found = {condition for column, value in filters.items() for condition in _conditions(items, column, value)}
    return tuple(sorted(found, key=operator.attrgetter("column", "operator", "operands")))


def _conditions(items: Items, column: str, value: Any) -> list[Condition]:  # noqa: ANN401 - external input
    if column not in items.columns:
        msg = f"Cannot filter by {column!r}."
        raise QueryError(msg, key="filters", value=column, choices=sorted(items.columns))
    kind = kind_of(items.columns[column])
    if isinstance(value, Mapping):
        if not value or not set(value) <= set(_COMPARE):
            given = ", ".join(map(repr, value)) or "no operator"
            msg = f"The filter on {column!r} has {given}."
            raise QueryError(msg, key=column, value=[*value], choices=_COMPARE)
        return [_range(column, kind, name, _operand(column, kind, operand)) for name, operand in value.items()]
    several = isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (str, bytes))
    operands = {_operand(column, kind, one) for one in (value if several else [value])}
    if kind == "integer":
        numbers = (one for one in operands if not isinstance(one, str) and _SMALLEST <= one <= _LARGEST)
        operands = {int(one) for one in numbers if one == math.floor(one)}
    return [Condition(column, "in", tuple(sorted(operands)))]


def _range(column: str, kind: Kind | None, name: str, operand: Operand) -> Condition:
    """Return the condition for one bound of a range.

    For an integer column, the bound is rounded to a 64-bit integer. So 3.5 and 2**70 are compared exactly.
    """
    if kind != "integer" or isinstance(operand, str):
        return Condition(column, name, (operand,))
    if name in {"gt", "gte"}:
        smallest = math.floor(operand) + 1 if name == "gt" else math.ceil(operand)
        return Condition(column, *(("in", ()) if smallest > _LARGEST else ("gte", (max(smallest, _SMALLEST),))))
    largest = math.ceil(operand) - 1 if name == "lt" else math.floor(operand)
    return Condition(column, *(("in", ()) if largest < _SMALLEST else ("lte", (min(largest, _LARGEST),))))


def _operand(column: str, kind: Kind | None, value: Any) -> Operand:  # noqa: ANN401 - external input
    """Convert a value of a filter to the type in which the column is compared (see ``items.comparable``).

    For an integer column, any finite number is allowed.

    Raises:
        QueryError: the value has another type than the column.
    """
    match kind, value:
        case "text", str():
            return value.encode(errors="replace").decode()  # a catalogue never contains lone surrogates
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
    msg = f"The filter on {column!r} compares with {reprlib.repr(value)}, but the column contains {expected}."
    raise QueryError(msg, key=column, value=value, expected=kind)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False


def _microseconds(text: str) -> int:
    moment = dt.datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return (moment - _EPOCH) // dt.timedelta(microseconds=1)


def _evaluate(items: Items, condition: Condition) -> Bitmap:
    """Return a bitmap of the videos for which the condition is true. Null never matches.

    The bits after the last video are undefined.
    """
    if few := items.few_values(condition.column):
        codes, values = few
        passed = np.append(_compare(values, condition).to_numpy(zero_copy_only=False), False)
        return np.packbits(passed[codes], bitorder="little")  # null has code -1, which selects the appended False
    passed = _compare(items.comparable(condition.column), condition)
    return np.frombuffer(passed.buffers()[1], np.uint8, (len(items) + 7) // 8, passed.offset // 8)


def _compare(array: pa.Array, condition: Condition) -> pa.BooleanArray:
    zeros = (0.0, -0.0) if kind_of(array.type) == "number" and 0.0 in condition.operands else ()
    operands = pa.array((*condition.operands, *zeros), array.type)  # is_in treats 0.0 and -0.0 as different
    if condition.operator != "in":
        passed = _COMPARE[condition.operator](array, operands[0])
    elif len(condition.operands) == 1:
        passed = pc.equal(array, operands[0])
    else:
        passed = pc.is_in(array, operands)
    return passed.fill_null(False)  # noqa: FBT003 - Arrow's signature


def _unpacked(bitmap: Bitmap, size: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(bitmap, count=size, bitorder="little").view(np.bool_)
