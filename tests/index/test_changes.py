"""New videos are distinguished from videos with new columns, and unchanged ones are neither."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.jobs.index.job import Changes, compare

contents = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 2), min_size=1)


def items(videos: dict[str, int], **columns: list[Any]) -> pa.Table:
    return pa.table(
        {
            "video_id": pa.array(list(videos), pa.string()),
            "etag": pa.array([f"e{version % 2}" for version in videos.values()], pa.string()),
            "generation": pa.array([version // 2 for version in videos.values()], pa.int32()),
            **columns,
        }
    )


@given(contents, contents)
def test_counts_match_set_arithmetic(before: dict[str, int], now: dict[str, int]) -> None:
    changes = compare(items(before), items(now), same_plans=False)
    both = before.keys() & now.keys()
    expected = len(now.keys() - both), sum(before[one] != now[one] for one in both), len(before.keys() - both)
    assert (changes.num_new, changes.num_changed, changes.num_deleted) == expected
    assert changes.describes_anew == (not any(expected) and list(before) != list(now))
    assert bool(changes) == (before != now or list(before) != list(now))


def test_other_columns_are_a_change() -> None:
    videos = {"a": 1, "b": 0}
    before = items(videos, title=["x", None], duplicate_group=[0, 0])
    nothing = Changes(0, 0, 0, describes_anew=False)
    assert compare(before, items(videos, title=["x", None]), same_plans=True) == nothing
    others: list[dict[str, list[Any]]] = [
        {"title": ["x", "y"]},
        {},
        {"title": ["x", None], "year": [1, 2]},
        {"title": [1, 2]},
    ]
    for other in others:
        changes = compare(before, items(videos, **other), same_plans=True)
        assert changes == Changes(0, 0, 0, describes_anew=True)


@pytest.mark.parametrize("same_plans", [True, False])
def test_a_video_that_could_not_be_indexed_is_not_new_again(same_plans: bool) -> None:  # noqa: FBT001
    changes = compare(items({"a": 0}), items({"zero": 0, "a": 0}), same_plans=same_plans)
    assert changes.num_new == (0 if same_plans else 1)
    assert bool(changes) == (not same_plans)
