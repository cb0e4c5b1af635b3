"""What a probe of the labelled videos says about the next videos to label, and about labels that may be wrong."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raypipe.evaluation.label_errors import Doubt, find_label_errors
from raypipe.evaluation.next_labels import choose_next, draw_candidates, uncertainty
from raypipe.jobs.train.classifier.probing import LabelSpace, PooledVideos, TrainedProbe, fit_probe
from raypipe.models.linear_fit import fit_linear, spread_folds

_SHARPNESS = 4  # the power of the uncertainty: with 1, too many videos that the probe is sure of are chosen
_MIN_WEIGHT = 0.01  # of a video that the probe is sure of: if it is sure of all, the videos still count
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NextLabels:
    """The videos to label next, the most useful one first.

    ``rows`` are rows of the unlabelled videos. ``probabilities`` ``[count, C]`` are None if there is no model yet.
    """

    rows: Ints
    num_similar: Ints
    probabilities: Floats | None


def fit_labelled(labelled: PooledVideos | None, space: LabelSpace) -> TrainedProbe | None:
    """Fit the probe that ``raypipe train`` fits. Return None if the labels do not distinguish any two videos."""
    if labelled is None or bool((labelled.labels == labelled.labels[:1]).all()):
        return None
    return fit_probe(labelled, space)


def next_labels(
    probe: TrainedProbe | None,
    labelled: PooledVideos | None,
    unlabelled: PooledVideos,
    space: LabelSpace,
    *,
    count: int,
    seed: int,
) -> NextLabels:
    """Choose the videos to label next: the probe is unsure of them and of many similar ones, and none is labelled yet.

    Without a probe, all videos count the same. Videos are alike if their mean frames are.
    """
    num_videos = len(unlabelled.statistics)
    probabilities, weights = None, np.ones(num_videos, np.float32)
    if probe is not None:
        probabilities = space.probabilities(probe.logits(unlabelled)).numpy()
        unsure = uncertainty(probabilities, multi_label=space.multi_label)
        weights = (_MIN_WEIGHT + unsure**_SHARPNESS).astype(np.float32)
    drawn = draw_candidates(weights, seed=seed)
    counts_all = len(drawn) == num_videos  # otherwise, the draw has taken the weights into account
    candidates = unlabelled.statistics[drawn, 0].numpy()
    known = candidates[:0] if labelled is None else labelled.statistics[:, 0].numpy()
    found = choose_next(candidates, known, weights if counts_all else np.ones(len(drawn)), count=count)
    rows = drawn[found.rows]
    scale = num_videos / max(1, len(drawn))
    num_similar = np.round(found.num_similar * scale).astype(np.int64)
    return NextLabels(rows, num_similar, None if probabilities is None else probabilities[rows])


def label_doubts(probe: TrainedProbe, labelled: PooledVideos, space: LabelSpace) -> list[Doubt]:
    """Return the labels that are probably wrong, by models that were fitted without them."""
    losses, folds = space.losses(labelled.labels), spread_folds(labelled.first_labels)
    fit = fit_linear(labelled.inputs(probe.features), losses, folds)
    return find_label_errors(space.probabilities(fit.out_of_fold).numpy(), labelled.labels.long().numpy())
