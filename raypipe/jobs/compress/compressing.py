"""Make all candidates of a model, measure them, and choose one. A classifier is compressed in a task of Ray."""

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from ray.data import Dataset
from ray.util.queue import Queue

from raypipe.config import CompressConfig
from raypipe.jobs.compress.candidates import Candidate, Limits, choose, measure
from raypipe.jobs.compress.classifier_students import ClassifierStudents, DistillData
from raypipe.jobs.compress.inputs import DistillVideos, unseen_probe
from raypipe.jobs.compress.ranker_students import ranker_candidates
from raypipe.jobs.train.ranker.histories import HistorySamples
from raypipe.models.int8 import has_kernel
from raypipe.models.model_files import ModelFiles
from raypipe.models.ranker_files import RankerFiles
from raypipe.records import CandidateMetrics
from raypipe.storage import Folder
from raypipe.text import format_share


@dataclass(frozen=True, slots=True)
class Compressed:
    """The result of a compression: the metrics of all candidates, and the files of the chosen one."""

    candidates: tuple[CandidateMetrics, ...]
    chosen: str
    pays_off: bool
    verdict: str
    files: Mapping[str, bytes]
    machine: Mapping[str, object]


def compress_classifier(
    config: CompressConfig, files: ModelFiles, videos: DistillVideos, datasets: Sequence[Dataset], events: Queue
) -> Compressed:
    """Compress a classifier. The frames of ``videos`` are in the datasets, first those to learn from."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, validation = (partial(_blocks, dataset) for dataset in datasets)
    has_labels, probe = videos.num_labelled > 0, unseen_probe(Folder(config.model), files)
    data = DistillData(videos.train, videos.validation, train, validation, has_labels=has_labels, probe=probe)

    def notify(kind: str, about: Mapping[str, Any]) -> None:
        if kind == "note":
            events.put((kind, dict(about)))

    students = ClassifierStudents(files, data, config, device=device, notify=notify)
    return _compressed(config, students.make(), score_name="accuracy" if videos.num_labelled else "", device=device)


def _blocks(dataset: Dataset) -> Iterable[pa.Table]:
    blocks: Iterable[pa.Table] = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    return blocks


def compress_ranker(config: CompressConfig, files: RankerFiles, samples: HistorySamples) -> Compressed:
    """Compress a ranker. ``samples`` are the histories of its training."""
    with _one_thread():
        candidates = ranker_candidates(files, samples, config)
    return _compressed(config, candidates, score_name="NDCG@10", device=torch.device("cpu"), is_relative=True)


def _compressed(
    config: CompressConfig,
    candidates: Sequence[Candidate],
    *,
    score_name: str,
    device: torch.device,
    is_relative: bool = False,
) -> Compressed:
    """Measure and choose. If ``is_relative``, the allowed loss is a share of the score of the original model."""
    with _one_thread():
        measured = measure(candidates)
    limits = Limits(config.max_accuracy_loss * (measured[0].score or 0 if is_relative else 1), config.min_speedup)
    chosen = choose(measured, limits)
    about = {
        "measured_on": f"one core of {_processor()}",
        "int8_kernel": has_kernel(),
        "distilled_on": device.type,
    }
    return Compressed(
        measured,
        chosen.name,
        chosen is not measured[0],
        verdict_of(measured, chosen, limits, score_name=score_name),
        next(one.files for one in candidates if one.name == chosen.name),
        about,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processor() -> str:
    place = Path("/proc/cpuinfo")
    lines = place.read_text(encoding="utf-8").splitlines() if place.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs"


def verdict_of(
    measured: Sequence[CandidateMetrics], chosen: CandidateMetrics, limits: Limits, *, score_name: str
) -> str:
    """Return one sentence that says which candidate was chosen, or why compression does not pay off."""
    original, rest = measured[0], measured[1:]
    if not rest:
        what = "its linear layers are int8 already" if original.int8 else "it is a linear probe without GPT-2"
        return f"Compression does not pay off: {what}. The model is unchanged."
    if chosen is not original:
        verb = "loses" if chosen.loss >= 0 else "gains"
        cost = f"{verb} {abs(chosen.loss):.3g} {score_name}" if score_name else f"answers {chosen.loss:.1%} differently"
        bytes_left = chosen.size_bytes / original.size_bytes
        return f"{chosen.name}: {chosen.speedup:.1f} times as fast, {format_share(bytes_left)} of the bytes, {cost}."
    accurate = [one for one in rest if one.loss <= limits.max_loss]
    if not accurate:
        least = min(rest, key=lambda one: one.loss)
        why = f"every candidate loses more than {limits.max_loss:.3g}, {least.name} the least with {least.loss:.3g}"
    else:
        best = max(accurate, key=lambda one: one.speedup)
        why = (
            f"the fastest accurate candidate, {best.name}, is {best.speedup:.2f} times as fast, "
            f"and min_speedup is {limits.min_speedup:g}"
        )
    return f"Compression does not pay off: {why}. The model is unchanged."
