"""Column names and Arrow schemas: the contract between jobs. Each name is defined only here."""

from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

VIDEO_ID = "video_id"  # the key: the path below the input, or the video_id or URI of a manifest
VIDEO_URI = "video_uri"  # where the video is
ETAG = "etag"  # the version of the object that was planned
SIZE_BYTES = "size_bytes"  # of the object
SHARD = "shard"
GONE = "gone"  # only in plans that mark videos as gone
GENERATION = "generation"  # the number of the plan; if a video has several rows, the highest one counts
STATUS = "status"  # the outcome, see below
ERROR = "error"  # one line that says what is wrong; null if nothing is
CONTAINER = "container"  # such as mp4, recognised by the content
CODEC = "codec"  # FFmpeg's name of the codec, such as h264
DECODER = "decoder"  # which decoder read it: pyav, decord or torchcodec
WIDTH = "width"  # in pixels, as displayed
HEIGHT = "height"  # in pixels, as displayed
NUM_FRAMES = "num_frames"  # T, the number of embedded frames
NUM_CORRUPT_FRAMES = "num_corrupt_frames"
INTERLACED = "interlaced"
TIMELINE_REPAIRED = "timeline_repaired"
DURATION_SECONDS = "duration_seconds"  # of the whole video
AVERAGE_FPS = "average_fps"  # frames per second of the whole video
DECODE_SECONDS = "decode_seconds"  # how long decoding took
FRAME_PTS_SECONDS = "frame_pts_seconds"  # the time of each frame
FRAME_EMBEDDINGS = "frame_embeddings"  # one vector of D numbers per frame
EMBEDDING = "embedding"  # the mean of the frame embeddings, normalised
THUMBNAIL = "thumbnail"  # a JPEG of the middle frame
EMBEDDINGS_FILE = "embeddings_file"
FIRST_ROW = "first_row"  # in plans whose shards are row ranges of a table
NUM_ROWS = "num_rows"
ROW = "row"  # the number of a row in that table (of recommend: in the history), from 0
USER_ID = "user_id"  # of the history; null if it has none
VIDEO_IDS = "video_ids"  # the recommended videos, the best first
SCORES = "scores"
CLOSEST = "closest"
REASONS = "reasons"
AFTER = "after"
NUM_USERS = "num_users"
STRATEGY = "strategy"  # ranker, transitions, content or popular
RANKER = "ranker"  # the id of the learned ranker
FALLBACK = "fallback"  # popular, if the history has no known video
UNKNOWN = "unknown"  # ids of the history that are not in the index
LABEL = "label"  # the most probable label
SCORE = "score"  # the probability of that label
LABELS = "labels"  # the assigned labels
TOP_LABELS = "top_labels"  # the most probable labels, the best first
TOP_SCORES = "top_scores"  # their probabilities
FRAME_SCORES = "frame_scores"  # one number per frame
ORDER_SCORES = "order_scores"  # one number per frame
P_VALUE = "p_value"
NEIGHBOR_DISTANCE = "neighbor_distance"
MAHALANOBIS_LENGTH = "mahalanobis_length"
CLOSEST_VIDEO = "closest_video"
STRANGEST_SECONDS = "strangest_seconds"

ROW_FORMAT = 2  # of embed's rows: their columns and decoding rules. It is part of the fingerprint
_ADDED_BY_FORMAT_2 = (NUM_CORRUPT_FRAMES, INTERLACED, TIMELINE_REPAIRED)
PREDICTIONS_FORMAT = 2  # of classify's rows: their columns, and what they mean. It is part of the fingerprint

INT8_NETWORK = "int8_network.zip"  # a file in outputs of embed with dtype int8, and in their indexes

FloatType = Literal["float32", "float16"]
_ARROW: Mapping[FloatType, pa.DataType] = {"float32": pa.float32(), "float16": pa.float16()}
LABEL_THRESHOLD = 0.5  # a multi-label model assigns every label with at least this probability

