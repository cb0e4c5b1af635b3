"""Vectors and small indexes made in memory, without files or a learned projection."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.config import IndexSettings
from raypipe.search.ann import Ann
from raypipe.search.index import VideoIndex
from raypipe.search.items import Items
from raypipe.search.projection import Projection

Half = npt.NDArray[np.float16]
KINDS: Mapping[str, Mapping[str, Any]] = {
    "flat": {"flat_below": 10**9},
    "ivf_sq8": {"flat_below": 1},
    "compact": {"flat_below": 1, "compact": True},
}


def clustered(num_vectors: int, *, dim: int, seed: int = 0, spread: float = 1.0) -> Half:
    """Return unit vectors around centres, some of which are far more crowded than others."""
    chance = np.random.default_rng(seed)
    centres = units(chance.standard_normal((max(4, num_vectors // 200), dim)))
    crowds = 1 / np.sqrt(np.arange(1, len(centres) + 1))
    chosen = chance.choice(len(centres), num_vectors, p=crowds / crowds.sum())
    distances = chance.uniform(0.5, 1.5, (num_vectors, 1)) * spread / np.sqrt(dim)
    return units(centres[chosen] + distances * chance.standard_normal((num_vectors, dim))).astype(np.float16)


def units(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Normalize each row."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def settings_of(kind: str, **options: Any) -> IndexSettings:  # noqa: ANN401 - settings
    """Return settings that give an index of that kind, from 64 vectors on."""
    return IndexSettings(**{**KINDS[kind], **options})


def true_neighbours(vectors: Half, query: npt.NDArray[np.floating], mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return all positions of the mask, nearest first; ties by the lowest position."""
    wide = vectors.astype(np.float64)
    scores = wide @ query.astype(np.float64)
    allowed = np.flatnonzero(mask)
    return allowed[np.lexsort((allowed, -scores[allowed]))].tolist()


def index_of(vectors: Half, columns: Mapping[str, Sequence[Any]], *, kind: str = "flat") -> VideoIndex:
    """Return an index of vectors v0, v1, … with extra columns; its projection changes nothing."""
    ids = [f"v{row}" for row in range(len(vectors))]
    table = pa.table({"video_id": ids, **columns})
    dim = vectors.shape[1]
    projection = Projection(np.zeros(dim, np.float32), np.eye(dim, dtype=np.float32))
    ann = Ann.build(vectors, settings=settings_of(kind))
    return VideoIndex(
        manifest={"id": "20240531T120000-0a1b2c3d", "kind": kind},
        items=Items(table, None),
        vectors=vectors,
        projection=projection,
        ann=ann,
    )
