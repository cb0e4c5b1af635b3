"""Get the videos of a shard, the next ones while the present one is decoded."""

import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

from raypipe.errors import (
    ObjectChangedError,
    ObjectDeniedError,
    ObjectError,
    ObjectMissingError,
    ObjectTooLargeError,
)
from raypipe.report.text import visible
from raypipe.sealed.plan import Video
from raypipe.status import Status
from raypipe.storage import read_object

_AHEAD = 2
_IN_MEMORY_BYTES = 256 * 1024**2
_STATUS_OF: tuple[tuple[type[ObjectError], Status], ...] = (
    (ObjectMissingError, Status.MISSING),
    (ObjectChangedError, Status.CHANGED),
    (ObjectDeniedError, Status.ACCESS_DENIED),
    (ObjectTooLargeError, Status.TOO_LARGE),
    (ObjectError, Status.STORAGE_ERROR),
)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A video in a nameless buffer, or why there is none."""

    video: Video
    file: BinaryIO | None
    status: Status
    error: str
    seconds: float


def fetch_videos(videos: Sequence[Video], *, max_size_bytes: int) -> Iterator[Fetched]:
    """Yield the videos in order; the caller closes each ``file``.

    Raises:
        StorageError: no video can be read.
    """
    with ThreadPoolExecutor(max_workers=_AHEAD, thread_name_prefix="fetch") as pool:
        coming: deque[Future[Fetched]] = deque()
        try:
            for position in range(len(videos) + _AHEAD):
                if position < len(videos):
                    coming.append(pool.submit(fetch_video, videos[position], max_size_bytes=max_size_bytes))
                if position >= _AHEAD:
                    yield coming.popleft().result()
        finally:
            for late in coming:
                late.add_done_callback(_close)


def fetch_video(video: Video, *, max_size_bytes: int) -> Fetched:
    """Get one video, if it is still the planned one; what is wrong with this object alone is its status."""
    start = time.perf_counter()
    if video.size_bytes > max_size_bytes:
        error = f"{video.size_bytes} bytes; decode.max_size_bytes is {max_size_bytes}."
        return Fetched(video, None, Status.TOO_LARGE, error, 0.0)
    file = _nameless_buffer(video.size_bytes)
    try:
        read_object(video.video_uri, etag=video.etag, max_size_bytes=max_size_bytes, into=file)
    except ObjectError as error:
        file.close()
        status = next(status for kind, status in _STATUS_OF if isinstance(error, kind))
        return Fetched(video, None, status, visible(str(error)), time.perf_counter() - start)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return Fetched(video, file, Status.OK, "", time.perf_counter() - start)


def _nameless_buffer(size_bytes: int) -> BinaryIO:
    """Memory for the usual video, a file without a name for a large one."""
    if size_bytes <= _IN_MEMORY_BYTES:
        return os.fdopen(os.memfd_create("raypipe-video"), "w+b")
    return tempfile.TemporaryFile()


def _close(late: Future[Fetched]) -> None:
    if not late.cancelled() and late.exception() is None and (file := late.result().file) is not None:
        file.close()