PLAN_SCHEMA = pa.schema(
    [
        (VIDEO_ID, pa.string()),
        (VIDEO_URI, pa.string()),
        (ETAG, pa.string()),
        (SIZE_BYTES, pa.int64()),
        (SHARD, pa.int32()),
    ]
)

_OF_EMBEDDED = (  # the first columns of outputs with one row per embedded video
    (VIDEO_ID, pa.string()),
    (VIDEO_URI, pa.string()),
    (ETAG, pa.string()),
    (STATUS, pa.string()),
    (ERROR, pa.string()),
    (GENERATION, pa.int32()),
    (NUM_FRAMES, pa.int32()),
)

RANGE_PLAN_SCHEMA = pa.schema([(FIRST_ROW, pa.int64()), (NUM_ROWS, pa.int64()), (SHARD, pa.int32())])


def row_format_of(settings: Mapping[str, Any]) -> int:
    """Return the row format of an output of embed from its settings; the latest if it has none yet."""
    return 1 if settings.get("format") == 1 else ROW_FORMAT


def vectors_of(settings: Mapping[str, Any]) -> FloatType:
    """Return the type of the frame embeddings in an output of embed from its settings.

    Outputs whose settings do not name it are float16.
    """
    return "float32" if settings.get("vectors") == "float32" else "float16"


def embeddings_schema(embedding_dim: int, *, row_format: int = ROW_FORMAT, vectors: FloatType = "float32") -> pa.Schema:
    """Return the schema of a file that ``raypipe embed`` writes to ``OUTPUT/data/``, with one row per video.

    A video has T frames. Each frame has an embedding of ``embedding_dim`` numbers. They are rounded to float16, and
    stored as ``vectors``. Row format 1 lacks these columns:

    - ``num_corrupt_frames``: how many of the T frames are corrupt.
    - ``interlaced``: whether frames were deinterlaced.
    - ``timeline_repaired``: whether the container's time stamps contradict each other, so that ``frame_pts_seconds``
      and ``duration_seconds`` refer to a repaired timeline.
    """
    fields = pa.schema(
        [
            (VIDEO_ID, pa.string()),
            (VIDEO_URI, pa.string()),
            (ETAG, pa.string()),
            (CONTAINER, pa.string()),
            (CODEC, pa.string()),
            (DECODER, pa.string()),
            (STATUS, pa.string()),
            (ERROR, pa.string()),
            (SIZE_BYTES, pa.int64()),
            (GENERATION, pa.int32()),
            (WIDTH, pa.int32()),
            (HEIGHT, pa.int32()),
            (NUM_FRAMES, pa.int32()),
            (NUM_CORRUPT_FRAMES, pa.int32()),
            (DURATION_SECONDS, pa.float64()),
            (AVERAGE_FPS, pa.float32()),
            (INTERLACED, pa.bool_()),
            (TIMELINE_REPAIRED, pa.bool_()),
            (DECODE_SECONDS, pa.float32()),
            (FRAME_PTS_SECONDS, pa.list_(pa.float32())),
            (FRAME_EMBEDDINGS, pa.list_(pa.list_(_ARROW[vectors], embedding_dim))),
            (EMBEDDING, pa.list_(pa.float32(), embedding_dim)),
            (THUMBNAIL, pa.binary()),
        ]
    )
    if row_format >= ROW_FORMAT:
        return fields
    return pa.schema([field for field in fields if field.name not in _ADDED_BY_FORMAT_2])


