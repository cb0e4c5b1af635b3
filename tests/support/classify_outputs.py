"""Run the classify job step by step without Ray, on embeddings of a few numbers and a fake model that sums them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from raypipe import schema
from raypipe.dataset import embedded
from raypipe.dataset.commit import describe_shard, missing_shards, put_shard, seal, unsealed_plans
from raypipe.dataset.plan import StoredPlans, fingerprint
from raypipe.dataset.planner import Planner
from raypipe.dataset.read import embeddings_manifests
from raypipe.jobs.classify import shard as work
from raypipe.models.classifier import VideoClassifier, VideoClassifierConfig
from raypipe.runs.stages import output_rows
from raypipe.storage import Folder
from support.embed_outputs import DIM, VERSIONS

NAMES = ["cat", "dog", "fish", "horse"]
SETTINGS = {"job": "classify", "format": schema.PREDICTIONS_FORMAT, "model": "m"}
OPTIONS = work.ClassifyOptions(top_k=3, frame_scores=True, batch_size=2)


@dataclass
class FakeModel:
    """A fake model: probabilities depend only on a video's own vectors. It records how many frames it was shown."""

    problem_type: str = "single_label_classification"
    label_names: Sequence[str] = tuple(NAMES)
    sharpness: float = 1.0
    shift: float = 0.0
    shown: list[int] = field(default_factory=list)

    @property
    def config(self) -> SimpleNamespace:
        return SimpleNamespace(label_names=list(self.label_names), problem_type=self.problem_type)

    def classify(
        self, videos: Sequence[npt.NDArray[np.float16]], *, frame_scores: bool, batch_size: int
    ) -> SimpleNamespace:
        assert batch_size == OPTIONS.batch_size
        self.shown += [len(video) for video in videos]
        logits = np.array([self.logits(video) for video in videos])
        probabilities = 1 / (1 + np.exp(-logits))
        if self.problem_type == "single_label_classification":
            probabilities /= probabilities.sum(axis=1, keepdims=True)
        scores = [np.full(len(video), 0.5, np.float32) for video in videos] if frame_scores else None
        order = [np.arange(len(video), dtype=np.float32) for video in videos] if frame_scores else None
        return SimpleNamespace(probabilities=probabilities.astype(np.float32), frame_scores=scores, order_scores=order)

    def logits(self, video: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
        assert video.shape[1:] == (DIM,)
        return self.shift + self.sharpness * video.astype(np.float64).sum(axis=0)[: len(self.label_names)]


def save_model(
    folder: Path,
    *,
    dim: int = DIM,
    mark: str | None = None,
    names: Sequence[str] = NAMES,
    seed: int = 0,
    **keys: object,
) -> Path:
    """Save a tiny classifier with random weights, like ``save_pretrained``. ``keys`` are added to its configuration."""
    torch.manual_seed(seed)
    config = VideoClassifierConfig(
        embedding_dim=dim,
        gpt2={"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 8},
        max_frames=8,
        embedding_fingerprint=mark,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        problem_type="single_label_classification",
        **keys,
    )
    VideoClassifier(config).save_pretrained(folder)
    return folder


def plan_new(embeddings: Folder, output: Folder, *, max_videos: int = 4, settings: Any = SETTINGS) -> list[int]:  # noqa: ANN401
    """Plan what is new, and return the numbers of the plans stored."""
    manifests = embeddings_manifests(embeddings)
    planner = Planner(StoredPlans(output), settings, embeddings.uri, key="video_id")
    planner.load()
    found = embedded.find_embedded(embeddings, manifests)

    def pack(videos: list[embedded.StoredEmbedding]) -> pa.Table:
        return embedded.pack(videos, max_videos=max_videos, max_frames=1000, frames_per_video=3, slots=1)

    return planner.store(planner.new_videos(found), pack=pack)


def classified_rows(
    rows: pa.Table,
    embeddings: Folder,
    model: Any,  # noqa: ANN401
    options: work.ClassifyOptions = OPTIONS,
) -> pa.Table:
    """Classify one shard of a plan, and return its final rows."""
    read = embedded.read_shard(rows, embeddings, embedding_dim=DIM)
    return work.classify_shard(read, model, options)


def classify_all(embeddings: Folder, output: Folder, model: Any = None) -> list[int]:  # noqa: ANN401
    """Run the whole job."""
    numbers = plan_new(embeddings, output)
    for rows in missing_shards(StoredPlans(output), unsealed_plans(output)):
        plan, shard = rows[schema.GENERATION][0].as_py(), rows[schema.SHARD][0].as_py()
        made = output_rows(classified_rows(rows, embeddings, model or FakeModel()), schema.predictions_schema())
        about = describe_shard(made, plan=plan, shard=shard, fingerprint=fingerprint(SETTINGS))
        assert put_shard(output, made, about)
    assert all(seal(StoredPlans(output), number, versions=VERSIONS) for number in unsealed_plans(output))
    return numbers
