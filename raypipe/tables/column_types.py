"""Infer the type of a column from all of its values: booleans, numbers, dates, texts, or lists of texts."""

import datetime as dt
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Microseconds = npt.NDArray[np.int64]
Column: TypeAlias = pa.ChunkedArray

TIMESTAMP = pa.timestamp("us", tz="UTC")
ISO_TEXT = "ISO text"
EPOCHS = ("epoch seconds", "epoch milliseconds", "epoch microseconds", "epoch nanoseconds")
_FIRST_YEAR, _LAST_YEAR = 1800, 2199
_SECOND, _DAY = 1_000_000, 86_400_000_000  # in microseconds
_FIRST = int(np.datetime64(f"{_FIRST_YEAR}-01-01", "us").astype(np.int64))
_LAST = int(np.datetime64(f"{_LAST_YEAR + 1}-01-01", "us").astype(np.int64)) - 1
_SMALLEST_EPOCH_SECONDS = 1e8  # March 1973: smaller numbers may mean anything
_LARGEST_EPOCH_SECONDS = _LAST / _SECOND
_ZONE = r"[0-9](Z|[+-]([01][0-9]|2[0-3]):?[0-5][0-9])$"
_ISO_TIME = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"([T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,9})?)?(Z|[+-]([01][0-9]|2[0-3]):?[0-5][0-9])?)?$"
)
Kind = Literal["true or false", "numbers", "dates", "text", "lists of texts"]
BOOLEANS: Kind = "true or false"
TEXT_LISTS: Kind = "lists of texts"

MAX_BAD_FRACTION = 0.05  # a column with a larger share of bad values is text
# Placeholders for missing values. A warning lists them, but they never change the column's type, however many they are.
MISSING = ("n/a", "na", "nan", "inf", "-inf", "none", "null", "nil", "unknown", "undefined", "-", "--", "?")
TIMESTAMPS = "timestamps"
_NUM_EXAMPLES, _MAX_SHOWN = 3, 40
_NUMBER = r"^[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_WHOLE_NUMBER = r"^[+-]?[0-9]+$"
_LEADING_ZERO = r"^[+-]?0[0-9]+$"
_LONG_NUMBER = r"^[+-]?[0-9]{16,999}$"  # float64 may not hold it exactly
_NO_TEXT = pa.scalar(None, pa.string())


@dataclass(frozen=True, slots=True)
class _Unit:
    name: str
    is_one: Callable[[Floats], Mask]  # which numbers are dates in this unit; the ranges of two units never overlap
    to_microseconds: Callable[[Floats], Floats]


def iso_times(texts: Column) -> Column:
    """Convert ISO dates and times to timestamps, and all other texts to null. Times without a zone are UTC."""
    texts = pc.if_else(_is_iso(texts), texts, _NO_TEXT)
    texts = pc.replace_substring_regex(texts, pattern=r"(\.[0-9]{6})[0-9]+", replacement=r"\1")
    zoned = pc.match_substring_regex(texts, _ZONE)
    with_zone = pc.if_else(zoned, texts, _NO_TEXT).cast(TIMESTAMP)
    without = pc.if_else(zoned, _NO_TEXT, texts).cast(pa.timestamp("us")).cast(TIMESTAMP)
    return pc.coalesce(with_zone, without)


def _is_iso(texts: Column) -> Column:
    """Return a mask of the texts that are ISO dates or times.

    The day must exist in the calendar: 2023-02-29 is not a date.
    """
    matches = pc.match_substring_regex(texts, _ISO_TIME).fill_null(False)  # noqa: FBT003 - Arrow's own signature
    days = pc.utf8_slice_codeunits(texts, 0, 10)
    existing = [day for day in pc.unique(days.filter(matches)).to_pylist() if _exists(day)]
    return pc.and_(matches, pc.is_in(days, value_set=pa.array(existing, pa.string())))


def _exists(day: str) -> bool:
    try:
        dt.date.fromisoformat(day)
    except ValueError:
        return False
    return True


def is_plausible(microseconds: Microseconds) -> Mask:
    """Return a mask of the times that may be dates of videos, which are from 1800 to 2199.

    Times within a day of 1970-01-01 are not plausible, except for that midnight itself: they are usually small counts
    that were read as times.
    """
    is_small = (np.abs(microseconds) < _DAY) & (microseconds != 0)
    return np.asarray((microseconds >= _FIRST) & (microseconds <= _LAST) & ~is_small, np.bool_)


def unit_of(numbers: Floats) -> str | None:
    """Return the unit in which most of the numbers are dates, or None if no number is a date in any unit."""
    counts = {unit.name: int(unit.is_one(numbers).sum()) for unit in _UNITS}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else None


