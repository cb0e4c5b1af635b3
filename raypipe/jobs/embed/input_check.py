"""Which rows of an old output the rules of today would change: its videos are read again, by the rules of both."""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from queue import SimpleQueue
from typing import Any, Self

import numpy as np

from raypipe import schema
from raypipe.config import DecodeConfig
from raypipe.dataset.plan import Video
from raypipe.dataset.read import read_embeddings
from raypipe.errors import ObjectError
from raypipe.jobs.embed.fetch import fetch_video
from raypipe.status import Status
from raypipe.storage import Folder
from raypipe.video.protocol import DecodeRequest, Limits, request_of_settings
from raypipe.video.sandbox import DecodedVideo, DecodeSandbox

_COLUMNS = (schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG, schema.SIZE_BYTES, schema.STATUS)
_AHEAD = 4  # of each worker


@dataclass(frozen=True, slots=True)
class RecheckedRow:
    """What the rules of today make of one video."""

    video_id: str
    video_uri: str
    changes: tuple[str, ...] = ()  # such as "status: ok is partial"; empty where the row stays as it is
    problem: str = ""  # why the video could not be read again


def recheck_inputs(
    output: Folder, settings: Mapping[str, Any], *, decode: DecodeConfig, num_workers: int | None = None
) -> Iterator[RecheckedRow]:
    """Read the videos of the rows that count again, by the rules of format 1 and of today's, and compare.

    ``settings`` are those that the output stores.

    Nothing is embedded: a row changes exactly if its frames, their times or its other columns do. Yields every row,
    in the order of the output.

    Raises:
        JobError: the output is not sealed.
        StorageError: no video can be read.
    """
    limits = Limits(max_pixels=decode.max_pixels, max_duration_seconds=decode.max_duration_seconds)
    request = request_of_settings(settings, limits)
    count = num_workers or len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        readers: SimpleQueue[_Reader] = SimpleQueue()
        for _ in range(count):
            readers.put(stack.enter_context(_Reader(request, decode)))
        pool = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="recheck"))

        def recheck(row: Mapping[str, Any]) -> RecheckedRow:
            reader = readers.get()
            try:
                return reader.recheck(row)
            finally:
                readers.put(reader)

        rows = (
            row
            for table in read_embeddings(output, columns=_COLUMNS)
            for row in table.to_pylist()
            if row[schema.STATUS] != Status.GONE
        )
        coming: list[Future[RecheckedRow]] = [pool.submit(recheck, row) for row in islice(rows, count * _AHEAD)]
        while coming:
            yield coming.pop(0).result()
            coming += [pool.submit(recheck, row) for row in islice(rows, 1)]


class _Reader:
    """Decodes one video at a time by both rules."""

    def __init__(self, request: DecodeRequest, decode: DecodeConfig) -> None:
        self._max_size_bytes = decode.max_size_bytes
        self._sandboxes = [
            DecodeSandbox(
                replace(request, row_format=number),
                decoder=decode.decoder,
                timeout_seconds=decode.timeout_seconds,
                memory_bytes=decode.memory_bytes,
            )
            for number in (1, schema.ROW_FORMAT)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sandbox in self._sandboxes:
            sandbox.close()

    def recheck(self, row: Mapping[str, Any]) -> RecheckedRow:
        """Read the video of a row, if it is still the one that was embedded."""
        video_id, video_uri = str(row[schema.VIDEO_ID]), str(row[schema.VIDEO_URI])
        fetched = fetch_video(
            Video(video_id, video_uri, str(row[schema.ETAG]), int(row[schema.SIZE_BYTES])),
            max_size_bytes=self._max_size_bytes,
        )
        if fetched.file is None:
            is_same = fetched.status == row[schema.STATUS]
            return RecheckedRow(video_id, video_uri, problem="" if is_same else f"{fetched.status}: {fetched.error}")
        with fetched.file as file:
            try:
                before, now = (sandbox.decode(file, part=fetched.part) for sandbox in self._sandboxes)
            except ObjectError as error:
                return RecheckedRow(video_id, video_uri, problem=str(error))
        return RecheckedRow(video_id, video_uri, tuple(_differences(before, now)))


def _differences(before: DecodedVideo, now: DecodedVideo) -> Iterable[str]:
    """Yield what differs between two readings of one video."""
    if before.status != now.status:
        yield f"status: {before.status} is {now.status}" + (f" ({now.error})" if now.error else "")
    elif before.error != now.error:
        yield f"error: {now.error or 'none'}"
    if len(before.frames) != len(now.frames):
        yield f"frames: {len(before.frames)} are {len(now.frames)}"
    elif not np.array_equal(before.pts_seconds, now.pts_seconds):
        yield "frames: others are taken, or at other times"
    elif not np.array_equal(before.frames, now.frames):
        yield "frames: their pixels differ"
    yield from _flags(before, now)


def _flags(before: DecodedVideo, now: DecodedVideo) -> Iterable[str]:
    if now.num_corrupt_frames:
        yield f"corrupt frames: {now.num_corrupt_frames}"
    if now.interlaced:
        yield "deinterlaced"
    if now.timeline_repaired:
        yield f"timeline repaired: {before.duration_seconds:.2f} s are {now.duration_seconds:.2f} s"
    if (before.width, before.height) != (now.width, now.height):
        yield f"size: {before.width}x{before.height} is {now.width}x{now.height}"
    if before.codec != now.codec:
        yield f"codec: {before.codec or 'none'} is {now.codec or 'none'}"
