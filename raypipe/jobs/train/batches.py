"""Batches: load the samples of one worker, divide them into the batches of an epoch, and convert them to tensors."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import distributed

from raypipe.dataset.read import frame_embeddings
from raypipe.jobs.train.inputs import INDEX, TARGETS, Ints
from raypipe.models.backbones import resolve_dtype
from raypipe.models.classifier import VideoClassifier, VideoClassifierConfig, pad_frames
from raypipe.models.gpt2 import VideoModel

_BATCHES_PER_POOL = 50  # samples of this many batches are sorted by length: little padding, but a random order
Half = npt.NDArray[np.float16]
Precision = Literal["auto", "float32", "bfloat16"]


class Collective:
    """Collective operations of all workers. A method waits until all workers have called it. Properties do not wait."""

    def __init__(self, *, device: torch.device) -> None:
        self.device = device
        is_initialized = distributed.is_initialized()
        self.rank = distributed.get_rank() if is_initialized else 0
        self.size = distributed.get_world_size() if is_initialized else 1

    @property
    def leads(self) -> bool:
        """Whether this worker is the one that writes checkpoints and reports events."""
        return self.rank == 0

    def sum(self, numbers: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the elementwise sum of ``numbers`` over all workers. The shape must be the same on every worker."""
        return self._reduce(numbers, distributed.ReduceOp.SUM)

    def max(self, number: float) -> float:
        """Return the largest of the numbers that the workers pass."""
        return float(self._reduce([number], distributed.ReduceOp.MAX)[0])

    def gather(self, item: Any) -> list[Any]:  # noqa: ANN401 - any object that torch can pickle
        """Return a list with the item of each worker. Every worker gets the whole list."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        distributed.all_gather_object(items, item)
        return items

    def _reduce(self, numbers: npt.ArrayLike, operation: Any) -> npt.NDArray[np.float64]:  # noqa: ANN401 - a ReduceOp
        array = np.asarray(numbers, dtype=np.float64)
        if self.size == 1:
            return array
        tensor = torch.from_numpy(array.copy()).to(self.device)
        distributed.all_reduce(tensor, op=operation)
        reduced: npt.NDArray[np.float64] = tensor.cpu().numpy()
        return reduced


@dataclass(slots=True)
class Window:
    """Samples held in memory. Each has a sample number, its label numbers, and its frames ``[T, D]``."""

    index: list[int] = field(default_factory=list)
    targets: list[Ints] = field(default_factory=list)
    frames: list[Half] = field(default_factory=list)
    size_bytes: int = 0

    def add(self, block: pa.Table) -> None:
        """Add copies of the samples in a block, so that Ray can free the shared memory of the block."""
        frames = [vectors.copy() for vectors in frame_embeddings(block)]
        self.frames += frames
        self.index += block[INDEX].to_pylist()
        self.targets += [np.array(targets, dtype=np.int64) for targets in block[TARGETS].to_pylist()]
        self.size_bytes += sum(vectors.nbytes for vectors in frames)

    def sort(self) -> None:
        """Sort the samples by their number, so that the order in which blocks arrive makes no difference."""
        order = np.argsort(self.index).tolist()
        self.index = [self.index[at] for at in order]
        self.targets = [self.targets[at] for at in order]
        self.frames = [self.frames[at] for at in order]


class WorkerSamples:
    """The samples of one worker, which are read in windows of about ``cache_bytes``.

    If all samples fit into one window, it stays in memory for the next epoch.
    """

    def __init__(self, read: Callable[[], Iterable[pa.Table]], *, cache_bytes: int) -> None:
        self._read = read
        self._cache_bytes = cache_bytes
        self._kept: Window | None = None

    def windows(self) -> Iterator[Window]:
        """Yield every sample once, grouped into windows. Nothing is read if an earlier pass kept its only window."""
        if self._kept is not None:
            yield self._kept
            return
        window, is_first = Window(), True
        for block in self._read():
            if window.size_bytes >= self._cache_bytes:
                window.sort()
                yield window
                window, is_first = Window(), False
            window.add(block)
        window.sort()
        if is_first:
            self._kept = window
        yield window

    def settle(self, workers: Collective) -> None:
        """After a pass, discard the samples in memory unless all workers keep theirs.

        Ray starts a pass only when all workers read. If some workers kept their samples, the others would wait forever.
        """
        if workers.max(self._kept is None):
            self._kept = None

    def moments(self, embedding_dim: int) -> tuple[npt.NDArray[np.float64], int]:
        """Return the sum and the sum of squares of each dimension over all frames, ``[2, D]``, and the frame count."""
        sums, num_frames = np.zeros((2, embedding_dim)), 0
        for window in self.windows():
            for frames in window.frames:
                vectors = frames.astype(np.float64)
                sums += vectors.sum(axis=0), np.square(vectors).sum(axis=0)
                num_frames += len(vectors)
        return sums, num_frames


def epoch_batches(
    index: Sequence[int], lengths: Sequence[int], *, batch_size: int, seed: Sequence[int], seen: npt.NDArray[np.bool_]
) -> list[Ints]:
    """Divide the unseen samples into batches of similar length, in random order.

    ``index`` and ``lengths`` hold the sample number and the number of frames of each sample. A batch is returned as
    positions in these lists. ``seen`` is a mask by sample number. The batches depend only on ``seed`` and the samples,
    and seen samples are removed afterwards, so a resumed epoch continues with the same batches.
    """
    random = np.random.default_rng(list(seed))
    order = random.permutation(len(index))
    batches: list[Ints] = []
    sizes, numbers = np.asarray(lengths), np.asarray(index)
    for start in range(0, len(order), _BATCHES_PER_POOL * batch_size):
        pool = order[start : start + _BATCHES_PER_POOL * batch_size]
        pool = pool[np.argsort(sizes[pool], kind="stable")]
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    shuffled = [batches[at] for at in random.permutation(len(batches))]
    left = (batch[~seen[numbers[batch]]] for batch in shuffled)
    return [batch for batch in left if len(batch)]


@dataclass(frozen=True, slots=True)
class Batch:
    """Videos padded to the same length, as frames ``[B, T, D]`` and a mask ``[B, T]`` of the real frames.

    ``labels`` holds class numbers ``[B]`` or, for multi-label training, zeros and ones ``[B, C]``.
    """

    frames: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor | None


class Feeder:
    """Makes batches for a model, on the model's device.

    The precision ``auto`` means bfloat16 on a GPU that supports it, and float32 otherwise.
    """

    def __init__(self, model: VideoModel, *, device: torch.device, precision: Precision) -> None:
        self._config = cast("VideoClassifierConfig", model.config)
        self._device = device
        # On CPUs, autocast is slower as often as it is faster.
        native = device.type == "cuda" and resolve_dtype("auto", str(device)) == "bfloat16"
        self._bfloat16 = native if precision == "auto" else precision == "bfloat16"
        self.num_labels = len(model.config.label_names) if isinstance(model, VideoClassifier) else 0

    def batch(self, window: Window, positions: Ints) -> Batch:
        """Return a batch of the samples at these positions.

        Without positions, return one video of zeros, because even a worker without samples must take part in each step.
        """
        videos = [window.frames[at] for at in positions]
        targets = [window.targets[at] for at in positions]
        if not videos:
            videos = [np.zeros((1, self._config.embedding_dim), dtype=np.float16)]
            targets = [np.zeros(min(1, self.num_labels), dtype=np.int64)]
        padded = pad_frames(videos, max_frames=self._config.max_frames).to(self._device)
        return Batch(padded.frames, padded.mask, self._labels(targets))

    def _labels(self, targets: list[Ints]) -> torch.Tensor | None:
        if not all(len(target) for target in targets):
            return None
        if self._config.problem_type != "multi_label_classification":
            return torch.from_numpy(np.concatenate(targets)).to(self._device)
        several = np.zeros((len(targets), self.num_labels), dtype=np.float32)
        for row, target in enumerate(targets):
            several[row, target] = 1
        return torch.from_numpy(several).to(self._device)

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context in which torch multiplies matrices in bfloat16, if that is the precision."""
        if not self._bfloat16:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)
