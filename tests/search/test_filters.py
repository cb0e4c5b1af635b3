import datetime as dt
import math
import operator
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import QueryError
from raypipe.search import filters as filters_module
from raypipe.search import items as items_module
from raypipe.search.filters import Eligible, FilterMasks
from raypipe.search.items import Items
from support.properties import examples

UTC = dt.UTC
COMPARE = {"gt": "gt", "gte": "ge", "lt": "lt", "lte": "le"}
TEXTS = st.sampled_from(["", "a", "b", "é", "z", "日本", "😀", "long text of more than twelve bytes"])
WHOLE = st.integers(-3, 3) | st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, -(2**63)])
FLOATS = st.sampled_from([0.0, -0.0, 0.1, 1.5, -2.0, 1e300, math.inf, -math.inf, math.nan])
TIMES = st.sampled_from(
    [
        dt.datetime(2024, 1, 1, 12, tzinfo=UTC),
        dt.datetime(2024, 1, 2, tzinfo=UTC),
        dt.datetime(2024, 1, 1, tzinfo=UTC),
        dt.datetime(1969, 7, 20, 1, 2, 3, 4, tzinfo=UTC),
    ]
)
VALUES: Mapping[str, tuple[pa.DataType, st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    "text": (pa.string(), TEXTS, TEXTS | st.text(max_size=3)),
    "whole": (pa.int64(), WHOLE, WHOLE | st.sampled_from([0.5, 2.0, -0.5, 2**70, -(2**70), 1e30, -1e30])),
    "byte": (pa.uint8(), st.integers(0, 255), st.integers(-1, 300) | st.sampled_from([0.5, 254.5])),
    "float": (pa.float64(), FLOATS, FLOATS.filter(math.isfinite) | st.integers(-2, 2)),
    "single": (pa.float32(), st.sampled_from([0.5, 0.1, -0.0]), st.sampled_from([0.5, 0.1, float(np.float32(0.1)), 0])),
    "yes": (pa.bool_(), st.booleans(), st.booleans()),
    "time": (pa.timestamp("us"), TIMES, TIMES),
    "day": (pa.date32(), st.dates(dt.date(2024, 1, 1), dt.date(2024, 1, 3)), TIMES),
}


@st.composite
def questions(draw: st.DrawFn) -> tuple[pa.Table, dict[str, Any], list[int]]:
    """Draw a table with nulls, filters on some of its columns, and positions to exclude."""
    size = draw(st.integers(0, 20))
    columns: dict[str, pa.Array] = {"video_id": pa.array([str(row) for row in range(size)], pa.string())}
    asked: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=3)):
        column, values, operand = VALUES[name]
        columns[name] = pa.array(draw(st.lists(st.none() | values, min_size=size, max_size=size)), column)
        asked[name] = draw(
            operand
            | st.lists(operand, max_size=4)
            | st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), operand, min_size=1, max_size=2)
        )
    return pa.table(columns), asked, draw(st.lists(st.integers(-1, 25), max_size=4))


def passes(value: object, asked: object) -> bool:
    """Apply a filter in plain Python."""
    if value is None:
        return False
    if isinstance(value, dt.date):
        midnight = dt.datetime.combine(value, dt.time())
        value = (value if isinstance(value, dt.datetime) else midnight).replace(tzinfo=UTC)
    if isinstance(asked, dict):
        return all(getattr(operator, COMPARE[name])(value, operand) for name, operand in asked.items())
    return any(value == one for one in (asked if isinstance(asked, list) else [asked]))


@settings(max_examples=examples(200))
@given(question=questions(), few=st.sampled_from([0, 2, 4096]))
def test_filters_agree_with_plain_python(question: tuple[pa.Table, dict[str, Any], list[int]], few: int) -> None:
    table, asked, excluded = question
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items_module, "_FEW_VALUES", few)  # compare codes, or the texts themselves
        found = FilterMasks(Items(table, None)).eligible(
            {name: spoken(value) for name, value in asked.items()}, exclude=excluded
        )
    expected = [
        row
        for row, values in enumerate(table.to_pylist())
        if row not in excluded and all(passes(values[name], value) for name, value in asked.items())
    ]
    if not asked and not excluded:
        assert found is None
        return
    assert found is not None
    assert found.positions().tolist() == expected
    assert (found.count, found.size) == (len(expected), table.num_rows)
    assert found.bitmap.dtype == np.uint8
    assert len(found.bitmap) == math.ceil(table.num_rows / 8)
    assert np.unpackbits(found.bitmap).sum() == len(expected)  # no bit after the last row
    everywhere = np.arange(-2, 30)
    assert found.contains(everywhere).tolist() == [int(position) in expected for position in everywhere]


