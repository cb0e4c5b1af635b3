"""Which lists of an index a filtered query has to scan."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from raypipe.search.filters import Eligible
from raypipe.search.vectors import Positions

ListNumbers: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
Mask: TypeAlias = npt.NDArray[np.bool_]

_SPARSE = 0.05  # up to this fraction, comparing the eligible vectors is faster than skipping the others
_CLUSTERED = 0.1  # with at least this intraclass correlation, a filter has the reach of filters that keep whole lists
_SHARES = (-2, -1, 0)  # the logarithms of the shares of eligible vectors that a reach is measured for


@dataclass(frozen=True)
class Spread:
    """How the vectors that a filter keeps are spread over the lists of an index.

    A list is sparse if few of its vectors are eligible. ``correlation`` is the intraclass correlation: 0 if the vectors
    are spread as at random, and 1 if the filter keeps whole lists, as a filter on the contents of the videos may do.
    """

    is_empty: Mask  # [nlist]
    is_sparse: Mask  # [nlist]
    correlation: float
    positions: npt.NDArray[np.uint32]  # of the eligible vectors in sparse lists, ascending
    lists: ListNumbers  # of the same vectors

    @classmethod
    def of(cls, eligible: Eligible, list_of: ListNumbers, sizes: Positions) -> Self:
        """Count the eligible vectors in each list.

        ``list_of`` ``[N]`` is the number of each vector's list, and ``sizes`` ``[nlist]`` the size of each list.
        """
        positions = eligible.positions()
        lists = list_of[positions]
        counts = np.bincount(lists, minlength=len(sizes))
        is_sparse = counts <= _SPARSE * sizes
        kept = is_sparse[lists]
        correlation = _intraclass_correlation(counts, sizes)
        return cls(counts == 0, is_sparse, correlation, positions[kept].astype(np.uint32), lists[kept])

    def few(self, lists: Positions) -> Positions:
        """Return the positions of the eligible vectors in those of the given lists that are sparse, ascending."""
        is_given = np.zeros(len(self.is_sparse), np.bool_)
        is_given[lists] = True
        return self.positions[is_given[self.lists]].astype(np.int64)


def _intraclass_correlation(counts: Positions, sizes: Positions) -> float:
    """Return the intraclass correlation of eligibility, by the variance of the counts relative to a random filter."""
    counts, sizes = counts[sizes > 0], sizes[sizes > 0]
    share = counts.sum() / sizes.sum()
    variance = np.maximum(share * (1 - share) * sizes, np.finfo(np.float64).tiny)
    excess = np.mean((counts - share * sizes) ** 2 / variance) - 1
    return float(np.clip(excess / max(1.0, sizes.mean() - 1), 0, 1))


@dataclass(frozen=True)
class Reach:
    """How far the score of a true neighbor may be above the closeness of its list.

    The closeness is the dot product of the query and the centroid of the list. A query scans every list whose closeness
    plus reach is at least the lowest score of its results so far. So it scans more lists if the eligible vectors are
    far from it. ``all``, ``tenth`` and ``hundredth`` are for random filters that keep these shares of the vectors, and
    ``clustered`` is for filters that keep whole lists.
    """

    all: float = 0.0
    tenth: float = 0.2
    hundredth: float = 0.2
    clustered: float = 0.25

    @classmethod
    def load(cls, manifest: Mapping[str, Any]) -> Self:
        """Read the reach from a manifest. Manifests of earlier versions of raypipe have none: return the default.

        Raises:
            TypeError, ValueError: the manifest contains something else.
        """
        return cls(**{name: float(value) for name, value in dict(manifest.get("reach", {})).items()})

    def of(self, share: float, spread: Spread | None) -> float:
        """Return the reach for a filter that keeps this share of the vectors. ``spread`` is None without a filter."""
        random = float(np.interp(np.log10(share), _SHARES, (self.hundredth, self.tenth, self.all)))
        clustered = 0.0 if spread is None else min(1.0, spread.correlation / _CLUSTERED)
        return random + clustered * (self.clustered - random)
