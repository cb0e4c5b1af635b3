"""Shared code of the training benchmarks: clips, labels, trainings, accuracy, and simpler models to compare with."""

import argparse
import csv
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy, normalize

from raypipe import schema
from raypipe.config import TrainConfig, load_config
from raypipe.dataset.read import read_embeddings
from raypipe.jobs.embed.job import run_embed
from raypipe.jobs.train.inputs import find_samples
from raypipe.jobs.train.job import run_train
from raypipe.models.classifier import VideoClassifier
from raypipe.records import TrainingRecord
from raypipe.storage import Folder
from support import make_parser
from support.embedding import embed_config

WEIGHTS = Path(__file__).parents[3] / "shared/assets/weights/resnet18_imagenet.safetensors"
MOTIONS = ("right", "left", "down", "up")
_SIZE, _NUM_FRAMES, _FPS = 224, 32, 16
_TRAIN_SEED, _HELD_OUT_SEED = 1, 2
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # factor of half the squared weights, added to the mean loss
_MAX_STEPS = 300
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


# --- simpler models, on the mean of a video's frames


def linear_probe(
    frames: Frames, truth: Labels, *, train: Sequence[str], validation: Sequence[str], test: Sequence[str]
) -> Labels:
    """Return the labels that logistic regression (full-batch L-BFGS) gives to ``test``.

    It learns from ``train``; ``validation`` chooses the penalty, as it chooses a classifier's epoch.
    """
    names = sorted({truth[video_id] for video_id in train})
    fits = {penalty: _fit(frames, truth, train, names, penalty=penalty) for penalty in _PENALTIES}
    expected = _numbers(truth, validation, names)

    def score(penalty: float) -> tuple[float, float]:
        logits = fits[penalty](validation)
        return float((logits.argmax(dim=1) == expected).double().mean()), -float(cross_entropy(logits, expected))

    logits = fits[max(_PENALTIES, key=score)](test)
    return {video_id: names[number] for video_id, number in zip(test, logits.argmax(dim=1), strict=True)}


def nearest_neighbour(frames: Frames, truth: Labels, *, train: Sequence[str], test: Sequence[str]) -> Labels:
    """Return for each video in ``test`` the label of the training video with the highest cosine."""
    known, asked = (normalize(_means(frames, ids), dim=1) for ids in (train, test))
    nearest = (asked @ known.T).argmax(dim=1).tolist()
    return {video_id: truth[train[at]] for video_id, at in zip(test, nearest, strict=True)}


def _fit(
    frames: Frames, truth: Labels, ids: Sequence[str], names: Sequence[str], *, penalty: float
) -> Callable[[Sequence[str]], torch.Tensor]:
    """Fit a linear model to some videos; return a function from other videos to their logits ``[V, C]``."""
    inputs, targets = _means(frames, ids), _numbers(truth, ids, names)
    mean, std = inputs.mean(dim=0), inputs.std(dim=0).clamp(min=1e-4)
    inputs = (inputs - mean) / std
    layer = torch.nn.Linear(inputs.shape[1], len(names), dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=_MAX_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = cross_entropy(layer(inputs), targets) + penalty / 2 * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return lambda others: layer((_means(frames, others) - mean) / std).detach()


def _means(frames: Frames, ids: Sequence[str]) -> torch.Tensor:
    return torch.from_numpy(np.stack([frames[video_id].mean(axis=0, dtype=np.float64) for video_id in ids]))


def _numbers(truth: Labels, ids: Sequence[str], names: Sequence[str]) -> torch.Tensor:
    return torch.tensor([names.index(truth[video_id]) for video_id in ids])
