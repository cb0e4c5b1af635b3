"""Column names and Arrow schemas: the contract between jobs. Each name stands here once."""

import pyarrow as pa

VIDEO_ID = "video_id"
VIDEO_URI = "video_uri"
ETAG = "etag"
SIZE_BYTES = "size_bytes"
SHARD = "shard"
GENERATION = "generation"
STATUS = "status"
ERROR = "error"
CONTAINER = "container"
CODEC = "codec"
DECODER = "decoder"
WIDTH = "width"
HEIGHT = "height"
NUM_FRAMES = "num_frames"
DURATION_SECONDS = "duration_seconds"
AVERAGE_FPS = "average_fps"
DECODE_SECONDS = "decode_seconds"
FRAME_PTS_SECONDS = "frame_pts_seconds"
FRAME_EMBEDDINGS = "frame_embeddings"
EMBEDDING = "embedding"
THUMBNAIL = "thumbnail"
EMBEDDINGS_FILE = "embeddings_file"
LABEL = "label"
SCORE = "score"
LABELS = "labels"
TOP_LABELS = "top_labels"
TOP_SCORES = "top_scores"
FRAME_SCORES = "frame_scores"

LABEL_THRESHOLD = 0.5  # of several labels, a video is given those that are at least this probable

PLAN_SCHEMA = pa.schema(
    [
        (VIDEO_ID, pa.string()),
        (VIDEO_URI, pa.string()),
        (ETAG, pa.string()),
        (SIZE_BYTES, pa.int64()),
        (SHARD, pa.int32()),
    ]
)


def embeddings_schema(embedding_dim: int) -> pa.Schema:
    """Schema of a file in ``OUTPUT/data/``: one row per video, T frames of D = ``embedding_dim`` numbers."""
    return pa.schema(
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
            (DURATION_SECONDS, pa.float64()),
            (AVERAGE_FPS, pa.float32()),
            (DECODE_SECONDS, pa.float32()),
            (FRAME_PTS_SECONDS, pa.list_(pa.float32())),
            (FRAME_EMBEDDINGS, pa.list_(pa.list_(pa.float16(), embedding_dim))),
            (EMBEDDING, pa.list_(pa.float32(), embedding_dim)),
            (THUMBNAIL, pa.binary()),
        ]
    )


def predictions_schema() -> pa.Schema:
    """Schema of a file of ``raypipe classify``: one row per video, all of the last columns null where it has no frames.

    ``etag`` is the embedded row's generation and etag, ``3-d41d8…``: what tells one embedding of a video from another.
    ``generation`` counts the classifications. ``labels`` are those of at least 0.5 of a multi-label model, else the
    one. ``frame_scores`` are null unless asked for.
    """
    return pa.schema(
        [
            (VIDEO_ID, pa.string()),
            (VIDEO_URI, pa.string()),
            (ETAG, pa.string()),
            (STATUS, pa.string()),
            (ERROR, pa.string()),
            (GENERATION, pa.int32()),
            (NUM_FRAMES, pa.int32()),
            (LABEL, pa.string()),
            (SCORE, pa.float32()),
            (LABELS, pa.list_(pa.string())),
            (TOP_LABELS, pa.list_(pa.string())),
            (TOP_SCORES, pa.list_(pa.float32())),
            (FRAME_SCORES, pa.list_(pa.float32())),
        ]
    )
