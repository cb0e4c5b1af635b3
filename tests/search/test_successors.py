"""Successors are counted from events, kept in a file, and explain recommendations."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import IndexVersionError
from raypipe.search.successors import CountKind, Successors, count_successors
from raypipe.search.watch_events import Events

NUM_ITEMS = 9
HISTORIES = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=NUM_ITEMS, unique=True), min_size=1, max_size=20)


@given(histories=HISTORIES, history=st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=4, unique=True))
def test_people_who_watched_one_after_another_are_counted(histories: list[list[int]], history: list[int]) -> None:
    successors = count_successors("transitions", Events.of_histories(histories), num_items=NUM_ITEMS)
    for position, (watched, num_users) in successors.after(np.array(history), np.arange(NUM_ITEMS)).items():
        expected = sum(
            watched in one and position in one and 1 <= one.index(position) - one.index(watched) <= 5
            for one in histories
        )
        assert num_users == expected >= 5
        assert watched in history


def test_less_than_five_people_are_no_reason() -> None:
    for num_users in (4, 5):
        found = count_successors("transitions", Events.of_histories([[0, 1]] * num_users), num_items=2)
        assert found.after(np.array([0]), np.array([1])) == ({1: (0, 5)} if num_users == 5 else {})


@pytest.mark.parametrize("kind", ["transitions", "item_knn", "ease"])
def test_a_file_holds_the_same(tmp_path: Path, kind: CountKind) -> None:
    events = Events.of_histories([[0, 1, 2], [1, 2, 3, 0], [3, 1]])
    successors, path = count_successors(kind, events, num_items=5), tmp_path / "successors.arrow"
    successors.save(path)
    loaded = Successors.open(path)
    assert loaded.kind == kind
    for name in ("starts", "items", "weights", "users"):
        assert np.array_equal(getattr(loaded, name), getattr(successors, name))
    assert len(loaded) == 5  # a video without events has no successors


@pytest.mark.parametrize("damage", ["truncated", "another file"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "successors.arrow"
    count_successors("transitions", Events.of_histories([[0, 1, 2]]), num_items=3).save(path)
    path.write_bytes(path.read_bytes()[:-50] if damage == "truncated" else b"no table")
    with pytest.raises(IndexVersionError) as raised:
        Successors.open(path)
    assert raised.value.key == str(path)
