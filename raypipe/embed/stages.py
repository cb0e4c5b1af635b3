"""The stages as Ray Data calls them: classes that hold what is costly, and hand each block to plain functions.

One block is one shard. Where a GPU embeds, decode, embed and put are three stages; elsewhere one actor a processor
does all three, so that no frame crosses the object store.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray

from raypipe import schema
from raypipe.config import DecodeConfig
from raypipe.embed import shard as work
from raypipe.embed.plan import data_name
from raypipe.embed.sink import describe_shard, put_shard, read_shard_file
from raypipe.report import ShardSummary
from raypipe.storage import Folder
from raypipe.video.protocol import DecodeRequest
from raypipe.video.sandbox import DecodeSandbox

SUMMARY = "summary"
_logger = logging.getLogger(__name__)


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


Steps = Sequence[tuple[Callable[[Any], "Step"], Any]]  # classes of steps, and what each is made with
Step = Callable[[pa.Table], "pa.Table | ShardSummary"]


class RunSteps:
    """An actor of Ray Data: makes its steps once, and takes one shard after the other through them.

    A shard that a step fails on goes no further and stays uncommitted: its summary says why, the others are unharmed.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = [make(settings) for make, settings in steps]

    def __call__(self, block: pa.Table) -> "pa.Table | dict[str, Any]":
        """One block: a shard's rows on their way, or its summary, which passes through."""
        if SUMMARY in block.column_names:
            return block
        plan, shard = identity(block)
        try:
            for step in self._steps:
                result = step(block)
                if isinstance(result, ShardSummary):
                    return _summary_block(result)
                block = result
        except Exception as error:
            _logger.exception("Plan %d, shard %d was not finished", plan, shard)
            problem = " ".join(f"{type(error).__name__}: {error}".split())
            return _summary_block(ShardSummary(plan, shard, {}, 0, 0, {}, time.time(), problem=problem))
        return block


def _summary_block(summary: ShardSummary) -> dict[str, Any]:
    column = np.empty(1, dtype=object)
    column[0] = summary
    return {SUMMARY: column}


def identity(rows: pa.Table) -> tuple[int, int]:
    """The plan and shard of a block."""
    return rows[schema.GENERATION][0].as_py(), rows[schema.SHARD][0].as_py()


class SkipCommitted:
    """Ends a shard that another driver committed since it was found missing."""

    def __init__(self, settings: PutSettings) -> None:
        self._output = Folder(settings.output_uri)

    def __call__(self, rows: pa.Table) -> "pa.Table | ShardSummary":
        """One shard."""
        plan, shard = identity(rows)
        name = data_name(plan, shard)
        if not self._output.exists(name):
            return rows
        found = read_shard_file(self._output, name)
        return ShardSummary(plan, shard, found.statuses, found.num_frames, 0, {}, time.time(), already_committed=True)


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

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """One shard."""
        settings = self._settings
        dim, crop_size = settings.embedding_dim, settings.crop_size
        return work.embed_shard(decoded, self._backbone.embed, embedding_dim=dim, crop_size=crop_size)


class PutShard:
    """Rows with vectors to the committed file, and the summary of it."""

    def __init__(self, settings: PutSettings) -> None:
        self._settings = settings
        self._output = Folder(settings.output_uri)

    def __call__(self, embedded: pa.Table) -> ShardSummary:
        """One shard."""
        plan, shard = identity(embedded)
        start = time.perf_counter()
        rows = work.output_rows(embedded, embedding_dim=self._settings.embedding_dim)
        about = describe_shard(rows, plan=plan, shard=shard, fingerprint=self._settings.fingerprint)
        created = put_shard(self._output, rows, about)
        seconds = time.perf_counter() - start
        return work.summarise(embedded, plan=plan, shard=shard, put_seconds=seconds, already_committed=not created)
