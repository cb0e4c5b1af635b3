"""Read dates as users write them (ISO text, epoch numbers of four units, years, YYYYMMDD) as microseconds in UTC."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Microseconds = npt.NDArray[np.int64]

TIMESTAMP = pa.timestamp("us", tz="UTC")
ISO_TEXT = "ISO text"
_FIRST_YEAR, _LAST_YEAR = 1800, 2199
_SECOND, _DAY = 1_000_000, 86_400_000_000  # in microseconds
_FIRST = int(np.datetime64(f"{_FIRST_YEAR}-01-01", "us").astype(np.int64))
_LAST = int(np.datetime64(f"{_LAST_YEAR + 1}-01-01", "us").astype(np.int64)) - 1
_SMALLEST_EPOCH_SECONDS = 1e8  # March 1973: smaller numbers may be anything
_LARGEST_EPOCH_SECONDS = _LAST / _SECOND
_ZONE = r"[0-9](Z|[+-]([01][0-9]|2[0-3]):?[0-5][0-9])$"
_ISO_TIME = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"([T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,9})?)?(Z|[+-]([01][0-9]|2[0-3]):?[0-5][0-9])?)?$"
)


@dataclass(frozen=True, slots=True)
class _Unit:
    name: str
    is_one: Callable[[Floats], Mask]  # which numbers can only be of this unit: the ranges of two units never overlap
    to_microseconds: Callable[[Floats], Floats]


def iso_times(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ISO dates and times as timestamps, and null for every other text; no zone means UTC."""
    nothing = pa.scalar(None, pa.string())
    texts = pc.if_else(_is_iso(texts), texts, nothing)
    texts = pc.replace_substring_regex(texts, pattern=r"(\.[0-9]{6})[0-9]+", replacement=r"\1")
    zoned = pc.match_substring_regex(texts, _ZONE)
    with_zone = pc.if_else(zoned, texts, nothing).cast(TIMESTAMP)
    without = pc.if_else(zoned, nothing, texts).cast(pa.timestamp("us")).cast(TIMESTAMP)
    return pc.coalesce(with_zone, without)


def _is_iso(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Also check that the calendar has the day: 2023-02-29 is not a date."""
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
    """Tell which times may be dates of videos: 1800 to 2199, and not a small count that was read as 1970-01-01."""
    in_range: Mask = (microseconds >= _FIRST) & (microseconds <= _LAST)
    in_range &= (np.abs(microseconds) >= _DAY) | (microseconds == 0)
    return in_range


def unit_of(numbers: Floats) -> str | None:
    """Return the unit in which most of the numbers are dates, None if no number is a date in any unit."""
    counts = {unit.name: int(unit.is_one(numbers).sum()) for unit in _UNITS}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else None


def dates_of_numbers(numbers: Floats, unit: str) -> tuple[Microseconds, Mask]:
    """Return numbers of one unit as times, and which of them are plausible: not 0, and not of another unit."""
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
        in_range: Mask = (seconds >= _SMALLEST_EPOCH_SECONDS) & (seconds <= _LARGEST_EPOCH_SECONDS)
        return in_range

    return _Unit(name, is_one, lambda numbers: numbers * (_SECOND / per_second))


def _is_year(numbers: Floats) -> Mask:
    in_range: Mask = (numbers >= _FIRST_YEAR) & (numbers <= _LAST_YEAR)
    in_range &= numbers == np.floor(numbers)
    return in_range


def _year_microseconds(numbers: Floats) -> Floats:
    begin = (numbers - 1970).astype(np.int64).astype("datetime64[Y]").astype("datetime64[D]")
    return begin.astype(np.int64).astype(np.float64) * _DAY


def _days_of(numbers: Floats) -> tuple[npt.NDArray[np.int64], Mask]:
    """Return the days since 1970 of numbers YYYYMMDD, and whether the calendar has them."""
    whole = numbers.astype(np.int64)
    years, months, days = whole // 10_000, whole // 100 % 100, whole % 100
    begin = ((years - 1970) * 12 + months - 1).astype("datetime64[M]")
    length = (begin + 1).astype("datetime64[D]") - begin.astype("datetime64[D]")
    exists = (months >= 1) & (months <= 12) & (days >= 1) & (days <= length.astype(np.int64))  # noqa: PLR2004
    return begin.astype("datetime64[D]").astype(np.int64) + days - 1, exists


def _is_day(numbers: Floats) -> Mask:
    in_range: Mask = (numbers >= _FIRST_YEAR * 10_000) & (numbers < (_LAST_YEAR + 1) * 10_000)
    in_range &= numbers == np.floor(numbers)
    return in_range & _days_of(np.where(in_range, numbers, 0))[1]


def _day_microseconds(numbers: Floats) -> Floats:
    return _days_of(numbers)[0].astype(np.float64) * _DAY


_CALENDAR = ("years", "YYYYMMDD")
_UNITS = (
    _epoch("epoch seconds", 1),
    _epoch("epoch milliseconds", 1e3),
    _epoch("epoch microseconds", 1e6),
    _epoch("epoch nanoseconds", 1e9),
    _Unit("years", _is_year, _year_microseconds),
    _Unit("YYYYMMDD", _is_day, _day_microseconds),
)
