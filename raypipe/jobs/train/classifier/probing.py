"""The probe of a classifier: fitted to all training videos before GPT-2 learns what the probe gets wrong."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import safetensors.torch
import torch
from safetensors import SafetensorError

from raypipe.dataset.read import frame_embeddings
from raypipe.errors import CommitError, JobError
from raypipe.jobs.train.classifier.video_task import label_tensor
from raypipe.jobs.train.datasets import frames_dataset
from raypipe.jobs.train.inputs import INDEX, TARGETS, TrainingSamples, even_stride, every_nth
from raypipe.models.classifier import pad_frames
from raypipe.models.frame_probe import NUM_STATISTICS, ProbeFeatures, frame_statistics
from raypipe.models.linear_fit import LinearFit, VideoLosses, blocked_folds, fit_linear
from raypipe.runs.actors import data_context
from raypipe.schema import VIDEO_ID
from raypipe.storage import Folder
from raypipe.text import one_line

PROBE = "probe.safetensors"
_MAX_VIDEOS = 200_000  # that a probe is fitted to
_MAX_NUMBERS = 1e9  # of their statistics and logits, which are in the driver's memory
_AT_ONCE, NUM_KEPT = 64, 16
_ROWS_AT_ONCE = 4_096  # videos whose inputs are copied at a time
_MEAN, _ALL = (0,), (0, 1, 2)
STATISTICS: Mapping[tuple[int, ...], str] = {  # what a probe may read, by the numbers of the statistics
    _MEAN: "mean",
    (1,): "slope",
    (1, 2): "slope, std",
    _ALL: "mean, slope, std",
}
_MAX_TRIED_VIDEOS = 5_000  # with more, weights close to zero are learned, and only _MEAN and _ALL are tried
_OUT_OF_FOLD, _FACTS, _REFITTED = "out_of_fold", "facts", "refitted."
_MAX_REFITTED_VIDEOS = 1_000  # with more, the validation videos would change little
_MAX_VALIDATION_VIDEOS = 5_000  # that choose what the probe reads


@dataclass(frozen=True, slots=True)
class PooledVideos:
    """The statistics of N videos over time, and their labels.

    ``labels`` holds class numbers ``[N]``, -1 if there is no label, or, for multi-label training, zeros and ones
    ``[N, C]``.
    """

    statistics: torch.Tensor  # [N, 3, D]
    labels: torch.Tensor
    frames: torch.Tensor | None = None  # [N, 16, D]: evenly chosen frames, if they were asked for

    def inputs(self, features: str) -> torch.Tensor:
        """Return the inputs ``[N, F]`` of a linear model: of a probe, or ``frames``."""
        if features == "frames":
            return cast("torch.Tensor", self.frames).float().flatten(start_dim=1)
        return self.statistics[:, : NUM_STATISTICS[features]].flatten(start_dim=1)

    def some_statistics(self, reads: Sequence[int]) -> torch.Tensor:
        """Return the statistics with these numbers, ``[N, F]``."""
        return self.statistics[:, list(reads)].flatten(start_dim=1)

    @property
    def first_labels(self) -> torch.Tensor:
        """Return one class number per video ``[N]``: of several labels, the first."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(dim=1)


