"""Embed one shard: the steps that an actor runs, and the table functions that they call. Ray is not used here.

A shard is a table with one row per video, in the order of the plan. ``decode_shard`` adds the outcome and the frames of
each video. ``embed_shard`` then replaces the frames with vectors. The result has the rows of the output file.
"""

import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from raypipe import schema
from raypipe.config import DecodeConfig
from raypipe.dataset.plan import planned_videos
from raypipe.errors import JobError
from raypipe.jobs.embed.fetch import decode_fetched, fetch_videos
from raypipe.models.backbones import Crops, Dtype, Engine, clip_to_float16, mean_embedding, resolve_engine
from raypipe.models.engines import load_embedder
from raypipe.records import ShardSummary, VideoNote
from raypipe.runs.stages import Shared, identity
from raypipe.status import NOT_FAILED, Status
from raypipe.storage.s3_client import take_throttles
from raypipe.video.decode_request import DecodeRequest, Pixels
from raypipe.video.sandbox.parent import DecodedVideo, DecodeSandbox

FRAMES = "frames"  # the RGB crops of one video as bytes, [T, crop, crop, 3]; this column is never stored
FETCH_SECONDS = "fetch_seconds"
EMBED_SECONDS = "embed_seconds"
WAIT_SECONDS = "wait_seconds"
NUM_THROTTLES = "num_throttles"  # the number for the whole shard is in the first row; other rows have 0
_THUMBNAIL_SIZE = 160
_NOTES = 3
Vectors = npt.NDArray[np.float32]


def decode_shard(rows: pa.Table, sandbox: DecodeSandbox, *, max_size_bytes: int) -> pa.Table:
    """Fetch and decode every video. A video that fails affects only its own row.

    Raises:
        StorageError: the storage as a whole cannot be read.
    """
    outcomes: list[DecodedVideo] = []
    fetch_seconds: list[float] = []
    decode_seconds: list[float] = []
    for fetched in fetch_videos(planned_videos(rows), max_size_bytes=max_size_bytes):
        outcome, fetching, decoding = decode_fetched(fetched, sandbox)
        outcomes.append(outcome)
        fetch_seconds.append(fetching)
        decode_seconds.append(decoding)
    return decoded_table(
        rows,
        outcomes,
        fetch_seconds=fetch_seconds,
        decode_seconds=decode_seconds,
        num_throttles=take_throttles(),
    )


def decoded_table(
    rows: pa.Table,
    outcomes: Sequence[DecodedVideo],
    *,
    fetch_seconds: list[float],
    decode_seconds: list[float],
    num_throttles: int = 0,
) -> pa.Table:
    """Return the planned rows with the outcome and the frames of each video.

    The column of frames has one chunk per video, which shares the memory of the decoded frames.
    """
    lengths = np.cumsum([0, *(len(outcome.frames) for outcome in outcomes)], dtype=np.int32)
    pts = np.concatenate([outcome.pts_seconds for outcome in outcomes]).astype(np.float32)
    columns = {
        schema.VIDEO_ID: rows[schema.VIDEO_ID],
        schema.VIDEO_URI: rows[schema.VIDEO_URI],
        schema.ETAG: rows[schema.ETAG],
        schema.CONTAINER: _texts(outcome.container for outcome in outcomes),
        schema.CODEC: _texts(outcome.codec for outcome in outcomes),
        schema.DECODER: _texts(outcome.decoder for outcome in outcomes),
        schema.STATUS: _texts(str(outcome.status) for outcome in outcomes),
        schema.ERROR: _texts(outcome.error for outcome in outcomes),
        schema.SIZE_BYTES: rows[schema.SIZE_BYTES],
        schema.GENERATION: rows[schema.GENERATION],
        schema.SHARD: rows[schema.SHARD],
        schema.WIDTH: pa.array([outcome.width or None for outcome in outcomes], pa.int32()),
        schema.HEIGHT: pa.array([outcome.height or None for outcome in outcomes], pa.int32()),
        schema.NUM_FRAMES: pa.array([len(outcome.frames) for outcome in outcomes], pa.int32()),
        schema.NUM_CORRUPT_FRAMES: pa.array([outcome.num_corrupt_frames for outcome in outcomes], pa.int32()),
        schema.INTERLACED: pa.array([outcome.interlaced for outcome in outcomes], pa.bool_()),
        schema.TIMELINE_REPAIRED: pa.array([outcome.timeline_repaired for outcome in outcomes], pa.bool_()),
        schema.DURATION_SECONDS: pa.array([outcome.duration_seconds or None for outcome in outcomes], pa.float64()),
        schema.AVERAGE_FPS: pa.array([outcome.average_fps or None for outcome in outcomes], pa.float32()),
        schema.DECODE_SECONDS: pa.array(decode_seconds, pa.float32()),
        schema.FRAME_PTS_SECONDS: pa.ListArray.from_arrays(lengths, pts),
        schema.THUMBNAIL: pa.array([thumbnail(outcome.frames) for outcome in outcomes], pa.binary()),
        FRAMES: pa.chunked_array([_as_bytes(outcome.frames) for outcome in outcomes], pa.large_binary()),
        FETCH_SECONDS: pa.array(fetch_seconds, pa.float32()),
        NUM_THROTTLES: pa.array([num_throttles, *[0] * (len(outcomes) - 1)], pa.int64()),
    }
    return pa.table(columns)


