"""Self-training: which teacher is chosen, what it is sure of, and that its labels are kept."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raypipe.errors import CommitError
from raypipe.jobs.train.classifier.probing import LabelSpace, PooledVideos
from raypipe.jobs.train.classifier.self_training import PSEUDO_LABELS, add_pseudo_labels, teach
from raypipe.jobs.train.inputs import FILE, INDEX, TARGETS, TrainingSamples
from raypipe.storage import Folder
from support.embed_outputs import replace_object

NAMES, DIM = ("down", "up"), 6
SPACE = LabelSpace(len(NAMES), multi_label=False)


def videos(size: int, *, seed: int, statistic: int) -> tuple[PooledVideos, torch.Tensor]:
    """Return videos of two labels that differ in one statistic, and their labels."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 2
    statistics = torch.randn((size, 3, DIM), generator=random)
    statistics[:, statistic] = 0.3 * statistics[:, statistic] + (2.0 * labels - 1)[:, None]
    return PooledVideos(statistics, labels), labels


@pytest.mark.parametrize(("statistic", "name"), [(0, "mean"), (1, "slope")])
def test_the_labelled_videos_choose_what_the_teacher_reads(statistic: int, name: str) -> None:
    known, _ = videos(20, seed=1, statistic=statistic)
    others, truth = videos(60, seed=2, statistic=statistic)
    found = teach(known, replace(others, labels=torch.full((60,), -1)), SPACE)
    assert found.name.endswith(f"on {name}")
    assert found.accuracy > 0.9
    assert (found.probabilities.argmax(axis=1) == truth.numpy()).mean() > 0.9
    assert found.probabilities.sum(axis=1) == pytest.approx(1)


def samples_of(num_train: int, num_unlabelled: int) -> TrainingSamples:
    def table(first: int, size: int, targets: list[list[int]]) -> pa.Table:
        ids = [f"{number:04d}" for number in range(first, first + size)]
        columns = {FILE: ["f"] * size, "video_id": ids, TARGETS: pa.array(targets, pa.list_(pa.int32()))}
        return pa.table({**columns, INDEX: np.arange(size)})

    train = table(100, num_train, [[number % 2] for number in range(num_train)])
    unlabelled = table(0, num_unlabelled, [[]] * num_unlabelled)
    return TrainingSamples(
        train, unlabelled[:0], NAMES, SPACE.multi_label, DIM, "f", frozenset(), 0, 0, "d", unlabelled
    )


def stored(ids: list[str], labels: list[str], scores: list[float]) -> bytes:
    kinds = pa.schema([("video_id", pa.string()), ("label", pa.string()), ("score", pa.float32())])
    table = pa.table([ids, labels, scores], schema=kinds)
    facts = {"teacher": "linear on mean", "accuracy": "0.75"}
    pq.write_table(table.replace_schema_metadata(facts), buffer := io.BytesIO())
    return buffer.getvalue()


def add(output: Folder) -> tuple[TrainingSamples, tuple[int, int, str, float]]:
    """Add the labels that are stored in the output. There are no embeddings from which they could be made."""
    samples, found = add_pseudo_labels(
        samples_of(4, 3), output, embeddings_uri="", space=SPACE, max_frames=16, min_probability=0.8
    )
    return samples, (found.num_unlabelled, found.num_given, found.teacher, found.accuracy)


def test_only_labels_that_the_teacher_is_sure_of_are_learned(folder: Folder) -> None:
    assert folder.put_new(PSEUDO_LABELS, stored(["0000", "0001", "0002"], ["up", "down", "up"], [0.9, 0.7, 0.8]))
    samples, found = add(folder)
    assert found == (3, 2, "linear on mean", 0.75)
    rows = [(row["video_id"], row[TARGETS]) for row in samples.train.to_pylist()]
    assert rows == [("0000", [1]), ("0002", [1]), ("0100", [0]), ("0101", [1]), ("0102", [0]), ("0103", [1])]
    assert samples.train[INDEX].to_pylist() == list(range(6))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        stored(["0000", "0001"], ["up", "down"], [0.9, 0.7]),
        stored(["0000", "0001", "0003"], ["up", "down", "up"], [0.9, 0.7, 0.8]),
        stored(["0000", "0001", "0002"], ["up", "down", "left"], [0.9, 0.7, 0.8]),
    ],
)
def test_labels_of_another_training_are_refused(tmp_path: Path, data: bytes) -> None:
    output = Folder(str(tmp_path))
    assert output.put_new(PSEUDO_LABELS, b"?")
    replace_object(output, PSEUDO_LABELS, data)
    with pytest.raises(CommitError) as caught:
        add(output)
    assert caught.value.key == output.child(PSEUDO_LABELS)