def spoken(asked: object) -> Any:  # noqa: ANN401 - a filter's value
    """Return the value as JSON would deliver it."""
    if isinstance(asked, dict):
        return {name: spoken(value) for name, value in asked.items()}
    if isinstance(asked, list):
        return [spoken(value) for value in asked]
    return asked.isoformat() if isinstance(asked, dt.datetime) else asked


def a_few(size: int = 100) -> Items:
    return Items(
        pa.table(
            {
                "video_id": [str(row) for row in range(size)],
                "category": [("a", "b", None)[row % 3] for row in range(size)],
                "views": range(size),
                "published_at": pa.array([row * 3_600 for row in range(size)], pa.timestamp("s")),
                "live": [row % 2 == 0 for row in range(size)],
                "tags": [["x"]] * size,
            }
        ),
        None,
    )


def test_faiss_reads_the_bitmap_as_it_is() -> None:
    found = FilterMasks(a_few()).eligible({"category": "a", "views": {"gte": 20, "lt": 60}}, exclude=[21, 24])
    assert found is not None
    index = faiss.IndexFlatIP(1)
    index.add(np.ones((100, 1), np.float32))
    selector = faiss.IDSelectorBitmap(100, faiss.swig_ptr(found.bitmap))
    _, positions = index.search(np.ones((1, 1), np.float32), 20, params=faiss.SearchParameters(sel=selector))
    assert sorted(positions[positions >= 0].tolist()) == found.positions().tolist() == [*range(27, 60, 3)]


COLUMNS = ("category", "live", "published_at", "video_id", "views")


@pytest.mark.parametrize(
    ("asked", "key", "value", "allowed"),
    [
        ({"genre": "a"}, "filters", "genre", COLUMNS),
        ({"tags": "x"}, "filters", "tags", COLUMNS),
        ({"category": 1}, "category", 1, "text"),
        ({"category": None}, "category", None, "text"),
        ({"category": ["a", 1]}, "category", 1, "text"),
        ({"category": ["a", ["b"]]}, "category", ["b"], "text"),
        ({"category": b"a"}, "category", b"a", "text"),
        ({"views": "7"}, "views", "7", "integer"),
        ({"views": True}, "views", True, "integer"),
        ({"views": math.nan}, "views", math.nan, "integer"),
        ({"views": {"gt": math.inf}}, "views", math.inf, "integer"),
        ({"views": 10**400}, "views", 10**400, "integer"),
        ({"views": {"over": 7}}, "views", ["over"], tuple(COMPARE)),
        ({"views": {"gt": [7]}}, "views", [7], "integer"),
        ({"views": {}}, "views", [], tuple(COMPARE)),
        ({"live": 1}, "live", 1, "boolean"),
        ({"published_at": 7}, "published_at", 7, "time"),
        ({"published_at": "May"}, "published_at", "May", "time"),
    ],
)
def test_a_filter_that_cannot_be_answered_says_why(
    asked: dict[str, Any], key: str, value: object, allowed: str | tuple[str, ...]
) -> None:
    with pytest.raises(QueryError) as raised:
        FilterMasks(a_few()).eligible(asked)
    error = raised.value
    assert (error.key, repr(error.value), error.choices or error.expected) == (key, repr(value), allowed)
    assert str(error).isprintable()
    assert len(str(error)) < 200  # long values are shortened
    assert ("2024-05-31" in str(error)) == (allowed == "time")  # an example of a time


def test_times_are_iso_text_of_any_zone() -> None:
    masks = FilterMasks(a_few())
    for text in ("1970-01-02", "1970-01-02T00:00:00Z", "1970-01-02T01:00+01:00", "1970-01-02 00:00:00"):
        found = masks.eligible({"published_at": text})
        assert found is not None
        assert found.positions().tolist() == [24]


