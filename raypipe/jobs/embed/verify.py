"""What embed promises of its rows: vectors that fit their status, their frames and their mean."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe import schema
from raypipe.dataset.verify import RowChecks, Verification, Violation, stored_settings
from raypipe.dataset.verify import verify as verify_output
from raypipe.status import HAS_FRAMES, Status
from raypipe.storage import Folder

_NORM_TOLERANCE = 1e-3
_MEAN_TOLERANCE = 0.04  # of the mean's length: frames are float16, their mean was taken in float32
_FLOAT16_STEP = 2.0**-24  # between the smallest float16 numbers


def verify(output: Folder) -> Verification:
    """Check everything that is stored of an embed job; raises like the shared ``verify``."""
    row_format = schema.row_format_of(stored_settings(output))
    required = [schema.SIZE_BYTES, schema.FRAME_PTS_SECONDS, schema.FRAME_EMBEDDINGS]
    if row_format > 1:
        required += [schema.NUM_CORRUPT_FRAMES, schema.INTERLACED, schema.TIMELINE_REPAIRED]
    schema_of = partial(_schema_of, row_format=row_format)
    return verify_output(output, RowChecks("embed", schema_of, tuple(required), _problems))


def _schema_of(rows: pa.Table, *, row_format: int) -> pa.Schema:
    of_type = rows.schema.field(schema.EMBEDDING).type if schema.EMBEDDING in rows.column_names else None
    return schema.embeddings_schema(getattr(of_type, "list_size", 1), row_format=row_format)


def _problems(rows: pa.Table) -> Iterator[Violation]:
    names = (schema.VIDEO_ID, schema.STATUS, schema.NUM_FRAMES, schema.FRAME_PTS_SECONDS)
    for video_id, status, etag in zip(*(rows[name].to_pylist() for name in (*names[:2], schema.ETAG)), strict=True):
        if status == Status.GONE and etag:
            yield Violation("gone_etag", f"{video_id!r} is gone, and has the etag {etag!r}.")
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
            said = f"{video_id!r} has {listed} frames, times and vectors, which do not fit together or its status."
            yield Violation("frames", said)
        elif has_frames:
            embedding = np.array(embeddings[at].as_py(), dtype=np.float32)
            vectors = _matrix(frames[at].values, len(embedding))
            for problem in _check_vectors(vectors, embedding, np.array(pts, dtype=float)):
                yield Violation(problem.check, f"{video_id!r} {problem}")


def _check_corrupt_frames(rows: pa.Table) -> Iterator[Violation]:
    """Yield where the number of corrupt frames does not fit the status: none of an ok video, at most all frames."""
    names = (schema.VIDEO_ID, schema.STATUS, schema.NUM_FRAMES, schema.NUM_CORRUPT_FRAMES)
    for video_id, status, num_frames, num_corrupt in zip(*(rows[name].to_pylist() for name in names), strict=True):
        most = {Status.OK: 0, Status.PARTIAL: num_frames}.get(status, num_corrupt)
        if not 0 <= num_corrupt <= most:
            yield Violation("corrupt_frames", f"{video_id!r} is {status} with {num_corrupt} corrupt frames.")


def _matrix(vectors: pa.FixedSizeListArray, embedding_dim: int) -> npt.NDArray[np.float32]:
    """The vectors [T, D], which are no numbers where one is null."""
    flat = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if len(flat) != len(vectors) * embedding_dim:
        return np.full((len(vectors), embedding_dim), np.nan, dtype=np.float32)
    matrix: npt.NDArray[np.float32] = flat.reshape(len(vectors), embedding_dim)
    return matrix


def _check_vectors(
    vectors: npt.NDArray[np.float32], embedding: npt.NDArray[np.float32], pts_seconds: npt.NDArray[np.float64]
) -> Iterator[Violation]:
    """Yield the first problem, if there is one."""
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
