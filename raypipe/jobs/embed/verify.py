"""Check the rows that embed writes: the status, the frames, the vectors and their mean must be consistent.

``recheck_inputs`` decodes the videos of an old output again, and lists the rows that the current row format would
change.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe import schema
from raypipe.config import DecodeConfig
from raypipe.dataset.plan import PlannedVideo
from raypipe.dataset.read import matrix_of, read_embeddings
from raypipe.dataset.verify import OF_VIDEOS, RowChecks, Verification, Violation, stored_settings
from raypipe.dataset.verify import verify as verify_output
from raypipe.errors import ObjectError, WeightsError
from raypipe.jobs.embed.fetch import fetch_video
from raypipe.models.int8_files import read_int8_file
from raypipe.status import HAS_FRAMES, Status
from raypipe.storage import Folder
from raypipe.video.decode_request import DecodeRequest, request_of_settings
from raypipe.video.sandbox.parent import DecodedVideo, DecodeSandbox

_NORM_TOLERANCE = 1e-3
_MEAN_TOLERANCE = 0.04  # relative to the mean's length: the mean was computed before frames were rounded
_FLOAT16_STEP = 2.0**-24  # the distance between the smallest float16 numbers
_COLUMNS = (schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG, schema.SIZE_BYTES, schema.STATUS)
_READS_AHEAD = 4  # per worker


def verify(output: Folder) -> Verification:
    """Verify the output of an embed job. Raises the same errors as ``raypipe.dataset.verify.verify``."""
    settings = stored_settings(output)
    row_format = schema.row_format_of(settings)
    required = [*OF_VIDEOS, schema.SIZE_BYTES, schema.FRAME_PTS_SECONDS, schema.FRAME_EMBEDDINGS]
    if row_format > 1:
        required += [schema.NUM_CORRUPT_FRAMES, schema.INTERLACED, schema.TIMELINE_REPAIRED]
    schema_of = partial(_schema_of, row_format=row_format, vectors=schema.vectors_of(settings))
    result = verify_output(output, RowChecks("embed", schema_of, tuple(required), _problems))
    if settings.get("dtype") == "int8":
        try:
            read_int8_file(output, settings)
        except WeightsError as error:
            result.violations.append(Violation("int8_network", str(error)))
    return result


def _schema_of(rows: pa.Table, *, row_format: int, vectors: schema.FloatType) -> pa.Schema:
    of_type = rows.schema.field(schema.EMBEDDING).type if schema.EMBEDDING in rows.column_names else None
    return schema.embeddings_schema(getattr(of_type, "list_size", 1), row_format=row_format, vectors=vectors)


def _problems(rows: pa.Table) -> Iterator[Violation]:
    names = (schema.VIDEO_ID, schema.STATUS, schema.NUM_FRAMES, schema.FRAME_PTS_SECONDS)
    for video_id, status, etag in zip(*(rows[name].to_pylist() for name in (*names[:2], schema.ETAG)), strict=True):
        if status == Status.GONE and etag:
            yield Violation("gone_etag", f"{video_id!r} is gone, but has the etag {etag!r}.")
    if schema.NUM_CORRUPT_FRAMES in rows.column_names:
        yield from _check_corrupt_frames(rows)
    frames = rows[schema.FRAME_EMBEDDINGS].combine_chunks()
    embeddings = rows[schema.EMBEDDING].combine_chunks()
    for at, (video_id, status, num_frames, pts) in enumerate(
        zip(*(rows[name].to_pylist() for name in names), strict=True)
    ):
        has_frames, has_embedding = status in HAS_FRAMES, embeddings[at].is_valid
        listed = (num_frames, len(pts), len(frames[at].values))
        if len(set(listed)) != 1 or (num_frames > 0) != has_frames or has_embedding != has_frames:
            said = f"{video_id!r} has {listed} frames, times and vectors, which do not match each other or its status."
            yield Violation("frames", said)
        elif has_frames:
            embedding = np.array(embeddings[at].as_py(), dtype=np.float32)
            vectors = _matrix(frames[at].values, len(embedding))
            for problem in _check_vectors(vectors, embedding, np.array(pts, dtype=float)):
                yield Violation(problem.check, f"{video_id!r} {problem}")


def _check_corrupt_frames(rows: pa.Table) -> Iterator[Violation]:
    """Yield a violation for each row whose number of corrupt frames contradicts its status.

    A video with status ok must have no corrupt frames. A partial video has at most as many as it has frames.
    """
    names = (schema.VIDEO_ID, schema.STATUS, schema.NUM_FRAMES, schema.NUM_CORRUPT_FRAMES)
    for video_id, status, num_frames, num_corrupt in zip(*(rows[name].to_pylist() for name in names), strict=True):
        most = {Status.OK: 0, Status.PARTIAL: num_frames}.get(status, num_corrupt)
        if not 0 <= num_corrupt <= most:
            yield Violation("corrupt_frames", f"{video_id!r} is {status} with {num_corrupt} corrupt frames.")


def _matrix(vectors: pa.FixedSizeListArray, embedding_dim: int) -> npt.NDArray[np.float32]:
    """Return the vectors as an array [T, D]. If a vector is null or the dimension is not D, all values are NaN."""
    if vectors.null_count or vectors.type.list_size != embedding_dim:
        return np.full((len(vectors), embedding_dim), np.nan, dtype=np.float32)
    return matrix_of(vectors).astype(np.float32)


def _check_vectors(
    vectors: npt.NDArray[np.float32], embedding: npt.NDArray[np.float32], pts_seconds: npt.NDArray[np.float64]
) -> Iterator[Violation]:
    """Yield the first problem of a video's vectors [T, D], its embedding [D] or its times [T], if there is one."""
    if not all(np.isfinite(numbers).all() for numbers in (vectors, embedding, pts_seconds)):
        yield Violation("not_finite", "has a vector or a time that is not finite.")
        return
    mean = vectors.mean(axis=0, dtype=np.float64)
    length, rounding = float(np.linalg.norm(mean)), _FLOAT16_STEP * len(mean) ** 0.5
    norm = float(np.linalg.norm(embedding))
    if norm == 0 and length <= rounding:
        return  # zeros have no direction
    if abs(norm - 1) > _NORM_TOLERANCE:
        yield Violation("embedding_length", f"has an embedding of length {norm:.4f}, not 1.")
    elif np.linalg.norm(mean - length * embedding) > _MEAN_TOLERANCE * length + rounding:
        yield Violation("embedding_mean", "has an embedding that is not the mean of its frames.")


