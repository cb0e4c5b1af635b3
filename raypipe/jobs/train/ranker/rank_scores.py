"""Scores of the next video: its rank among all videos that a user has not watched, in blocks of videos."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from raypipe.jobs.train.batches import Collective
from raypipe.jobs.train.inputs import Ints
from raypipe.search.vectors import ROUNDING

TOP = 10
_KEPT = 2 * TOP  # videos of a user: if all of them are at least as high as the target, its mean rank is above TOP
_VIDEOS, _USERS = 8192, 2048  # scores that are made at a time: 64 MiB; torch selects faster from long rows


class RankScores:
    """The state of each user, what the user has watched, and the video to predict.

    ``vectors`` returns the vectors of the videos at some positions, ready to be compared.
    """

    def __init__(self, vectors: Callable[[Ints | slice], torch.Tensor], *, num_videos: int) -> None:
        self._vectors = vectors
        self._num_videos = num_videos
        self._states: list[torch.Tensor] = []
        self._known: list[Ints] = []
        self._targets: list[int] = []
        self._totals = np.zeros(3)  # users, hits, gains
        self._num_listed = 0

    def add(self, states: torch.Tensor, known: Sequence[Ints], targets: Sequence[int]) -> None:
        """Add users: their states ``[B, n_embd]``, the videos that they know, and the videos to predict."""
        self._states.append(states.float())
        self._known += known
        self._targets += targets

    def add_up(self, workers: Collective) -> None:
        """Rank the videos, and add the scores of all workers."""
        ranks, listed = self.rank()
        hit = ranks <= TOP
        self._totals = workers.sum([len(ranks), hit.sum(), (1 / np.log2(1 + ranks))[hit].sum()])
        self._num_listed = len(np.unique(np.concatenate(workers.gather(listed))))

    def rank(self) -> tuple[npt.NDArray[np.float64], Ints]:
        """Return the rank of each user's target, and the videos that are among the first ten of some user.

        Ranks start at 1; those above 10 are infinite. Videos with equal scores share their mean rank.
        """
        if not self._targets:
            return np.zeros(0), np.zeros(0, np.int64)
        states = torch.cat(self._states)
        targets = np.array(self._targets)
        wanted = (states * self._vectors(targets)).sum(dim=1, keepdim=True)
        values, positions = [], []
        for start, stop, users, videos in self._blocks(targets):
            vectors = self._vectors(slice(start, stop))
            for first in range(0, len(targets), _USERS):
                scores = states[first : first + _USERS] @ vectors.T
                some = slice(*np.searchsorted(users, [first, first + _USERS]))
                scores[users[some] - first, videos[some] - start] = -torch.inf
                highest, at = scores.topk(min(_KEPT, stop - start), dim=1, sorted=False)
                values.append(highest)
                positions.append(at + start)
        every = _joined(values, num_users=len(targets))
        best, order = every.topk(min(_KEPT, every.shape[1]), dim=1)
        listed = _joined(positions, num_users=len(targets)).gather(1, order)
        higher, equal = (best > wanted + ROUNDING).sum(dim=1), ((best - wanted).abs() <= ROUNDING).sum(dim=1)
        ranks = (1 + higher + equal / 2).cpu().numpy().astype(np.float64)
        with_target = torch.cat([best, wanted], dim=1).topk(min(TOP, best.shape[1] + 1), dim=1)
        listed = torch.cat([listed, torch.from_numpy(targets)[:, None].to(states.device)], dim=1)
        found = listed.gather(1, with_target.indices)[with_target.values > -torch.inf]
        return np.where(ranks <= TOP, ranks, np.inf), found.unique().cpu().numpy()

    def _blocks(self, targets: Ints) -> Iterator[tuple[int, int, Ints, Ints]]:
        """Yield blocks of videos: their first and last position, and pairs of a user and a video that is not ranked.

        These are the known videos and the targets, whose rank counts the other videos. They are sorted by user.
        """
        users = np.repeat(np.arange(len(targets)), [len(known) + 1 for known in self._known])
        videos = np.concatenate([np.append(known, target) for known, target in zip(self._known, targets, strict=True)])
        order = np.lexsort((users, videos // _VIDEOS))
        users, videos = users[order], videos[order]
        for number, start in enumerate(range(0, self._num_videos, _VIDEOS)):
            some = slice(*np.searchsorted(videos // _VIDEOS, [number, number + 1]))
            yield start, min(start + _VIDEOS, self._num_videos), users[some], videos[some]

    def metrics(self) -> dict[str, float]:
        """Return the scores as keyword arguments of ``EpochMetrics``."""
        num_users, hits, gains = self._totals.tolist()
        users = max(1.0, num_users)
        return {
            "hr_at_10": hits / users,
            "ndcg_at_10": gains / users,
            "coverage_at_10": self._num_listed / self._num_videos,
        }


def _joined(parts: Sequence[torch.Tensor], *, num_users: int) -> torch.Tensor:
    """Join the parts of each block of videos by users, and the blocks by videos: ``[U, …]``."""
    per_block = -(-num_users // _USERS)
    blocks = [torch.cat(list(parts[at : at + per_block])) for at in range(0, len(parts), per_block)]
    return torch.cat(blocks, dim=1)
