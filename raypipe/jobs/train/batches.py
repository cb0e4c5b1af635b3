"""Batches: load the samples of one worker, and divide them into the batches of an epoch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import distributed

from raypipe.jobs.train.inputs import Ints

_BATCHES_PER_POOL = 50  # samples of this many batches are sorted by length: little padding, but a random order


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


class Window(Protocol):
    """Samples held in memory. Each has a sample number in ``index``."""

    index: list[int]
    size_bytes: int

    @property
    def lengths(self) -> list[int]:
        """The length of each sample. Samples of similar length form a batch."""

    def add(self, block: pa.Table) -> None:
        """Add copies of the samples in a block, so that Ray can free the shared memory of the block."""

    def sort(self) -> None:
        """Sort the samples by their number, so that the order in which blocks arrive makes no difference."""


WindowT = TypeVar("WindowT", bound=Window)


class WorkerSamples(Generic[WindowT]):
    """The samples of one worker, which are read in windows of about ``cache_bytes``.

    If all samples fit into one window, it stays in memory for the next epoch. ``empty`` makes a window without samples.
    """

    def __init__(
        self, read: Callable[[], Iterable[pa.Table]], *, empty: Callable[[], WindowT], cache_bytes: int
    ) -> None:
        self.empty = empty
        self._read = read
        self._cache_bytes = cache_bytes
        self._kept: WindowT | None = None

    def windows(self) -> Iterator[WindowT]:
        """Yield every sample once, grouped into windows. Nothing is read if an earlier pass kept its only window."""
        if self._kept is not None:
            yield self._kept
            return
        window, is_first = self.empty(), True
        for block in self._read():
            if window.size_bytes >= self._cache_bytes:
                window.sort()
                yield window
                window, is_first = self.empty(), False
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


def epoch_batches(
    index: Sequence[int], lengths: Sequence[int], *, batch_size: int, seed: Sequence[int], seen: npt.NDArray[np.bool_]
) -> list[Ints]:
    """Divide the unseen samples into batches of similar length, in random order.

    ``index`` and ``lengths`` hold the number and the length of each sample. A batch is returned as
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
