"""Watch events, and the protocols that divide them into events to fit on and targets to predict."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Events:
    """E watch events of U users, sorted by user; each user's events are sorted from the oldest to the newest.

    Attributes:
        items: The position of each watched video in the index, [E].
        starts: Where the events of each user start, [U + 1].
        times: The time of each event in seconds, [E]; None if the times are unknown.
        is_ordered: Whether the order of a user's events is the order of watching.
    """

    items: Ints
    starts: Ints
    times: Numbers | None = None
    is_ordered: bool = True

    @classmethod
    def of_histories(cls, histories: Sequence[Sequence[int]], *, is_ordered: bool = True) -> Self:
        """Return the events of one history per user; times are unknown."""
        items = np.array([item for history in histories for item in history], np.int64)
        return cls(items, np.cumsum([0, *map(len, histories)]), is_ordered=is_ordered)

    @classmethod
    def of_rows(cls, users: Ints, items: Ints, times: Numbers | None = None) -> tuple[Self, Ints, Ints]:
        """Return the events of one row per event, the row of each event, and the user of each group of events.

        Only the first event of a user with a video counts. Rows with the same time keep their order.
        """
        order = np.lexsort((np.arange(len(users)), users if times is None else times, users))
        keys = users[order] * (items.max(initial=0) + 1) + items[order]
        _, first = np.unique(keys, return_index=True)
        kept = order[np.sort(first)]
        ids, starts = np.unique(users[kept], return_index=True)
        events = cls(items[kept], np.append(starts, len(kept)), None if times is None else times[kept])
        return events, kept, ids

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_users(self) -> int:
        return len(self.starts) - 1

    @property
    def users(self) -> Ints:
        """Return the number of the user of each event, [E]."""
        return np.repeat(np.arange(self.num_users), np.diff(self.starts))

    def history(self, user: int) -> Ints:
        """Return the videos of a user, the newest last."""
        return self.items[self.starts[user] : self.starts[user + 1]]

    def where(self, is_kept: npt.NDArray[np.bool_]) -> "Events":
        """Return some of the events, of the same users."""
        counts = np.bincount(self.users[is_kept], minlength=self.num_users)
        times = None if self.times is None else self.times[is_kept]
        return Events(self.items[is_kept], np.append(0, np.cumsum(counts)), times, self.is_ordered)


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
