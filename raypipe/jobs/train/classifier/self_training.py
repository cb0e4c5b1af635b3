"""Self-training: a teacher labels videos that have no label, and the classifier also learns the labels it is sure of.

The teacher is label spreading or a linear model, on some of the statistics of a video. The labelled videos choose it.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from raypipe import schema
from raypipe.errors import CommitError
from raypipe.evaluation.calibration import fit_temperature, log_losses
from raypipe.jobs.train.classifier.probing import STATISTICS, LabelSpace, PooledVideos, pool_videos
from raypipe.jobs.train.inputs import TARGETS, TrainingSamples, numbered
from raypipe.models.label_spreading import neighbor_graph, spread_labels
from raypipe.models.linear_fit import MIN_STD, blocked_folds, fit_linear
from raypipe.records import SelfTraining
from raypipe.storage import Folder
from raypipe.text import one_line

PSEUDO_LABELS = "pseudo_labels.parquet"
_MIN_PROBABILITY = 1e-6
_SCHEMA = pa.schema([(schema.VIDEO_ID, pa.string()), (schema.LABEL, pa.string()), (schema.SCORE, pa.float32())])
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


class Teacher(NamedTuple):
    """A model that labels videos: its name, and its logits for labelled and for unlabelled videos.

    The labels of a labelled video were not given to the teacher that predicts it.
    """

    name: str
    unseen: Floats  # [N, C]
    answers: Floats  # [U, C]


@dataclass(frozen=True, slots=True)
class Teaching:
    """What a teacher says of the unlabelled videos: probabilities ``[U, C]``.

    ``loss`` and ``accuracy`` are those of its answers for labelled videos that it had not seen.
    """

    name: str
    probabilities: Floats
    loss: float
    accuracy: float


def teach(known: PooledVideos, unlabelled: PooledVideos, space: LabelSpace) -> Teaching:
    """Return the answers of the teacher with the lowest loss on labelled videos that it has not seen."""
    truth = space.one_hot(known.labels).bool().numpy()
    return min((_calibrated(teacher, truth) for teacher in _teachers(known, unlabelled, space)), key=lambda it: it.loss)


def _calibrated(teacher: Teacher, truth: Bools) -> Teaching:
    """Return the answers as probabilities, with the temperature that is best for the labelled videos."""
    temperature = fit_temperature(teacher.unseen, truth, multi_label=False)
    loss = float(log_losses(teacher.unseen / temperature, truth, multi_label=False).mean())
    probabilities = torch.from_numpy(teacher.answers / temperature).softmax(dim=1).numpy()
    accuracy = float((teacher.unseen.argmax(axis=1) == truth.argmax(axis=1)).mean())
    return Teaching(teacher.name, probabilities, loss, accuracy)


def _teachers(known: PooledVideos, unlabelled: PooledVideos, space: LabelSpace) -> Iterator[Teacher]:
    """Yield a linear model and label spreading for each choice of statistics."""
    labels, folds, size = known.labels, blocked_folds(known.labels), len(known.labels)
    everyone = torch.cat([labels, torch.full((len(unlabelled.statistics),), -1)])
    for reads, name in STATISTICS.items():
        inputs = torch.cat([known.some_statistics(reads), unlabelled.some_statistics(reads)])
        inputs = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0, correction=0).clamp(min=MIN_STD)
        fit = fit_linear(inputs[:size], space.losses(labels), folds)
        yield Teacher(f"linear on {name}", fit.out_of_fold.numpy(), fit.logits(inputs[size:]).numpy())
        spread = partial(spread_labels, neighbor_graph(inputs), num_labels=space.num_labels)
        unseen = torch.zeros(size, space.num_labels)
        for fold in torch.unique(folds):
            is_hidden = folds == fold
            given = everyone.clone()
            given[:size][is_hidden] = -1
            unseen[is_hidden] = spread(given)[:size][is_hidden]
        answers = spread(everyone)[size:]
        logits = (each.clamp(min=_MIN_PROBABILITY).log().numpy() for each in (unseen, answers))
        yield Teacher(f"label spreading on {name}", *logits)


def add_pseudo_labels(
    samples: TrainingSamples,
    output: Folder,
    *,
    embeddings_uri: str,
    space: LabelSpace,
    max_frames: int,
    min_probability: float,
) -> tuple[TrainingSamples, SelfTraining]:
    """Return the samples with more training videos: those whose label the teacher is sure of.

    What the teacher says of every unlabelled video is stored in the output, so that a training that continues has the
    same labels.

    Raises:
        CommitError: the stored labels cannot be read.
        JobError: embeddings are not finite.
    """
    if not output.exists(PSEUDO_LABELS):
        pool = partial(pool_videos, embeddings_uri=embeddings_uri, space=space, max_frames=max_frames)
        teaching = teach(pool(samples.train), pool(samples.unlabelled), space)
        output.put_new(PSEUDO_LABELS, _to_parquet(samples, teaching))
    given, teacher, accuracy = _read_labels(samples, output)
    is_sure = pc.greater_equal(given[schema.SCORE], min_probability)
    column = samples.unlabelled.column_names.index(TARGETS)
    sure = samples.unlabelled.set_column(column, TARGETS, given[TARGETS]).filter(is_sure)
    train = pa.concat_tables([samples.train, sure]).sort_by(schema.VIDEO_ID)
    return replace(samples, train=numbered(train)), SelfTraining(len(is_sure), sure.num_rows, teacher, accuracy)


def _read_labels(samples: TrainingSamples, output: Folder) -> tuple[pa.Table, str, float]:
    """Return the stored probabilities and targets of the unlabelled videos, and the teacher's name and accuracy."""
    data = output.read(PSEUDO_LABELS)
    try:
        table = pq.read_table(io.BytesIO(data), schema=_SCHEMA)
        facts = pq.read_schema(io.BytesIO(data)).metadata or {}
        teacher, accuracy = facts[b"teacher"].decode(), float(facts[b"accuracy"])
        numbers = pc.index_in(table[schema.LABEL], pa.array(samples.label_names)).combine_chunks()
        if numbers.null_count or table[schema.VIDEO_ID] != samples.unlabelled[schema.VIDEO_ID]:
            raise ValueError("its videos or labels are others")  # noqa: EM101, TRY003, TRY301 - caught below
    except (pa.ArrowException, KeyError, ValueError) as error:
        msg = f"{output.child(PSEUDO_LABELS)} does not hold the labels of this training: {one_line(error)}."
        raise CommitError(msg, key=output.child(PSEUDO_LABELS), remedy="Choose another output.") from None
    stops = pa.array(np.arange(len(numbers) + 1), pa.int32())
    targets = pa.ListArray.from_arrays(stops, numbers.cast(pa.int32()))
    return table.append_column(TARGETS, targets), teacher, accuracy


def _to_parquet(samples: TrainingSamples, teaching: Teaching) -> bytes:
    """Return the content of the file with the label and the probability of every unlabelled video."""
    best = teaching.probabilities.argmax(axis=1)
    labels = pa.array(samples.label_names).take(pa.array(best))
    scores = pa.array(np.take_along_axis(teaching.probabilities, best[:, None], axis=1)[:, 0])
    table = pa.table([samples.unlabelled[schema.VIDEO_ID], labels, scores], schema=_SCHEMA)
    buffer = io.BytesIO()
    facts = {"teacher": teaching.name, "accuracy": repr(teaching.accuracy)}
    pq.write_table(table.replace_schema_metadata(facts), buffer)
    return buffer.getvalue()
