"""From the vectors of frames to the one of their video; numpy alone, so that importing it takes no time."""

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def mean_embedding(vectors: Vectors) -> Vectors:
    """The L2-normalised mean [D] of a video's frames [T, D], of which there is one at least."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    normal: Vectors = (mean / max(float(np.linalg.norm(mean)), np.finfo(np.float32).tiny)).astype(np.float32)
    return normal
