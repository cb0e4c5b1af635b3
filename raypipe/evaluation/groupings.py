"""Groups of test users, for slices of a comparison."""

from dataclasses import dataclass

import numpy as np

from raypipe.errors import ConfigError
from raypipe.evaluation.protocols import Split
from raypipe.search.items import BOOST_COLUMNS, Items
from raypipe.search.watch_events import Ints, Numbers

COUNT_NAMES, _COUNT_ENDS = ("0", "1-4", "5-9", "10-29", "30+"), (0, 4, 9, 29)
_DAY_NAMES, _DAY_ENDS = ("0-7", "8-30", "31-90", "91+"), (7, 30, 90)
_DAY_SECONDS = 86_400.0
MOST_VALUES = 12
OTHER, UNKNOWN = "other", "unknown"


@dataclass(frozen=True, slots=True)
class Grouping:
    """A group for each test user.

    Attributes:
        names: The names of the groups, in the order in which they are shown.
        codes: The position in ``names`` of the group of each user, [U].
    """

    names: tuple[str, ...]
    codes: Ints


def by_history(split: Split, *, num_items: int) -> dict[str, Grouping]:
    """Group users by how often their first target was watched, whether it is new, and how much they have watched."""
    watched = np.bincount(split.train.items, minlength=num_items)[split.first_targets]
    lengths = np.diff(split.known.starts)[split.users]
    return {
        "target_frequency": Grouping(COUNT_NAMES, np.searchsorted(_COUNT_ENDS, watched)),
        "newness": Grouping(("new", "watched before"), (watched > 0).astype(np.int64)),
        "history_length": Grouping(COUNT_NAMES, np.searchsorted(_COUNT_ENDS, lengths)),
    }


def by_catalogue(split: Split, items: Items, columns: tuple[str, ...]) -> dict[str, Grouping]:
    """Group users by the age of their first target, if the catalogue and the events have dates, and by its values."""
    published = items.numbers(BOOST_COLUMNS["freshness"])
    found = {}
    if published is not None and split.train.times is not None and len(split.train):
        newest = float(split.train.times.max())
        found["days_since_publication"] = _by_days(newest - published[split.first_targets])
    return found | {column: _by_value(items, column, split.first_targets) for column in columns}


def check_columns(items: Items, columns: tuple[str, ...]) -> None:
    """Check that the catalogue has the columns.

    Raises:
        ConfigError: it lacks one.
    """
    for column in columns:
        if column not in items.columns:
            msg = f"slices names {column!r}, which is not a column of the catalogue."
            raise ConfigError(msg, key="slices", value=column, choices=sorted(items.columns))


def _by_days(seconds: Numbers) -> Grouping:
    """Group by age; a video that is published after the newest training event counts as 0 days old."""
    is_known = np.isfinite(seconds)
    days = np.floor(np.where(is_known, seconds, 0) / _DAY_SECONDS)
    codes = np.where(is_known, np.searchsorted(_DAY_ENDS, days), len(_DAY_NAMES))
    return Grouping((*_DAY_NAMES, UNKNOWN), codes.astype(np.int64))


def _by_value(items: Items, column: str, targets: Ints) -> Grouping:
    """Group by the most frequent values of a column among the targets; all other values are one group.

    Values that are named like one of the last two groups are among the other values.
    """
    codes = items.codes(column)
    values = np.zeros(0, np.int64) if codes is None else codes[targets].astype(np.int64)
    distinct, first, counts = np.unique(values, return_index=True, return_counts=True)
    order = [at for at in np.argsort(-counts, kind="stable").tolist() if distinct[at] >= 0][:MOST_VALUES]
    named = [(str(items.row(int(targets[first[at]]))[column]), distinct[at]) for at in order]
    kept = [(name, code) for name, code in named if name not in {OTHER, UNKNOWN}]
    groups = np.full(len(values), len(kept), np.int64)
    for group, (_, code) in enumerate(kept):
        groups[values == code] = group
    groups[values < 0] = len(kept) + 1
    return Grouping((*(name for name, _ in kept), OTHER, UNKNOWN), groups)
