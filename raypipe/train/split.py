"""Which videos are held out: pure functions of the labels and a seed."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raypipe.errors import ConfigError


def stratified(
    strata: npt.NDArray[np.int64], *, fraction: float, seed: int, names: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Hold out about ``fraction`` of each stratum ``[N]``: at least one video of each, and never all of one.

    Raises:
        ConfigError: a stratum has one video alone.
    """
    held_out = np.zeros(len(strata), dtype=bool)
    if not fraction:
        return held_out
    random = np.random.default_rng([seed, 0])
    for stratum in np.unique(strata):
        members = random.permutation(np.flatnonzero(strata == stratum))
        if len(members) == 1:
            msg = (
                f"The label {names[stratum]!r} has one video, which cannot be both learned from and held out. Give it "
                "more, leave it out, name a split column, or set data.validation_fraction=0."
            )
            raise ConfigError(msg)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out[members[:count]] = True
    return held_out


def rarest_labels(videos: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Of each video its rarest label, from pairs of video numbers 0 to V - 1 and label numbers: ``[V]``."""
    counts = np.bincount(labels)
    order = np.lexsort((labels, counts[labels], videos))
    first = np.unique(videos[order], return_index=True)[1]
    rarest: npt.NDArray[np.int64] = labels[order][first]
    return rarest