def dates_of_numbers(numbers: Floats, unit: str) -> tuple[Microseconds, Mask]:
    """Convert numbers of one unit to times. Return the times, and a mask of the plausible ones.

    Numbers that are 0, or that are dates in another unit, are not plausible.
    """
    chosen = next(one for one in _UNITS if one.name == unit)
    is_other = np.zeros(len(numbers), np.bool_)
    for other in _UNITS:
        if other is not chosen:
            is_other |= other.is_one(numbers)
    usable = np.isfinite(numbers) & (numbers != 0) & ~is_other
    if chosen.name in _CALENDAR:
        usable &= chosen.is_one(numbers)
    times = chosen.to_microseconds(np.where(usable, numbers, 0))
    usable &= (times >= _FIRST) & (times <= _LAST)
    microseconds = np.rint(np.where(usable, times, 0)).astype(np.int64)
    return microseconds, usable & is_plausible(microseconds)


def _epoch(name: str, per_second: float) -> _Unit:
    def is_one(numbers: Floats) -> Mask:
        seconds = numbers / per_second
        return (seconds >= _SMALLEST_EPOCH_SECONDS) & (seconds <= _LARGEST_EPOCH_SECONDS)

    return _Unit(name, is_one, lambda numbers: numbers * (_SECOND / per_second))


def _is_whole(numbers: Floats, first: int, stop: int) -> Mask:
    return np.asarray((numbers >= first) & (numbers < stop) & (numbers == np.floor(numbers)), np.bool_)


def _year_microseconds(numbers: Floats) -> Floats:
    begin = (numbers - 1970).astype(np.int64).astype("datetime64[Y]").astype("datetime64[D]")
    return begin.astype(np.int64).astype(np.float64) * _DAY


def _days_of(numbers: Floats) -> tuple[npt.NDArray[np.int64], Mask]:
    """Convert YYYYMMDD numbers to days since 1970-01-01. Return the days, and a mask of those that exist."""
    whole = numbers.astype(np.int64)
    years, months, days = whole // 10_000, whole // 100 % 100, whole % 100
    begin = ((years - 1970) * 12 + months - 1).astype("datetime64[M]")
    length = (begin + 1).astype("datetime64[D]") - begin.astype("datetime64[D]")
    exists = (months >= 1) & (months <= 12) & (days >= 1) & (days <= length.astype(np.int64))  # noqa: PLR2004
    return begin.astype("datetime64[D]").astype(np.int64) + days - 1, exists


def _is_day(numbers: Floats) -> Mask:
    in_range = _is_whole(numbers, _FIRST_YEAR * 10_000, (_LAST_YEAR + 1) * 10_000)
    return in_range & _days_of(np.where(in_range, numbers, 0))[1]


_CALENDAR = ("years", "YYYYMMDD")
_UNITS = (
    *(_epoch(name, per_second) for name, per_second in zip(EPOCHS, (1, 1e3, 1e6, 1e9), strict=True)),
    _Unit("years", lambda numbers: _is_whole(numbers, _FIRST_YEAR, _LAST_YEAR + 1), _year_microseconds),
    _Unit("YYYYMMDD", _is_day, lambda numbers: _days_of(numbers)[0].astype(np.float64) * _DAY),
)


@dataclass(frozen=True, slots=True)
class ColumnReading:
    """How a column was read.

    A column is read as the kind of most of its values. If too many values are of another kind, it is read as text.
    """

    name: str
    kind: Kind
    most: Kind  # the kind of most values, or the expected kind
    num_values: int  # the number of values that are not empty
    unit: str | None = None  # the unit of the dates
    first: str = ""  # the earliest date, as YYYY-MM-DD
    last: str = ""
    num_bad: int = 0  # values that are not of kind ``most``; they are null unless ``kind`` is text
    examples: tuple[str, ...] = ()  # some bad values

    @property
    def summary(self) -> str:
        """Return a short description of the column."""
        if self.kind != "dates":
            return f"{self.name}: {self.kind}"
        span = f", {self.first} … {self.last}" if self.first else ""
        return f"{self.name}: dates, read as {self.unit}{span}"

    @property
    def warning(self) -> str | None:
        """Return what is wrong with the column and how it is treated, or None if nothing is wrong."""
        if self.kind not in (self.most, "text"):
            return f"column {self.name!r} holds {self.kind}. Give {self.most}."
        if not self.num_bad:
            return None
        examples = ", ".join(map(repr, self.examples))
        found = f"{self.num_bad:,} of {self.num_values:,} values are not {self.most}: {examples}"
        if self.kind == "text":
            remedy = " Write 2024-05-31, or epoch numbers of one unit." if self.most == "dates" else ""
            return f"column {self.name!r}: {found}. It is kept as text and is not used as {self.most}.{remedy}"
        unit = f" ({self.unit})" if self.unit else ""
        return f"column {self.name!r}: {found}. It is read as {self.most}{unit}, and these values are null."


