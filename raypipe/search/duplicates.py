"""Groups of near-duplicates: videos whose vectors point nearly the same way, and those nearly the same as these."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from raypipe.search.ann import Ann
from raypipe.search.exact import Positions, Vectors, widen

_ROWS = 2_048  # compared at a time, with as many others
_ALONE = -1


def duplicate_groups(ann: Ann, vectors: Vectors, *, cosine: float) -> Positions:
    """The smallest row ``[N]`` of each vector's group, -1 for a vector alone; a group is what pairs connect.

    Each vector is compared with all others of its list and of the two lists that are next to it, those of a pair being
    hardly ever further apart; in an index without lists, with all.
    """
    roots = np.arange(len(vectors))
    for rows, others in _to_compare(ann.nearest_lists(vectors, 3)):
        near = widen(vectors[rows]) @ widen(vectors[others]).T >= cosine
        _join(roots, rows, others, near)
    groups = _find(roots, np.arange(len(roots)))
    alone = np.bincount(groups, minlength=len(groups))[groups] == 1
    return np.where(alone, _ALONE, groups)


def _to_compare(lists: Positions) -> Iterator[tuple[Positions, Positions]]:
    """Yield rows and others of which every pair is to be compared, by the nearest lists ``[N, n]`` of each."""
    order = [np.argsort(column, kind="stable") for column in lists.T]
    starts = [
        np.searchsorted(column, np.arange(lists.max(initial=0) + 2), sorter=by)
        for column, by in zip(lists.T, order, strict=True)
    ]
    for number in range(len(starts[0]) - 1):
        members, *visitors = (by[at[number] : at[number + 1]] for by, at in zip(order, starts, strict=True))
        others = np.concatenate([members, *visitors])
        for start in range(0, len(members), _ROWS):
            for right in range(start, len(others), _ROWS):  # those before have been rows, and their others these
                yield members[start : start + _ROWS], others[right : right + _ROWS]


def _join(roots: Positions, rows: Positions, others: Positions, near: npt.NDArray[np.bool_]) -> None:
    """Give the two of each near pair one root: the smaller of theirs."""
    while near.any():
        left, right = _find(roots, rows), _find(roots, others)
        near &= left[:, None] != right
        a, b = np.nonzero(near)
        np.minimum.at(roots, np.maximum(left[a], right[b]), np.minimum(left[a], right[b]))


def _find(roots: Positions, rows: Positions) -> Positions:
    """The root of each row; the way to it is cut short."""
    found = roots[rows]
    while not np.array_equal(further := roots[found], found):
        found = further
    roots[rows] = found
    return found
