"""One worker's share of the samples, in memory where it fits, and the batches that an epoch makes of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe import schema
from raypipe.jobs.train.samples import INDEX, TARGETS
from raypipe.jobs.train.team import Team

_BATCHES_PER_POOL = 50  # so many are sorted by length together: little is padded, and chance is still chance
Half = npt.NDArray[np.float16]
Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class Window:
    """Samples that are in memory together: of each its number, its label numbers and its frames ``[T, D]``."""

    index: list[int] = field(default_factory=list)
    targets: list[Ints] = field(default_factory=list)
    frames: list[Half] = field(default_factory=list)
    size_bytes: int = 0

    def add(self, block: pa.Table) -> None:
        """Copy a block out of Ray's shared memory."""
        column = block[schema.FRAME_EMBEDDINGS].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0)
        dim = column.type.value_type.list_size
        flat = column.flatten().flatten().to_numpy(zero_copy_only=False)
        vectors = np.array(flat, dtype=np.float16).reshape(-1, dim)
        stops = column.offsets.to_numpy() - column.offsets[0].as_py()
        self.frames += [vectors[start:stop] for start, stop in pairwise(stops)]
        self.index += block[INDEX].to_pylist()
        self.targets += [np.array(targets, dtype=np.int64) for targets in block[TARGETS].to_pylist()]
        self.size_bytes += vectors.nbytes

    def sort(self) -> None:
        """Order the samples by their number, whatever the order in which they came."""
        order = np.argsort(self.index).tolist()
        self.index = [self.index[at] for at in order]
        self.targets = [self.targets[at] for at in order]
        self.frames = [self.frames[at] for at in order]


class Shard:
    """The samples of one worker, window by window: one that is kept where all fit into ``cache_bytes``."""

    def __init__(self, read: Callable[[], Iterable[pa.Table]], *, cache_bytes: int) -> None:
        self._read = read
        self._cache_bytes = cache_bytes
        self._kept: Window | None = None

    def windows(self) -> Iterator[Window]:
        """Yield every sample once; after the first time from memory, where they fit."""
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

    def settle(self, team: Team) -> None:
        """After a pass of all workers: none keeps its samples unless all do, as Ray waits for all before the next."""
        if team.max(self._kept is None):
            self._kept = None

    def moments(self, embedding_dim: int) -> tuple[npt.NDArray[np.float64], int]:
        """The sums of the D numbers over all frames and of their squares ``[2, D]``, and how many frames there are."""
        sums, num_frames = np.zeros((2, embedding_dim)), 0
        for window in self.windows():
            for frames in window.frames:
                vectors = frames.astype(np.float64)
                sums += vectors.sum(axis=0), np.square(vectors).sum(axis=0)
                num_frames += len(vectors)
        return sums, num_frames


def epoch_batches(
    index: Sequence[int],
    lengths: Sequence[int],
    *,
    batch_size: int,
    seed: Sequence[int],
    seen: npt.NDArray[np.bool_],
) -> list[Ints]:
    """Positions in batches: every sample that was not seen in exactly one, those of similar length together.

    The order is a function of ``seed`` and of which samples there are; ``seen``, by sample number, only takes samples
    out of it, so that an epoch that goes on makes the batches that it would have made.
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
