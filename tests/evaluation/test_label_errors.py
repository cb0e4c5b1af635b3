"""Labels that are probably wrong: confident learning says how many, and the least probable ones are listed."""

import numpy as np
import pytest

from raypipe.evaluation.label_errors import MIN_VIDEOS, checked_labels, find_label_errors


def probabilities_of(truth: np.ndarray, num_labels: int, *, sure: float = 0.9) -> np.ndarray:
    """Return probabilities of a model that knows the truth, and is about as sure of each video."""
    random = np.random.default_rng(1)
    found = np.full((len(truth), num_labels), (1 - sure) / (num_labels - 1))
    found[np.arange(len(truth)), truth] = sure
    found *= 1 + 0.05 * random.random(found.shape)
    return found / found.sum(axis=1, keepdims=True)


def test_changed_labels_are_found_and_the_truth_is_suggested() -> None:
    truth = np.arange(300) % 3
    given = truth.copy()
    given[[7, 50, 203]] = (given[[7, 50, 203]] + 1) % 3
    probabilities = probabilities_of(truth, 3)
    probabilities[given != truth] = np.where(np.eye(3)[truth[given != truth]] > 0, 0.94, 0.03)  # surer than the mean
    doubts = find_label_errors(probabilities, given)
    assert {doubt.row for doubt in doubts} == {7, 50, 203}
    assert all(doubt.label == given[doubt.row] and doubt.suggested == truth[doubt.row] for doubt in doubts)
    assert [doubt.probability for doubt in doubts] == sorted(doubt.probability for doubt in doubts)


def test_right_labels_are_not_listed() -> None:
    truth = np.arange(300) % 3
    assert find_label_errors(probabilities_of(truth, 3), truth) == []


def test_a_model_that_knows_nothing_doubts_nothing_confidently() -> None:
    labels = np.arange(60) % 3
    assert find_label_errors(np.full((60, 3), 1 / 3), labels) == []


def test_a_label_is_doubted_if_it_is_as_improbable_as_for_videos_without_it() -> None:
    """Worked by hand: videos without label 0 have it with a probability of 0.2 on average."""
    own = np.array([0.9] * 8 + [0.1, 0.2, 0.21])  # of label 0
    other = np.array([0.8] * 10)
    probabilities = np.concatenate([np.stack([own, 1 - own], 1), np.stack([1 - other, other], 1)])
    probabilities[9, 0] = 0.19
    given = np.array([0] * 11 + [1] * 10)
    doubts = find_label_errors(probabilities, given)
    assert [(doubt.row, doubt.label, doubt.suggested) for doubt in doubts] == [(8, 0, 1), (9, 0, 1)]


def test_a_label_with_few_videos_is_neither_doubted_nor_suggested() -> None:
    truth = np.concatenate([np.arange(40) % 2, np.full(MIN_VIDEOS - 1, 2)])
    assert checked_labels(truth, 4).tolist() == [True, True, False, False]
    probabilities = probabilities_of(truth, 3)
    probabilities[0] = [0.05, 0.05, 0.9]
    probabilities[-1] = [0.9, 0.05, 0.05]
    assert all(doubt.suggested != 2 and doubt.label != 2 for doubt in find_label_errors(probabilities, truth))


def test_labels_of_videos_with_several_are_missing_or_too_much() -> None:
    random = np.random.default_rng(3)
    truth = (random.random((200, 3)) < 0.4).astype(int)
    given = truth.copy()
    given[5, 1], given[9, 2] = 1 - given[5, 1], 1 - given[9, 2]
    sure = np.where(truth == 1, 0.9, 0.1) + np.where(truth == given, 0.02 * random.random(truth.shape), 0)
    sure[given != truth] = np.where(truth[given != truth] == 1, 0.95, 0.05)
    doubts = find_label_errors(sure, given)
    assert {doubt.row for doubt in doubts} == {5, 9}
    for doubt in doubts:
        column = {5: 1, 9: 2}[doubt.row]
        is_given = given[doubt.row, column] == 1
        assert (doubt.label, doubt.suggested) == ((column, None) if is_given else (None, column))
        assert doubt.probability == pytest.approx(1 - doubt.suggested_probability)
        assert doubt.probability < 0.2
