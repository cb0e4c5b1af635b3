"""A training loop alone, without Ray: synthetic samples, and a tiny model that can learn them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raypipe.config import CheckpointConfig, ClassifierConfig, OptimizerConfig
from raypipe.jobs.train.batches import Collective, WorkerSamples
from raypipe.jobs.train.checkpoints import Checkpoints
from raypipe.jobs.train.classifier.probing import LabelSpace, PooledVideos, TrainedProbe, fit_probe
from raypipe.jobs.train.classifier.video_task import FramesWindow, UnseenLogits, VideoTask
from raypipe.jobs.train.inputs import INDEX, TARGETS
from raypipe.jobs.train.loop import Loop, LoopSettings, Notify
from raypipe.jobs.train.run_spec import NetworkSpec, build
from raypipe.models.classifier import VideoClassifier, pad_frames
from raypipe.models.frame_probe import frame_statistics
from raypipe.models.gpt2 import Gpt2, VideoModel
from raypipe.models.pretraining import MaskedFrameModel
from raypipe.schema import FRAME_EMBEDDINGS
from raypipe.storage import Folder
from support.tiny_models import DIM, NAMES, Half, shake, tiny_config

CPU = torch.device("cpu")


def block_of(
    videos: Sequence[Half], *, numbers: Sequence[int] | None = None, targets: Sequence[Sequence[int]] | None = None
) -> pa.Table:
    """Return a block as Ray Data delivers it: ``index``, ``targets`` and ``frame_embeddings``."""
    numbers = range(len(videos)) if numbers is None else numbers
    targets = [[number % len(NAMES)] for number in numbers] if targets is None else targets
    dim = videos[0].shape[1] if len(videos) else DIM
    flat = pa.array(np.concatenate([np.zeros((0, dim), np.float16), *videos]).reshape(-1))
    stops = np.cumsum([0, *(len(video) for video in videos)])
    frames = pa.ListArray.from_arrays(pa.array(stops, pa.int32()), pa.FixedSizeListArray.from_arrays(flat, dim))
    columns = {
        INDEX: pa.array(list(numbers), pa.int64()),
        TARGETS: pa.array(targets, pa.list_(pa.int32())),
        FRAME_EMBEDDINGS: frames,
    }
    return pa.table(columns)


def read_of(
    videos: Sequence[Half], *, numbers: Sequence[int] | None = None, rows: int = 4, unlabelled: bool = False
) -> Callable[[], Iterable[pa.Table]]:
    """Return a reader of the samples with these numbers, in blocks of ``rows`` rows."""
    numbers = range(len(videos)) if numbers is None else numbers
    chosen = [videos[number] for number in numbers]
    targets = [[]] * len(chosen) if unlabelled else None
    block = block_of(chosen, numbers=numbers, targets=targets)
    return lambda: (block.slice(at, rows) for at in range(0, block.num_rows, rows))


def labelled_videos(count: int, *, seed: int = 0, noise: float = 1.0) -> list[Half]:
    """Return videos of 1 to 6 frames whose mean encodes their label, which is their number modulo 3."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((len(NAMES), DIM))
    return [
        (centres[at % len(NAMES)] + noise * random.standard_normal((random.integers(1, 7), DIM))).astype(np.float16)
        for at in range(count)
    ]


def settings_of(
    num_train: int,
    num_validation: int,
    *,
    minutes: float = 1e9,
    keep: int = 100,
    learning_rate: float = 0.01,
    class_weights: Sequence[float] | None = None,
    **optimizer: Any,  # noqa: ANN401 - passed on
) -> LoopSettings:
    """Return the settings of a short training; more are keys of ``OptimizerConfig``."""
    keys = {"epochs": 3, "batch_size": 4, "frame_dropout": 0.0, "early_stop_epochs": 0, **optimizer}
    return LoopSettings(
        optimizer=OptimizerConfig(**keys),
        checkpoint=CheckpointConfig(minutes=minutes, keep=keep),
        learning_rate=learning_rate,
        seed=0,
        num_train=num_train,
        num_validation=num_validation,
        class_weights=class_weights,
    )


