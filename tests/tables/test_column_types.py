"""A column's type is decided once from all its values; values that do not fit are reported."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.tables.column_types import BOOLEANS, EPOCHS, ISO_TEXT, TEXT_LISTS, ColumnReading, Kind, read_column

NEWEST = datetime(2024, 5, 31, tzinfo=UTC)
TIMES = [NEWEST - timedelta(days=days) for days in range(40)]
SECONDS = [int(time.timestamp()) for time in TIMES]


def read(
    values: list[Any], kind: pa.DataType | None = None, *, expected: Kind | None = "dates", is_untyped: bool = False
) -> tuple[list[Any], ColumnReading | None]:
    column = pa.chunked_array([pa.array(values, kind)])
    found, reading = read_column("c", column, expected=expected, is_untyped=is_untyped)
    return found.to_pylist(), reading


def dates_of(values: list[Any], kind: pa.DataType | None = None) -> tuple[list[Any], ColumnReading]:
    found, reading = read(values, kind)
    assert reading is not None
    assert reading.kind == "dates"
    return found, reading


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        (SECONDS, EPOCHS[0]),
        ([float(one) for one in SECONDS], EPOCHS[0]),
        ([one * 10**3 for one in SECONDS], EPOCHS[1]),
        ([one * 10**6 for one in SECONDS], EPOCHS[2]),
        ([one * 10**9 for one in SECONDS], EPOCHS[3]),
        ([int(f"{time:%Y%m%d}") for time in TIMES], "YYYYMMDD"),
        ([f"{time:%Y%m%d}" for time in TIMES], "YYYYMMDD"),
        ([str(one * 1000) for one in SECONDS], EPOCHS[1]),
        ([time.isoformat() for time in TIMES], ISO_TEXT),
        ([f"{time:%Y-%m-%d}" for time in TIMES], ISO_TEXT),
        ([f"{time:%Y-%m-%dT%H:%M:%S}.000000000Z" for time in TIMES], ISO_TEXT),
        (TIMES, "timestamps"),
    ],
)
def test_every_unit_gives_the_same_dates(values: list[Any], unit: str) -> None:
    found, reading = dates_of(values)
    assert found == TIMES
    assert (reading.unit, reading.first, reading.last) == (unit, "2024-04-22", "2024-05-31")
    assert (reading.warning, reading.num_bad) == (None, 0)


@given(
    st.datetimes(datetime(1974, 1, 1), datetime(2199, 12, 31)),  # noqa: DTZ001 - Hypothesis adds the zone
    st.sampled_from([1, 10**3, 10**6]),
)
def test_any_date_is_read_in_its_unit(time: datetime, per_second: int) -> None:
    whole = time.replace(microsecond=0, tzinfo=UTC)
    (found,), _ = dates_of([int(whole.timestamp()) * per_second])
    assert found == whole


def test_years_are_the_first_of_january() -> None:
    found, reading = dates_of([2019.0, None, 1957.0])
    assert found == [datetime(2019, 1, 1, tzinfo=UTC), None, datetime(1957, 1, 1, tzinfo=UTC)]
    assert reading.unit == "years"


def test_old_films_among_milliseconds_are_dates() -> None:
    old = datetime(1950, 6, 1, tzinfo=UTC)
    found, reading = dates_of([*(one * 1000 for one in SECONDS), int(old.timestamp()) * 1000])
    assert (found[-1], reading.num_bad) == (old, 0)


@pytest.mark.parametrize(
    "bad",
    [
        SECONDS[0],  # a different unit
        0,
        -1,
        2024,
        10**17,
    ],
)
def test_few_values_of_another_unit_are_null_and_named(bad: int) -> None:
    found, reading = dates_of([*(one * 1000 for one in SECONDS), bad])
    assert found == [*TIMES, None]
    assert (reading.unit, reading.num_bad, reading.num_values) == (EPOCHS[1], 1, 41)
    assert reading.examples == (str(bad),)
    assert reading.warning


@pytest.mark.parametrize("bad", ["9999-12-31", "0001-01-01", "2024-02-30", "soon", str(SECONDS[0])])
def test_few_texts_that_are_no_plausible_date_are_null_and_named(bad: str) -> None:
    found, reading = dates_of([*(time.isoformat() for time in TIMES), bad])
    assert found == [*TIMES, None]
    assert (reading.num_bad, reading.examples) == (1, (bad,))


@pytest.mark.parametrize("missing", ["n/a", "NA", " Unknown ", "null", "-"])
def test_missing_values_never_make_dates_text(missing: str) -> None:
    found, reading = dates_of(["2024-05-31", missing, "2024-05-30"])
    assert found == [TIMES[0], None, TIMES[1]]
    assert (reading.num_bad, reading.examples) == (1, (missing.strip(),))


@pytest.mark.parametrize(
    ("values", "num_bad"),
    [
        ([SECONDS[0], SECONDS[1] * 1000], 1),  # half and half
        ([*SECONDS[:9], SECONDS[9] * 1000], 1),  # a tenth
        ([5, 6, 7], 3),
        (["31.05.2024", "30.05.2024"], 2),
        (["2024-05-31", "soon"], 1),
        ([datetime(1970, 1, 1, 0, 28, 37, tzinfo=UTC)] * 3, 3),  # seconds parsed as milliseconds
    ],
)
def test_a_column_of_dates_that_holds_too_few_is_text_and_named(values: list[Any], num_bad: int) -> None:
    found, reading = read(values)
    assert reading is not None
    assert (reading.kind, reading.most, reading.num_bad) == ("text", "dates", num_bad)
    assert all(isinstance(one, str) for one in found)
    assert reading.warning


def test_the_type_of_an_empty_column_is_not_changed() -> None:
    assert read([None, None], pa.float64()) == ([None, None], None)
    assert read(["", None]) == (["", None], None)


@pytest.mark.parametrize(
    ("most", "values", "read_as"),
    [
        ("numbers", ["1"] * 30, [1] * 30),
        ("numbers", ["1.5", "+2", "3e2"] * 10, [1.5, 2.0, 300.0] * 10),
        (BOOLEANS, ["true", "False"] * 15, [True, False] * 15),
        ("dates", ["2024-05-31"] * 30, [NEWEST] * 30),
    ],
)
def test_a_column_keeps_its_type_when_few_values_are_bad(most: Kind, values: list[str], read_as: list[Any]) -> None:
    for bad in ("oops", "unknown"):
        found, reading = read([*values, bad, ""], expected=None, is_untyped=True)
        assert found == [*read_as, None, None]
        assert reading is not None
        assert (reading.kind, reading.num_bad, reading.num_values) == (most, 1, 31)
        assert (reading.examples, bool(reading.warning)) == ((bad,), True)


@pytest.mark.parametrize("num_bad", [2, 9])
def test_with_more_bad_values_it_is_text_with_a_warning_while_most_are_good(num_bad: int) -> None:
    values = [*["12"] * 10, *["oops"] * num_bad]
    found, reading = read(values, expected=None, is_untyped=True)
    assert found == values
    assert reading is not None
    assert (reading.kind, reading.most, reading.num_bad, reading.examples) == ("text", "numbers", num_bad, ("oops",))


@pytest.mark.parametrize(
    "values",
    [
        ["1", "2", "three", "four"],
        ["007"] * 30 + ["x"],  # codes
        ["12", "07", "34"] * 30,
        ["12345678901234567890", "12345678901234567891"],  # equal in float64
        ["9007199254740993", "2.5"],
        ["a", "b"],
    ],
)
def test_text_is_text_without_a_warning(values: list[str]) -> None:
    assert read(values, expected=None, is_untyped=True) == (values, None)


def test_long_numbers_are_exact() -> None:
    ids = [2**53 + 1, 2**63 - 1]
    assert read([*map(str, ids), "n/a"], expected=None, is_untyped=True)[0] == [*ids, None]
    assert read(ids, expected=None) == (ids, None)
    for value in (2**53 + 1, 10**30 + 1):
        found, _ = read([Decimal(value)], pa.decimal128(38, 0), expected=None)
        assert found == [value if value < 2**63 else str(value)]


@pytest.mark.parametrize("missing", ["n/a", "nan", "inf"])
def test_a_column_that_is_mostly_missing_keeps_its_type(missing: str) -> None:
    found, reading = read([*[missing] * 9, "1.5"], expected="numbers")
    assert found == [*[None] * 9, 1.5]
    assert reading is not None
    assert (reading.kind, reading.num_bad, bool(reading.warning)) == ("numbers", 9, True)


@pytest.mark.parametrize("expected", ["dates", "numbers"])
@pytest.mark.parametrize(
    ("values", "kind"), [([True, False], BOOLEANS), ([["a"], ["b"]], TEXT_LISTS), (TIMES[:1], "dates")]
)
def test_a_column_of_another_type_than_it_should_have_is_named(values: list[Any], kind: Kind, expected: Kind) -> None:
    found, reading = read(values, expected=expected)
    assert found == values
    assert reading is not None
    assert (reading.kind, reading.most, bool(reading.warning)) == (kind, expected, kind != expected)


def test_numbers_that_are_texts_in_their_file_stay_texts() -> None:
    assert read(["1"] * 30 + ["x"], expected=None) == (["1"] * 30 + ["x"], None)
    assert read(["1"] * 30, expected="numbers") == ([1] * 30, None)


def test_numbers_in_other_columns_are_not_dates() -> None:
    assert read([one * 1000 for one in SECONDS], expected=None) == ([one * 1000 for one in SECONDS], None)


def test_long_examples_are_cut() -> None:
    _, reading = read(["2024-05-31"] * 30 + ["x" * 1000])
    assert reading is not None
    assert len(reading.examples[0]) < 50