@dataclass(frozen=True, slots=True)
class TrainedProbe:
    """A fitted probe, and what it predicts for training videos that it has not seen.

    ``out_of_fold`` ``[N, C]`` has the logits of the training videos with the numbers 0, ``stride``, 2 ``stride`` and so
    on. The probe was not fitted to the others. ``refitted`` are the weights after a fit to training and validation
    videos, if there are few: they replace the others once the validation videos have chosen the model.
    """

    features: ProbeFeatures
    weights: Mapping[str, torch.Tensor]  # of a FrameProbe
    out_of_fold: torch.Tensor
    loss: float  # the mean loss of out_of_fold
    stride: int
    refitted: Mapping[str, torch.Tensor] | None = None

    def logits(self, videos: PooledVideos) -> torch.Tensor:
        """Return the logits ``[N, C]`` for videos."""
        parts = []
        for start in range(0, len(videos.statistics), _ROWS_AT_ONCE):
            part = PooledVideos(videos.statistics[start : start + _ROWS_AT_ONCE], videos.labels)
            scaled = (part.inputs(self.features) - self.weights["mean"]) / self.weights["std"]
            parts.append(scaled @ self.weights["linear.weight"].T + self.weights["linear.bias"])
        return torch.cat(parts)

    def to_bytes(self) -> bytes:
        """Return the content of the file that holds the probe."""
        facts = torch.tensor([NUM_STATISTICS[self.features], self.loss, self.stride], dtype=torch.float64)
        again = {f"{_REFITTED}{name}": tensor for name, tensor in (self.refitted or {}).items()}
        return safetensors.torch.save({**self.weights, **again, _OUT_OF_FOLD: self.out_of_fold, _FACTS: facts})

    @classmethod
    def from_bytes(cls, data: bytes) -> "TrainedProbe":
        """Read the content of a file. Raises SafetensorError, KeyError or ValueError if it is not that of a probe."""
        tensors = safetensors.torch.load(data)
        out_of_fold, (num_statistics, loss, stride) = tensors.pop(_OUT_OF_FOLD), tensors.pop(_FACTS).tolist()
        features: ProbeFeatures = "mean" if num_statistics == 1 else "mean_slope_std"
        names = [name for name in tensors if name.startswith(_REFITTED)]
        refitted = {name.removeprefix(_REFITTED): tensors.pop(name) for name in names}
        return cls(features, tensors, out_of_fold, loss, int(stride), refitted or None)


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """The labels of a training, and how much each counts."""

    num_labels: int
    multi_label: bool
    class_weights: tuple[float, ...] | None = None

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return probabilities ``[V, C]`` for logits."""
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)

    def one_hot(self, labels: torch.Tensor) -> torch.Tensor:
        """Return zeros and ones ``[V, C]`` for class numbers ``[V]``, or for labels that are zeros and ones already."""
        return labels if labels.ndim > 1 else torch.nn.functional.one_hot(labels, self.num_labels).float()

    def losses(self, labels: torch.Tensor) -> VideoLosses:
        """Return the losses of videos with these labels."""
        weights = None if self.class_weights is None else torch.tensor(self.class_weights)
        return VideoLosses(labels, self.num_labels, class_weights=weights)


def probe_stride(num_videos: int, *, embedding_dim: int, num_labels: int) -> int:
    """Return the stride of the training videos that the probe is fitted to."""
    limit = min(_MAX_VIDEOS, int(_MAX_NUMBERS / (3 * embedding_dim + 2 * num_labels)))
    return even_stride(num_videos, limit)


def find_probe(
    output: Folder, samples: TrainingSamples, *, embeddings_uri: str, space: LabelSpace, max_frames: int
) -> TrainedProbe:
    """Return the probe in the output of a training. If there is none yet, fit it to the training videos, and store it.

    Raises:
        CommitError: the stored probe cannot be read.
        JobError: embeddings are not finite.
    """
    if not output.exists(PROBE):
        sizes = {"embedding_dim": samples.embedding_dim, "num_labels": space.num_labels}
        stride = probe_stride(samples.train.num_rows, **sizes)
        pool = partial(pool_videos, embeddings_uri=embeddings_uri, space=space, max_frames=max_frames)
        train, validation = pool(every_nth(samples.train, stride)), None
        if samples.validation.num_rows:
            few = even_stride(samples.validation.num_rows, _MAX_VALIDATION_VIDEOS)
            validation = pool(every_nth(samples.validation, few))
        output.put_new(PROBE, fit_probe(train, space, validation=validation, stride=stride).to_bytes())
    return read_probe(output)


def read_probe(output: Folder) -> TrainedProbe:
    """Read the probe in the output of a training.

    Raises:
        CommitError: it cannot be read.
    """
    try:
        return TrainedProbe.from_bytes(output.read(PROBE))
    except (SafetensorError, KeyError, ValueError) as error:
        msg = f"{output.child(PROBE)} is not the probe of a training: {one_line(error)}."
        raise CommitError(msg, key=output.child(PROBE), remedy="Choose another output.") from None


def pool_videos(
    samples: pa.Table, *, embeddings_uri: str, space: LabelSpace, max_frames: int, keep_frames: bool = False
) -> PooledVideos:
    """Read the frames of videos in parallel, and return their statistics in the order of the samples.

    Raises:
        JobError: the embeddings of a video are not finite.
    """
    numbers: list[int] = []
    parts: list[PooledVideos] = []
    with data_context():
        dataset = frames_dataset(samples, embeddings_uri=embeddings_uri, num_workers=1, seed=0)
    blocks: Iterable[pa.Table] = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    for block in blocks:
        if not block.num_rows:
            continue
        targets = [np.array(each, dtype=np.int64) for each in block[TARGETS].to_pylist()]
        labels = label_tensor(targets, space.num_labels, multi_label=space.multi_label)
        parts.append(pool_frames(frame_embeddings(block), labels, max_frames=max_frames, keep_frames=keep_frames))
        numbers += block[INDEX].to_pylist()
    order = torch.from_numpy(np.argsort(numbers, kind="stable"))
    kept = [part.frames for part in parts if part.frames is not None]
    pooled = PooledVideos(
        torch.cat([part.statistics for part in parts])[order],
        torch.cat([part.labels for part in parts])[order],
        torch.cat(kept)[order] if kept else None,
    )
    check_finite(pooled, samples)
    return pooled


def pool_frames(
    videos: Sequence[npt.NDArray[Any]], labels: torch.Tensor, *, max_frames: int, keep_frames: bool = False
) -> PooledVideos:
    """Return the statistics of at least one video in memory. A video is ``[T, D]``."""
    statistics = []
    for at in range(0, len(videos), _AT_ONCE):
        padded = pad_frames(videos[at : at + _AT_ONCE], max_frames=max_frames)
        statistics.append(frame_statistics(padded.frames, padded.mask))
    frames = torch.from_numpy(np.stack([some_frames(video) for video in videos])) if keep_frames else None
    return PooledVideos(torch.cat(statistics), labels, frames)


def some_frames(video: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return 16 evenly chosen frames ``[16, D]`` of a video ``[T, D]``. Frames of a shorter one repeat."""
    rows = np.linspace(0, len(video) - 1, NUM_KEPT).round().astype(np.int64)
    return np.asarray(video[rows])


