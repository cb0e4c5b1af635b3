"""Answer requests with the index and the model deployments. Searches run in the event loop or in threads."""

import asyncio
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from raypipe.config.serve import LimitsConfig
from raypipe.endpoint.http import HttpError
from raypipe.endpoint.index_watcher import IndexWatcher, LoadedIndex
from raypipe.endpoint.metrics import EndpointMetrics
from raypipe.endpoint.play_links import PlayLinks, new_play_key
from raypipe.endpoint.schemas import Recommended, RecommendRequest
from raypipe.endpoint.uploads import OWN_VECTORS, ClassifiedUpload, EmbeddedUpload, Prefixes, Upload
from raypipe.errors import QueryError
from raypipe.search.query import Query

LONG_SECONDS = 0.005
_NUM_READERS = 8
PER_ROUND = 4  # after each round, polling takes a tenth of the time of a short search
_WEIGHT = 0.3  # the weight of the latest call in the moving average
_TIMED_EVERY = 32  # time one call in 32, because reading the clock takes a tenth of a short search
P = ParamSpec("P")
T = TypeVar("T")


class Embed(Protocol):
    """Embeds a video, and returns pictures of its frames if asked. Raises HttpError."""

    def __call__(self, upload: Upload, *, pictures: bool = False) -> Awaitable[EmbeddedUpload]: ...


class Classify(Protocol):
    """Classifies a video by the embeddings [T, D] of its frames, and scores its frames if asked. Raises HttpError."""

    def __call__(
        self, frame_embeddings: npt.NDArray[np.float16], *, frame_scores: bool
    ) -> Awaitable[ClassifiedUpload]: ...


@dataclass(slots=True)
class _Kind:
    num_calls: int = 0
    seconds: float = 0.0


