"""What the routes ask: the index that is live, and whoever embeds and classifies videos."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from raypipe.config.serve import LimitsConfig
from raypipe.endpoint.answers import Live
from raypipe.endpoint.api import Range, RecommendRequest
from raypipe.endpoint.http_errors import HttpError, not_available
from raypipe.endpoint.lane import Lane
from raypipe.endpoint.live import LiveIndex
from raypipe.endpoint.metrics import Metrics
from raypipe.endpoint.sources import Prefixes, Source
from raypipe.errors import QueryError
from raypipe.search.query import Query

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbeddedVideo:
    """A video as the index would hold it: its embedding [D], and those of its T frames [T, D] float16."""

    status: str
    duration_seconds: float | None
    embedding: Vectors
    frame_embeddings: npt.NDArray[np.float16]

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.frame_embeddings)


class Embedder(Protocol):
    """Embeds videos, as those of one fingerprint were embedded."""

    fingerprint: str

    async def embed(self, source: Source) -> EmbeddedVideo:
        """Embed one video; raises HttpError for one that cannot be."""


class Classifier(Protocol):
    """Gives labels to videos."""

    async def classify(self, frame_embeddings: npt.NDArray[np.float16]) -> list[tuple[str, float]]:
        """Every label of one video with its probability, the best first."""


@dataclass(frozen=True)
class Service:
    """Everything that the endpoints share."""

    index: LiveIndex
    lane: Lane
    metrics: Metrics
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    prefixes: Prefixes = field(default_factory=lambda: Prefixes(()))
    embedder: Embedder | None = None
    classifier: Classifier | None = None

    @property
    def live(self) -> Live:
        """The index as it is now; whoever answers a request asks once.

        Raises:
            HttpError: there is none.
        """
        live = self.index.live
        if live is None:
            broken = self.index.broken
            why = f"{broken.version} is broken: {broken.error}" if broken else "Run raypipe index."
            raise HttpError(503, f"There is no index to serve. {why}", "no_index")
        return live

    def can_embed(self, live: Live) -> bool:
        """Whether a new video's embedding can be compared with those of this index."""
        return self.embedder is not None and self.embedder.fingerprint == live.fingerprint

    def can_classify(self, live: Live) -> bool:
        """Whether a new video can be labelled."""
        return self.classifier is not None and self.can_embed(live)

    def embedder_of(self, live: Live) -> Embedder:
        """Whoever embeds videos as those of this index were.

        Raises:
            HttpError: nobody does.
        """
        if self.embedder is None:
            message = (
                "This server embeds no videos: it was started without the weights that embedded those of the index."
            )
            raise not_available(message)
        if not self.can_embed(live):
            message = (
                "The index now holds embeddings of other settings than this server was started for. Start it again."
            )
            raise not_available(message)
        return self.embedder

    async def recommend(self, live: Live, query: Query) -> bytes:
        """Answer a query; raises QueryError."""
        kind = "filtered" if query.filters or query.exclude else "plain"
        return await self.lane.run(kind, self._recommend, live, query)

    async def similar(self, live: Live, query: Query) -> bytes:
        """Answer a query with a history of one; raises HttpError where the index does not hold it."""
        kind = "filtered" if query.filters else "plain"
        return await self.lane.run(kind, self._recommend, live, query, must_know=True)

    def _recommend(self, live: Live, query: Query, *, must_know: bool = False) -> bytes:
        found = live.index.recommend(query)
        if must_know and found.unknown:
            raise HttpError(404, f"The index has no video {found.unknown[0]!r}.")
        selectivity = found.num_eligible / max(1, live.num_videos) if query.filters else None
        self.metrics.recommended(fallback=found.fallback is not None, selectivity=selectivity)
        return live.recommended(found)

    def query(self, request: RecommendRequest) -> Query:
        """The query of a request.

        Raises:
            HttpError: it is longer than this server allows, or its embeddings are not of one length.
        """
        fields: dict[str, Any] = {name: getattr(request, name) for name in type(request).model_fields}
        self.check_length("history", request.history, self.limits.max_history)
        weights = request.weights
        if weights is not None and len(weights) != len(request.history):
            raise HttpError(422, f"There are {len(weights)} weights for a history of {len(request.history)}.")
        fields |= {
            "history": tuple(request.history),
            "weights": None if weights is None else tuple(weights),
            "exclude": tuple(request.exclude),
            "embeddings": _matrix(request.embeddings),
            "filters": {
                name: value.model_dump(exclude_none=True) if isinstance(value, Range) else value
                for name, value in request.filters.items()
            },
        }
        return Query(**fields)

    def check_length(self, name: str, values: Sequence[object], most: int) -> None:
        """Raise HttpError where there are more values than this server allows."""
        if len(values) > most:
            raise HttpError(422, f"{name} has {len(values)} entries; the limit is {most}.")


def _matrix(rows: list[list[float]] | None) -> Vectors | None:
    if not rows:
        return None
    if len({len(row) for row in rows}) > 1:
        raise HttpError(
            422, f"The embeddings have {', '.join(str(len(row)) for row in rows)} numbers; one length is needed."
        )
    with np.errstate(over="ignore"):
        matrix = np.array(rows, np.float32)
    if not np.isfinite(matrix).all():
        msg = "The embeddings hold a number that is too large for 32 bits."
        raise QueryError(msg)
    return matrix