@dataclass(frozen=True, slots=True)
class RecheckedRow:
    """How the rules of the current row format would change the row of one video."""

    video_id: str
    video_uri: str
    changes: tuple[str, ...] = ()  # such as "status: ok becomes partial"; empty for no change
    problem: str = ""  # why the video could not be read again


def recheck_inputs(
    output: Folder, settings: Mapping[str, Any], *, decode: DecodeConfig, num_workers: int | None = None
) -> Iterator[RecheckedRow]:
    """Find out which rows of an output in format 1 the current row format would change.

    Decode the video of every current row twice, by the rules of format 1 and by the rules of the current format, and
    yield the differences. Every row is yielded, in the order of the output, even if nothing changes. Videos that are
    gone are skipped. Nothing is embedded: if the frames stay the same, so do the vectors.

    ``settings`` are the stored settings of the output.

    Raises:
        JobError: the output is not sealed.
        StorageError: the storage as a whole cannot be read.
    """
    request = request_of_settings(settings, decode)
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
        coming: list[Future[RecheckedRow]] = [pool.submit(recheck, row) for row in islice(rows, count * _READS_AHEAD)]
        while coming:
            yield coming.pop(0).result()
            coming += [pool.submit(recheck, row) for row in islice(rows, 1)]


class _Reader:
    """Decodes videos by the rules of row format 1 and of the current row format, one video at a time."""

    def __init__(self, request: DecodeRequest, decode: DecodeConfig) -> None:
        self._max_size_bytes = decode.max_size_bytes
        self._sandboxes = [
            DecodeSandbox.start(replace(request, row_format=number), decode) for number in (1, schema.ROW_FORMAT)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sandbox in self._sandboxes:
            sandbox.close()

    def recheck(self, row: Mapping[str, Any]) -> RecheckedRow:
        """Decode the video of a row twice and return the differences.

        If the object has changed since it was embedded, or cannot be read, return the problem instead.
        """
        video_id, video_uri = str(row[schema.VIDEO_ID]), str(row[schema.VIDEO_URI])
        fetched = fetch_video(
            PlannedVideo(video_id, video_uri, str(row[schema.ETAG]), int(row[schema.SIZE_BYTES])),
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
    """Yield a text for each difference between two decodings of the same video."""
    if before.status != now.status:
        yield f"status: {before.status} becomes {now.status}" + (f" ({now.error})" if now.error else "")
    elif before.error != now.error:
        yield f"error: {now.error or 'none'}"
    if len(before.frames) != len(now.frames):
        yield f"frames: {len(before.frames)} become {len(now.frames)}"
    elif not np.array_equal(before.pts_seconds, now.pts_seconds):
        yield "frames: different frames or times"
    elif not np.array_equal(before.frames, now.frames):
        yield "frames: different pixels"
    yield from _flags(before, now)


def _flags(before: DecodedVideo, now: DecodedVideo) -> Iterable[str]:
    if now.num_corrupt_frames:
        yield f"corrupt frames: {now.num_corrupt_frames}"
    if now.interlaced:
        yield "deinterlaced"
    if now.timeline_repaired:
        yield f"timeline repaired: {before.duration_seconds:.2f} s becomes {now.duration_seconds:.2f} s"
    if (before.width, before.height) != (now.width, now.height):
        yield f"size: {before.width}x{before.height} becomes {now.width}x{now.height}"
    if before.codec != now.codec:
        yield f"codec: {before.codec or 'none'} becomes {now.codec or 'none'}"
