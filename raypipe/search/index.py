"""An open version of an index: its videos, their vectors, and the answers to queries."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from raypipe import schema
from raypipe.config.recommend import RankingConfig, Strategy
from raypipe.errors import ConfigError, IndexVersionError, QueryError
from raypipe.results import Shown
from raypipe.search.ann import Ann
from raypipe.search.filters import FilterMasks, eligible_positions
from raypipe.search.items import BOOST_COLUMNS, Items
from raypipe.search.projection import PROJECTION, Projection
from raypipe.search.query import Filters, Query, Reason, Recommendation, Recommendations, Used, query_of
from raypipe.search.ranking import (
    Boost,
    Candidates,
    Caps,
    Dislikes,
    HistoryVector,
    Nearest,
    Ranking,
    freshness,
    percentile_rank,
    pick,
)
from raypipe.search.spread import Reach
from raypipe.search.vectors import Floats, Positions, Vectors, open_vectors, widen
from raypipe.search.versions import EMBEDDINGS, MANIFEST, SEARCH, VECTORS, Versions, cache_folder
from raypipe.search.watched import Watched
from raypipe.storage import Folder
from raypipe.text import one_line

_REBUILD = "Build the index again."
_MISSING = {"ranker": "a ranker", "transitions": "a history"}


@dataclass(frozen=True)
class RankedVideos:
    """The videos that a query gets, best first, and what they were ranked by."""

    positions: Positions
    scores: Floats
    strategy: Used
    vector: HistoryVector
    boosts: Mapping[str, Boost]
    num_eligible: int


class VideoIndex(Shown):
    """A version of an index in memory, with vectors and thumbnails memory-mapped. Thread-safe."""

    def __init__(
        self,
        *,
        manifest: Mapping[str, Any],
        items: Items,
        vectors: Vectors,
        projection: Projection,
        ann: Ann,
        watched: Watched | None = None,
        embeddings: Vectors | None = None,
    ) -> None:
        self.manifest = manifest
        self.items = items
        self.vectors = vectors  # float16 [N, d], row i is item i
        self.projection = projection
        self.ann = ann
        self.watched = watched or Watched()
        self.embeddings = embeddings  # float16 [N, D] of unit length, in an index of few videos
        self.filters = FilterMasks(items)
        self._rankings: dict[str, Ranking | None] = {}

    @classmethod
    def open(
        cls, index: str | os.PathLike[str], *, version: str | None = None, cache: str | os.PathLike[str] | None = None
    ) -> Self:
        """Open the output of ``raypipe index``, in a folder or a bucket, without Ray.

        Args:
            index: The output folder of ``raypipe index``: a path or an ``s3://`` URI.
            version: The id of a version. The default is the current version.
            cache: A local folder that caches versions from a bucket. The default is a folder below ``~/.cache``.

        Raises:
            IndexVersionError: there is no such version, or it is corrupt.
            StorageError: the storage denies access or cannot be reached.
        """
        versions = Versions(Folder(os.fspath(index)))
        chosen = version or versions.require_current()
        kept = cache_folder(None if cache is None else os.fspath(cache))
        return cls.load(versions.fetch(chosen, kept), versions.read_manifest(chosen))

    @classmethod
    def load(cls, folder: Path, manifest: Mapping[str, Any] | None = None) -> Self:
        """Open a version in a local folder whose files have been verified.

        Without ``manifest``, read the manifest in the folder.

        Raises:
            IndexVersionError: a file is corrupt, or the files do not match.
        """
        manifest = _read_manifest(folder) if manifest is None else manifest
        vectors = open_vectors(folder / VECTORS)
        items, projection = Items.open(folder), Projection.load(folder / PROJECTION)
        if len(items) != len(vectors) or projection.dim != vectors.shape[1]:
            msg = (
                f"The files of {folder} do not match: {len(items)} items, vectors {vectors.shape}, "
                f"a projection to {projection.dim} numbers."
            )
            found, expected = vectors.shape, (len(items), projection.dim)
            raise IndexVersionError(msg, key=str(folder), value=found, expected=expected, remedy=_REBUILD)
        try:
            nprobe, recall = int(manifest["nprobe"]), float(manifest["recall_at_10"])
            reach = Reach.load(manifest)
            int(manifest["trained"]["num_videos"])  # raypipe index --append reads this
        except (KeyError, TypeError, ValueError) as error:
            msg = f"The manifest of {folder} has a missing or invalid key: {error}."
            raise IndexVersionError(msg, key=str(folder / MANIFEST), remedy=_REBUILD) from None
        ann = Ann.open(folder / SEARCH, vectors, nprobe=nprobe, reach=reach, recall_at_10=recall)
        watched = Watched.open(folder, manifest, num_videos=len(vectors))
        embeddings = open_vectors(folder / EMBEDDINGS) if EMBEDDINGS in manifest.get("files", ()) else None
        expected = len(vectors), projection.embedding_dim
        if embeddings is not None and embeddings.shape != expected:
            msg = f"The files of {folder} do not match: embeddings {embeddings.shape}, not {expected}."
            raise IndexVersionError(msg, key=EMBEDDINGS, value=embeddings.shape, expected=expected, remedy=_REBUILD)
        return cls(
            manifest=manifest,
            items=items,
            vectors=vectors,
            projection=projection,
            ann=ann,
            watched=watched,
            embeddings=embeddings,
        )

    @property
    def version(self) -> str:
        return str(self.manifest["id"])

    def shown(self) -> Mapping[str, object]:
        """Return the version, the number of videos and the kind of index."""
        return {"version": self.version, "videos": len(self), "kind": self.manifest["kind"]}

    def __len__(self) -> int:
        return len(self.items)

    def video(self, video_id: str) -> dict[str, Any]:
        """Return the columns of one video.

        Raises:
            QueryError: the video is not in the index.
        """
        return self.items.row(self._position(video_id))

    def _position(self, video_id: str) -> int:
        if (position := self.items.position(video_id)) is None:
            msg = f"The index does not contain the video {video_id!r}."
            raise QueryError(msg, key=schema.VIDEO_ID, value=video_id)
        return position

    def recommend(self, history: Query | Sequence[str] = (), **options: Any) -> Recommendations:  # noqa: ANN401 - fields of Query
        """Recommend videos to a viewer who has watched the videos in ``history``.

        ``history`` contains video ids, newest last, or is a complete ``Query``. ``options`` are the other fields of
        ``Query``, such as ``top_k=5`` or ``filters={"language": ["en"]}``. If no watched video is in the index, popular
        and recent videos are recommended. The result does not depend on other calls.

        Raises:
            QueryError: a column is missing, or a number is out of range.
        """
        query = history if isinstance(history, Query) else Query(history=tuple(history), **options)
        found = self.rank(query)
        vector, positions = found.vector, found.positions
        closest, similarity = vector.closest(self.vectors, positions)
        boosts = {name: boost.of(positions).tolist() for name, boost in found.boosts.items()}
        after = self._after(vector.liked, positions) if found.strategy in {"ranker", "transitions"} else {}
        rows = zip(positions.tolist(), found.scores.tolist(), closest, similarity, strict=True)
        results = tuple(
            Recommendation(
                position,
                self.items.video_id(position),
                score,
                near,
                cosine,
                {name: values[row] for name, values in boosts.items()},
                *_reason(found.strategy, after.get(position)),
            )
            for row, (position, score, near, cosine) in enumerate(rows)
        )
        return Recommendations(
            results=results,
            unknown=vector.unknown,
            fallback="popular" if found.strategy == "popular" else None,
            num_eligible=found.num_eligible,
            strategy=found.strategy,
            ranker=self.ranker if found.strategy == "ranker" else None,
        )

    def rank(self, query: Query) -> RankedVideos:
        """Return the videos that ``recommend`` recommends, without reasons and metadata.

        Raises:
            QueryError: a column is missing, or a number is out of range.
        """
        query.check()
        strategy = self._strategy(query.strategy)
        caps, boosts = self._caps(query), self._boosts(query)
        vector = HistoryVector.of(query, items=self.items, vectors=self.vectors, projection=self.projection)
        disliked = self._known(query.dislikes)
        excluded = [*self._known(query.exclude), *self.items.with_duplicates(disliked)]
        if query.exclude_history:
            excluded += vector.positions.tolist()
        eligible = self.filters.eligible(query.filters, exclude=excluded)
        if not len(vector.interests):
            strategy, boosts = "popular", self._popular_boosts
        dislikes = Dislikes(self.vectors, widen(self.vectors[disliked])) if disliked else None
        candidates: Candidates = self.popular
        if strategy != "popular":
            near = Nearest(self.ann, self.vectors, vector.interests, boosts, dislikes=dislikes, exact=query.exact)
            candidates = near
            if strategy != "content":
                candidates = self.watched.blend(
                    near,
                    vector.liked,
                    query.embeddings,
                    is_learned=strategy == "ranker",
                    top_k=query.top_k,
                    eligible=eligible,
                )
        scores, positions = pick(
            candidates, self.vectors, top_k=query.top_k, eligible=eligible, caps=caps, diversity=query.diversity
        )
        count = len(self.items) if eligible is None else eligible.count
        return RankedVideos(positions, scores, strategy, vector, boosts, count)

    @property
    def ranker(self) -> str | None:
        """Return the id of the learned ranker in this version, if there is one."""
        return self.watched.ranker

    @property
    def strategies(self) -> tuple[Used, ...]:
        """Return the strategies that this version supports; ``auto`` is the last one."""
        return self.watched.strategies

    def _strategy(self, name: Strategy) -> Used:
        if name == "auto":
            return self.strategies[-1]
        if name not in self.strategies:
            msg = f"This index does not support strategy={name!r}: it was built without {_MISSING[name]}."
            raise QueryError(msg, key="strategy", value=name, choices=("auto", *self.strategies))
        return name

    def _known(self, video_ids: Sequence[str]) -> list[int]:
        return [position for position in self.items.positions(video_ids) if position is not None]

    def _after(self, history: Positions, positions: Positions) -> dict[int, tuple[str, int]]:
        """Return for videos the id of a video after which users watched them, and the number of these users."""
        successors = self.watched.successors
        found = {} if successors is None else successors.after(history, positions)
        return {position: (self.items.video_id(watched), users) for position, (watched, users) in found.items()}

    def check_ranking(self, ranking: RankingConfig) -> None:
        """Check that the index supports these options.

        Raises:
            ConfigError: it does not, as with a filter on a column that it lacks.
        """
        try:
            self.recommend(query_of(ranking, ()))
        except QueryError as error:
            msg = f"ranking: {error}"
            raise ConfigError(msg, key="ranking") from None

    def similar(self, video_id: str, *, top_k: int, **options: Any) -> Recommendations:  # noqa: ANN401 - fields of Query
        """Recommend videos to a viewer who has only watched the given video.

        ``options`` are other fields of ``Query``.

        Raises:
            QueryError: the video is not in the index, a column is missing, or a number is out of range.
        """
        self._position(video_id)
        return self.recommend(Query(history=(video_id,), top_k=top_k, **{"strategy": "content", **options}))

    def find(self, text: str | None, filters: Filters, *, offset: int, limit: int) -> tuple[list[int], int]:
        """Find the videos that pass the filters and whose title or id contains ``text``.

        Return one page of their positions, in ascending order, and the total number of matches.

        Raises:
            QueryError: a filter names an unknown column, or compares it with a value of another type.
        """
        eligible = self.filters.eligible(filters)
        positions = eligible_positions(eligible, len(self.items))
        if text:
            positions = self.items.containing(text, positions)
        return positions[offset : offset + limit].tolist(), len(positions)

    def ranking(self, name: str) -> Ranking | None:
        """Rank all videos by ``freshness`` or ``popularity``. Return None if the catalogue lacks the column."""
        if name not in self._rankings:
            numbers = self.items.numbers(BOOST_COLUMNS[name])
            values = freshness if name == "freshness" else percentile_rank
            self._rankings[name] = None if numbers is None else Ranking.of(values(numbers))
        return self._rankings[name]

    @cached_property
    def popular(self) -> Ranking:
        """The ranking of all videos for a viewer without a known history.

        Videos are ranked by their viewers in the last 7 days if the index was built with a history, and otherwise by
        the sum of all boosts. If the catalogue supports no boosts, they are in the order of the catalogue.
        """
        if self.watched.views is not None:
            return Ranking.of(percentile_rank(self.watched.views.astype(np.float64)))
        scores = np.zeros(len(self.items), np.float32)
        for boost in self._popular_boosts.values():
            scores += boost.ranking.values
        return Ranking.of(scores)

    @cached_property
    def _popular_boosts(self) -> dict[str, Boost]:
        """A boost of weight 1 for every ranking that the catalogue supports, by name; none if there are views."""
        if self.watched.views is not None:
            return {}
        rankings = {name: self.ranking(name) for name in BOOST_COLUMNS}
        return {name: Boost(1.0, ranking) for name, ranking in rankings.items() if ranking is not None}

    def _boosts(self, query: Query) -> dict[str, Boost]:
        boosts = {}
        for name, column in BOOST_COLUMNS.items():
            if weight := getattr(query, name):
                if (ranking := self.ranking(name)) is None:
                    msg = f"The catalogue has no column {column!r} with numbers or times, which {name} needs."
                    raise QueryError(msg, key=column, remedy=f"Leave {name} at 0.")
                boosts[name] = Boost(weight, ranking)
        return boosts

    def _caps(self, query: Query) -> Caps:
        column, categories = query.category_column, None
        if query.max_per_category is not None and (categories := self.items.codes(column)) is None:
            msg = f"There is no column {column!r} to limit categories by."
            raise QueryError(msg, key="category_column", value=column, choices=sorted(self.items.columns))
        groups = self.items.duplicate_groups if query.one_per_duplicate_group else None
        return Caps(categories, groups, query.max_per_category or 1)


def _reason(strategy: Used, after: tuple[str, int] | None) -> tuple[Reason, str | None, int | None]:
    if after is not None:
        return "watched_after", *after
    return "popular" if strategy == "popular" else "similar", None, None


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / MANIFEST).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        msg = f"Cannot read {folder / MANIFEST}: {one_line(error)}"
        raise IndexVersionError(msg, key=str(folder / MANIFEST)) from None
