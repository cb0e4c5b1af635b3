"""The classify job, from a configuration to a sealed output."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.console import Console

from raypipe import schema
from raypipe.config import ClassifyConfig
from raypipe.dataset.embedded import ReadEmbeddings, ReadSettings, find_embedded, packing_of
from raypipe.dataset.plan import StoredPlans, comparable_fingerprints
from raypipe.dataset.planner import Planner
from raypipe.dataset.read import embedding_dim, embeddings_manifests
from raypipe.errors import ConfigError
from raypipe.jobs.classify import shard
from raypipe.jobs.classify.shard import ClassifyOptions, ClassifyVideos, ModelSettings
from raypipe.models.classifier_files import ModelFiles, build_classifier, check_embeddings, read_model
from raypipe.runs.executor import Executor, Needs, Placement
from raypipe.runs.job import BatchRun, Job, run_job
from raypipe.runs.stages import Stage
from raypipe.storage import Folder

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClassifySetup:
    """Everything that is decided before any vector is read."""

    config: ClassifyConfig
    embeddings: Folder
    output: Folder
    manifests: list[dict[str, Any]]  # one per plan of the embeddings
    embedding_dim: int
    files: ModelFiles

    @property
    def settings(self) -> dict[str, Any]:
        """Return all settings that affect the content of a row."""
        return {
            "job": "classify",
            "format": schema.PREDICTIONS_FORMAT,
            "model": self.files.digest,
            "embeddings": self.manifests[0]["fingerprint"],
            "top_k": self.config.top_k,
            "frame_scores": self.config.frame_scores,
            "dtype": "float32",
        }


def prepare(config: ClassifyConfig) -> ClassifySetup:
    """Read the model and the manifests of the embeddings, and check that the two are compatible.

    Raises:
        WeightsError: the model cannot be read.
        FingerprintError: the model was trained on other embeddings.
        ConfigError: the embeddings folder is not an output of embed, or is also the output folder.
        JobError: the embeddings are not sealed.
    """
    embeddings, output = Folder(config.embeddings), Folder(config.output)
    if embeddings == output:
        msg = f"{output} is both the embeddings and the output."
        raise ConfigError(msg, key="output", value=str(output), remedy="Choose another output.")
    manifests = embeddings_manifests(embeddings)
    files = read_model(Folder(config.model))
    model_config = build_classifier(files).config
    if config.frame_scores and model_config.frame_scores_help is False:
        _logger.warning(
            "The frame_scores of %s are no better than random ones at naming the frames that its labels depend on.",
            files.source,
        )
    setup = ClassifySetup(config, embeddings, output, manifests, embedding_dim(embeddings, manifests), files)
    check_embeddings(
        files,
        manifests[-1]["fingerprint"],
        setup.embedding_dim,
        comparable=comparable_fingerprints(manifests[-1]["settings"]),
    )
    return setup


def run_classify(
    config: ClassifyConfig, *, executor: Executor | None = None, console: Console | None = None
) -> BatchRun:
    """Classify the new videos, finish the work that earlier runs left undone, seal the output, and write the report.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished. Call again to resume.
    """
    return run_job(ClassifyJob(config), executor=executor, console=console)


class ClassifyJob(Job):
    """The job that classifies the videos of sealed embeddings. ``setup`` exists after ``prepare`` was called."""

    name = "classify"
    packages = ("torch", "transformers", "safetensors")
    summarize = staticmethod(shard.summarize)

    def __init__(self, config: ClassifyConfig) -> None:
        self.config: ClassifyConfig = config
        self.output = Folder(config.output)
        self.input_uri = Folder(config.embeddings).uri
        self.setup: ClassifySetup

    def prepare(self) -> None:
        """Read the model and the manifests of the embeddings. Raises the same errors as the function ``prepare``."""
        self.setup = prepare(self.config)

    def needs(self) -> Needs:
        """Return a request for one actor per GPU, or for one actor per processor if there is no GPU."""
        resources = self.config.resources
        return Needs(
            num_gpus=resources.gpus,
            concurrency=resources.concurrency,
            wait_seconds=resources.wait_seconds,
            asked=f"resources.gpus={resources.gpus}",
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return all settings that affect the content of a row."""
        return self.setup.settings

    def plan(self, plans: StoredPlans, *, num_slots: int) -> None:
        """Plan the new videos. Raises the same errors as ``plan_new``."""
        plan_new(self.setup, plans, num_slots=num_slots)

    def stages(self, executor: Executor, placement: Placement) -> Sequence[Stage]:
        """Return one stage, whose actors read the vectors and classify them."""
        config = self.config
        options = ClassifyOptions(top_k=config.top_k, frame_scores=config.frame_scores, batch_size=config.batch_size)
        read = ReadSettings(self.input_uri, self.setup.embedding_dim)
        model = ModelSettings(executor.share(self.setup.files), options, placement.device)
        return [placement.stage((ReadEmbeddings, read), (ClassifyVideos, model))]

    @property
    def rows(self) -> pa.Schema:
        """Return the schema of the prediction files."""
        return schema.predictions_schema()


def plan_new(setup: ClassifySetup, plans: StoredPlans, *, num_slots: int) -> None:
    """Plan the videos that are in no plan yet: videos that are new, or that were embedded again.

    Raises:
        FingerprintError: the output holds rows that were made with another model or other settings.
        ConfigError: a video has the same id as a video that was planned from other embeddings.
    """
    planner = Planner(plans, setup.settings, setup.embeddings.uri, key="video_id")
    planner.load()
    packing = packing_of(setup.config.shard, setup.manifests, num_slots=num_slots)
    planner.store(planner.new_videos(find_embedded(setup.embeddings, setup.manifests)), pack=packing)
