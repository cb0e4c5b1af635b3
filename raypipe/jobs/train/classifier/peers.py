"""Simple models to compare a classifier with, on the same training and validation videos."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raypipe.evaluation.classifiers import compare_classifiers
from raypipe.jobs.train.classifier.probing import NUM_KEPT, LabelSpace, PooledVideos, pool_videos
from raypipe.jobs.train.inputs import TrainingSamples, even_stride, every_nth
from raypipe.models.label_spreading import neighbor_graph, spread_labels
from raypipe.models.linear_fit import blocked_folds, fit_linear
from raypipe.records import LABEL_SPREADING, MAJORITY, NEAREST, THIS_MODEL, PeerMetrics

_MIN_VIDEOS, _MAX_VIDEOS = 500, 5_000  # of each split; of more, some are chosen evenly
_MAX_PRODUCTS = 2e9  # of the largest linear model in one step, with more videos than _MIN_VIDEOS
_LINEAR = {"mean": "linear on mean", "mean_slope_std": "linear on mean, slope, std", "frames": "linear on 16 frames"}
Floats = npt.NDArray[np.float32]


def compare_with_peers(
    samples: TrainingSamples,
    predicted: Mapping[str, Floats],
    *,
    embeddings_uri: str,
    space: LabelSpace,
    max_frames: int,
) -> tuple[PeerMetrics, ...]:
    """Return how well the trained model and simpler models classify the validation videos.

    ``predicted`` holds the probabilities ``[V, C]`` of ``THIS_MODEL`` and others for the validation videos.
    """
    pool = partial(pool_videos, embeddings_uri=embeddings_uri, space=space, max_frames=max_frames, keep_frames=True)
    products = NUM_KEPT * samples.embedding_dim * space.num_labels
    limit = int(np.clip(_MAX_PRODUCTS // products, _MIN_VIDEOS, _MAX_VIDEOS))
    sizes = (samples.train.num_rows, samples.validation.num_rows)
    strides = [even_stride(size, limit) for size in sizes]
    found = {name: probabilities[:: strides[1]] for name, probabilities in predicted.items()}
    train, validation = pool(every_nth(samples.train, strides[0])), pool(every_nth(samples.validation, strides[1]))
    if samples.unlabelled.num_rows:
        unlabelled = pool(every_nth(samples.unlabelled, even_stride(samples.unlabelled.num_rows, _MAX_VIDEOS)))
        found[LABEL_SPREADING] = spread_probabilities(train, validation, unlabelled, space)
    return peer_metrics(train, validation, space, found)


def peer_metrics(
    train: PooledVideos, validation: PooledVideos, space: LabelSpace, predicted: Mapping[str, Floats]
) -> tuple[PeerMetrics, ...]:
    """Fit the simple models to ``train``, and return their metrics and those of ``predicted`` on ``validation``."""
    found = {**simple_probabilities(train, validation, space), **predicted}
    truth = space.one_hot(validation.labels).bool().numpy()
    return compare_classifiers(found, truth, main=THIS_MODEL, multi_label=space.multi_label, hard=(NEAREST,))


def simple_probabilities(train: PooledVideos, validation: PooledVideos, space: LabelSpace) -> dict[str, Floats]:
    """Fit the simple models to ``train``, and return their probabilities ``[V, C]`` for ``validation``."""
    losses, folds = space.losses(train.labels), blocked_folds(train.first_labels)
    known = space.one_hot(train.labels)
    found = {
        MAJORITY: known.mean(dim=0).expand(len(validation.labels), -1).numpy(),
        NEAREST: known[_nearest(train.statistics[:, 0], validation.statistics[:, 0])].numpy(),
    }
    for features, name in _LINEAR.items():
        fit = fit_linear(train.inputs(features), losses, folds)
        found[name] = space.probabilities(fit.logits(validation.inputs(features))).numpy()
    return found


def spread_probabilities(
    train: PooledVideos, validation: PooledVideos, unlabelled: PooledVideos, space: LabelSpace
) -> Floats:
    """Return the probabilities ``[V, C]`` that label spreading gives ``validation``, on a graph of the mean frames."""
    means = torch.cat([part.statistics[:, 0] for part in (validation, train, unlabelled)])
    labels = torch.full((len(means),), -1)
    size = len(validation.labels)
    labels[size : size + len(train.labels)] = train.labels
    graph = neighbor_graph(means - means.mean(dim=0))
    return spread_labels(graph, labels, num_labels=space.num_labels)[:size].numpy()


def in_order(parts: Sequence[Mapping[str, Any]]) -> Floats:
    """Return the probabilities ``[V, C]`` of the validation videos in the order of their sample numbers."""
    index = np.concatenate([np.asarray(part["index"], dtype=np.int64) for part in parts])
    probabilities: Floats = np.concatenate([part["probabilities"] for part in parts])
    return probabilities[np.argsort(index, kind="stable")]


def _nearest(known: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Return for each vector in ``asked`` the position of the known vector with the highest cosine."""
    unit = torch.nn.functional.normalize(known, dim=1)
    return (torch.nn.functional.normalize(asked, dim=1) @ unit.T).argmax(dim=1)