def predictions_schema(*, row_format: int = PREDICTIONS_FORMAT) -> pa.Schema:
    """Return the schema of a file that ``raypipe classify`` writes, with one row per video.

    If a video has no frames, ``label`` and all columns after it are null. ``etag`` consists of the generation and the
    etag of the video's row in the embeddings, such as ``3-d41d8…``. It identifies one embedding of a video.
    ``generation`` counts the classifications. With a multi-label model, ``labels`` contains all labels with a
    probability of at least 0.5. Otherwise, it contains only the best label.

    ``frame_scores`` and ``order_scores`` are null unless requested. They say what each frame adds to the logit of
    ``label``. The ``frame_scores`` of the probe add up to its logit. An ``order_score`` says by how much the logit of
    GPT-2 falls if GPT-2 does not see the frame. Row format 1 lacks ``order_scores``, and its ``frame_scores`` are
    GPT-2's gradients times inputs.
    """
    fields = pa.schema(
        [
            *_OF_EMBEDDED,
            (LABEL, pa.string()),
            (SCORE, pa.float32()),
            (LABELS, pa.list_(pa.string())),
            (TOP_LABELS, pa.list_(pa.string())),
            (TOP_SCORES, pa.list_(pa.float32())),
            (FRAME_SCORES, pa.list_(pa.float32())),
            (ORDER_SCORES, pa.list_(pa.float32())),
        ]
    )
    return fields if row_format >= PREDICTIONS_FORMAT else fields.remove(fields.get_field_index(ORDER_SCORES))


def recommendations_schema() -> pa.Schema:
    """Return the schema of a file that ``raypipe recommend`` writes: one row per row of the history, in the same order.

    ``row`` is the number of the row in the history, from 0. ``status`` is ``ok`` if the answer is based on the history,
    ``popular`` if popular videos are recommended instead, and ``error`` if there is no answer. ``unknown`` contains the
    ids of the history that are not in the index. ``strategy`` is how the videos were scored, and ``ranker`` the id of
    the learned ranker that scored them, if one did. These columns have one entry per entry of ``video_ids``:

    - ``scores``: a higher score is better.
    - ``closest``: the id of the most similar watched video.
    - ``reasons``: ``watched_after``, ``similar`` or ``popular``.
    - ``after`` and ``num_users``: with the reason ``watched_after``, the id of a watched video, and how many users
      watched this video after it.
    """
    return pa.schema(
        [
            (ROW, pa.int64()),
            (USER_ID, pa.string()),
            (STATUS, pa.string()),
            (ERROR, pa.string()),
            (GENERATION, pa.int32()),
            (VIDEO_IDS, pa.list_(pa.string())),
            (SCORES, pa.list_(pa.float32())),
            (CLOSEST, pa.list_(pa.string())),
            (REASONS, pa.list_(pa.string())),
            (AFTER, pa.list_(pa.string())),
            (NUM_USERS, pa.list_(pa.int32())),
            (FALLBACK, pa.string()),
            (STRATEGY, pa.string()),
            (RANKER, pa.string()),
            (UNKNOWN, pa.list_(pa.string())),
        ]
    )


def anomalies_schema() -> pa.Schema:
    """Return the schema of a file that ``raypipe anomalies`` writes, with one row per video outside the catalogue.

    All columns after ``num_frames`` are null if the video has no frames, or if its embedding is zero. ``etag`` is as in
    ``predictions_schema``.

    - ``p_value``: the fraction of the catalogue that is at least as strange. It is uniform for a video like those of
      the catalogue.
    - ``neighbor_distance``: one minus the mean cosine to the nearest videos of the catalogue.
    - ``mahalanobis_length``: the distance to the mean of the catalogue, in units of its spread.
    - ``closest_video``: the id of the nearest video of the catalogue.
    - ``frame_scores``: how strange each frame is. It is null unless requested, and a frame that was left out is null.
    - ``strangest_seconds``: the time of the strangest frame.
    """
    return pa.schema(
        [
            *_OF_EMBEDDED,
            (P_VALUE, pa.float64()),
            (NEIGHBOR_DISTANCE, pa.float32()),
            (MAHALANOBIS_LENGTH, pa.float32()),
            (CLOSEST_VIDEO, pa.string()),
            (FRAME_SCORES, pa.list_(pa.float32())),
            (STRANGEST_SECONDS, pa.float32()),
        ]
    )
