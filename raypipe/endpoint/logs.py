"""One JSON line a request, in a file of its replica's; never a token, a query or a body."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

SERVE_LOGGER = "ray.serve"
_logger = logging.getLogger(__name__)
_WAITING = 256  # lines at most, or a second: a file that is written to at each request costs more than some answers
_FLUSH_SECONDS = 1.0
_MAX_BYTES = 104_857_600  # of a file; one older file is kept


class RequestLog:
    """Appends records to a file; what waits is written by the next record after a second, or by ``flush``."""

    def __init__(self, path: Path, *, max_bytes: int = _MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._lines: list[str] = []
        self._written_at = 0.0
        self._second, self._time = 0, ""

    def __call__(self, record: Mapping[str, object]) -> None:
        """Add the time, and write the record."""
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._time = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        self._lines.append(json.dumps({"time": self._time, **record}))
        if len(self._lines) >= _WAITING or now - self._written_at > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits; a disk that is full loses lines, and no request."""
        self._written_at = time.time()
        if not self._lines:
            return
        text = "\n".join(self._lines) + "\n"
        self._lines.clear()
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
                size_bytes = file.tell()
            if size_bytes > self._max_bytes:
                self._path.replace(self._path.with_suffix(".1.jsonl"))
        except OSError as error:
            _logger.warning("Cannot write %s: %s", self._path, error.strerror)


def log_folder() -> Path:
    """Where Ray Serve keeps the log of this replica, for Ray's dashboard to show; the current folder if nowhere."""
    for handler in logging.getLogger(SERVE_LOGGER).handlers:
        file = getattr(handler, "target", handler)
        if isinstance(file, logging.FileHandler):
            return Path(file.baseFilename).parent
    return Path.cwd()


def join_serve_log() -> None:
    """Let what raypipe itself has to say stand in the replica's log of Ray Serve."""
    own, serves = logging.getLogger("raypipe"), logging.getLogger(SERVE_LOGGER)
    own.handlers, own.propagate = serves.handlers, False
    own.setLevel(serves.getEffectiveLevel())
