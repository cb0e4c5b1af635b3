"""The index that is served: a new version is loaded beside it, and takes its place in one assignment."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raypipe.endpoint.answers import Live
from raypipe.endpoint.cache import prune
from raypipe.errors import IndexVersionError, ObjectError, RaypipeError, StorageError
from raypipe.search.index import VideoIndex

OnLoad = Callable[[Live], None]
_OLDER_TRIED = 3
_END_SECONDS = 5.0  # a storage may not answer; the thread ends with the process
_logger = logging.getLogger(__name__)


class Store(Protocol):
    """Where the versions of an index lie; ``raypipe.search.versions.Versions`` is one."""

    def current(self) -> str | None:
        """The id that CURRENT names, None where there is no index yet."""

    def list(self) -> "list[str]":
        """The ids of all versions that have a manifest, ascending."""

    def read_manifest(self, version: str) -> dict[str, Any]:
        """What a version says of itself."""

    def fetch(self, version: str, cache: Path) -> Path:
        """The folder of a version on this machine, every file checked."""

    def set_current(self, version: str) -> None:
        """Make this version the one that CURRENT names."""

    def rollback(self) -> str:
        """Make the one before it the one that CURRENT names."""


@dataclass(frozen=True, slots=True)
class BrokenVersion:
    """What CURRENT names and cannot be served, and why."""

    version: str
    error: str


class LiveIndex:
    """Follows CURRENT. ``live`` may be read at any time; whoever holds one may go on using it when another takes over.

    A version that is broken is noted in ``broken`` and not tried again until CURRENT names another or ``reload`` is
    called; the version before it stays. Nothing waits for a load but ``start``, ``reload`` and ``rollback``.
    """

    def __init__(self, store: Store, cache: Path, *, reload_seconds: float) -> None:
        self.live: Live | None = None
        self.broken: BrokenVersion | None = None
        self.num_failed_polls = 0
        self.on_load: OnLoad = lambda _: None  # is told of each that takes its place
        self._store = store
        self._cache = cache
        self._reload_seconds = reload_seconds
        self._loading = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Load what CURRENT names, or an older version where that is broken; then follow it in a thread."""
        self._poll()
        if self.live is None and self.broken is not None:
            self._load_older()
        self._thread = threading.Thread(target=self._follow, name="raypipe-live-index", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Follow no longer."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_END_SECONDS)

    def check(self) -> None:
        """Raise RuntimeError where nothing follows CURRENT any more."""
        if self._thread is None or not self._thread.is_alive():
            msg = "The thread that follows CURRENT has ended."
            raise RuntimeError(msg)

    def reload(self) -> tuple[Live, bool]:
        """Load what CURRENT names now, and say whether it is another version than before.

        Raises:
            IndexVersionError: there is none, or it is broken; what was served stays.
            StorageError: the storage refuses or cannot be reached.
        """
        with self._loading:
            before = self.live
            version = self._current()
            if version is None:
                msg = "There is no index yet: CURRENT is missing."
                raise IndexVersionError(msg, key="CURRENT", remedy="Run raypipe index.")
            live = self._take(version)
            return live, before is None or live.version != before.version

    def rollback(self) -> Live:
        """Go back to the version before the one that CURRENT names, for every replica; raises like ``reload``.

        Where CURRENT names a broken one, that is the one that is served.
        """
        with self._loading:
            if self.broken is not None and self.live is not None and self._names_the_broken():
                version = self.live.version
                self._store.set_current(version)
            else:
                version = self._store.rollback()
            return self._take(version)

    def _names_the_broken(self) -> bool:
        try:
            return self.broken is not None and self._store.current() == self.broken.version
        except IndexVersionError:
            return True

    def _follow(self) -> None:
        while not self._ended.wait(self._reload_seconds):
            self._poll()

    def _poll(self) -> None:
        try:
            with self._loading:
                version = self._current()
                if version is not None and (self.broken is None or version != self.broken.version):
                    self._take(version)
        except IndexVersionError as error:
            _logger.error("This version of the index is not served: %s", error)  # noqa: TRY400 - a fact, no traceback
        except (StorageError, ObjectError) as error:
            self.num_failed_polls += 1
            _logger.warning("Cannot ask for a new version of the index: %s", error)
        except Exception:
            self.num_failed_polls += 1
            _logger.exception("Cannot load the new version of the index")

    def _load_older(self) -> None:
        """A replica that starts while CURRENT is broken has no old version yet: it takes the newest whole one."""
        assert self.broken is not None  # noqa: S101 - its caller asked
        broken = self.broken
        version: str | None = broken.version
        for _ in range(_OLDER_TRIED):
            if version is None or (version := self._before(version)) is None:
                break
            try:
                with self._loading:
                    self._take(version)
                break
            except RaypipeError as error:
                _logger.warning("The older version %s is not served either: %s", version, error)
        self.broken = broken

    def _before(self, version: str) -> str | None:
        """The version that was live before another, or the newest of lower id where that cannot be read."""
        try:
            previous: str | None = self._store.read_manifest(version)["previous"]
        except IndexVersionError:
            lower = [one for one in self._store.list() if one < version]
            previous = lower[-1] if lower else None
        return previous

    def _take(self, version: str) -> Live:
        """Load a version unless it is the one that is served, warm it, and put it in place."""
        live = self.live
        if live is None or live.version != version:
            start = time.monotonic()
            live = self._load(version)
            self.live = live
            self.on_load(live)
            prune(self._cache, live=version)
            _logger.info("Serving version %s of the index, loaded in %.1f s", version, time.monotonic() - start)
        self.broken = None
        return live

    def _load(self, version: str) -> Live:
        try:
            manifest = self._store.read_manifest(version)
            live = Live(VideoIndex.open(self._store.fetch(version, self._cache), manifest))
            live.warm()
        except (StorageError, ObjectError):
            raise  # of the storage, which says nothing of the version
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self.broken = BrokenVersion(version, reason)
            raise IndexVersionError(reason) from error
        return live

    def _current(self) -> str | None:
        try:
            return self._store.current()
        except IndexVersionError as error:
            self.broken = BrokenVersion("CURRENT", str(error))
            raise
