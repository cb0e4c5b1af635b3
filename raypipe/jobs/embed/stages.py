"""The stages as Ray Data calls them: classes that hold what is costly, and hand each block to plain functions.

One block is one shard. Where a GPU embeds, decode, embed and put are three stages; elsewhere one actor a processor
does all three, so that no frame crosses the object store.
"""

import time
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import ray

from raypipe.config import DecodeConfig
from raypipe.dataset.sink import describe_shard, put_shard
from raypipe.jobs.embed import shard as work
from raypipe.records import ShardSummary
from raypipe.runs.stages import identity
from raypipe.storage import Folder
from raypipe.storage.throttles import take_throttles
from raypipe.video.protocol import DecodeRequest
from raypipe.video.sandbox import DecodeSandbox


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What a decode stage needs."""

    request: DecodeRequest
    decode: DecodeConfig


@dataclass(frozen=True, slots=True)
class EmbedSettings:
    """What an embed stage needs; ``weights`` is a reference to the state dict in the object store."""

    weights: "ray.ObjectRef[dict[str, Any]]"
    name: str
    device: str
    dtype: Literal["float32", "bfloat16"]
    batch_size: int
    compile: Literal["auto"] | bool
    embedding_dim: int
    crop_size: int


@dataclass(frozen=True, slots=True)
class PutSettings:
    """What a put stage needs."""

    output_uri: str
    fingerprint: str
    embedding_dim: int
    row_format: int


class DecodeVideos:
    """Plan rows to decoded rows with frames."""

    def __init__(self, settings: DecodeSettings) -> None:
        decode = settings.decode
        self._max_size_bytes = decode.max_size_bytes
        self._sandbox = DecodeSandbox(
            settings.request,
            decoder=decode.decoder,
            timeout_seconds=decode.timeout_seconds,
            memory_bytes=decode.memory_bytes,
        )
        self._sandbox.isolation()  # starts the child now, not in the first video's time

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One shard."""
        return work.decode_shard(rows, self._sandbox, max_size_bytes=self._max_size_bytes)


class EmbedFrames:
    """Decoded rows with frames to rows with vectors."""

    def __init__(self, settings: EmbedSettings) -> None:
        import torch  # noqa: PLC0415  # seconds that an actor that only decodes does without

        from raypipe.models.backbone import Backbone  # noqa: PLC0415

        if settings.device == "cpu":
            torch.set_num_threads(1)  # there is one such actor a processor
        self._settings = settings
        weights: dict[str, Any] = ray.get(settings.weights)
        self._backbone = Backbone(
            weights,
            name=settings.name,
            device=settings.device,
            dtype=settings.dtype,
            batch_size=settings.batch_size,
            compile=settings.compile,
        )
        self._free_since = time.perf_counter()

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """One shard."""
        settings = self._settings
        # Without a GPU the same actor decodes, and waits for nobody.
        waited = 0.0 if settings.device == "cpu" else time.perf_counter() - self._free_since
        try:
            return work.embed_shard(
                decoded,
                self._backbone.embed,
                embedding_dim=settings.embedding_dim,
                crop_size=settings.crop_size,
                wait_seconds=waited,
            )
        finally:
            self._free_since = time.perf_counter()


class PutShard:
    """Rows with vectors to the committed file, and the summary of it."""

    def __init__(self, settings: PutSettings) -> None:
        self._settings = settings
        self._output = Folder(settings.output_uri)

    def __call__(self, embedded: pa.Table) -> ShardSummary:
        """One shard."""
        plan, shard = identity(embedded)
        start = time.perf_counter()
        settings = self._settings
        rows = work.output_rows(embedded, embedding_dim=settings.embedding_dim, row_format=settings.row_format)
        about = describe_shard(rows, plan=plan, shard=shard, fingerprint=settings.fingerprint)
        created = put_shard(self._output, rows, about)
        seconds = time.perf_counter() - start
        return work.summarise(
            embedded,
            plan=plan,
            shard=shard,
            put_seconds=seconds,
            already_committed=not created,
            put_throttles=take_throttles(),
        )
