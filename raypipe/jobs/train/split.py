"""Which videos are held out: pure functions of the labels and a seed."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raypipe import schema
from raypipe.errors import ConfigError


def stratified(
    videos: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], *, fraction: float, seed: int, names: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Hold out about ``fraction`` of each label's videos ``[V]``, from pairs of video numbers 0 to V - 1 and labels.

    Where a video has one label: at least one video of each label, and never all of one. Else the labels are taken from
    the rarest on, and each adds what it still lacks from its videos that no rarer one has (Sechidis et al. 2011).

    Raises:
        ConfigError: a label has one video alone.
    """
    held_out = np.zeros(videos.max() + 1, dtype=bool)
    if not fraction:
        return held_out
    random = np.random.default_rng([seed, 0])
    is_free = np.ones_like(held_out)
    counts = np.bincount(labels)
    members_of = np.split(videos[np.lexsort((videos, labels))], np.cumsum(counts)[:-1])
    for label in np.argsort(counts, kind="stable").tolist():
        members = members_of[label]
        if len(members) == 1:
            msg = f"The label {names[label]!r} has one video, which cannot be both learned from and held out."
            remedy = "Give it more, leave it out, name a split column, or set data.validation_fraction=0."
            raise ConfigError(msg, key=schema.LABEL, value=names[label], remedy=remedy)
        wanted = np.clip(round(fraction * len(members)), 1, max(1, len(members) - 1)) - held_out[members].sum()
        held_out[random.permutation(members[is_free[members]])[: max(0, wanted)]] = True
        is_free[members] = False
    return held_out