def _as_bytes(frames: Pixels) -> pa.LargeBinaryArray:
    """Return the frames of a video as an array with one binary value. It shares the memory of the frames."""
    ends = np.array([0, frames.nbytes], dtype=np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(frames))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, buffers)


def crops_of_videos(decoded: pa.Table, *, crop_size: int) -> list[Pixels]:
    """Return the frames [T, crop, crop, 3] of each decoded video that has any, as views."""
    videos = []
    for chunk in decoded[FRAMES].chunks:
        _, ends_buffer, pixels = chunk.buffers()  # a sliced table still has the buffers of the whole table
        ends = np.frombuffer(ends_buffer, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        videos += [
            np.frombuffer(pixels, np.uint8, stop - start, start).reshape(-1, crop_size, crop_size, 3)
            for start, stop in pairwise(ends.tolist())
            if stop > start
        ]
    return videos


def _texts(values: Iterable[str]) -> pa.Array:
    return pa.array([value or None for value in values], pa.string())


def thumbnail(frames: Pixels) -> bytes | None:
    """Return a small JPEG of the middle one of the frames [T, height, width, 3], or None if there are no frames."""
    if not len(frames):
        return None
    jpeg = io.BytesIO()
    image = Image.fromarray(frames[len(frames) // 2])
    image.resize((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE), Image.Resampling.BOX).save(jpeg, "JPEG", quality=80)
    return jpeg.getvalue()


def embed_shard(
    decoded: pa.Table,
    embed: Callable[[Crops], Vectors],
    *,
    embedding_dim: int,
    crop_size: int,
    wait_seconds: float = 0.0,
) -> pa.Table:
    """Replace the frames of a decoded shard with their vectors. A batch may contain frames of several videos.

    ``embed`` maps N RGB crops [N, crop, crop, 3] to float32 [N, D]. ``wait_seconds`` is the time that the caller waited
    for the shard. It is stored for the summary.

    Raises:
        JobError: a vector contains NaN.
    """
    start = time.perf_counter()
    lengths = decoded[schema.NUM_FRAMES].to_numpy()
    frames = Crops(crops_of_videos(decoded, crop_size=crop_size), crop_size=crop_size)
    vectors = clip_to_float16(embed(frames))
    if np.isnan(vectors).any():
        msg = "The backbone returned vectors with NaN."
        remedy = "Choose other weights, or dtype float32."
        raise JobError(msg, key=schema.FRAME_EMBEDDINGS, remedy=remedy)
    stops = np.cumsum([0, *lengths], dtype=np.int32)
    means = mean_embeddings(vectors, stops)
    flat = pa.array(vectors.astype(np.float16).reshape(-1))
    columns = {name: decoded[name] for name in decoded.column_names if name != FRAMES}
    columns[schema.FRAME_EMBEDDINGS] = pa.ListArray.from_arrays(
        pa.array(stops), pa.FixedSizeListArray.from_arrays(flat, embedding_dim)
    )
    columns[schema.EMBEDDING] = pa.FixedSizeListArray.from_arrays(
        pa.array(means.reshape(-1)), embedding_dim, mask=pa.array(lengths == 0)
    )
    for name, seconds in ((EMBED_SECONDS, time.perf_counter() - start), (WAIT_SECONDS, wait_seconds)):
        columns[name] = pa.array(np.full(len(lengths), seconds / max(1, len(lengths))))
    return pa.table(columns)


def mean_embeddings(vectors: Vectors, stops: npt.NDArray[np.int32]) -> Vectors:
    """Return the L2-normalised mean of the frame vectors of each video, [V, D].

    ``vectors`` [N, D] holds the frames of all videos, one video after the other. The frames of video ``v`` are the rows
    from ``stops[v]`` to ``stops[v + 1]``. Videos without frames get zeros.
    """
    means = np.zeros((len(stops) - 1, vectors.shape[1]), dtype=np.float32)
    for video, (start, stop) in enumerate(pairwise(stops)):
        if stop > start:
            means[video] = mean_embedding(vectors[start:stop])
    return means


def _flags(embedded: pa.Table) -> dict[str, int]:
    corrupt = embedded[schema.NUM_CORRUPT_FRAMES].to_numpy()
    return {
        "num_corrupt_videos": int((corrupt > 0).sum()),
        "num_corrupt_frames": int(corrupt.sum()),
        "num_interlaced_videos": sum(embedded[schema.INTERLACED].to_pylist()),
        "num_repaired_timelines": sum(embedded[schema.TIMELINE_REPAIRED].to_pylist()),
    }


def summarize(embedded: pa.Table) -> ShardSummary:
    """Return the summary of an embedded shard, which the driver adds to its record."""
    ids, statuses, errors = (embedded[name].to_pylist() for name in (schema.VIDEO_ID, schema.STATUS, schema.ERROR))
    fetch, decode = (embedded[name].to_numpy().astype(float) for name in (FETCH_SECONDS, schema.DECODE_SECONDS))
    notes = [
        VideoNote(video_id, status, error or "", float(seconds))
        for video_id, status, error, seconds in zip(ids, statuses, errors, fetch + decode, strict=True)
    ]
    read = [note for note in notes if note.status != Status.GONE]
    thumbnails = [
        (note.video_id, jpeg)
        for note, jpeg in zip(notes, embedded[schema.THUMBNAIL].to_pylist(), strict=True)
        if note.status == Status.OK and jpeg
    ]
    return ShardSummary(
        *identity(embedded),
        size_bytes=int(embedded[schema.SIZE_BYTES].to_numpy().sum()),
        stage_seconds={
            "fetch": float(fetch.sum()),
            "decode": float(decode.sum()),
            "embed": float(embedded[EMBED_SECONDS].to_numpy().sum()),
        },
        flags=_flags(embedded),
        slowest=tuple(sorted(read, key=lambda note: -note.seconds)[:_NOTES]),
        failures=tuple(note for note in notes if note.status not in NOT_FAILED),
        thumbnails=tuple(thumbnails[:_NOTES]),
        wait_seconds=float(embedded[WAIT_SECONDS].to_numpy().sum()),
        num_throttles=int(embedded[NUM_THROTTLES].to_numpy().sum()),
    )


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """The settings of ``DecodeVideos``."""

    request: DecodeRequest
    decode: DecodeConfig


@dataclass(frozen=True, slots=True)
class EmbedSettings:
    """The settings of ``EmbedFrames``.

    Calling ``weights`` returns the state dict, and calling ``exported`` the network in OpenVINO's format, if there is
    one.
    """

    weights: Shared
    exported: Shared | None
    name: str
    device: str
    dtype: Dtype
    engine: Literal["auto"] | Engine
    batch_size: int
    compile: Literal["auto"] | bool
    embedding_dim: int
    crop_size: int


class DecodeVideos:
    """A step that fetches and decodes the videos of a shard."""

    def __init__(self, settings: DecodeSettings) -> None:
        decode = settings.decode
        self._max_size_bytes = decode.max_size_bytes
        self._sandbox = DecodeSandbox.start(settings.request, decode)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Fetch and decode the videos of one shard."""
        return decode_shard(rows, self._sandbox, max_size_bytes=self._max_size_bytes)

    def close(self) -> None:
        """Stop the decoder's child process."""
        self._sandbox.close()


class EmbedFrames:
    """A step that replaces the frames of a shard with vectors."""

    def __init__(self, settings: EmbedSettings) -> None:
        self._settings = settings
        self._embedder = load_embedder(
            settings.name,
            settings.weights,
            settings.exported,
            engine=resolve_engine(settings.engine, settings.device, settings.dtype),
            device=settings.device,
            dtype=settings.dtype,
            num_threads=1 if settings.device == "cpu" else None,  # there is one such actor per processor
            batch_size=settings.batch_size,
            compile=settings.compile,
        )
        self._free_since = time.perf_counter()

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Embed one shard."""
        settings = self._settings
        # Without a GPU the same actor decodes, so it never waits.
        waited = 0.0 if settings.device == "cpu" else time.perf_counter() - self._free_since
        try:
            return embed_shard(
                decoded,
                self._embedder.embed,
                embedding_dim=settings.embedding_dim,
                crop_size=settings.crop_size,
                wait_seconds=waited,
            )
        finally:
            self._free_since = time.perf_counter()