_Read: TypeAlias = tuple[Column, ColumnReading | None]


def read_column(name: str, column: Column, *, expected: Kind | None = None, is_untyped: bool = False) -> _Read:
    """Convert a column to the single type of its kind.

    Return the column and how it was read, or None if there is nothing to report. If ``expected`` is dates, numbers are
    read as dates too, and their unit is inferred. ``is_untyped`` means that the file does not give the column's type. A
    text such as 12 is then a number, unless other values of the column contradict this.

    Raises:
        ValueError: the type of the column is not supported.
    """
    column = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _read_texts(name, column.cast(pa.string()), expected=expected, is_untyped=is_untyped)
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        times, unit = _timestamps(column), ISO_TEXT if is_untyped else TIMESTAMPS
        if expected == "dates":
            return _read_dates(name, times, unit=unit)
        return times, _describe(name, times, kind="dates", most=expected, num_values=_num_values(times), unit=unit)
    if expected == "dates" and (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return _read_dates(name, column)
    held, values = _plain(name, column)
    if held is None or expected in (None, held):
        return values, None
    return values, _describe(name, values, kind=held, most=expected, num_values=_num_values(column))


def _plain(name: str, column: Column) -> tuple[Kind | None, Column]:
    """Return the kind that the Arrow type of a column implies, and the converted values.

    The kind is None if all values are null.
    """
    kind = column.type
    if pa.types.is_null(kind):
        return None, column.cast(pa.string())
    if pa.types.is_boolean(kind):
        return BOOLEANS, column
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return TEXT_LISTS, column.cast(pa.list_(pa.string()))
    if pa.types.is_floating(kind) or (pa.types.is_decimal(kind) and kind.scale > 0):
        return "numbers", _finite(column)
    if pa.types.is_integer(kind):
        return "numbers", column.cast(pa.int64())
    if pa.types.is_decimal(kind):
        return "numbers", _whole_numbers(column)
    msg = f"its column {name!r} holds {kind}. Give texts, numbers, true or false, dates, or lists of texts."
    raise ValueError(msg)


def _num_values(column: Column) -> int:
    return len(column) - int(column.null_count)


def _timestamps(column: Column) -> Column:
    zone, is_fine = getattr(column.type, "tz", None), getattr(column.type, "unit", "") == "ns"
    return column.cast(pa.timestamp("us", tz=zone), safe=not is_fine).cast(TIMESTAMP)


def plausible_times(column: Column) -> Column:
    """Convert dates or timestamps to timestamps in UTC. Those that are not plausible become null."""
    microseconds = _timestamps(column).combine_chunks().cast(pa.int64())
    values = np.asarray(microseconds.fill_null(0), np.int64)
    is_date = np.asarray(pc.is_valid(microseconds), np.bool_) & is_plausible(values)
    return pa.chunked_array([pa.array(values, pa.int64(), mask=~is_date).cast(TIMESTAMP)])


def _whole_numbers(column: Column) -> Column:
    """Return decimals as int64, or as text if any of them needs more than 64 bits."""
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column.cast(pa.string())


def _finite(column: Column) -> Column:
    numbers = column.cast(pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))


def _read_texts(name: str, texts: Column, *, expected: Kind | None, is_untyped: bool) -> _Read:
    trimmed = pc.utf8_trim_whitespace(texts)
    given = pc.if_else(pc.equal(trimmed, ""), _NO_TEXT, trimmed)
    if given.null_count == len(given):
        return texts, None
    if expected == "dates":
        return _read_dates(name, given, else_text=texts)
    readings: dict[Kind, Column] = {"dates": iso_times(given)}
    if is_untyped or expected == "numbers":
        readings[BOOLEANS] = _booleans_of(given)
        numbers = _numbers_of(given)
        if expected == "numbers" or not _are_codes(given, numbers.type):
            readings["numbers"] = numbers
    fewest_bad: Kind = min(readings, key=lambda kind: int(readings[kind].null_count))
    most = expected or fewest_bad
    unit = ISO_TEXT if most == "dates" else None
    return _decided(name, given, readings[most], most=most, unit=unit, else_text=texts, is_expected=bool(expected))


def _numbers_of(texts: Column) -> Column:
    digits = pc.if_else(pc.match_substring_regex(texts, _NUMBER), texts, _NO_TEXT)
    unsigned = pc.utf8_ltrim(digits, "+")
    if pc.all(pc.match_substring_regex(digits, _WHOLE_NUMBER)).as_py():
        with suppress(pa.ArrowInvalid):  # more than 64 bits
            return unsigned.cast(pa.int64())
    return _finite(unsigned)


