"""Count the frames of one shard, in the same sandbox as embed."""

import pyarrow as pa

from raypipe import schema
from raypipe.config import DecodeConfig
from raypipe.jobs.embed.shard import decode_shard
from raypipe.video.decode_request import request_of_settings
from raypipe.video.sandbox.parent import DecodeSandbox

_NAMES = ("video_id", "video_uri", "etag", "status", "error", "generation", "num_frames")
ROWS = pa.schema([schema.embeddings_schema(1).field(name) for name in _NAMES])


class CountFrames:
    def __init__(self, max_frames: int) -> None:
        sampling = {"mode": "all", "max_frames": max_frames}
        settings = {"format": 2, "sampling": sampling, "resize_size": 8, "crop_size": 8}
        self._sandbox = DecodeSandbox.start(request_of_settings(settings, DecodeConfig()), DecodeConfig())

    def __call__(self, rows: pa.Table) -> pa.Table:
        return decode_shard(rows, self._sandbox, max_size_bytes=2**30)

    def close(self) -> None:
        self._sandbox.close()
