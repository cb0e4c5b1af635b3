"""Every test user is in one group of each slice, by the first target, the history, or a column of the catalogue."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from raypipe.errors import ConfigError
from raypipe.evaluation.groupings import Grouping, by_catalogue, by_history, check_columns
from raypipe.evaluation.protocols import Split
from raypipe.search.items import Items
from raypipe.search.watch_events import Events


def named(grouping: Grouping) -> list[str]:
    return [grouping.names[code] for code in grouping.codes]


def split_of(targets: list[int], known: list[list[int]], *, newest: float | None = None) -> Split:
    """Return a split with one target per user; the known events are the training events."""
    times = None if newest is None else np.full(sum(map(len, known)), newest)
    histories = Events.of_histories(known)
    events = Events(histories.items, histories.starts, times)
    return Split(events, events, Events.of_histories([[one] for one in targets]), np.arange(len(targets)), {})


def items_of(**columns: list[object]) -> Items:
    count = len(next(iter(columns.values())))
    return Items(pa.table({"video_id": [f"v{row}" for row in range(count)], **columns}), None)


def test_users_are_grouped_by_viewers_and_newness_of_the_target_and_by_history() -> None:
    split = split_of([0, 1, 2], [[1, 3], [1], [1, 4, 1, 1, 1]])
    found = by_history(split, num_items=5)
    assert named(found["target_frequency"]) == ["0", "5-9", "0"]
    assert named(found["newness"]) == ["new", "watched before", "new"]
    assert named(found["history_length"]) == ["1-4", "1-4", "5-9"]


def test_a_column_has_its_most_frequent_values_and_other() -> None:
    values = [f"value {row // 2}" if row < 28 else None for row in range(29)]
    values[28 - 1] = "other"
    split = split_of([*range(29)], [[] for _ in range(29)])
    found = by_catalogue(split, items_of(tag=values, number=[row % 3 for row in range(29)]), ("tag", "number"))
    groups = named(found["tag"])
    assert found["tag"].names[:12] == tuple(f"value {number}" for number in range(12))
    assert groups[:24] == values[:24]
    assert groups[24:] == ["other"] * 4 + ["unknown"]
    assert set(named(found["number"])) == {"0", "1", "2"}


def test_users_are_grouped_by_the_age_of_the_target_if_events_and_catalogue_have_dates() -> None:
    newest = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
    days = [-3, 0, 7, 8, 30, 31, 90, 91]
    published = [*(newest - dt.timedelta(days=age) for age in days), None]
    split = split_of([*range(9)], [[0]] * 9, newest=newest.timestamp())
    items = items_of(published_at=published)
    expected = ["0-7", "0-7", "0-7", "8-30", "8-30", "31-90", "31-90", "91+", "unknown"]
    assert named(by_catalogue(split, items, ())["days_since_publication"]) == expected
    assert by_catalogue(split_of([0], [[0]]), items, ()) == {}
    assert by_catalogue(split, items_of(rating=[1] * 9), ()) == {}


def test_an_unknown_column_is_an_error() -> None:
    items = items_of(tag=["a"])
    check_columns(items, ("tag",))
    with pytest.raises(ConfigError) as caught:
        check_columns(items, ("tag", "genre"))
    assert (caught.value.key, caught.value.value) == ("slices", "genre")
    assert "tag" in caught.value.choices