def _are_codes(texts: Column, number_type: pa.DataType) -> bool:
    """Return whether conversion to this type would lose digits of a text, such as 007 or an id of twenty digits."""
    if pc.any(pc.match_substring_regex(texts, _LEADING_ZERO)).as_py():
        return True
    if pa.types.is_integer(number_type):
        return False
    is_long = pc.match_substring_regex(texts, _LONG_NUMBER).fill_null(False)  # noqa: FBT003 - Arrow's own signature
    return any(not _is_exact(text) for text in texts.filter(is_long).to_pylist())


def _is_exact(digits: str) -> bool:
    number = float(digits)
    return math.isfinite(number) and int(number) == int(digits)


def _booleans_of(texts: Column) -> Column:
    lower = pc.utf8_lower(texts)
    is_boolean = pc.is_in(lower, value_set=pa.array(["true", "false"]))
    return pc.if_else(is_boolean, pc.equal(lower, "true"), pa.scalar(None, pa.bool_()))


def _read_dates(name: str, column: Column, *, unit: str = ISO_TEXT, else_text: Column | None = None) -> _Read:
    """Read texts, numbers or timestamps as dates of one unit. If too many values are not dates, read them as text."""
    texts = column.cast(pa.string()) if else_text is None else else_text
    times = pa.chunked_array([pa.nulls(len(column), TIMESTAMP)])
    numbers = np.full(len(column), np.nan)
    if pa.types.is_timestamp(column.type):
        times = column
    elif pa.types.is_string(column.type):
        times, numbers = iso_times(column), _floats(_numbers_of(column))
    else:
        numbers = _floats(column)
        column = pc.if_else(pa.array(np.isfinite(numbers)), column, pa.scalar(None, column.type))
    if column.null_count == len(column):
        return texts, None
    microseconds = np.asarray(times.cast(pa.int64()).fill_null(0), np.int64)
    is_date = np.asarray(pc.is_valid(times), np.bool_) & is_plausible(microseconds)
    if (number_unit := unit_of(numbers)) is not None:
        of_numbers, is_number_date = dates_of_numbers(numbers, number_unit)
        if is_number_date.sum() > is_date.sum():
            microseconds, is_date, unit = of_numbers, is_number_date, number_unit
    dates = pa.chunked_array([pa.array(microseconds, pa.int64(), mask=~is_date).cast(TIMESTAMP)])
    return _decided(name, column, dates, most="dates", unit=unit, else_text=texts, is_expected=True)


def _floats(numbers: Column) -> Floats:
    return np.asarray(numbers.cast(pa.float64(), safe=False).fill_null(np.nan), np.float64)


def _decided(
    name: str, given: Column, read: Column, *, most: Kind, unit: str | None, else_text: Column, is_expected: bool
) -> _Read:
    """Return ``read`` if all but a few of the ``given`` values could be read, otherwise ``else_text``.

    Also return how the column was read, or None if there is nothing to report.
    """
    num_values, num_read = _num_values(given), _num_values(read)
    bad = given.filter(pc.and_(pc.is_valid(given), pc.is_null(read))).cast(pa.string())
    missing = MISSING + (("0", "-1") if most == "dates" else ())
    num_missing = pc.sum(pc.is_in(pc.utf8_lower(bad), value_set=pa.array(missing))).as_py() or 0
    is_most = 2 * num_read > num_values - num_missing
    if is_most and len(bad) - num_missing <= MAX_BAD_FRACTION * num_values:
        reading = _describe(name, read, kind=most, unit=unit, num_values=num_values, bad=bad)
        return read, reading if bad or most == "dates" else None
    if is_most or is_expected:
        return else_text, _describe(name, else_text, kind="text", most=most, num_values=num_values, bad=bad)
    return else_text, None


def _describe(
    name: str,
    column: Column,
    *,
    kind: Kind,
    num_values: int,
    most: Kind | None = None,
    unit: str | None = None,
    bad: Column | None = None,
) -> ColumnReading:
    """Return how a column was read, including the range of its dates and a few of its bad values."""
    span = pc.min_max(column).values() if kind == "dates" else ()
    first, last = [(end.cast(pa.string()).as_py() or "")[:10] for end in span] or ("", "")
    examples = [] if bad is None else pc.unique(bad).slice(0, _NUM_EXAMPLES).to_pylist()
    shown = tuple(text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…" for text in examples)
    num_bad = 0 if bad is None else len(bad)
    return ColumnReading(name, kind, most or kind, num_values, unit, first, last, num_bad, shown)
