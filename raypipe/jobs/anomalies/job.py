"""The anomalies job, from a configuration to a sealed output and the list of anomalies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.padding import Padding

from raypipe import schema
from raypipe.config import AnomaliesConfig
from raypipe.dataset.embedded import (
    ReadEmbeddings,
    ReadSettings,
    StoredEmbedding,
    find_embedded,
    packing_of,
)
from raypipe.dataset.plan import StoredPlans, comparable_fingerprints, job_of, plan_numbers, read_plan
from raypipe.dataset.planner import Planner
from raypipe.dataset.read import embedding_dim, embeddings_manifests
from raypipe.errors import ConfigError, FingerprintError
from raypipe.jobs.anomalies import shard
from raypipe.jobs.anomalies.findings import Findings, read_order, write_findings
from raypipe.jobs.anomalies.shard import READ_COLUMNS, IndexVersion, ScoreSettings, ScoreVideos
from raypipe.models.model_files import ModelFiles, read_model
from raypipe.report.anomaly_page import drift_text, limits
from raypipe.runs.executor import Executor, Needs, Placement
from raypipe.runs.job import BatchRun, Job, run_job
from raypipe.runs.stages import Stage
from raypipe.runs.summary_tables import summary_table
from raypipe.search.index import VideoIndex
from raypipe.search.novelty import MIN_VIDEOS, Novelty
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from raypipe.text import format_count, format_seconds

_FORMAT = 1  # the row format: increased by every change that makes old rows incompatible
_VERSION = "index_version"  # the key in the settings; the first plan of an output decides its value


@dataclass(frozen=True, slots=True)
class AnomaliesRun:
    """The run that scored the new videos, and what all scored videos of the output say."""

    batch: BatchRun
    findings: Findings


def run_anomalies(
    config: AnomaliesConfig, *, executor: Executor | None = None, console: Console | None = None
) -> AnomaliesRun:
    """Score the new videos, seal the output, and find the anomalies and the drift among all of its videos.

    The last step depends on all rows, so it is repeated by every run.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished. Call again to resume.
    """
    order = None if config.times is None else read_order(config.times)
    job = AnomaliesJob(config)
    batch = run_job(job, executor=executor, console=console)
    return AnomaliesRun(batch, write_findings(config, job.novelty, num_known=job.num_known, order=order))


class AnomaliesJob(Job):
    """The job that scores embedded videos against one version of an index."""

    name = "anomalies"
    packages = ("faiss-cpu",)
    summarize = staticmethod(shard.summarize)

    def __init__(self, config: AnomaliesConfig) -> None:
        self.config: AnomaliesConfig = config
        self.output = Folder(config.output)
        self.embeddings = Folder(config.embeddings)
        self.input_uri = self.embeddings.uri
        self.num_known = 0  # videos whose ids are in the index
        self.novelty: Novelty
        self._manifests: list[dict[str, Any]]
        self._dim: int
        self._version: IndexVersion
        self._files: ModelFiles | None = None

    def prepare(self) -> None:
        """Open and calibrate the index, and check that the embeddings and the model are comparable with it.

        Raises:
            ConfigError: the embeddings folder is not an output of embed, is also the output folder, or the index has
                too few videos or was built from vectors that raypipe did not make.
            FingerprintError: the index or the model was made from other embeddings.
            IndexVersionError: there is no index, or the index is incomplete.
            JobError: the embeddings are not sealed.
        """
        if self.embeddings == self.output:
            msg = f"{self.output} is both the embeddings and the output."
            raise ConfigError(msg, key="output", value=str(self.output), remedy="Choose another output.")
        self._manifests = embeddings_manifests(self.embeddings)
        self._dim = embedding_dim(self.embeddings, self._manifests)
        self._version = self._chosen_version()
        index = self._version.open()
        self._check_comparable(index)
        if self.config.model is not None:
            self._files = self._read_model(self.config.model)
        try:
            self.novelty = Novelty.fit(
                index, num_neighbors=self.config.neighbors, max_scores=self.config.calibration_videos
            )
        except ValueError as error:
            msg = f"{self.config.index}: {error}"
            raise ConfigError(msg, key="index", value=len(index), expected=MIN_VIDEOS) from None

    def _chosen_version(self) -> IndexVersion:
        """Return the version that the output was begun with or, for a new output, the current version."""
        folder = Folder(self.config.index)
        stored = read_plan(self.output, 0).settings if 0 in plan_numbers(self.output) else {}
        if stored and job_of(stored) != self.name:
            msg = f"{self.output} is the output of another job."
            raise ConfigError(msg, key="output", value=self.output.uri, remedy="Choose another output.")
        version = stored.get(_VERSION) if stored.get("index") == folder.uri else None
        return IndexVersion(folder.uri, str(version or Versions(folder).require_current()), self.config.cache)

    @property
    def _comparable(self) -> frozenset[str]:
        last = self._manifests[-1]
        return comparable_fingerprints(last["settings"]) | {last["fingerprint"]}

    def _check_comparable(self, index: VideoIndex) -> None:
        about = index.manifest.get("embeddings") or {}
        if about.get("own_vectors"):
            msg = f"{self.config.index} was built from vectors that raypipe did not make ({about.get('uri')})."
            remedy = "Give an index of an output of raypipe embed."
            raise ConfigError(msg, key="index", value=self.config.index, remedy=remedy)
        found, expected = self._manifests[-1]["fingerprint"], about.get("fingerprint")
        if expected not in self._comparable or index.projection.embedding_dim != self._dim:
            msg = (
                f"{self.config.index} was built from embeddings with fingerprint {expected}, "
                f"but {self.embeddings} has {found}."
            )
            remedy = "Embed the new videos with the settings of the catalogue."
            raise FingerprintError(msg, key="embeddings", value=found, expected=expected, remedy=remedy)

    def _read_model(self, uri: str) -> ModelFiles:
        from raypipe.models.classifier_files import (  # noqa: PLC0415 - imports torch, which takes seconds
            build_masked_frame_model,
            check_embeddings,
        )

        files = read_model(Folder(uri))
        build_masked_frame_model(files)
        check_embeddings(files, self._manifests[-1]["fingerprint"], self._dim, comparable=self._comparable)
        return files

    def needs(self) -> Needs:
        """Return a request for one actor per processor."""
        return Needs(concurrency=self.config.concurrency, asked=f"concurrency={self.config.concurrency}")

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return all settings that affect the content of a row."""
        return {
            "job": self.name,
            "format": _FORMAT,
            "index": self._version.uri,
            _VERSION: self._version.version,
            "embeddings": self._manifests[0]["fingerprint"],
            "model": None if self._files is None else self._files.digest,
            "neighbors": self.config.neighbors,
            "calibration_videos": self.config.calibration_videos,
            "frame_scores": self.config.frame_scores,
        }

    def plan(self, plans: StoredPlans, *, num_slots: int) -> None:
        """Plan the videos that are neither in the index nor in a plan yet, or that were embedded again.

        Raises:
            FingerprintError: the output holds rows that were made from another index, with another model or with other
                settings.
            ConfigError: a video has the same id as a video that was planned from other embeddings.
        """
        planner = Planner(plans, self.settings, self.embeddings.uri, key="video_id")
        planner.load()
        packing = packing_of(self.config.shard, self._manifests, num_slots=num_slots)
        planner.store(planner.new_videos(self._unknown()), pack=packing)

    def _unknown(self) -> Iterator[StoredEmbedding]:
        """Yield the embedded videos whose ids are not in the index, and count the others."""
        items, self.num_known = self.novelty.index.items, 0
        for video in find_embedded(self.embeddings, self._manifests):
            if items.position(video.video_id) is None:
                yield video
            else:
                self.num_known += not video.is_gone

    @property
    def facts(self) -> Mapping[str, object]:
        """Return what the scores were computed from."""
        return {"already_in_the_index": self.num_known, "calibration_videos": len(self.novelty.calibration)}

    def stages(self, executor: Executor, placement: Placement) -> Sequence[Stage]:
        """Return one stage, whose actors read the embeddings and score them."""
        read = ReadSettings(self.input_uri, self._dim, READ_COLUMNS)
        settings = ScoreSettings(
            self._version,
            executor.share(self.novelty.calibration),
            None if self._files is None else executor.share(self._files),
            self.config.frame_scores,
        )
        return [placement.stage((ReadEmbeddings, read), (ScoreVideos, settings))]

    @property
    def rows(self) -> pa.Schema:
        """Return the schema of the files of scores."""
        return schema.anomalies_schema()


def anomalies_table(run: AnomaliesRun) -> Padding:
    """Return the table that is printed at the end: the counts of all scored videos, the drift, and the report."""
    found, record = run.findings.metrics, run.batch.record
    unscored = found.get("num_unscored", 0)
    untimed = found.get("num_without_time", 0)
    return summary_table(
        [
            ("videos", f"{format_count(found['num_videos'])}, {format_count(record.num_videos)} of them new"),
            ("in the index", format_count(found["num_already_in_index"])),
            ("without scores", format_count(unscored) if unscored else ""),
            ("without time", format_count(untimed) if untimed else ""),
            ("anomalies", f"{found['num_anomalies']:,} at a false-discovery rate of {found['false_discovery_rate']:g}"),
            ("limits", limits(found)),
            ("drift", drift_text(found) if found["drift"] is not None else ""),
            ("wall time", format_seconds(record.elapsed_seconds) if record.plans else ""),
            ("output", record.output_uri),
            ("report", run.findings.report_uri),
        ]
    )
