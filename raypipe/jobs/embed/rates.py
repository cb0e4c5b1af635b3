"""What a few videos cost here: fetched, decoded and embedded by as many processes as an embed run would have actors."""

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from raypipe import schema
from raypipe.config import DecodeConfig
from raypipe.config.embed import BackboneConfig
from raypipe.dataset.plan import PlannedVideo, plan_table
from raypipe.jobs.embed.shard import decode_shard, embed_shard
from raypipe.models.backbone import Backbone
from raypipe.models.backbones import Dtype, embedding_dim
from raypipe.models.weights import Weights
from raypipe.runs.stages import output_rows
from raypipe.status import HAS_FRAMES
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.sandbox.parent import DecodeSandbox


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds of one processor for all the videos together, while every processor was busy with them."""

    fetch_seconds: float = 0.0  # waited for, which is less than it took: the next videos come while one is decoded
    decode_seconds: float = 0.0
    embed_seconds: float = 0.0
    ready_seconds: float = 0.0  # from a process's start until it could take a video; the longest of all
    kinds: Counter[str] = field(default_factory=Counter)  # "mov/h264 1280x720", or a status -> videos


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """What each process is told."""

    request: DecodeRequest
    decode: DecodeConfig
    backbone: BackboneConfig
    weights: Weights
    dtype: Dtype


def measure_rates(work: ProbeSettings, videos: Sequence[PlannedVideo], *, num_processes: int) -> Rates:
    """Take the videos through what an actor without a GPU does, all but writing; each process has an equal share.

    Raises:
        StorageError: no video can be read.
    """
    count = max(1, min(num_processes, len(videos), len(os.sched_getaffinity(0))))
    shares = [videos[first::count] for first in range(count)]
    spawn = multiprocessing.get_context("spawn")  # what torch and Ray loaded here must not be forked
    with ProcessPoolExecutor(count, mp_context=spawn) as pool:
        parts = list(pool.map(partial(_measure, work, time.time()), shares))
    return Rates(
        fetch_seconds=sum(part.fetch_seconds for part in parts),
        decode_seconds=sum(part.decode_seconds for part in parts),
        embed_seconds=sum(part.embed_seconds for part in parts),
        ready_seconds=max(part.ready_seconds for part in parts),
        kinds=sum((part.kinds for part in parts), Counter()),
    )


def _measure(work: ProbeSettings, started_at: float, videos: Sequence[PlannedVideo]) -> Rates:
    torch.set_num_threads(1)
    backbone, decode = work.backbone, work.decode
    model = Backbone(
        work.weights.state_dict,
        name=backbone.name,
        dtype=work.dtype,
        batch_size=backbone.batch_size,
        compile=backbone.compile,
    )
    dim, side = embedding_dim(backbone.name), work.request.crop_size
    with DecodeSandbox(
        work.request,
        decoder=decode.decoder,
        timeout_seconds=decode.timeout_seconds,
        memory_bytes=decode.memory_bytes,
    ) as sandbox:
        sandbox.isolation()
        marks = [time.time()]
        decoded = decode_shard(_planned(videos), sandbox, max_size_bytes=decode.max_size_bytes)
        marks.append(time.time())
        embedded = embed_shard(decoded, model.embed, embedding_dim=dim, crop_size=side)
        rows = output_rows(embedded, schema.embeddings_schema(dim))
        marks.append(time.time())
    decode_seconds = float(pc.sum(rows[schema.DECODE_SECONDS]).as_py())
    return Rates(
        fetch_seconds=max(0.0, marks[1] - marks[0] - decode_seconds),
        decode_seconds=decode_seconds,
        embed_seconds=marks[2] - marks[1],
        ready_seconds=marks[0] - started_at,
        kinds=Counter(map(_kind, rows.to_pylist())),
    )


def _planned(videos: Sequence[PlannedVideo]) -> pa.Table:
    """One shard of a plan that is nowhere stored."""
    shards = [0] * len(videos)
    return plan_table(videos, shards).append_column(schema.GENERATION, pa.array(shards, pa.int32()))


def _kind(row: Mapping[str, Any]) -> str:
    if row[schema.STATUS] not in HAS_FRAMES:
        return str(row[schema.STATUS])
    return f"{row[schema.CONTAINER]}/{row[schema.CODEC]} {row[schema.WIDTH]}x{row[schema.HEIGHT]}"
