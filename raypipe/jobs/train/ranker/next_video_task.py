"""The objective next_video: predict each video of a history from the videos before it."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from raypipe.config import OptimizerConfig
from raypipe.jobs.train.batches import Collective, WorkerSamples
from raypipe.jobs.train.inputs import INDEX, Ints
from raypipe.jobs.train.ranker.histories import HISTORY
from raypipe.jobs.train.ranker.rank_scores import RankScores
from raypipe.jobs.train.tasks import autocast
from raypipe.models.next_video import NO_ID, NextVideoModel
from raypipe.search.vectors import Vectors, widen


@dataclass(slots=True)
class HistoriesWindow:
    """Histories held in memory. Each has a sample number and positions of videos, oldest first."""

    index: list[int] = field(default_factory=list)
    histories: list[Ints] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def lengths(self) -> list[int]:
        return [len(history) - 1 for history in self.histories]

    def add(self, block: pa.Table) -> None:
        self.index += block[INDEX].to_pylist()
        for chunk in block[HISTORY].chunks:
            offsets = np.asarray(chunk.offsets)
            flat = np.array(chunk.values.slice(offsets[0], offsets[-1] - offsets[0]))  # a copy
            self.histories += np.split(flat, offsets[1:-1] - offsets[0]) if len(chunk) else []
            self.size_bytes += flat.nbytes

    def sort(self) -> None:
        order = np.argsort(self.index).tolist()
        self.index = [self.index[at] for at in order]
        self.histories = [self.histories[at] for at in order]


@dataclass(frozen=True, slots=True)
class WatchedCatalogue:
    """The videos of an index, as a training sees them.

    Attributes:
        vectors: The content vectors, memory-mapped, ``[N, d]``.
        rows: The row of each video in the ID embedding, or ``NO_ID``, ``[N]``.
        seen: The positions of the videos that occur in the training.
    """

    vectors: Vectors
    rows: npt.NDArray[np.int32]
    seen: Ints

    @classmethod
    def of(cls, vectors: Vectors, *, id_positions: Ints, seen: Ints) -> "WatchedCatalogue":
        """Return a catalogue in which ``id_positions[i]`` has row i + 1 of the ID embedding."""
        rows = np.full(len(vectors), NO_ID, np.int32)
        rows[id_positions] = np.arange(1, len(id_positions) + 1)
        return cls(vectors, rows, seen)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How targets are compared with other videos, and the mean number of targets of a history."""

    num_negatives: int
    full_softmax_below: int
    mean_targets: float


class NextVideoTask:
    """Learns to predict the next video. The seed of a step also draws the videos that its targets are compared with."""

    start_loss: float | None = None

    def __init__(
        self,
        model: NextVideoModel,
        config: OptimizerConfig,
        *,
        catalogue: WatchedCatalogue,
        sampling: Sampling,
        device: torch.device,
    ) -> None:
        self.model: NextVideoModel = model.to(device)  # type: ignore[arg-type]
        self._catalogue = catalogue
        self._sampling = sampling
        self._device = device
        self._bfloat16 = config.precision == "bfloat16"  # a small model: auto is float32

    def standardise(self, samples: WorkerSamples[HistoriesWindow], workers: Collective) -> None:
        """Do nothing: the vectors of an index are standardised already."""

    def batch(self, window: HistoriesWindow, positions: Ints) -> dict[str, Any]:
        """Return the arguments of the model; without positions, of a user who watched one video twice."""
        histories = [window.histories[at] for at in positions] or [np.zeros(2, np.int64)]
        counts = np.array([len(history) - 1 for history in histories])
        mask = np.arange(counts.max()) < counts[:, None]
        history, targets = np.zeros(mask.shape, np.int64), np.zeros(mask.shape, np.int64)
        history[mask] = np.concatenate([videos[:-1] for videos in histories])
        targets[mask] = np.concatenate([videos[1:] for videos in histories])
        negatives = self._negatives(mask.shape)
        videos, numbers = np.unique(
            np.concatenate([history.ravel(), targets.ravel(), negatives.ravel()]), return_inverse=True
        )
        parts = np.split(numbers, [mask.size, 2 * mask.size])
        ids, content = self._inputs(videos)
        log_correction = 0.0 if self._is_bce else math.log(len(self._catalogue.seen) / negatives.size)
        return {
            "ids": ids,
            "content": content,
            "history": self._tensor(parts[0].reshape(mask.shape)),
            "mask": self._tensor(mask.astype(np.int64)),
            "targets": self._tensor(parts[1].reshape(mask.shape)),
            "negatives": self._tensor(parts[2].reshape(negatives.shape)),
            "log_correction": log_correction,
        }

    @property
    def _is_bce(self) -> bool:
        return bool(self.model.config.loss == "bce")

    def _negatives(self, shape: tuple[int, ...]) -> Ints:
        """Draw videos that occur in the training: one for each target for ``bce``, otherwise some for the batch."""
        seen, sampling = self._catalogue.seen, self._sampling
        random = np.random.default_rng(int(torch.randint(2**62, ())))
        if self._is_bce:
            return random.choice(seen, shape)
        if len(seen) < sampling.full_softmax_below or len(seen) <= sampling.num_negatives:
            return seen
        return random.choice(seen, sampling.num_negatives, replace=False, shuffle=False)

    def _inputs(self, videos: Ints | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows in the ID embedding and the content vectors of some videos."""
        rows = self._catalogue.rows[videos].astype(np.int64)
        if self.model.content is None:
            return self._tensor(rows), torch.zeros(len(rows), 0, device=self._device)
        return self._tensor(rows), self._tensor(widen(self._catalogue.vectors[videos]))

    def _tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def losses(self, network: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """Return the loss of each history ``[B]``. Its mean over all histories is the mean over all targets."""
        losses: torch.Tensor = network(**batch).losses
        return losses / self._sampling.mean_targets

    def scores(self) -> RankScores:
        return RankScores(self._compared, num_videos=len(self._catalogue.rows))

    def _compared(self, videos: Ints | slice) -> torch.Tensor:
        return self.model.compared(self.model.vectors(*self._inputs(videos)))

    def score(self, window: HistoriesWindow, positions: Ints, scores: RankScores) -> None:
        """Add the users at these positions. Each history ends with the video to predict."""
        known = [window.histories[at][:-1] for at in positions]
        read = [videos[-self.model.config.max_events :] for videos in known]
        counts = np.array([len(videos) for videos in read])
        mask = np.arange(counts.max()) < counts[:, None]
        videos, numbers = np.unique(np.concatenate(read), return_inverse=True)
        history = np.zeros(mask.shape, np.int64)
        history[mask] = numbers
        with self.autocast():
            vectors = self.model.vectors(*self._inputs(videos))
            states = self.model.states(vectors[self._tensor(history)], self._tensor(mask.astype(np.int64)))
        last = states[torch.arange(len(counts), device=self._device), self._tensor(counts - 1)]
        scores.add(last, known, [int(window.histories[at][-1]) for at in positions])

    def autocast(self) -> AbstractContextManager[None]:
        return autocast(self._device, bfloat16=self._bfloat16)
