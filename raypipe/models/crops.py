"""The frames of several videos as one batch, where they lie; numpy alone, so that importing it takes no time."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


class Crops:
    """RGB frames uint8 [N, H, W, 3] of several videos, sliced like one array; only a slice across videos is a copy."""

    ndim = 4
    dtype = np.dtype(np.uint8)

    def __init__(self, videos: Sequence[Pixels], *, crop_size: int) -> None:
        self._videos = [video for video in videos if len(video)]
        self._stops = list(accumulate(map(len, self._videos)))
        self.shape = (self._stops[-1] if self._stops else 0, crop_size, crop_size, 3)

    def __len__(self) -> int:
        """How many frames there are, of all videos."""
        return self.shape[0]

    def __getitem__(self, span: slice) -> Pixels:
        """The frames of a span, whichever videos they are of."""
        start, stop, _ = span.indices(len(self))
        parts = []
        for video, end in zip(self._videos, self._stops, strict=True):
            begin = end - len(video)
            if begin < stop and start < end:
                parts.append(video[max(0, start - begin) : stop - begin])
        if not parts:
            return np.empty((0, *self.shape[1:]), np.uint8)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
