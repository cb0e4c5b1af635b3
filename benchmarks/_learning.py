"""What the benchmarks of train share: labels as a file, vectors as arrays, one training, what a model says."""

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from raypipe import schema
from raypipe.config import ClassifyConfig, EmbedConfig, TrainConfig, load_config
from raypipe.dataset.read import read_embeddings, read_rows
from raypipe.jobs.classify.job import run_classify
from raypipe.jobs.embed.job import run_embed
from raypipe.jobs.train.run import run_train
from raypipe.jobs.train.samples import find_samples
from raypipe.models.classifier import VideoClassifier
from raypipe.records import TrainingRecord
from raypipe.storage import Folder

WEIGHTS = Path(__file__).parents[2] / "shared/assets/weights/resnet18_imagenet.safetensors"
Vectors = Mapping[str, npt.NDArray[np.float32]]


def _progress() -> Console:
    """Progress is beside the table, not in it."""
    return Console(stderr=True)


def weights_or_random(weights: str) -> str:
    """The weights, or ``random`` where there is no such file; says so."""
    if weights == "random" or Path(weights).exists():
        return weights
    print(f"{weights} is not there: the ResNet's weights are random, and so are the figures below worth little.\n")
    return "random"


def embed(videos: Path, output: Path, *, weights: str) -> None:
    """``raypipe embed`` with resnet18 and 16 frames; nothing to do where the output holds these videos."""
    overrides = ("backbone.name=resnet18", f"backbone.weights={weights}", "sampling.num_frames=16")
    config = load_config(EmbedConfig, values={"input": str(videos), "output": str(output)}, overrides=overrides)
    run_embed(config, console=_progress())


def read_frames(embeddings: Path) -> Vectors:
    """The frames ``[T, D]`` of every video that has some."""
    frames = {}
    for rows in read_embeddings(Folder(str(embeddings)), columns=(schema.VIDEO_ID, schema.FRAME_EMBEDDINGS)):
        for video_id, vectors in zip(rows[schema.VIDEO_ID].to_pylist(), rows[schema.FRAME_EMBEDDINGS], strict=True):
            if vectors.is_valid and len(vectors.values):
                dim = vectors.values.type.list_size
                flat = vectors.values.flatten().to_numpy(zero_copy_only=False)
                frames[video_id] = flat.astype(np.float32).reshape(-1, dim)
    return frames


def write_labels(path: Path, rows: Iterable[Sequence[str]], *, split: bool = False) -> Path:
    """A labels file of (video_id, label) or, with ``split``, of (video_id, label, split)."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([schema.VIDEO_ID, schema.LABEL, *(["split"] if split else [])])
        writer.writerows(rows)
    return path


def train_config(embeddings: Path, labels: Path | None, output: Path, *overrides: str) -> TrainConfig:
    """The configuration of ``raypipe train``: its defaults but for the overrides."""
    values = {"embeddings": str(embeddings), "labels": labels and str(labels), "output": str(output)}
    return load_config(TrainConfig, values=values, overrides=overrides)


def train(config: TrainConfig) -> TrainingRecord:
    """``raypipe train``, in a Ray that stays for the next one."""
    return run_train(config, console=_progress()).record


def split_of(config: TrainConfig) -> tuple[list[str], list[str]]:
    """Which videos that training learns from, and which it is validated on."""
    samples = find_samples(config)
    return samples.train[schema.VIDEO_ID].to_pylist(), samples.validation[schema.VIDEO_ID].to_pylist()


def classify(embeddings: Path, model: Path, output: Path) -> dict[str, str]:
    """``raypipe classify``: the label of every video."""
    values = {"embeddings": str(embeddings), "model": str(model), "output": str(output)}
    run_classify(load_config(ClassifyConfig, values=values), console=_progress())
    tables = read_rows(Folder(str(output)), columns=(schema.VIDEO_ID, schema.LABEL))
    return {row[schema.VIDEO_ID]: row[schema.LABEL] for table in tables for row in table.to_pylist()}


def labels_by_model(model: Path, frames: Vectors, ids: Sequence[str]) -> dict[str, str]:
    """What a trained model says of some videos, without Ray and without writing anything."""
    classifier = VideoClassifier.from_pretrained(model / "model")
    names = classifier.config.label_names
    best = classifier.classify([frames[video_id] for video_id in ids]).probabilities.argmax(axis=1)
    return {video_id: names[number] for video_id, number in zip(ids, best.tolist(), strict=True)}


def accuracy(given: Mapping[str, str], truth: Mapping[str, str]) -> float:
    """The share of the videos in ``given`` that have this label."""
    return statistics.fmean(label == truth[video_id] for video_id, label in given.items())