def check_finite(pooled: PooledVideos, samples: pa.Table) -> None:
    """Check the statistics of the samples, in the same order.

    Raises:
        JobError: the embeddings of a video are not finite.
    """
    wrong = (~pooled.statistics.isfinite().flatten(start_dim=1).all(dim=1)).nonzero()[:, 0].tolist()
    if wrong:
        video_id = samples[VIDEO_ID][wrong[0]].as_py()
        msg = f"The embeddings of {len(wrong)} videos are not finite, {video_id!r} first."
        raise JobError(msg, key=VIDEO_ID, value=video_id, remedy="Embed these videos again, or remove their labels.")


def fit_probe(
    train: PooledVideos, space: LabelSpace, *, validation: PooledVideos | None = None, stride: int = 1
) -> TrainedProbe:
    """Fit a probe. It reads the mean alone unless other statistics help by more than a standard error.

    Both are compared by the difference of their losses on the same videos: out of fold, and on validation videos.
    """
    losses, folds = space.losses(train.labels), blocked_folds(train.first_labels)
    tried = tuple(STATISTICS) if len(train.labels) <= _MAX_TRIED_VIDEOS else (_MEAN, _ALL)
    fits = {reads: fit_linear(train.some_statistics(reads), losses, folds) for reads in tried}
    unseen = {reads: _unseen_losses(fit, reads, losses, space, validation) for reads, fit in fits.items()}
    best = min(tried[1:], key=lambda reads: float(unseen[reads].mean()))
    gains = (unseen[_MEAN] - unseen[best]).double()
    reads = best if float(gains.mean()) > standard_error(gains) else _MEAN
    fit, refitted = fits[reads], None
    if validation is not None and len(train.labels) + len(validation.labels) <= _MAX_REFITTED_VIDEOS:
        inputs = torch.cat([train.some_statistics(reads), validation.some_statistics(reads)])
        labels = torch.cat([train.labels, validation.labels])
        first = torch.cat([train.first_labels, validation.first_labels])
        refitted = _weights(fit_linear(inputs, space.losses(labels), blocked_folds(first)), reads)
    loss = float(losses(fit.out_of_fold).mean())
    features: ProbeFeatures = "mean" if reads == _MEAN else "mean_slope_std"
    return TrainedProbe(features, _weights(fit, reads), fit.out_of_fold, loss, stride, refitted)


def _unseen_losses(
    fit: LinearFit, reads: Sequence[int], losses: VideoLosses, space: LabelSpace, validation: PooledVideos | None
) -> torch.Tensor:
    """Return the losses of training videos, out of fold, and of validation videos."""
    out_of_fold = losses(fit.out_of_fold)
    if validation is None:
        return out_of_fold
    return torch.cat([out_of_fold, space.losses(validation.labels)(fit.logits(validation.some_statistics(reads)))])


def standard_error(values: torch.Tensor) -> float:
    """Return the standard error of the mean of values ``[N]``; infinity for fewer than two."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("inf")


def _weights(fit: LinearFit, reads: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return the weights of a FrameProbe. Those of statistics that it does not read are zero."""
    shape = (3, len(fit.mean) // len(reads)) if tuple(reads) != _MEAN else (1, len(fit.mean))
    rows = list(reads)
    mean, std = torch.zeros(shape), torch.ones(shape)
    weight = torch.zeros(len(fit.bias), *shape)
    mean[rows], std[rows] = fit.mean.view(len(rows), -1), fit.std.view(len(rows), -1)
    weight[:, rows] = fit.weight.view(len(fit.bias), len(rows), -1)
    return {"mean": mean.flatten(), "std": std.flatten(), "linear.weight": weight.flatten(1), "linear.bias": fit.bias}
