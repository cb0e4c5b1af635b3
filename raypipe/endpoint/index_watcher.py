"""The index being served. A new version is loaded while the old one answers, and replaces it in one assignment."""

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import orjson

from raypipe import schema
from raypipe.endpoint.schemas import Anomaly, Broken, Recommended, Result, Video, Why
from raypipe.errors import IndexVersionError, ObjectError, RaypipeError, StorageError
from raypipe.search.index import VideoIndex
from raypipe.search.novelty import MIN_VIDEOS, Novelty
from raypipe.search.projection import is_usable
from raypipe.search.query import Query, Recommendation, Recommendations
from raypipe.search.versions import Versions, cache_folder
from raypipe.text import one_line

CATEGORY = "category"
_VIDEOS_KEPT = 65_536  # about 30 MB of JSON
_LISTED_VALUES = 1_000
_DIGITS = 6
_OWN = (schema.VIDEO_ID, schema.VIDEO_URI, schema.DURATION_SECONDS, schema.LABEL, schema.SCORE, "duplicate_group")
_HIDDEN = (*_OWN, schema.ETAG, schema.GENERATION)
_VERSIONS_KEPT = 3  # the live one, one to roll back to, and one that another replica may still be loading
_OLDER_TRIED = 3
_COMPARED = 1_000  # videos that p-values are estimated from: more would delay the loading of a version
_CLOSE_SECONDS = 5.0  # the storage may not respond; the thread ends with the process
_logger = logging.getLogger(__name__)
OnLoad: TypeAlias = Callable[["LoadedIndex"], None]


class LoadedIndex:
    """A version of the index in memory, which also builds responses. It is immutable, so any thread may use it."""

    def __init__(self, index: VideoIndex) -> None:
        self.index = index
        self.version = str(index.version)
        self.loaded_at = time.time()
        # Writing a video's JSON takes longer than finding its neighbors, so the JSON of recent videos is cached.
        self.video = lru_cache(maxsize=_VIDEOS_KEPT)(self._video)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The facts about this version for the response of /v1/index."""
        manifest = self.index.manifest
        names = ("num_videos", "dim", "kind", "created_at", "recall_at_10", "columns")
        return {
            "version": self.version,
            **{name: manifest.get(name) for name in names},
            "categories": self.index.items.values(CATEGORY, limit=_LISTED_VALUES),
            "labels": self.index.items.values(schema.LABEL, limit=_LISTED_VALUES),
            "strategies": list(self.index.strategies),
            "ranker": self.index.ranker,
        }

    @property
    def num_videos(self) -> int:
        return int(self.index.manifest["num_videos"])

    @property
    def has_own_vectors(self) -> bool:
        """Return whether the index was built from vectors of a user, so that no video can be embedded like them."""
        return bool((self.index.manifest.get("embeddings") or {}).get("own_vectors"))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the settings with which the videos were embedded."""
        return str((self.index.manifest.get("embeddings") or {}).get("fingerprint", ""))

    @cached_property
    def novelty(self) -> Novelty | None:
        """What scores how unlike the catalogue a video is. None if the catalogue has too few videos.

        The scores are those of ``raypipe anomalies`` with its default ``neighbors``, calibrated on fewer videos.
        """
        if len(self.index) < MIN_VIDEOS:
            return None
        return Novelty.fit(self.index, num_neighbors=1, max_scores=_COMPARED)

    def anomaly(self, embedding: npt.NDArray[np.floating]) -> Anomaly | None:
        """Return how unlike the catalogue a video with this embedding ``[D]`` is. None if that is unknown."""
        novelty, embeddings = self.novelty, embedding[None]
        if novelty is None or not is_usable(embeddings)[0]:
            return None
        scores = novelty.score(embeddings)
        return {
            "p_value": round(float(novelty.calibration.p_values(scores)[0]), _DIGITS),
            "neighbor_distance": round(float(scores.distances[0]), _DIGITS),
            "mahalanobis_length": round(float(scores.lengths[0]), _DIGITS),
            "closest": self.index.items.video_id(int(scores.closest[0])),
            "num_compared": len(novelty.calibration),
        }

    def warm(self) -> None:
        """Answer a few queries, so that no request has to wait for lazy initialization."""
        items = self.index.items
        history = (items.row(0)[schema.VIDEO_ID],) if self.num_videos else ()
        self.index.find("a", {}, offset=0, limit=1)
        self.recommended(self.index.recommend(Query(history=history, top_k=10)))
        self.recommended(self.index.recommend(Query(top_k=10)))
        _ = self.facts

    def _video(self, position: int) -> Video:
        row = self.index.items.row(position)
        video: Video = {
            **{name: row.get(name) for name in _OWN},  # type: ignore[typeddict-item]
            "has_thumbnail": self.index.items.thumbnail(position) is not None,
            "fields": {name: value for name, value in row.items() if name not in _HIDDEN},
        }
        return cast("Video", orjson.Fragment(orjson.dumps(video)))  # copied into responses unchanged

    def recommended(self, found: Recommendations) -> Recommended:
        return {
            "results": [self._result(one) for one in found.results],
            "unknown": list(found.unknown),
            "fallback": found.fallback,
            "strategy": found.strategy,
            "ranker": found.ranker,
            "version": self.version,
        }

    def _result(self, found: Recommendation) -> Result:
        similarity = None if found.similarity is None else round(float(found.similarity), _DIGITS)
        boosts = {name: round(float(boost), _DIGITS) for name, boost in found.boosts.items()}
        why: Why = {
            "reason": found.reason,
            "after": found.after,
            "num_users": found.num_users,
            "closest": found.closest,
            "similarity": similarity,
            "boosts": boosts,
        }
        return {"video": self.video(found.position), "score": round(found.score, _DIGITS), "why": why}


