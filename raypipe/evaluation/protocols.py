"""Protocols that divide watch events into events to fit on and targets to predict."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raypipe.search.watch_events import Events, Ints


@dataclass(frozen=True, slots=True)
class Split:
    """What may be fitted, what is known of each test user, and what is to be predicted.

    Attributes:
        train: The events that rankers are fitted on.
        known: The events that are shown to a ranker; a user's videos in it are never recommended.
        targets: The events to predict.
        users: The numbers of the test users, who have targets.
        facts: The protocol and its parameters.
    """

    train: Events
    known: Events
    targets: Events
    users: Ints
    facts: dict[str, Any]

    @property
    def first_targets(self) -> Ints:
        """Return the first target of each test user, [U]."""
        return self.targets.items[self.targets.starts[:-1][self.users]]


def leave_one_out(events: Events) -> Split:
    """Predict the last event of each user with at least three; the second-to-last one is known, but never fitted on."""
    counts = np.diff(events.starts)
    from_end = np.repeat(counts, counts) - (np.arange(len(events)) - np.repeat(events.starts[:-1], counts))
    is_long = np.repeat(counts, counts) >= 3  # noqa: PLR2004 - one each to fit on, to choose by and to predict
    is_target = is_long & (from_end == 1)
    train, known = events.where(~is_long | (from_end > 2)), events.where(~is_target)  # noqa: PLR2004
    targets = events.where(is_target)
    return Split(train, known, targets, _with_targets(targets), {"protocol": "leave_one_out"})


def last_k(events: Events, *, num_targets: int) -> Split:
    """Predict the last ``num_targets`` events of each user who has more events than that."""
    counts = np.diff(events.starts)
    from_end = np.repeat(counts, counts) - (np.arange(len(events)) - np.repeat(events.starts[:-1], counts))
    is_target = (from_end <= num_targets) & (np.repeat(counts, counts) > num_targets)
    train, targets = events.where(~is_target), events.where(is_target)
    return Split(train, train, targets, _with_targets(targets), {"protocol": "last_k", "num_targets": num_targets})


def by_time(events: Events, *, cut: float | None = None) -> Split:
    """Predict the first event of each user after ``cut``, in seconds; the default is the 90 % quantile of the times."""
    if events.times is None:
        msg = "The protocol time needs events with times."
        raise ValueError(msg)
    cut = float(np.quantile(events.times, 0.9)) if cut is None else cut
    is_before = events.times <= cut
    train = events.where(is_before)
    after = np.flatnonzero(~is_before)
    _, first = np.unique(events.users[after], return_index=True)
    is_target = np.zeros(len(events), np.bool_)
    is_target[after[first]] = True
    targets = events.where(is_target)
    return Split(train, train, targets, _with_targets(targets), {"protocol": "time", "cut": cut})


def given(events: Events, is_train: npt.NDArray[np.bool_], is_target: npt.NDArray[np.bool_]) -> Split:
    """Predict the events that a column of the file marks; other events that are not for training are left out."""
    train, targets = events.where(is_train), events.where(is_target)
    return Split(train, train, targets, _with_targets(targets), {"protocol": "given"})


def _with_targets(targets: Events) -> Ints:
    return np.flatnonzero(np.diff(targets.starts) > 0)
