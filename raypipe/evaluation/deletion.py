"""Measure whether the scores of frames name the frames that a prediction depends on: the deletion test.

Frames are removed one after the other, those with the highest scores first. If the scores are right, the probability of
the predicted label falls faster than if random frames are removed (Petsiuk et al. 2018, arXiv:1806.07421).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raypipe.evaluation.ranking_metrics import intervals
from raypipe.records import DeletionCurve

if TYPE_CHECKING:
    from raypipe.models.classifier import Frames, VideoClassifier

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]
Probabilities = Callable[[Sequence[Bools]], Floats]
FRACTIONS = tuple(step / 10 for step in range(10))  # of a video's frames that are removed
MIN_VIDEOS, MAX_VIDEOS, MAX_FRAMES = 10, 200, 32
_NUM_RANDOM_ORDERS = 3
_BATCH_VIDEOS = 64


def deletion_curve(scores: Sequence[Floats], probabilities: Probabilities, *, seed: int = 0) -> DeletionCurve:
    """Compare removing frames by score with removing random frames, for V videos with one score per frame.

    ``probabilities`` takes a mask of the frames to keep for each video, and returns the probability of its predicted
    label, ``[V]``. At least one frame is kept. Frames with equal scores are removed in random order.
    """
    random = np.random.default_rng(seed)

    def removed(orders: Sequence[npt.NDArray[np.integer]]) -> Floats:
        return np.stack([probabilities(_kept(orders, fraction)) for fraction in FRACTIONS[1:]], axis=1)

    by_score = removed([np.lexsort((random.permutation(len(each)), -each)) for each in scores])
    orders = ([random.permutation(len(each)) for each in scores] for _ in range(_NUM_RANDOM_ORDERS))
    at_random = np.mean([removed(order) for order in orders], axis=0)
    whole = probabilities([np.ones(len(each), np.bool_) for each in scores])
    curves = [np.column_stack([whole, each]).astype(np.float64) for each in (by_score, at_random)]
    areas = np.asarray(np.trapezoid(curves[1] - curves[0], FRACTIONS, axis=1))
    means = [tuple(map(float, each.mean(axis=0))) for each in curves]
    area = intervals({"area": areas}, seed=seed)["area"]
    return DeletionCurve(
        fractions=FRACTIONS,
        by_score=means[0],
        at_random=means[1],
        difference=area.value,
        difference_low=area.low,
        difference_high=area.high,
        num_videos=len(scores),
    )


def _kept(orders: Sequence[npt.NDArray[np.integer]], fraction: float) -> list[Bools]:
    """Return a mask for each video that is false for the first frames of its order."""
    masks = [np.ones(len(order), np.bool_) for order in orders]
    for mask, order in zip(masks, orders, strict=True):
        mask[order[: min(round(fraction * len(order)), len(order) - 1)]] = False
    return masks


def measure_deletion(model: "VideoClassifier", videos: Sequence["Frames"]) -> DeletionCurve | None:
    """Measure how well ``frame_scores + order_scores`` of a classifier name the frames that its labels depend on.

    At most ``MAX_VIDEOS`` videos and ``MAX_FRAMES`` frames of each are used, evenly spread. Removed frames are
    masked. Return None if fewer than ``MIN_VIDEOS`` videos have at least two frames.
    """
    import torch  # noqa: PLC0415 - takes seconds

    from raypipe.models.classifier import pad_frames, thin  # noqa: PLC0415 - imports torch

    usable = [video for video in videos if len(video) > 1]
    if len(usable) < MIN_VIDEOS:
        return None
    chosen = [usable[at] for at in np.linspace(0, len(usable) - 1, min(len(usable), MAX_VIDEOS)).round().astype(int)]
    max_frames = min(MAX_FRAMES, model.config.max_frames)
    thinned = sorted((video[thin(len(video), max_frames=max_frames)] for video in chosen), key=len)
    found = model.classify(thinned, frame_scores=True, batch_size=_BATCH_VIDEOS)
    labels = torch.from_numpy(found.probabilities.argmax(axis=1))
    starts = range(0, len(thinned), _BATCH_VIDEOS)
    batches = [pad_frames(thinned[at : at + _BATCH_VIDEOS], max_frames=max_frames).to(model.device) for at in starts]

    @torch.inference_mode()
    def probabilities(kept: Sequence[Bools]) -> Floats:
        rows = []
        for start, batch in zip(starts, batches, strict=True):
            mask = torch.zeros_like(batch.mask, device="cpu")
            for row, each in zip(mask, kept[start : start + _BATCH_VIDEOS], strict=False):
                row[: len(each)] = torch.from_numpy(each)
            rows.append(model.probabilities(model(batch.frames, mask.to(model.device)).logits).cpu())
        best: Floats = torch.cat(rows).gather(1, labels[:, None])[:, 0].numpy()
        return best

    scores = [one + other for one, other in zip(found.frame_scores or (), found.order_scores or (), strict=True)]
    return deletion_curve(scores, probabilities)