class IndexWatcher:
    """Loads the version that the file CURRENT names, and polls the file for changes.

    ``live`` is the version being served. It may be read at any time, and a version stays usable after a newer one has
    replaced it. ``broken`` is a version that could not be loaded. It is not retried until CURRENT names another version
    or ``reload`` is called, and until then the previous version stays live. Only ``start``, ``reload`` and ``rollback``
    block while a version is loaded.
    """

    def __init__(self, versions: Versions, cache: Path, *, reload_seconds: float, calibrates: bool = False) -> None:
        """Follow the versions of an index. With ``calibrates``, be ready to say how unlike them new videos are."""
        self.live: LoadedIndex | None = None
        self.broken: Broken | None = None  # a version that CURRENT names but that cannot be served
        self.num_failed_polls = 0
        self.on_load: OnLoad = lambda _: None  # called with each version that becomes live
        self._versions = versions
        self._cache = cache
        self._reload_seconds = reload_seconds
        self._calibrates = calibrates
        self._loading = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Load the version that CURRENT names, or an older one if it is broken. Then poll CURRENT in a thread."""
        self._poll()
        if self.live is None and self.broken is not None:
            self._load_older(self.broken)
        self._thread = threading.Thread(target=self._follow, name="raypipe-index-watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def check(self) -> None:
        """Raise RuntimeError if the thread that polls CURRENT has ended."""
        if self._thread is None or not self._thread.is_alive():
            msg = "The thread that follows CURRENT has ended."
            raise RuntimeError(msg)

    def reload(self) -> tuple[LoadedIndex, bool]:
        """Load the version that CURRENT names now. Return it, and whether it differs from the previous live version.

        Raises:
            IndexVersionError: there is no version, or it is broken. The live version does not change.
            StorageError: the storage denies access or cannot be reached.
        """
        with self._loading:
            before = self.live
            version = self._current()
            if version is None:
                msg = "There is no index yet: CURRENT is missing."
                raise IndexVersionError(msg, key="CURRENT", remedy="Run raypipe index.")
            live = self._serve(version)
            return live, before is None or live.version != before.version

    def rollback(self) -> LoadedIndex:
        """Point CURRENT to the previous version, so that every replica serves it. Return the loaded version.

        If CURRENT names a broken version, point it to the live version instead. Raises the same errors as ``reload``.
        """
        with self._loading:
            if self.broken is None or self.live is None or not self._names_the_broken(self.broken):
                return self._serve(self._versions.rollback())
            self._versions.set_current(self.live.version)
            return self._serve(self.live.version)

    def _names_the_broken(self, broken: Broken) -> bool:
        try:
            return self._versions.current() == broken["version"]
        except IndexVersionError:
            return True

    def _follow(self) -> None:
        while not self._closed.wait(self._reload_seconds):
            self._poll()

    def _poll(self) -> None:
        try:
            with self._loading:
                version = self._current()
                if version is not None and (self.broken is None or version != self.broken["version"]):
                    self._serve(version)
        except IndexVersionError as error:
            _logger.error("Cannot serve this version of the index: %s", error)  # noqa: TRY400 - a fact, no traceback
        except (StorageError, ObjectError) as error:
            self.num_failed_polls += 1
            _logger.warning("Cannot check for a new version of the index: %s", error)
        except Exception:
            self.num_failed_polls += 1
            _logger.exception("Cannot load the new version of the index")

    def _load_older(self, broken: Broken) -> None:
        """Load the newest intact version that precedes a broken one.

        A replica that starts while CURRENT names a broken version has no previous version in memory.
        """
        version: str | None = broken["version"]
        for _ in range(_OLDER_TRIED):
            if version is None or (version := self._before(version)) is None:
                break
            try:
                with self._loading:
                    self._serve(version)
                break
            except RaypipeError as error:
                _logger.warning("Cannot serve the older version %s either: %s", version, error)
        self.broken = broken

    def _before(self, version: str) -> str | None:
        """Return the version that precedes the given one, or None.

        It is the predecessor named in the manifest or, if the manifest is unreadable, the version with the next lower
        id.
        """
        try:
            previous: str | None = self._versions.read_manifest(version)["previous"]
        except IndexVersionError:
            previous = max((one for one in self._versions.list() if one < version), default=None)
        return previous

    def _serve(self, version: str) -> LoadedIndex:
        """Load and warm a version, and make it live. If it is already live, it is not loaded again."""
        live = self.live
        if live is None or live.version != version:
            start = time.monotonic()
            self.live = live = self._load(version)
            self.on_load(live)
            _prune(self._cache, live=version)
            _logger.info("Serving version %s of the index, loaded in %.1f s", version, time.monotonic() - start)
        self.broken = None
        return live

    def _load(self, version: str) -> LoadedIndex:
        try:
            manifest = self._versions.read_manifest(version)
            loaded = LoadedIndex(VideoIndex.load(self._versions.fetch(version, self._cache), manifest))
            loaded.warm()
            if self._calibrates:
                _ = loaded.novelty
        except (StorageError, ObjectError):
            raise  # a storage error says nothing about the version
        except Exception as error:
            reason = one_line(error) or type(error).__name__
            self.broken = {"version": version, "error": reason}
            if isinstance(error, IndexVersionError):
                raise
            raise IndexVersionError(reason, key=version) from error
        return loaded

    def _current(self) -> str | None:
        try:
            return self._versions.current()
        except IndexVersionError as error:
            self.broken = {"version": "CURRENT", "error": str(error)}
            raise


def cache_of(index_uri: str, folder: str | None) -> Path:
    """Return the folder that caches the versions of an index, below ``folder`` or below the user's cache folder."""
    return cache_folder(folder) / hashlib.sha256(index_uri.encode()).hexdigest()[:16]


def _prune(cache: Path, *, live: str) -> None:
    """Delete all cached versions except the newest few and the live one.

    Another replica may still serve a deleted version, because it has the files open.
    """
    if not cache.is_dir():
        return
    versions = sorted(path for path in cache.iterdir() if path.is_dir() and not path.name.startswith("."))
    for path in versions[:-_VERSIONS_KEPT]:
        if path.name != live:
            shutil.rmtree(path, ignore_errors=True)
            path.with_name(f".{path.name}.lock").unlink(missing_ok=True)