@pytest.mark.parametrize(
    ("column", "asked", "expected"),
    [
        ([0.0, -0.0, 1.5], [0, 9], [0, 1]),
        ([0.0, -0.0, 1.5], -0.0, [0, 1]),
        ([-(2**63), 0, 2**63 - 1], {"gte": -(2**63) - 1}, [0, 1, 2]),
        ([-(2**63), 0, 2**63 - 1], {"gt": -(2**63) - 1.5e9, "lte": 2**63}, [0, 1, 2]),
        ([-(2**63), 0, 2**63 - 1], {"gt": 2**63 - 1}, []),
        ([-(2**63), 0, 2**63 - 1], {"lt": -(2**63)}, []),
        ([2**53, 2**53 + 1], {"gt": float(2**53)}, [1]),
        ([2**53, 2**53 + 1], [2**53 + 1, 2**70, 0.5], [1]),
        (["b", "a", None, "ä"], {"gt": "a"}, [0, 3]),
        ([None, True, False], {"gte": True}, [1]),
        ([1, None], [], []),
    ],
)
def test_values_at_their_limits(column: list[Any], asked: object, expected: list[int]) -> None:
    ids = [str(row) for row in range(len(column))]
    found = FilterMasks(Items(pa.table({"video_id": ids, "x": column}), None)).eligible({"x": asked})
    assert found is not None
    assert found.positions().tolist() == expected


def test_of_many_columns_a_message_names_some() -> None:
    items = Items(pa.table({"video_id": ["a"], **{f"column{number:02d}": [1] for number in range(50)}}), None)
    with pytest.raises(QueryError) as raised:
        FilterMasks(items).eligible({"x": 1})
    assert raised.value.choices == tuple(sorted(items.columns))
    assert "column00" in str(raised.value)
    assert "column49" not in str(raised.value)


def test_a_repeated_filter_is_cached_and_never_changed() -> None:
    masks = FilterMasks(a_few())
    first = masks.eligible({"category": ["b", "a"], "views": {"gt": 3.5, "lt": 90}})
    assert masks.eligible({"views": {"lt": 90, "gte": 4}, "category": ("a", "b", "b")}) is first
    assert first is not None
    without = masks.eligible({"category": ["b", "a"], "views": {"gt": 3.5, "lt": 90}}, exclude=np.array([4, 4, 5, 6]))
    assert without is not None
    assert without.count == first.count - 2
    assert first.contains(np.array([4, 5, 6])).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="read-only"):
        first.bitmap[0] = 0


def test_true_and_one_are_different_filters() -> None:
    masks = FilterMasks(a_few())
    assert masks.eligible({"live": True}) is not None
    with pytest.raises(QueryError):
        masks.eligible({"live": 1})


def test_the_cache_of_masks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = FilterMasks(a_few(), cache_size=5)
    kept = masks.eligible({"category": "a"})
    for number in range(20):
        masks.eligible({"views": number})
        assert masks.eligible({"category": "a"}) is kept  # used recently
    assert len(masks._cache) == 5
    monkeypatch.setattr(filters_module, "CACHE_BYTES", 24)  # two masks for 96 videos
    masks = FilterMasks(a_few(96))
    for number in range(5):
        masks.eligible({"views": number})
    assert len(masks._cache) == 2


def test_threads_get_the_same_answers() -> None:
    items = a_few(1_000)
    asked: list[dict[str, Any]] = [{"category": "a", "views": {"lt": limit}} for limit in range(0, 1_000, 7)]
    alone = FilterMasks(items)
    expected = [ids_of(alone, one, ()) for one in asked]
    masks, together = FilterMasks(a_few(1_000), cache_size=16), threading.Barrier(8)

    def ask(start: int) -> bool:
        together.wait()
        order = [*range(start, len(asked)), *range(start)]
        return all(ids_of(masks, asked[number], [start]) == expected[number] - {start} for number in order)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(0, 80, 10)))


def ids_of(masks: FilterMasks, asked: dict[str, Any], excluded: Iterable[int]) -> set[int]:
    found = masks.eligible(asked, exclude=excluded)
    assert found is not None
    return set(found.positions().tolist())


@given(size=st.integers(1, 2_000), share=st.floats(0, 0.3), seed=st.integers(0, 2**32 - 1))
def test_the_positions_of_few_are_those_of_their_bits(size: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random(size) < share
    found = Eligible.of(mask)
    assert (found.count, found.size) == (mask.sum(), size)
    np.testing.assert_array_equal(found.mask(), mask)
    assert found.positions().dtype == np.int64
    assert found.positions().tolist() == np.flatnonzero(mask).tolist()
