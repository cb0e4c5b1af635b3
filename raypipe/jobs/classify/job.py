"""The classify job, from a configuration to a sealed output."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from rich.console import Console

from raypipe.config import ClassifyConfig
from raypipe.dataset.plan import comparable_fingerprints, fingerprint
from raypipe.dataset.planner import Planner
from raypipe.dataset.read import embedding_dim, embeddings_manifests
from raypipe.errors import ConfigError
from raypipe.jobs.classify import cluster, inputs
from raypipe.jobs.classify.cluster import Placement
from raypipe.jobs.classify.shard import Question
from raypipe.jobs.classify.stages import ModelSettings, PutSettings, ReadSettings
from raypipe.models.classifier_files import ModelFiles, build_classifier, check_embeddings, read_model
from raypipe.runs.actors import connect, machine
from raypipe.runs.job import BatchRun, RunShards, finish, start_record
from raypipe.storage import Folder

_FORMAT = 1  # of the rows; a change that old rows do not fit raises it


@dataclass(frozen=True, slots=True)
class Setup:
    """What is settled before any vector is read."""

    config: ClassifyConfig
    embeddings: Folder
    output: Folder
    manifests: list[dict[str, Any]]  # of the embeddings' plans
    embedding_dim: int
    files: ModelFiles

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes what a row says."""
        return {
            "job": "classify",
            "format": _FORMAT,
            "model": self.files.digest,
            "embeddings": self.manifests[0]["fingerprint"],
            "top_k": self.config.top_k,
            "frame_scores": self.config.frame_scores,
            "dtype": "float32",
        }


def prepare(config: ClassifyConfig) -> Setup:
    """Read the model and the embeddings' manifests, and hold one against the other.

    Raises:
        WeightsError: the model cannot be read.
        FingerprintError: it was trained on other embeddings.
        ConfigError: the embeddings are none, or are the output too.
        JobError: the embeddings are not sealed.
    """
    embeddings, output = Folder(config.embeddings), Folder(config.output)
    if embeddings == output:
        msg = f"{output} is both the embeddings and the output."
        raise ConfigError(msg, key="output", value=str(output), remedy="Choose another output.")
    manifests = embeddings_manifests(embeddings)
    files = read_model(Folder(config.model))
    build_classifier(files)
    setup = Setup(config, embeddings, output, manifests, embedding_dim(embeddings, manifests), files)
    check_embeddings(
        files,
        manifests[-1]["fingerprint"],
        setup.embedding_dim,
        comparable=comparable_fingerprints(manifests[-1]["settings"]),
    )
    return setup


def run_classify(config: ClassifyConfig, *, console: Console | None = None) -> BatchRun:
    """Classify what is new in the embeddings, finish what earlier runs left, seal it, and write the report.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished; the same call continues.
    """
    setup = prepare(config)
    setup.output.check_writable()
    connect()
    placement = cluster.place(config.resources)
    plan_new(setup, slots=placement.actors)
    record = start_record(
        setup.output,
        job="classify",
        input_uri=setup.embeddings.uri,
        fingerprint=fingerprint(setup.settings),
        settings=config.model_dump(),
        packages=("torch", "transformers", "safetensors"),
        machine={**machine(), "actors": placement.actors, "device": placement.device},
        num_slots=placement.actors,
    )
    if not record.plans:
        return BatchRun(record)
    return finish(setup.output, record, _work(setup, placement), patience=2 * placement.actors + 6, console=console)


def plan_new(setup: Setup, *, slots: int) -> None:
    """Plan what no plan holds yet: a video that is new, or embedded again.

    Raises:
        FingerprintError: the output holds rows of another model or other settings.
        ConfigError: a video has the id of another one, planned from other embeddings.
    """
    planner = Planner(setup.output, setup.settings, setup.embeddings.uri, key="video_id")
    planner.load()
    packing = partial(
        inputs.pack,
        max_videos=setup.config.shard.max_videos,
        max_frames=setup.config.shard.max_frames,
        frames_per_video=inputs.frames_per_video(setup.manifests),
        slots=slots,
    )
    planner.store(planner.new_videos(inputs.find_embedded(setup.embeddings, setup.manifests)), pack=packing)


def _work(setup: Setup, placement: Placement) -> RunShards:
    """What runs blocks through the stage, the model's files in the object store."""
    config = setup.config
    question = Question(top_k=config.top_k, frame_scores=config.frame_scores, batch_size=config.batch_size)
    read = ReadSettings(setup.embeddings.uri, setup.embedding_dim)
    model = ModelSettings(ray.put(setup.files), question, placement.device)
    put = PutSettings(setup.output.uri, fingerprint(setup.settings), setup.embedding_dim)
    return lambda blocks: cluster.run_shards(blocks, placement, read=read, model=model, put=put)