class Scheduler:
    """Runs a few pieces of work per round of the event loop, so that other requests can be rejected in between.

    If the sampled calls of one kind of work take long, this kind runs in a thread pool instead.
    """

    def __init__(
        self, *, long_seconds: float = LONG_SECONDS, per_round: int = PER_ROUND, num_threads: int | None = None
    ) -> None:
        self._long_seconds = long_seconds
        self._kinds: dict[str, _Kind] = {}
        self._per_round = per_round
        self._num_done = 0  # pieces of work in this round of the event loop
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._threads = ThreadPoolExecutor(num_threads or min(4, os.cpu_count() or 1), thread_name_prefix="search")
        self._readers = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="read")

    async def run(self, name: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``work`` in the event loop or in a thread, and return its result. ``name`` is its kind of work."""
        kind = self._kinds.setdefault(name, _Kind())
        if kind.seconds > self._long_seconds:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, lambda: _sampled(kind, work, *args, **kwargs))
        await self._turn()
        return _sampled(kind, work, *args, **kwargs)

    async def read(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``work``, which waits for a storage, in a thread. No search waits for these threads."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, partial(work, *args, **kwargs))

    def read_later(self, work: Callable[[], object]) -> None:
        """Run ``work`` in a thread after the reads that wait for one. Its result and its errors are dropped."""
        with suppress(RuntimeError):  # after ``close``
            self._readers.submit(work)

    async def _turn(self) -> None:
        """Wait for a later round of the event loop if this round has done its share of work.

        Between rounds, the loop polls for new requests.
        """
        loop = asyncio.get_running_loop()
        if self._num_done == 0:
            loop.call_soon(self._next_round)
        if self._num_done < self._per_round and not self._waiting:
            self._num_done += 1
        else:
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append(turn)
            await turn

    def _next_round(self) -> None:
        self._num_done = 0
        while self._waiting and self._num_done < self._per_round:
            turn = self._waiting.popleft()
            if not turn.done():  # otherwise, the caller has disconnected
                turn.set_result(None)
                self._num_done += 1
        if self._num_done:
            asyncio.get_running_loop().call_soon(self._next_round)

    def close(self) -> None:
        for threads in (self._threads, self._readers):
            threads.shutdown(wait=False, cancel_futures=True)


def _sampled(kind: _Kind, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    kind.num_calls += 1
    if kind.num_calls % _TIMED_EVERY != 1:
        return work(*args, **kwargs)
    start = time.thread_time()  # CPU time: on a busy machine, wall time includes other threads
    try:
        return work(*args, **kwargs)
    finally:
        seconds = time.thread_time() - start
        kind.seconds = seconds if kind.num_calls == 1 else kind.seconds + _WEIGHT * (seconds - kind.seconds)


@dataclass(frozen=True)
class Service:
    """The objects that all endpoints share. ``embed_fingerprint`` identifies the settings that ``embed`` uses."""

    index: IndexWatcher
    scheduler: Scheduler
    metrics: EndpointMetrics
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    prefixes: Prefixes = field(default_factory=lambda: Prefixes(()))
    embed: Embed | None = None
    embed_fingerprint: str | None = None
    classify: Classify | None = None
    play_links: PlayLinks = field(default_factory=lambda: PlayLinks(new_play_key()))

    @property
    def live(self) -> LoadedIndex:
        """The live index. A request reads this property only once, so that a single version answers it.

        Raises:
            HttpError: there is no live index (503).
        """
        live, broken = self.index.live, self.index.broken
        if live is None:
            why = f"{broken['version']} is broken: {broken['error']}" if broken else "Run raypipe index."
            raise HttpError(503, f"There is no index to serve. {why}", "no_index")
        return live

    def can_embed(self, live: LoadedIndex) -> bool:
        """Return whether this server can embed new videos so that they are comparable with the videos of this index."""
        return self.embed is not None and self.embed_fingerprint == live.fingerprint

    def can_classify(self, live: LoadedIndex) -> bool:
        return self.classify is not None and self.can_embed(live)

    def embedder_of(self, live: LoadedIndex) -> Embed:
        """Return the embedder. Raise HttpError 501 if there is none, or if its embeddings do not fit this index."""
        if self.embed is not None and self.can_embed(live):
            return self.embed
        message = "This server cannot embed videos: it was started without the weights that embedded the index."
        if live.has_own_vectors:
            message = OWN_VECTORS
        elif self.embed is not None:
            message = "The settings of the index's embeddings have changed since this server started. Restart it."
        raise HttpError(501, message)

    def classifier_of(self, live: LoadedIndex) -> Classify:
        """Return the classifier. Raise HttpError 501 if there is none, or if there is no embedder for this index."""
        if self.classify is None:
            raise HttpError(501, "This server has no classifier. Start it with --model.")
        self.embedder_of(live)
        return self.classify

    async def recommend(self, live: LoadedIndex, query: Query, *, must_know: bool = False) -> Recommended:
        """Return the recommendations for a query.

        Raises:
            QueryError: the query is invalid.
            HttpError: ``must_know`` is true, and a watched video is not in the index (404).
        """
        kind = "filtered" if query.filters or query.exclude or query.dislikes else "plain"
        return await self.scheduler.run(kind, self._recommend, live, query, must_know=must_know)

    def _recommend(self, live: LoadedIndex, query: Query, *, must_know: bool) -> Recommended:
        found = live.index.recommend(query)
        if must_know and found.unknown:
            raise HttpError(404, f"The index has no video {found.unknown[0]!r}.")
        selectivity = found.num_eligible / max(1, live.num_videos) if query.filters else None
        self.metrics.recommended(fallback=found.fallback is not None, selectivity=selectivity)
        return live.recommended(found)

    def query(self, request: RecommendRequest) -> Query:
        """Convert a request to a query.

        Raises:
            HttpError: the history is longer than this server allows, the numbers of weights and watched videos differ,
                or the embeddings differ in length.
            QueryError: an embedding contains a number that is too large for float32.
        """
        self.check_length("history", request.history, self.limits.max_history)
        if request.weights is not None and len(request.weights) != len(request.history):
            raise HttpError(422, f"There are {len(request.weights)} weights for a history of {len(request.history)}.")
        fields: dict[str, Any] = request.model_dump(exclude_none=True, exclude={"embeddings"})
        lists = ("history", "weights", "exclude", "dislikes")
        fields |= {name: tuple(fields[name]) for name in lists if name in fields}
        return Query(embeddings=_matrix(request.embeddings), **fields)

    def check_length(self, name: str, values: Sequence[object], most: int) -> None:
        """Raise HttpError if there are more values than this server allows."""
        if len(values) > most:
            raise HttpError(422, f"{name} has {len(values)} entries; the limit is {most}.")


def _matrix(rows: list[list[float]] | None) -> npt.NDArray[np.float32] | None:
    if not rows:
        return None
    if len({len(row) for row in rows}) > 1:
        lengths = ", ".join(str(len(row)) for row in rows)
        raise HttpError(422, f"The embeddings have different lengths: {lengths}. Send embeddings of one length.")
    with np.errstate(over="ignore"):
        matrix = np.array(rows, np.float32)
    if not np.isfinite(matrix).all():
        msg = "The embeddings contain a number that is too large for float32."
        raise QueryError(msg)
    return matrix
