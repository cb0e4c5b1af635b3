"""What a probe of few labels advises, on videos of well separated labels."""

import numpy as np
import pytest
import torch

from raypipe.jobs.suggest.advice import fit_labelled, label_doubts, next_labels
from raypipe.jobs.train.classifier.probing import LabelSpace, PooledVideos

SPACE = LabelSpace(4, multi_label=False)


def videos(count: int, *, seed: int = 0) -> PooledVideos:
    """Return videos of four labels in turn."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    statistics = torch.randn((count, 3, 8), generator=random)
    statistics[:, 0] += 5 * torch.eye(4, 8)[labels]
    return PooledVideos(statistics, labels)


def take(pooled: PooledVideos, rows: list[int]) -> PooledVideos:
    return PooledVideos(pooled.statistics[rows], pooled.labels[rows])


def test_without_labels_every_class_is_among_the_first_videos() -> None:
    pool = videos(60)
    found = next_labels(None, None, pool, LabelSpace(0, multi_label=False), count=8, seed=0)
    assert found.probabilities is None
    assert set(pool.labels[found.rows].tolist()) == {0, 1, 2, 3}
    assert found.num_similar.sum() == 60


def test_labels_that_nobody_has_given_yet_are_found() -> None:
    """Two of four labels are known. The next videos hold the others."""
    pool = videos(60)
    labelled = take(pool, [row for row in range(24) if row % 4 < 2])
    probe = fit_labelled(labelled, SPACE)
    assert probe is not None
    found = next_labels(probe, labelled, take(pool, list(range(24, 60))), SPACE, count=8, seed=0)
    assert {2, 3} <= {(24 + row) % 4 for row in found.rows.tolist()}
    assert found.probabilities is not None
    assert found.probabilities.shape == (8, 4)
    assert np.allclose(found.probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("rows", [[0], [0, 4, 8], []])
def test_labels_that_distinguish_nothing_give_no_probe(rows: list[int]) -> None:
    labelled = take(videos(12), rows) if rows else None
    assert fit_labelled(labelled, SPACE) is None


CHANGED = [5, 12, 30, 51, 52, 57]


def test_changed_labels_are_doubted() -> None:
    truth = videos(60)
    labels = truth.labels.clone()
    labels[CHANGED] = (labels[CHANGED] + 1) % 4
    given = PooledVideos(truth.statistics, labels)
    probe = fit_labelled(given, SPACE)
    assert probe is not None
    doubts = label_doubts(probe, given, SPACE)
    rows = [doubt.row for doubt in doubts]
    assert set(rows[:3]) <= set(CHANGED)
    assert [doubt.suggested for doubt in doubts[:3]] == truth.labels[rows[:3]].tolist()
    assert [doubt.label for doubt in doubts] == labels[rows].tolist()


def test_labels_of_videos_with_several_are_doubted() -> None:
    truth = videos(60)
    labels = torch.nn.functional.one_hot(truth.labels, 4).float()
    labels[CHANGED, 3] = 1 - labels[CHANGED, 3]
    space = LabelSpace(4, multi_label=True)
    given = PooledVideos(truth.statistics, labels)
    probe = fit_labelled(given, space)
    assert probe is not None
    doubts = label_doubts(probe, given, space)
    first = doubts[:3]
    assert {doubt.row for doubt in first} < set(CHANGED)
    assert {(doubt.label, doubt.suggested) for doubt in first} <= {(3, None), (None, 3)}
