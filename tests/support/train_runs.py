"""The train job on small sealed embeddings of synthetic numbers, and the results of a run."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe import schema
from raypipe.config import TrainConfig
from raypipe.dataset.commit import missing_shards, seal, unsealed_plans
from raypipe.dataset.plan import StoredPlans, fingerprint
from raypipe.jobs.embed import shard as work
from raypipe.jobs.embed.inputs import pack
from raypipe.runs.stages import output_rows
from raypipe.storage import Folder
from support.embed_outputs import CROP, SETTINGS, VERSIONS, commit, decoded, planner, video

DIM = 16
LABELS = ("cat", "dog", "fish", "horse")
NUM_VIDEOS = 96
NOISE = 1.0
TINY: Mapping[str, Any] = {
    "model": {"head": "gpt2", "gpt2": {"n_layer": 1, "n_head": 2, "n_embd": 16}},
    "data": {"validation_fraction": 0.25},
    "optimizer": {"epochs": 4, "batch_size": 2, "early_stop_epochs": 0, "frame_dropout": 0.3},
    "resources": {"use_gpu": False},
    "seed": 1,  # with this seed, the second epoch is the best one
}


def video_ids(count: int = NUM_VIDEOS) -> list[str]:
    """Return ids whose folder is the label."""
    return [f"{LABELS[number % len(LABELS)]}/{number:03d}.mp4" for number in range(count)]


def frames_of(video_id: str) -> npt.NDArray[np.float32]:
    """Return the vectors of a video ``[T, DIM]``: its label's vector plus noise."""
    random = np.random.default_rng(zlib.crc32(video_id.encode()))
    label = LABELS.index(video_id.partition("/")[0])
    centre = np.random.default_rng(label).standard_normal(DIM)
    return (centre + NOISE * random.standard_normal((random.integers(2, 8), DIM))).astype(np.float32)


def embed_all(
    output: Folder, ids: Sequence[str], *, settings: Mapping[str, Any] = SETTINGS, sealed: bool = True
) -> Folder:
    """Make an output of embed: a row of ``frames_of`` for each id, twelve per shard."""
    packing = partial(pack, max_videos=12, max_frames=1000, frames_per_video=4, slots=1)
    planner(output, settings).store([video(name) for name in ids], pack=packing)
    for rows in missing_shards(StoredPlans(output), unsealed_plans(output)):
        plan, shard = rows[schema.GENERATION][0].as_py(), rows[schema.SHARD][0].as_py()
        made = _rows(rows, [frames_of(video_id) for video_id in rows[schema.VIDEO_ID].to_pylist()])
        assert commit(output, made, plan=plan, shard=shard, mark=fingerprint(settings))
    if sealed:
        assert all(seal(StoredPlans(output), number, versions=VERSIONS) for number in unsealed_plans(output))
    return output


def _rows(rows: pa.Table, videos: Sequence[npt.NDArray[np.float32]]) -> pa.Table:
    outcomes = [decoded(num_frames=len(frames), seed=at) for at, frames in enumerate(videos)]
    zeros = [0.0] * len(outcomes)
    table = work.decoded_table(rows, outcomes, fetch_seconds=zeros, decode_seconds=zeros)
    embedded = work.embed_shard(table, lambda _: np.concatenate(videos), embedding_dim=DIM, crop_size=CROP)
    return output_rows(embedded, schema.embeddings_schema(DIM))


def train_config(embeddings: Folder, output: Folder, **keys: Any) -> TrainConfig:  # noqa: ANN401 - of any type
    """Return the configuration of a small training; a section in ``keys`` changes only the keys it names."""
    given: dict[str, Any] = {"embeddings": embeddings.uri, "output": output.uri}
    if "labels" not in keys and keys.get("objective") != "masked_frame":
        given["labels_from"] = "folder"
    for name, value in {**TINY, **keys}.items():
        given[name] = {**TINY.get(name, {}), **value} if isinstance(value, dict) else value
    return TrainConfig(**given)


@dataclass(frozen=True, slots=True)
class Trained:
    """An undisturbed training, and the output of its driver."""

    config: TrainConfig
    embeddings: Folder
    output: Folder
    log: str


def history(output: Folder) -> list[dict[str, Any]]:
    """Return the epochs of ``metrics.jsonl``."""
    return [json.loads(line) for line in output.read("metrics.jsonl").decode().splitlines()]