def make_model(*, classifies: bool = True, seed: int = 0, **config: Any) -> VideoModel:  # noqa: ANN401 - passed on
    """Return a tiny untrained model, the same for the same seed."""
    torch.manual_seed(seed)
    if not classifies:
        return MaskedFrameModel(tiny_config(**config))
    model = VideoClassifier(tiny_config(**config))
    model.encoder.hidden_frame.requires_grad_(False)  # noqa: FBT003 - as train does
    return model


def pooled(videos: Sequence[Half], labels: Sequence[int]) -> PooledVideos:
    """Return the statistics of videos with one label each."""
    padded = pad_frames(videos, max_frames=16)
    return PooledVideos(frame_statistics(padded.frames, padded.mask), torch.tensor(labels))


def probe_of(videos: Sequence[Half], *, stride: int = 1) -> TrainedProbe:
    """Return a probe that is fitted to every ``stride``-th video. The label of a video is its number modulo 3."""
    chosen = range(0, len(videos), stride)
    space = LabelSpace(len(NAMES), multi_label=False)
    labels = [number % len(NAMES) for number in chosen]
    return fit_probe(pooled([videos[number] for number in chosen], labels), space, stride=stride)


def unseen_of(probe: TrainedProbe) -> UnseenLogits:
    """Return what a probe predicts for videos that it has not seen."""
    return UnseenLogits(probe.out_of_fold, stride=probe.stride, loss=probe.loss)


def probed_model(probe: TrainedProbe, *, seed: int = 0, **config: Any) -> VideoModel:  # noqa: ANN401 - passed on
    """Return an untrained GPT-2 next to a probe, as train builds it."""
    spec = NetworkSpec(tiny_config(**config), ClassifierConfig(), objective="classify", gpt2=Gpt2({}), probe=probe)
    return build(spec, seed=seed)


def make_loop(
    settings: LoopSettings,
    folder: str | Path,
    *,
    train: Sequence[Half],
    validation: Sequence[Half] = (),
    share: Sequence[int] | None = None,
    validation_share: Sequence[int] | None = None,
    model: VideoModel | None = None,
    probe: TrainedProbe | None = None,
    cache_bytes: int = 10**6,
    rows: int = 4,
    notify: Notify = lambda _kind, _about: None,
) -> Loop:
    """Return the loop of one worker that has a share of the samples, or all. With a probe, GPT-2 is added to it."""
    if model is None:
        model = make_model() if probe is None else probed_model(probe)
    unlabelled = isinstance(model, MaskedFrameModel)
    read = [
        read_of(videos, numbers=numbers, rows=rows, unlabelled=unlabelled)
        for videos, numbers in ((train, share), (validation, validation_share))
    ]
    weights = settings.class_weights
    class_weights = None if weights is None else torch.tensor(weights)
    unseen = None if probe is None else unseen_of(probe)
    return Loop(
        VideoTask(model, settings.optimizer, device=CPU, class_weights=class_weights, unseen=unseen),
        settings,
        train=WorkerSamples(read[0], empty=FramesWindow, cache_bytes=cache_bytes),
        validation=WorkerSamples(read[1], empty=FramesWindow, cache_bytes=cache_bytes),
        workers=Collective(device=CPU),
        checkpoints=Checkpoints(Folder(str(folder))),
        notify=notify,
    )


def untimed(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics of the epochs without durations; 0 stands for values that were not measured."""
    timed = {"seconds", "samples_per_second"}
    return [{key: value or 0 for key, value in epoch.items() if key not in timed} for epoch in history]


def copy_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a model's current weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def shaken(model: VideoModel, *, seed: int = 0) -> VideoModel:
    """Return the same model with random values everywhere."""
    shake(model, seed=seed)
    return model
