"""The protocols: no target is fitted on or known, and each user's events are divided by time."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.evaluation.compare import check_no_leak, sample_users
from raypipe.evaluation.protocols import Split, by_time, last_k, leave_one_out
from raypipe.evaluation.protocols import given as given_split
from raypipe.search.watch_events import Events

HISTORIES = st.lists(st.lists(st.integers(0, 9), max_size=8, unique=True), min_size=1, max_size=6)


def lists(events: Events) -> list[list[int]]:
    return [events.history(user).tolist() for user in range(events.num_users)]


@given(HISTORIES, st.integers(1, 3))
def test_no_protocol_leaks_a_target(histories: list[list[int]], num_targets: int) -> None:
    events = Events.of_histories(histories)
    timed = Events(events.items, events.starts, np.arange(len(events), dtype=float))
    splits = [leave_one_out(events), last_k(events, num_targets=num_targets)]
    if len(timed):
        splits.append(by_time(timed))
    for split in splits:
        check_no_leak(split, num_items=10)
        with_targets = [user for user, items in enumerate(lists(split.targets)) if items]
        assert split.users.tolist() == with_targets
        for user in with_targets:
            history, known = histories[user], split.known.history(user).tolist()
            targets = split.targets.history(user).tolist()
            assert history[: len(known)] == known
            assert history[len(known) : len(known) + len(targets)] == targets


def test_leave_one_out_fits_on_neither_of_the_last_two_events() -> None:
    split = leave_one_out(Events.of_histories([[1, 2, 3, 4], [5, 6], []]))
    assert lists(split.train) == [[1, 2], [5, 6], []]
    assert lists(split.known) == [[1, 2, 3], [5, 6], []]
    assert lists(split.targets) == [[4], [], []]


def test_by_time_predicts_the_first_event_after_the_cut() -> None:
    rows = [(0, 7, 1.0), (0, 8, 5.0), (0, 9, 6.0), (1, 7, 9.0), (2, 8, 2.0), (0, 7, 7.0)]
    users, items, times = (np.array(column) for column in zip(*rows, strict=True))
    events, kept, ids = Events.of_rows(users, items, times)
    assert (ids.tolist(), kept.tolist()) == ([0, 1, 2], [0, 1, 2, 3, 4])  # the repeated event of user 0 is left out
    split = by_time(events, cut=4.0)
    assert lists(split.train) == [[7], [], [8]]
    assert lists(split.targets) == [[8], [7], []]
    assert split.users.tolist() == [0, 1]


def test_a_leaked_target_is_detected() -> None:
    events = Events.of_histories([[1, 2], [3]])
    is_target = np.array([False, True, False])
    check_no_leak(given_split(events, ~is_target, is_target), num_items=5)
    for train, known in ((events, events.where(~is_target)), (events.where(~is_target), events)):
        split = Split(train, known, events.where(is_target), np.array([0]), {})
        with pytest.raises(ValueError, match="1 targets"):
            check_no_leak(split, num_items=5)


def test_an_event_of_any_user_after_the_cut_is_detected() -> None:
    timed = Events(np.array([1, 2, 3, 4]), np.array([0, 2, 4]), np.array([1.0, 5.0, 2.0, 9.0]))
    split = by_time(timed, cut=4.0)
    check_no_leak(split, num_items=5)
    later = Events(np.array([1, 0, 3]), np.array([0, 1, 3]), np.array([1.0, 7.0, 2.0]))
    with pytest.raises(ValueError, match="after the cut"):
        check_no_leak(replace(split, train=later), num_items=5)


def test_users_are_drawn_and_the_events_to_fit_on_stay() -> None:
    split = leave_one_out(Events.of_histories([[1, 2, 3]] * 20))
    drawn = sample_users(split, max_users=5, seed=3)
    assert len(drawn.users) == 5
    assert len(drawn.targets) == 5
    assert drawn.train is split.train
    assert sample_users(split, max_users=5, seed=3).users.tolist() == drawn.users.tolist()
