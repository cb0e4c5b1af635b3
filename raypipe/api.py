"""The Python API: one function for each command. ``import raypipe`` provides them all without loading Ray or torch."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pydantic import BaseModel

from raypipe.config import (
    AnomaliesConfig,
    ClassifyConfig,
    CompressConfig,
    EmbedConfig,
    EvaluateConfig,
    IndexConfig,
    RecommendConfig,
    ServeConfig,
    SuggestConfig,
    TrainConfig,
    load_config,
)
from raypipe.errors import SetupError
from raypipe.results import JobResult, Shown
from raypipe.storage import Folder

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

    from raypipe.dataset.verify import Verification
    from raypipe.endpoint.run import Server
    from raypipe.jobs.embed.one_video import EmbeddedVideo
    from raypipe.records import RunRecord
    from raypipe.runs.job import BatchRun

Location: TypeAlias = str | os.PathLike[str]
ConfigT = TypeVar("ConfigT", bound=BaseModel)
Source: TypeAlias = Location | Mapping[str, Any] | ConfigT | None


def embed(
    input: Location | None = None,  # noqa: A002 - the key of the configuration
    output: Location | None = None,
    *,
    config: Source[EmbedConfig] = None,
    console: "Console | None" = None,
    **settings: Any,  # noqa: ANN401 - the keys of the configuration
) -> JobResult:
    """Decode the videos of a folder, prefix, glob or manifest, and embed their frames into sealed Parquet.

    A second call resumes an interrupted run, or embeds only what is new.

    Args:
        input: The videos: a path or ``s3://`` URI.
        output: The folder of the embeddings.
        config: A YAML file, a mapping or an ``EmbedConfig``. The other arguments override it.
        console: Where progress is shown. The default is standard output. Pass ``Console(quiet=True)`` to hide progress.
        settings: Keys of the configuration, such as ``backbone="resnet18"`` or ``sampling={"num_frames": 8}``.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished. Call again to resume.
    """
    settled = _configured(EmbedConfig, config, input=input, output=output, **settings)
    from raypipe.jobs.embed.job import run_embed

    nothing = f"Nothing new: every video of {settled.input} is embedded and sealed in {settled.output}."
    return _batch_result(run_embed(settled, console=console), nothing)


def classify(
    embeddings: Location | None = None,
    model: Location | None = None,
    output: Location | None = None,
    *,
    config: Source[ClassifyConfig] = None,
    console: "Console | None" = None,
    **settings: Any,  # noqa: ANN401 - the keys of the configuration
) -> JobResult:
    """Label the videos of sealed embeddings with a trained model.

    A second call resumes an interrupted run, or classifies only what is new.

    Args:
        embeddings: The output folder of ``embed``.
        model: The output folder of ``train``, or a folder of ``save_pretrained``.
        output: The folder of the predictions.
        config: A YAML file, a mapping or a ``ClassifyConfig``. The other arguments override it.
        console: Where progress is shown. The default is standard output.
        settings: Keys of the configuration.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished. Call again to resume.
    """
    settled = _configured(ClassifyConfig, config, embeddings=embeddings, model=model, output=output, **settings)
    from raypipe.jobs.classify.job import run_classify

    nothing = f"Nothing new: every video of {settled.embeddings} is classified and sealed in {settled.output}."
    return _batch_result(run_classify(settled, console=console), nothing)


def recommend(
    index: Location | None = None,
    history: Location | None = None,
    output: Location | None = None,
    *,
    config: Source[RecommendConfig] = None,
    console: "Console | None" = None,
    **settings: Any,  # noqa: ANN401 - the keys of the configuration
) -> JobResult:
    """Compute recommendations for every user of a history file. They are the same as the endpoint's.

    A second call resumes an interrupted run. The counts in the result describe the whole output.

    Args:
        index: The output folder of ``index``.
        history: A .parquet, .csv or .jsonl file with the columns ``user_id`` and ``history``.
        output: The folder of the recommendations.
        config: A YAML file, a mapping or a ``RecommendConfig``. The other arguments override it.
        console: Where progress is shown. The default is standard output.
        settings: Keys of the configuration.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished. Call again to resume.
    """
    settled = _configured(RecommendConfig, config, index=index, history=history, output=output, **settings)
    from raypipe.jobs.recommend.job import RecommendOutput, run_recommend
    from raypipe.runs.summary_tables import recommend_table

    run = run_recommend(settled, console=console)
    held = RecommendOutput.read(Folder(settled.output))
    counts = {"users": held.num_users, **held.statuses, "unknown_fraction": held.unknown_fraction}
    table = recommend_table(
        run.record,
        report_uri=run.report_uri,
        num_users=held.num_users,
        statuses=held.statuses,
        unknown_ids=held.unknown_ids,
        index=f"{held.index} at {held.index_version}",
    )
    return _result_of(run, counts, table)


def anomalies(
    index: Location | None = None,
    embeddings: Location | None = None,
    output: Location | None = None,
    *,
    config: Source[AnomaliesConfig] = None,
    console: "Console | None" = None,
    **settings: Any,  # noqa: ANN401 - the keys of the configuration
) -> JobResult:
    """Find the embedded videos that are unlike everything in an index.

    A second call resumes an interrupted run, or scores only what is new. The anomalies are marked among all videos of
    the output, in ``anomalies.parquet`` and a report; the counts in the result describe them.

    Args:
        index: The output folder of ``index``: the catalogue.
        embeddings: The output folder of ``embed``. Videos whose ids are in the index are skipped.
        output: The folder of the scores.
        config: A YAML file, a mapping or an ``AnomaliesConfig``. The other arguments override it.
        console: Where progress is shown. The default is standard output.
        settings: Keys of the configuration, such as ``model="~/model"`` or ``false_discovery_rate=0.1``.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished. Call again to resume.
    """
    settled = _configured(AnomaliesConfig, config, index=index, embeddings=embeddings, output=output, **settings)
    from raypipe.jobs.anomalies.job import anomalies_table, run_anomalies

    run = run_anomalies(settled, console=console)
    found, record = run.findings.metrics, run.batch.record
    drift = found["drift"] or {}
    return JobResult(
        job="anomalies",
        output=record.output_uri,
        counts={
            "videos": found["num_videos"],
            "anomalies": found["num_anomalies"],
            "already_in_index": found["num_already_in_index"],
            "drift_since": drift.get("since"),
        },
        seconds=record.elapsed_seconds if record.plans else 0.0,
        report=run.findings.report_uri,
        is_new=bool(record.plans),
        record=found,
        table=anomalies_table(run),
    )


def train(
    embeddings: Location | None = None,
    labels: Location | None = None,
    output: Location | None = None,
    *,
    config: Source[TrainConfig] = None,
    console: "Console | None" = None,
    **settings: Any,  # noqa: ANN401 - the keys of the configuration
) -> JobResult:
    """Train a classifier of videos or, with ``objective="next_video"``, a ranker of what users watch next.

    A second call continues from the last checkpoint. The counts in the result include the metrics of the best epoch,
    whose model is kept.

    Args:
        embeddings: The output folder of ``embed``.
        labels: A .csv, .parquet or .jsonl file with the columns ``video_id`` and ``label``. If there is no such file,
            pass ``labels_from="folder"`` to use the name of each video's parent folder as its label.
            A ranker has no embeddings and no labels, but ``index="INDEX"`` and ``history="watched.csv"``.
        output: The folder of the model, its checkpoints and its report.
        config: A YAML file, a mapping or a ``TrainConfig``. The other arguments override it.
        console: Where progress is shown. The default is standard output.
        settings: Keys of the configuration.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: the workers failed too often, or a loss is not finite.
    """
    settled = _configured(TrainConfig, config, embeddings=embeddings, labels=labels, output=output, **settings)
    from raypipe.jobs.train.job import run_train
    from raypipe.runs.summary_tables import training_table

    run = run_train(settled, console=console)
    record, kept = run.record, run.record.kept
    counts: dict[str, Any] = {"videos": record.num_train_videos + record.num_validation_videos}
    if record.objective == "next_video":
        counts = {"users": record.num_train_videos}  # those of the validation are among them
    if kept is not None:
        counts |= {"epochs": record.epochs[-1].epoch, "best_epoch": kept.epoch}
        counts |= {name: value for name in record.metric_names if (value := getattr(kept, name)) is not None}
    return JobResult(
        job="train",
        output=record.output_uri,
        counts=counts,
        seconds=record.elapsed_seconds,
        report=run.report_uri,
        is_new=run.is_new,
        record=record,
        table=training_table(record, report_uri=run.report_uri),
    )


def compress(
    model: Location | None = None,
    output: Location | None = None,
    *,
    config: Source[CompressConfig] = None,
    console: "Console | None" = None,
    **settings: Any,  # noqa: ANN401 - the keys of the configuration
) -> JobResult:
    """Make a trained classifier or ranker smaller and faster by pruning, distillation and int8 weights.

    The output holds the fastest candidate that is accurate enough or, if compression does not pay off, the model
    unchanged. The result's ``record`` has the metrics of all candidates.

    Args:
        model: The output folder of ``train``, or a folder of ``save_pretrained``.
        output: The folder of the smaller model and its report.
        config: A YAML file, a mapping or a ``CompressConfig``. The other arguments override it.
        console: Where progress is shown. By default, no progress is shown.
        settings: Keys of the configuration: ``embeddings`` and ``labels`` for a classifier, ``index`` and ``history``
            for a ranker.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: the worker failed.
    """
    settled = _configured(CompressConfig, config, model=model, output=output, **settings)
    from raypipe.jobs.compress.job import compression_table, run_compress

    run = run_compress(settled, console=console)
    record, kept = run.record, run.record.kept_candidate
    counts = {"pays_off": record.pays_off, "chosen": record.chosen, "speedup": round(kept.speedup, 2)}
    counts |= {"size_bytes": kept.size_bytes, "loss": round(kept.loss, 4)}
    return JobResult(
        job="compress",
        output=record.output_uri,
        counts=counts,
        seconds=record.elapsed_seconds,
        report=run.report_uri,
        is_new=run.is_new,
        record=record,
        table=compression_table(record, report_uri=run.report_uri),
    )


def index(
    embeddings: Location | None = None,
    output: Location | None = None,
    *,
    config: Source[IndexConfig] = None,
    console: "Console | None" = None,
    **settings: Any,  # noqa: ANN401 - the keys of the configuration
) -> JobResult:
    """Build a version of a searchable index from embeddings, and make it the current one.

    Args:
        embeddings: The output folder of ``embed``. Or your own vectors: a Parquet file, or a folder of Parquet files,
            with the columns ``video_id`` and ``embedding``.
        output: The folder of the index and its versions.
        config: A YAML file, a mapping or an ``IndexConfig``. The other arguments override it.
        console: Where progress is shown. By default, no progress is shown.
        settings: Keys of the configuration, such as ``catalogue="titles.csv"`` or ``append=True``.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: a stored file has changed since it was sealed.
    """
    settled = _configured(IndexConfig, config, embeddings=embeddings, output=output, **settings)
    from raypipe.jobs.index.job import index_table, run_index

    run = run_index(settled, console=console)
    made = run.manifest
    counts = {"videos": made["num_videos"], "version": made["id"], "recall_at_10": made["recall_at_10"]}
    seconds = made["build_seconds"] if run.is_new else 0.0
    nothing = f"Nothing new: version {made['id']} of {settled.output} holds all of it."
    table = index_table(run) if run.is_new else nothing
    return JobResult("index", settled.output, counts, seconds, is_new=run.is_new, record=made, table=table)


def evaluate(
    index: Location | None = None,
    history: Location | None = None,
    output: Location | None = None,
    *,
    config: Source[EvaluateConfig] = None,
    console: "Console | None" = None,
    **settings: Any,  # noqa: ANN401 - the keys of the configuration
) -> JobResult:
    """Measure how well an index predicts what users watched next, against simple baselines. Ray is not used.

    The result's ``record`` is an ``Evaluation``. Its counts are the main metric of each ranker; ``served`` stands for
    the lists that the endpoint would return.

    Args:
        index: The output folder of ``index``.
        history: A .parquet, .csv or .jsonl file with ``user_id`` and either ``video_id`` and ``watched_at``, one row
            per event, or ``history``.
        output: The folder for ``metrics.json``, ``users.parquet`` and ``report.html``.
        config: A YAML file, a mapping or an ``EvaluateConfig``; the other arguments override it.
        console: Where progress is shown; by default nowhere.
        settings: Keys of the configuration, such as ``protocol="leave_one_out"``.

    Raises:
        SetupError: the index, the history or the configuration cannot be used.
    """
    settled = _configured(EvaluateConfig, config, index=index, history=history, output=output, **settings)
    from raypipe.jobs.evaluate.job import evaluation_table, run_evaluate

    run = run_evaluate(settled, console=console)
    found = run.evaluation
    values = {name: round(metrics[found.metric].value, 4) for name, metrics in found.rankers.items()}
    counts = {"users": found.facts["num_users"], "metric": found.metric, **values}
    counts["meets_requirement"] = run.meets_requirement
    table = evaluation_table(run)
    return JobResult("evaluate", settled.output, counts, run.seconds, run.report_uri, record=found, table=table)


def suggest(
    embeddings: Location | None = None,
    labels: Location | None = None,
    output: Location | None = None,
    *,
    config: Source[SuggestConfig] = None,
    console: "Console | None" = None,
    **settings: Any,  # noqa: ANN401 - the keys of the configuration
) -> JobResult:
    """Suggest which videos to label next, and which labels are probably wrong.

    The result's ``record`` has both lists: ``to_label`` and ``to_check``.

    Args:
        embeddings: The output folder of ``embed``.
        labels: A .csv, .parquet or .jsonl file with the columns ``video_id`` and ``label``. Or pass
            ``labels_from="folder"`` to use the name of each video's parent folder. Omit both if there are no labels.
        output: The folder for ``to_label.csv``, ``check_labels.csv``, ``summary.json`` and ``report.html``.
        config: A YAML file, a mapping or a ``SuggestConfig``. The other arguments override it.
        console: Where progress is shown; by default nowhere.
        settings: Keys of the configuration, such as ``num_videos=100``.

    Raises:
        SetupError: the embeddings, the labels or the configuration cannot be used.
        JobError: the embeddings are not sealed, or not finite.
    """
    settled = _configured(SuggestConfig, config, embeddings=embeddings, labels=labels, output=output, **settings)
    from raypipe.jobs.suggest.job import run_suggest, suggestion_table

    run = run_suggest(settled, console=console)
    record, found = run.record, run.record.summary
    counts = {"to_label": found["num_to_label"], "to_check": found["num_to_check"], "labelled": found["num_labelled"]}
    table = suggestion_table(run)
    return JobResult(
        "suggest", settled.output, counts, record.elapsed_seconds, run.report_uri, record=record, table=table
    )


def verify(output: Location) -> "Verification":
    """Verify the integrity of a stored output of ``embed``, ``classify``, ``recommend`` or ``anomalies``.

    The result lists the violations. Only the stored output is read, not the inputs of the job.

    Raises:
        ConfigError: the folder holds recommendations of raypipe 0.1, which cannot be verified.
        StorageError: the output cannot be listed.
    """
    from raypipe.dataset.verify import stored_job
    from raypipe.jobs.anomalies.verify import verify as verify_anomalies
    from raypipe.jobs.classify.verify import verify as verify_predictions
    from raypipe.jobs.embed.verify import verify as verify_embeddings
    from raypipe.jobs.recommend.verify import refuse_format_1
    from raypipe.jobs.recommend.verify import verify as verify_recommendations

    folder = _folder(output)
    refuse_format_1(folder)
    of_job = {
        "anomalies": verify_anomalies,
        "classify": verify_predictions,
        "embed": verify_embeddings,
        "recommend": verify_recommendations,
    }
    return of_job.get(stored_job(folder), verify_embeddings)(folder)  # if no plan names the job, apply embed's rules


class Dataset(Shown):
    """A reader for a sealed output. It yields one row per video (or user), the latest one. Ray is not used.

    Raises:
        JobError: the output is not sealed, or the folder holds no output.
    """

    def __init__(self, output: Location) -> None:
        from raypipe.dataset.plan import job_of
        from raypipe.dataset.read import sealed_manifests

        self._folder = _folder(output)
        self._manifests = sealed_manifests(self._folder)
        self.settings: Mapping[str, Any] = self._manifests[-1]["settings"]
        self.job = job_of(self.settings)

    @property
    def uri(self) -> str:
        """Return the URI of the output folder."""
        return self._folder.uri

    def __len__(self) -> int:
        """Return the number of rows. The data files are not read for this."""
        from raypipe.dataset.read import count_rows

        return count_rows(self._folder, self._manifests)

    def scan(self, columns: Sequence[str] | None = None) -> "Iterator[pa.Table]":
        """Yield the rows as one Arrow table per data file, so that memory use does not grow with the dataset."""
        from raypipe.dataset.read import rows_of

        return rows_of(self._folder, self._manifests, columns)

    def to_arrow(self, columns: Sequence[str] | None = None) -> "pa.Table":
        """Read all rows into one Arrow table."""
        import pyarrow as pa

        return pa.concat_tables(self.scan(columns))

    def verify(self) -> "Verification":
        """Verify the integrity of the output, like ``raypipe.verify``."""
        return verify(self.uri)

    def shown(self) -> Mapping[str, object]:
        """Return the job, the folder and the number of rows."""
        return {"job": self.job, "uri": self.uri, "rows": len(self)}


def open_dataset(output: Location) -> Dataset:
    """Open a sealed output of ``embed``, ``classify`` or ``recommend`` to read it.

    Raises:
        JobError: the output is not sealed, or the folder holds no output.
    """
    return Dataset(output)


def embed_video(
    video: Location,
    *,
    config: Source[EmbedConfig] = None,
    **settings: Any,  # noqa: ANN401 - the keys of the configuration
) -> "EmbeddedVideo":
    """Embed one video in this process, without Ray. The vectors are the same as those that ``embed`` would store.

    The video is decoded in the same sandbox. If it cannot be decoded, ``status`` and ``error`` of the result say why.

    Args:
        video: A path or ``s3://`` URI.
        config: A YAML file, a mapping or an ``EmbedConfig``. Its ``input`` and ``output`` are ignored.
        settings: Keys of the configuration, such as ``backbone="resnet18"``.

    Raises:
        ObjectMissingError: there is no such video.
        SetupError: the configuration, the weights or the storage are wrong.
    """
    settled = _configured(EmbedConfig, config, input=video, output=video, **settings)
    from raypipe.jobs.embed.one_video import embed_video as embed_one

    return embed_one(settled)


def serve(
    index: Location | None = None,
    *,
    block: bool = True,
    config: Source[ServeConfig] = None,
    **settings: Any,  # noqa: ANN401 - the keys of the configuration
) -> "Server":
    """Serve an index over HTTP, with a web page to explore it.

    Args:
        index: The output folder of ``index``.
        block: If True, serve until Ctrl-C or SIGTERM. If False, return a ``Server`` as soon as it answers requests. Use
            it in a ``with`` block, or call its method ``close``.
        config: A YAML file, a mapping or a ``ServeConfig``. The other arguments override it.
        settings: Keys of the configuration, such as ``port=8080``.

    Raises:
        SetupError: the configuration or the environment is wrong.
        JobError: Ray Serve cannot run the endpoint.
    """
    settled = _configured(ServeConfig, config, index=index, **settings)
    from raypipe.endpoint.run import Server

    server = Server(settled)
    if block:
        with server:
            server.wait()
    return server


def _configured(model: type[ConfigT], source: Source[ConfigT], /, **values: Any) -> ConfigT:  # noqa: ANN401
    if sys.platform != "linux":
        msg = f"raypipe runs on Linux, and this is {sys.platform}."
        raise SetupError(msg, value=sys.platform, remedy="Use a Linux machine, a container or WSL 2.")
    return load_config(model, source, values=values)


def _folder(location: Location) -> Folder:
    return Folder(os.fspath(location))


def _batch_result(run: "BatchRun", nothing: str) -> JobResult:
    from raypipe.runs.summary_tables import final_table

    record = run.record
    table = final_table(record, report_uri=run.report_uri) if record.plans else nothing
    return _result_of(run, _counts(record), table)


def _result_of(run: "BatchRun", counts: Mapping[str, Any], table: object) -> JobResult:
    record = run.record
    return JobResult(
        job=record.job,
        output=record.output_uri,
        counts=counts,
        seconds=record.elapsed_seconds if record.plans else 0.0,
        report=run.report_uri,
        is_new=bool(record.plans),
        record=record,
        table=table,
    )


def _counts(record: "RunRecord") -> dict[str, int]:
    from raypipe.status import Status

    others = {str(one): record.statuses[one] for one in (Status.PARTIAL, Status.GONE) if record.statuses.get(one)}
    ok = record.statuses.get(Status.OK, 0)
    return {f"{record.noun}s": record.num_videos, "ok": ok, **others, "failed": record.num_failed_videos}
