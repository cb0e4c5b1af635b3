"""One version of an index, opened: its videos, their vectors, and the answers to queries."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from raypipe import schema
from raypipe.errors import IndexVersionError, QueryError
from raypipe.search.ann import Ann
from raypipe.search.candidates import Boost, Ranking
from raypipe.search.exact import Vectors
from raypipe.search.filters import FilterMasks
from raypipe.search.items import Items
from raypipe.search.projection import PROJECTION, Projection
from raypipe.search.query import Query, Recommendations
from raypipe.search.recommend import BOOST_COLUMNS, recommend
from raypipe.search.rerank import freshness, percentile_rank
from raypipe.search.versions import MANIFEST, SEARCH, VECTORS


class VideoIndex:
    """What a version holds, in memory but for its vectors and thumbnails, which are mapped; any thread may ask."""

    def __init__(
        self, *, manifest: Mapping[str, Any], items: Items, vectors: Vectors, projection: Projection, ann: Ann
    ) -> None:
        self.manifest = manifest
        self.items = items
        self.vectors = vectors  # float16 [N, d], row i is item i
        self.projection = projection
        self.ann = ann
        self.filters = FilterMasks(items)
        self._rankings: dict[str, Ranking | None] = {}

    @classmethod
    def open(cls, folder: Path, manifest: Mapping[str, Any] | None = None) -> Self:
        """Open a version in a local folder, whose files were checked against its manifest: by default the one in there.

        Raises:
            IndexVersionError: its files do not fit one another.
        """
        manifest = _manifest(folder) if manifest is None else manifest
        vectors = _mapped(folder / VECTORS)
        items, projection = Items.open(folder), Projection.load(folder / PROJECTION)
        if len(items) != len(vectors) or projection.dim != vectors.shape[1]:
            msg = (
                f"The files of {folder} do not fit one another: {len(items)} items, vectors {vectors.shape}, "
                f"a projection to {projection.dim} numbers."
            )
            expected = len(items), projection.dim
            raise IndexVersionError(
                msg, key=str(folder), value=vectors.shape, expected=expected, remedy="Build the index again."
            )
        try:
            said = int(manifest["nprobe"]), int(manifest["trained"]["num_videos"]), float(manifest["recall_at_10"])
        except (KeyError, TypeError, ValueError) as error:
            msg = f"The manifest of {folder} lacks {error}."
            raise IndexVersionError(msg, key=str(folder / MANIFEST), remedy="Build the index again.") from None
        nprobe, trained_on, recall = said
        ann = Ann.open(folder / SEARCH, vectors, nprobe=nprobe, trained_on=trained_on, recall_at_10=recall)
        return cls(manifest=manifest, items=items, vectors=vectors, projection=projection, ann=ann)

    @property
    def version(self) -> str:
        """The id of the version."""
        return str(self.manifest["id"])

    def recommend(self, query: Query) -> Recommendations:
        """Answer a query.

        Raises:
            QueryError: the index cannot answer it.
        """
        return recommend(self, query)

    def similar(self, video_id: str, *, top_k: int, **options: Any) -> Recommendations:  # noqa: ANN401 - fields of Query
        """Recommend to someone who has watched one video and nothing else; ``options`` are fields of ``Query``.

        Raises:
            QueryError: the index does not hold that video, or cannot answer.
        """
        if self.items.position(video_id) is None:
            msg = f"The index holds no video {video_id!r}."
            raise QueryError(msg, key=schema.VIDEO_ID, value=video_id)
        return self.recommend(Query(history=(video_id,), top_k=top_k, **options))

    def ranking(self, name: str) -> Ranking | None:
        """All videos by ``freshness`` or ``popularity``; None where the catalogue has no such column."""
        if name not in self._rankings:
            numbers = self.items.numbers(BOOST_COLUMNS[name])
            values = freshness if name == "freshness" else percentile_rank
            self._rankings[name] = None if numbers is None else Ranking.of(values(numbers))
        return self._rankings[name]

    @cached_property
    def popular_boosts(self) -> dict[str, Boost]:
        """What counts where nothing is known of a taste: each ranking that there is, as much as the other."""
        rankings = {name: self.ranking(name) for name in BOOST_COLUMNS}
        return {name: Boost(1.0, ranking) for name, ranking in rankings.items() if ranking is not None}

    @cached_property
    def popular(self) -> Ranking:
        """All videos for someone of whom nothing is known; in the catalogue's order where there is no ranking."""
        scores = np.zeros(len(self.items), np.float32)
        for boost in self.popular_boosts.values():
            scores += boost.ranking.values
        return Ranking.of(scores)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / MANIFEST).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        msg = f"Cannot read {folder / MANIFEST}: {' '.join(str(error).split())}"
        raise IndexVersionError(msg, key=str(folder / MANIFEST)) from None


def _mapped(path: Path) -> Vectors:
    try:
        vectors: Vectors = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError, EOFError) as error:
        msg = f"Cannot read the vectors {path}: {' '.join(str(error).split())}"
        raise IndexVersionError(msg, key=str(path)) from None
    if vectors.dtype != np.float16 or vectors.ndim != 2:  # noqa: PLR2004 - rows of numbers
        found = f"{vectors.dtype}{vectors.shape}"
        msg = f"{path} holds no vectors: {found}, not float16 [videos, numbers]."
        raise IndexVersionError(msg, key=str(path), value=found)
    return vectors
