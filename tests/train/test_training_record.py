"""The record of a training says how good its model is, label by label, and which videos it gets most wrong."""

from pathlib import Path

import numpy as np
import pytest

from raypipe.jobs.train.events import with_evaluation
from raypipe.jobs.train.inputs import TARGETS, find_samples
from raypipe.jobs.train.run_spec import RunSpec, prepare
from raypipe.records import TrainingRecord
from raypipe.storage import Folder
from support.train_runs import LABELS, embed_all, train_config, video_ids

RECORD = TrainingRecord(objective="classify", outcome="finished", started_at=0.0)


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    embeddings = embed_all(Folder(str(tmp_path / "embeddings")), video_ids(32))
    config = train_config(embeddings, Folder(str(tmp_path / "model")))
    return prepare(config, find_samples(config))


def test_predictions_of_several_workers_are_one_evaluation(spec: RunSpec) -> None:
    videos, targets = spec.samples.validation, spec.samples.validation[TARGETS].to_pylist()
    count = videos.num_rows
    assert count == 8
    probabilities = np.full((count, len(LABELS)), 0.1, np.float32)
    for row, (target,) in enumerate(targets):
        probabilities[row, target] = 0.7
    (first,), (second,) = targets[0], targets[5]
    probabilities[0, (first + 1) % 4] = 0.8
    probabilities[5, (second + 2) % 4] = 0.9
    shares = ([6, 5, 7, 4], [0, 1, 2, 3])  # in any order
    parts = [
        {"index": share, "targets": [np.array(targets[at]) for at in share], "probabilities": probabilities[share]}
        for share in shares
    ]
    record = with_evaluation(RECORD, spec, parts)
    assert record.confusion is not None
    confusion = np.array(record.confusion)
    assert confusion.sum(axis=1).tolist() == [2] * 4  # each label's videos
    assert (confusion.trace(), confusion[first, (first + 1) % 4], confusion[second, (second + 2) % 4]) == (6, 1, 1)
    for at, metrics in enumerate(record.classes):
        right, predicted = confusion[at, at], confusion[:, at].sum()
        assert (metrics.label, metrics.support, metrics.predicted) == (LABELS[at], 2, predicted)
        assert (metrics.recall, metrics.precision) == (right / 2, pytest.approx(right / max(predicted, 1)))
        assert metrics.f1 == pytest.approx(2 * right / (2 + predicted))
    ids = videos["video_id"].to_pylist()
    assert [(one.video_id, one.label, one.predicted) for one in record.mistakes] == [
        (ids[5], LABELS[second], LABELS[(second + 2) % 4]),
        (ids[0], LABELS[first], LABELS[(first + 1) % 4]),
    ]
    assert [(one.score, one.label_score) for one in record.mistakes] == [
        (pytest.approx(0.9), pytest.approx(0.7)),
        (pytest.approx(0.8), pytest.approx(0.7)),
    ]
    assert all(one.thumbnail for one in record.mistakes)


def test_without_predictions_a_record_stays_as_it_is(spec: RunSpec) -> None:
    assert with_evaluation(RECORD, spec, None) is RECORD
    assert with_evaluation(RECORD, spec, []) is RECORD
