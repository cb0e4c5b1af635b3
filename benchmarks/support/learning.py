"""Shared code of the training benchmarks: clips, labels, trainings, accuracy, and simpler models to compare with."""

import argparse
import csv
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from rich.console import Console

from raypipe import schema
from raypipe.config import TrainConfig, load_config
from raypipe.dataset.read import read_embeddings
from raypipe.jobs.embed.job import run_embed
from raypipe.jobs.train.batches import Collective, WorkerSamples
from raypipe.jobs.train.checkpoints import Checkpoints
from raypipe.jobs.train.classifier.peers import simple_probabilities
from raypipe.jobs.train.classifier.probing import LabelSpace, PooledVideos, fit_probe, pool_frames
from raypipe.jobs.train.classifier.video_task import FramesWindow
from raypipe.jobs.train.inputs import INDEX, TARGETS, TrainingSamples, find_samples
from raypipe.jobs.train.job import run_train
from raypipe.jobs.train.loop import Loop, LoopSettings
from raypipe.jobs.train.run_spec import NetworkSpec, prepare
from raypipe.jobs.train.worker import load_best_model, make_task
from raypipe.models.classifier import VideoClassifier
from raypipe.records import TrainingRecord
from raypipe.storage import Folder
from support import make_parser
from support.embedding import embed_config

WEIGHTS = Path(__file__).parents[3] / "shared/assets/weights/resnet18_imagenet.safetensors"
MOTIONS = ("right", "left", "down", "up")
_SIZE, _NUM_FRAMES, _FPS = 224, 32, 16
_TRAIN_SEED, _HELD_OUT_SEED = 1, 2
Frames = Mapping[str, npt.NDArray[np.float32]]  # [T, D] by video ID
Labels = Mapping[str, str]  # by video ID


def parse_options(description: str | None, add: Callable[[argparse.ArgumentParser], object]) -> argparse.Namespace:
    """Parse the options of a script that learns from motion clips; ``add`` adds more."""
    parser = make_parser(description, quick="80 clips, 20 held out, one seed: too few to be accurate")
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="keeps clips and embeddings for the next run")
    add(parser)
    options = parser.parse_args()
    if options.quick:
        options.clips, options.held_out, options.seeds = 80, 20, [0]
    return options


def resnet18_weights() -> str:
    """Return the project's ImageNet weights, or ``random`` with a warning if the file does not exist."""
    if WEIGHTS.exists():
        return str(WEIGHTS)
    print(f"{WEIGHTS} does not exist: the ResNet's weights are random, and the figures below mean little.\n")
    return "random"


# --- clips of four classes that differ only in the order of their frames


