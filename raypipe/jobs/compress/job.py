"""The compress job: from a trained model to a smaller one and a table of what each candidate costs."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from raypipe.config import CompressConfig
from raypipe.config.load import command_line
from raypipe.errors import CommitError, ConfigError, FingerprintError, JobError, ObjectError, RaypipeError, SetupError
from raypipe.jobs.compress.compressing import Compressed, compress_classifier, compress_ranker
from raypipe.jobs.compress.inputs import DistillVideos, find_users, find_videos
from raypipe.jobs.train.checkpoints import put_files
from raypipe.jobs.train.datasets import READ_CPUS, frames_dataset
from raypipe.jobs.train.events import SUMMARY, listen, open_queue
from raypipe.jobs.train.ranker.histories import HistorySamples
from raypipe.models.classifier_files import build_classifier, read_model
from raypipe.models.model_files import COMPLETE, CONFIG, MODEL_FOLDER, ModelFiles
from raypipe.models.ranker_files import BLEND, MODEL_TYPE, read_ranker
from raypipe.records import CandidateMetrics, CompressionRecord, versions
from raypipe.report.compression_page import compression_page, compression_rows
from raypipe.runs.actors import await_resources, connect, data_context, reason_of
from raypipe.runs.progress import status
from raypipe.runs.summary_tables import summary_table
from raypipe.storage import Folder
from raypipe.text import one_line

REPORT = "report.html"
_FREE = {"output", "cache", "use_gpu"}  # keys that do not change the result
_WORKER_CPUS = 0.5  # less than 1, so that the readers fit on a machine with one CPU


@dataclass(frozen=True, slots=True)
class CompressionRun:
    """The record of a compression, and the URI of its report. ``is_new`` is False if an earlier run had finished it."""

    record: CompressionRecord
    report_uri: str
    is_new: bool = True


def run_compress(config: CompressConfig, *, console: Console | None = None) -> CompressionRun:
    """Make candidates, measure them, and write the fastest one that is accurate enough, with a report.

    If no candidate pays off, the output holds the model unchanged.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: the worker failed.
    """
    started_at, output = time.time(), Folder(config.output)
    output.check_writable()
    if output == Folder(config.model):
        msg = f"{output} is both the model and the output."
        raise ConfigError(msg, key="output", value=str(output), remedy="Choose another output.")
    files = read_model(Folder(config.model))
    is_ranker = json.loads(files.files[CONFIG]).get("model_type") == MODEL_TYPE
    if is_ranker != (config.embeddings is None):
        msg = f"{files.source} is a {'ranker' if is_ranker else 'classifier'}."
        remedy = "Give --index and --history." if is_ranker else "Give --embeddings."
        raise ConfigError(msg, key="index" if is_ranker else "embeddings", remedy=remedy)
    if (earlier := _earlier(output, config, files)) is not None:
        return CompressionRun(earlier, output.child(REPORT), is_new=False)
    samples: DistillVideos | HistorySamples
    blend: dict[str, bytes] = {}
    if is_ranker:
        ranker = read_ranker(Folder(config.model))
        source = Folder(ranker.source)
        blend = {BLEND: source.read(BLEND)} if source.exists(BLEND) else {}
        samples = find_users(config, ranker)
        with status(console, "Measuring the ranker"):
            result = compress_ranker(config, ranker, samples)
    else:
        samples = find_videos(config, files)
        result = _compress_on_ray(config, files, samples, console)
    record = _record(config, samples, result, started_at=started_at)
    output.put(REPORT, compression_page(record).encode())
    output.put(SUMMARY, json.dumps({**asdict(record), "model": files.digest}, indent=1).encode())
    put_files(output, {**result.files, **blend})
    return CompressionRun(record, output.child(REPORT))


def _earlier(output: Folder, config: CompressConfig, files: ModelFiles) -> CompressionRecord | None:
    """Return the record of an earlier run of the same command that has finished.

    Raises:
        FingerprintError: the output holds another compression.
        CommitError: its summary cannot be read.
    """
    if not output.exists(f"{MODEL_FOLDER}/{COMPLETE}"):
        return None
    try:
        tree = dict(json.loads(output.read(SUMMARY)))
        model, settings = tree.pop("model"), tree["settings"]
        tree["candidates"] = tuple(CandidateMetrics(**one) for one in tree["candidates"])
        record = CompressionRecord(**tree)
    except (ObjectError, KeyError, TypeError, ValueError) as error:
        msg = f"{output.child(SUMMARY)} is not the summary of a compression: {one_line(error)}."
        raise CommitError(msg, key=output.child(SUMMARY), remedy="Choose another output.") from None
    if (model, settings) != (files.digest, _settings(config)):
        msg = f"{output} holds another compression."
        raise FingerprintError(msg, key="output", value=str(output), remedy="Choose another output.")
    return record


def _settings(config: CompressConfig) -> dict[str, Any]:
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in _FREE}


def _compress_on_ray(
    config: CompressConfig, files: ModelFiles, videos: DistillVideos, console: Console | None
) -> Compressed:
    """Make the candidates in a task with a GPU, if the cluster has one."""
    build_classifier(files)  # raises an error if it cannot be loaded
    connect()
    has_gpu = _decide_gpu(config)
    events = open_queue()
    with data_context():
        tables = (videos.train, videos.validation)
        datasets = [
            frames_dataset(one, embeddings_uri=config.embeddings or "", num_workers=1, seed=0) for one in tables
        ]
    work = ray.remote(num_cpus=_WORKER_CPUS, num_gpus=int(has_gpu), max_retries=1)(compress_classifier)
    results: list[Compressed] = []

    def run() -> None:
        results.append(ray.get(work.remote(config, files, videos, datasets, events)))

    try:
        with status(console, "Compressing"):
            for kind, about in listen(events, run):
                if kind == "note" and console is not None:
                    console.print(f"compress: {about['line']}")
    except RayTaskError as error:
        if isinstance(error.cause, RaypipeError):
            raise error.cause from None
        msg = f"The worker failed: {reason_of(error)}. The same command starts again."
        raise JobError(msg) from error
    except RayError as error:
        msg = f"Ray ended the work: {reason_of(error)}. The same command starts again."
        raise JobError(msg) from error
    return results[0]


def _decide_gpu(config: CompressConfig) -> bool:
    """Return whether the worker gets a GPU.

    Raises:
        SetupError: the cluster has too few CPUs, or no GPU although one is required.
    """
    worker = {"CPU": _WORKER_CPUS} | ({"GPU": 1.0} if config.use_gpu is True else {})
    has = await_resources([worker, {"CPU": float(READ_CPUS)}], wait_seconds=0)
    if has["CPU"] < _WORKER_CPUS + READ_CPUS or (config.use_gpu is True and not has["GPU"]):
        msg = f"The cluster has {has['CPU']:g} CPUs and {has['GPU']:g} GPUs."
        needed = f"{_WORKER_CPUS + READ_CPUS:g} CPUs" + (" and a GPU" if config.use_gpu is True else "")
        raise SetupError(msg, key="use_gpu", value=config.use_gpu, expected=needed)
    return config.use_gpu is True or (config.use_gpu == "auto" and has["GPU"] >= 1)


def _record(
    config: CompressConfig, samples: DistillVideos | HistorySamples, result: Compressed, *, started_at: float
) -> CompressionRecord:
    kind: Literal["classifier", "ranker"]
    if isinstance(samples, HistorySamples):
        kind, input_uri, score_name = "ranker", config.history, "NDCG@10"
        num_train = num_labelled = 0  # a ranker is not trained further
    else:
        kind, input_uri = "classifier", config.embeddings
        num_train, num_labelled = samples.train.num_rows, samples.num_labelled
        score_name = "accuracy" if num_labelled else ""
    return CompressionRecord(
        kind=kind,
        command=command_line("compress", config),
        model_uri=config.model,
        input_uri=input_uri or "",
        output_uri=Folder(config.output).uri,
        settings=_settings(config),
        versions=versions(("torch", "transformers", "safetensors")),
        machine=result.machine,
        started_at=started_at,
        finished_at=time.time(),
        candidates=result.candidates,
        chosen=result.chosen,
        pays_off=result.pays_off,
        verdict=result.verdict,
        score_name=score_name,
        num_train=num_train,
        num_labelled=num_labelled,
        num_validation=samples.validation.num_rows,
    )


def compression_table(record: CompressionRecord, *, report_uri: str = "") -> Group:
    """Return the table of the candidates, the chosen one in bold, and the verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns, rows = compression_rows(record)
    for number, heading in enumerate(columns):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for one, cells in zip(record.candidates, rows, strict=True):
        table.add_row(*cells, style="bold" if one.name == record.chosen else "")
    places = summary_table(
        [("model", Text(f"{record.output_uri}/model", "bold")), ("report", Text(report_uri, "bold"))]
    )
    return Group(table, Text(record.verdict), places)
