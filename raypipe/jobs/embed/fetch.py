"""Fetch the videos of a shard. The next videos are fetched while the current video is decoded."""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from raypipe.dataset.plan import PlannedVideo
from raypipe.errors import (
    ObjectChangedError,
    ObjectDeniedError,
    ObjectError,
    ObjectMissingError,
    ObjectTooLargeError,
)
from raypipe.status import Status
from raypipe.storage import read_object, read_range
from raypipe.storage.folder import anonymous_file
from raypipe.text import visible
from raypipe.video.decode_request import Ranges
from raypipe.video.sandbox.parent import DecodedVideo, DecodeSandbox

_AHEAD = 2
_IN_MEMORY_BYTES = 256 * 1024**2
_WHOLE_BYTES = 64 * 1024**2  # larger videos are not fetched whole, but only the byte ranges that the decoder reads
_HEAD_BYTES = 1024**2
_PIECE_BYTES = 8 * 1024**2  # the maximum size of one range request
_PIECES_AT_ONCE = 8
_STATUS_OF: tuple[tuple[type[ObjectError], Status], ...] = (
    (ObjectMissingError, Status.MISSING),
    (ObjectChangedError, Status.CHANGED),
    (ObjectDeniedError, Status.ACCESS_DENIED),
    (ObjectTooLargeError, Status.TOO_LARGE),
    (ObjectError, Status.STORAGE_ERROR),
)


@dataclass(slots=True)
class FetchedPart:
    """A large video that is fetched partially: only the requested byte ranges, into an unnamed sparse file."""

    video: PlannedVideo
    file: BinaryIO
    there: list[tuple[int, int]] = field(default_factory=list)  # the byte ranges that have been fetched
    seconds: float = 0.0  # the time spent on fetching them

    def bring(self, ranges: Ranges) -> None:
        """Fetch these byte ranges, unless the object has changed since it was planned.

        Raises:
            ObjectError: the object has changed or cannot be read.
            StorageError: the storage as a whole cannot be read.
        """
        began = time.perf_counter()
        pieces = [
            (at, min(at + _PIECE_BYTES, stop))
            for start, stop in ranges
            if not any(first <= start and stop <= last for first, last in self.there)
            for at in range(start, stop, _PIECE_BYTES)
        ]
        with ThreadPoolExecutor(_PIECES_AT_ONCE, thread_name_prefix="range") as pool:
            list(pool.map(self._bring_piece, pieces))
        self.there += ranges
        self.seconds += time.perf_counter() - began

    def _bring_piece(self, piece: tuple[int, int]) -> None:
        start, stop = piece
        data = read_range(self.video.video_uri, etag=self.video.etag, start=start, stop=stop)
        while data:
            written = os.pwrite(self.file.fileno(), data, start)
            data, start = data[written:], start + written


@dataclass(frozen=True, slots=True)
class Fetched:
    """The result of fetching a video.

    ``file`` is an unnamed file with the whole video. If ``part`` is set, the file holds only parts of it. If the fetch
    failed, ``file`` is None, and ``status`` and ``error`` say why.
    """

    video: PlannedVideo
    file: BinaryIO | None
    status: Status
    error: str
    seconds: float
    part: FetchedPart | None = None


def fetch_videos(videos: Sequence[PlannedVideo], *, max_size_bytes: int) -> Iterator[Fetched]:
    """Fetch the videos and yield the results in the same order. The caller must close each ``file``.

    Raises:
        StorageError: the storage as a whole cannot be read.
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


def fetch_video(video: PlannedVideo, *, max_size_bytes: int) -> Fetched:
    """Fetch one video. For a large video, fetch only the first bytes.

    A problem with this one object is returned as its status. That includes an object that has changed since it was
    planned. A video that is planned as gone is not requested from the storage.
    """
    start = time.perf_counter()
    if video.is_gone:
        return Fetched(video, None, Status.GONE, "", 0.0)
    if video.size_bytes > max_size_bytes:
        error = f"{video.size_bytes} bytes; decode.max_size_bytes is {max_size_bytes}."
        return Fetched(video, None, Status.TOO_LARGE, error, 0.0)
    file = anonymous_file(video.size_bytes, in_memory_bytes=_IN_MEMORY_BYTES)
    part = FetchedPart(video, file) if video.size_bytes > _WHOLE_BYTES and video.etag else None
    try:
        if part is None:
            read_object(video.video_uri, etag=video.etag, max_size_bytes=max_size_bytes, into=file)
        else:
            file.truncate(video.size_bytes)
            part.bring([(0, _HEAD_BYTES)])
            part.seconds = 0.0
    except ObjectError as error:
        file.close()
        return Fetched(video, None, *problem_of(error), time.perf_counter() - start)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return Fetched(video, file, Status.OK, "", time.perf_counter() - start, part)


def problem_of(error: ObjectError) -> tuple[Status, str]:
    """Return the status and the error text that the row of a video gets after this error."""
    return next(status for kind, status in _STATUS_OF if isinstance(error, kind)), visible(str(error))


def decode_fetched(fetched: Fetched, sandbox: DecodeSandbox) -> tuple[DecodedVideo, float, float]:
    """Decode a fetched video and close its file.

    Returns:
        The outcome, the seconds spent on fetching, and the seconds spent on decoding.

    Raises:
        StorageError: the storage as a whole cannot be read.
    """
    start = time.perf_counter()
    if fetched.file is None:
        return _without_frames(fetched.status, fetched.error), fetched.seconds, 0.0
    part = fetched.part
    with fetched.file:
        try:
            decoded = sandbox.decode(fetched.file, part=part)
        except ObjectError as error:
            decoded = _without_frames(*problem_of(error))
    brought = part.seconds if part else 0.0
    return decoded, fetched.seconds + brought, time.perf_counter() - start - brought


def _without_frames(status: Status, error: str) -> DecodedVideo:
    return DecodedVideo(status, error, "", np.empty(0), np.empty((0, 0, 0, 3), np.uint8))


def _close(late: Future[Fetched]) -> None:
    if not late.cancelled() and late.exception() is None and (file := late.result().file) is not None:
        file.close()