def embed_motion_clips(folder: Path, options: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """Make and embed clips to train on and clips to hold out; return the labels of both.

    Embeddings are written to ``folder / "emb-train"`` and ``folder / "emb-held"``.
    """
    labels = []
    for name, count, seed in (("train", options.clips, _TRAIN_SEED), ("held", options.held_out, _HELD_OUT_SEED)):
        labels.append(_make_motion_clips(folder / name, count, seed=seed))
        embed(folder / name, folder / f"emb-{name}")
    return labels[0], labels[1]


def _make_motion_clips(folder: Path, count: int, *, seed: int) -> dict[str, str]:
    """Write ``count`` clips of a square that moves right, left, down or up in turn, each on its own background.

    ``left`` is ``right`` played backwards and ``up`` is ``down``: without their order, the frames of a class are drawn
    from the same distribution.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels = {f"{seed:03d}-{number:05d}.mp4": MOTIONS[number % len(MOTIONS)] for number in range(count)}
    for number, (name, label) in enumerate(labels.items()):
        if not (folder / name).exists():
            _write_motion_clip(folder / name, label, np.random.default_rng([seed, number]))
    return labels


def _write_motion_clip(path: Path, label: str, random: np.random.Generator) -> None:
    coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    background = np.kron(coarse, np.ones((_SIZE // 8, _SIZE // 8, 1), dtype=np.uint8))
    side = int(random.integers(40, 72))
    color = random.integers(0, 256, 3, dtype=np.uint8)
    across = int(random.integers(0, _SIZE - side))
    positions = np.linspace(0, _SIZE - side, _NUM_FRAMES).astype(np.int64)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_FPS, options={"preset": "veryfast", "crf": "23", "threads": "1"})
        stream.width = stream.height = _SIZE
        stream.pix_fmt = "yuv420p"
        for along in positions if label in {"right", "down"} else positions[::-1]:
            top, left = (along, across) if label in {"down", "up"} else (across, along)
            image = background.copy()
            image[top : top + side, left : left + side] = color
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


# --- the jobs, and what they read and write


def embed(videos: Path, output: Path) -> None:
    overrides = ("backbone.name=resnet18", f"backbone.weights={resnet18_weights()}", "sampling.num_frames=16")
    run_embed(embed_config(videos, output, *overrides), console=Console(stderr=True))


def read_frames(embeddings: Path) -> Frames:
    """Return the frames of every video that has any."""
    frames = {}
    for rows in read_embeddings(Folder(str(embeddings)), columns=(schema.VIDEO_ID, schema.FRAME_EMBEDDINGS)):
        for video_id, vectors in zip(rows[schema.VIDEO_ID].to_pylist(), rows[schema.FRAME_EMBEDDINGS], strict=True):
            if vectors.is_valid and len(vectors.values):
                flat = vectors.values.flatten().to_numpy(zero_copy_only=False)
                frames[video_id] = flat.astype(np.float32).reshape(len(vectors.values), -1)
    return frames


def choose(truth: Labels, labels: Sequence[str], *, per_label: int, seed: int) -> list[tuple[str, str]]:
    """Choose the clips that are labelled, and return them with their labels."""
    random = np.random.default_rng(seed)
    chosen = []
    for label in labels:
        members = [video_id for video_id, its in truth.items() if its == label]
        chosen += [(members[at], label) for at in random.permutation(len(members))[:per_label]]
    return chosen


def write_labels(path: Path, rows: Iterable[Sequence[str]], *, split: bool = False) -> Path:
    """Write a labels file of (video_id, label) or, with ``split``, of (video_id, label, split)."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([schema.VIDEO_ID, schema.LABEL, *(["split"] if split else [])])
        writer.writerows(rows)
    return path


def train_config(embeddings: Path, labels: Path | None, output: Path, *overrides: str) -> TrainConfig:
    """Return the default configuration of ``raypipe train``, with overrides."""
    values = {"embeddings": str(embeddings), "labels": labels and str(labels), "output": str(output)}
    return load_config(TrainConfig, values=values, overrides=overrides)


def train(config: TrainConfig) -> TrainingRecord:
    """Run ``raypipe train``, and leave Ray running for the next one."""
    return run_train(config, console=Console(stderr=True)).record


def split_of(config: TrainConfig) -> tuple[list[str], list[str]]:
    """Return the ids of the training videos and of the validation videos."""
    samples = find_samples(config)
    return samples.train[schema.VIDEO_ID].to_pylist(), samples.validation[schema.VIDEO_ID].to_pylist()


def classify(frames: Frames, ids: Iterable[str], model: Path) -> Labels:
    """Return the labels that a trained model gives some videos, as ``raypipe classify`` would, but without Ray."""
    ids = list(ids)
    classifier = VideoClassifier.from_pretrained(model / "model")
    best = classifier.classify([frames[video_id] for video_id in ids]).probabilities.argmax(axis=1)
    names = classifier.config.label_names
    return {video_id: names[number] for video_id, number in zip(ids, best.tolist(), strict=True)}


def accuracy(given: Labels, truth: Labels) -> float:
    """Return the fraction of the videos in ``given`` whose label is right."""
    return statistics.fmean(label == truth[video_id] for video_id, label in given.items())


# --- training in this process, without Ray


@dataclass(frozen=True)
class Split:
    """The videos that a classifier learns from and is tested on."""

    train: Sequence[str]
    validation: Sequence[str]
    test: Sequence[str]


def fit(frames: Frames, truth: Labels, split: Split, output: Path, *overrides: str) -> VideoClassifier:
    """Train a classifier as ``raypipe train`` does, by the same loop."""
    names = sorted({truth[video_id] for video_id in split.train})
    config = train_config(output, output / "labels.csv", output, *overrides)
    tables = [_samples(ids, truth, names) for ids in (split.train, split.validation)]
    samples = TrainingSamples(
        train=tables[0],
        validation=tables[1],
        label_names=tuple(names),
        multi_label=False,
        embedding_dim=frames[split.train[0]].shape[1],
        fingerprint="",
        comparable_fingerprints=frozenset(),
        num_unknown=0,
        num_without_frames=0,
        digest="",
    )
    spec = prepare(config, samples)
    network = cast("NetworkSpec", spec.network)
    if spec.has_probe:
        pooled = [pool(frames, truth, ids, names) if ids else None for ids in (split.train, split.validation)]
        network = replace(network, probe=fit_probe(pooled[0], spec.label_space, validation=pooled[1]))
    settings = LoopSettings(
        optimizer=config.optimizer,
        checkpoint=config.checkpoint,
        learning_rate=spec.learning_rate,
        seed=config.seed,
        num_train=len(split.train),
        num_validation=len(split.validation),
        stop_epoch=spec.stop_epoch,
    )
    torch.set_num_threads(1)
    workers = Collective(device=torch.device("cpu"))
    readers = [
        WorkerSamples(partial(blocks_of, frames, table), empty=FramesWindow, cache_bytes=2**33) for table in tables
    ]
    loop = Loop(
        make_task(network, settings, device=workers.device),
        settings,
        train=readers[0],
        validation=readers[1],
        workers=workers,
        checkpoints=Checkpoints(Folder(str(output))),
        notify=lambda _kind, _about: None,
    )
    loop.standardise()
    loop.run()
    load_best_model(loop, workers, refitted=network.probe and network.probe.refitted)
    return cast("VideoClassifier", loop.model)


def _samples(ids: Sequence[str], truth: Labels, names: Sequence[str]) -> pa.Table:
    targets = pa.array([[names.index(truth[video_id])] for video_id in ids], pa.list_(pa.int32()))
    return pa.table({schema.VIDEO_ID: list(ids), TARGETS: targets, INDEX: np.arange(len(ids))})


def blocks_of(frames: Frames, table: pa.Table) -> Iterator[pa.Table]:
    vectors = [frames[video_id].astype(np.float16) for video_id in table[schema.VIDEO_ID].to_pylist()]
    flat = pa.array(np.concatenate(vectors).reshape(-1))
    stops = pa.array(np.cumsum([0, *map(len, vectors)]), pa.int32())
    lists = pa.ListArray.from_arrays(stops, pa.FixedSizeListArray.from_arrays(flat, vectors[0].shape[1]))
    yield table.append_column(schema.FRAME_EMBEDDINGS, lists)


def pool(frames: Frames, truth: Labels, ids: Sequence[str], names: Sequence[str]) -> PooledVideos:
    """Return what simple models read of some videos."""
    labels = torch.tensor([names.index(truth[video_id]) for video_id in ids])
    return pool_frames([frames[video_id] for video_id in ids], labels, max_frames=256, keep_frames=True)


def probabilities(
    frames: Frames, truth: Labels, split: Split, models: Mapping[str, VideoClassifier]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the probabilities ``[V, C]`` that simple models and trained models give the test videos.

    Simple models learn from training and validation videos; their penalty is chosen by cross-validation.
    """
    names = sorted({truth[video_id] for video_id in split.train})
    known, asked = (pool(frames, truth, ids, names) for ids in ([*split.train, *split.validation], split.test))
    videos = [frames[video_id].astype(np.float16) for video_id in split.test]
    trained = {name: model.classify(videos).probabilities for name, model in models.items()}
    return {**simple_probabilities(known, asked, LabelSpace(len(names), multi_label=False)), **trained}
