"""The inputs of compress: the model, and the videos or histories that it is measured on and learns from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from raypipe.config import CompressConfig, RankerConfig, TrainConfig
from raypipe.errors import ConfigError
from raypipe.jobs.train.classifier.probing import PROBE, read_probe
from raypipe.jobs.train.inputs import FILE, INDEX, TARGETS, TrainingSamples, find_samples, ids_in_test, read_labels
from raypipe.jobs.train.ranker.histories import HistorySamples, find_histories
from raypipe.models.classifier import VideoClassifierConfig
from raypipe.models.classifier_files import build_classifier, check_embeddings, read_config
from raypipe.models.model_files import ModelFiles
from raypipe.models.ranker_files import RankerFiles
from raypipe.schema import LABEL, VIDEO_ID
from raypipe.storage import Folder

_MIN_VIDEOS, _MAX_VALIDATION_VIDEOS = 2, 2_000  # for an interval; held in memory


@dataclass(frozen=True, slots=True)
class DistillVideos:
    """The videos of a compression, with the columns of ``TrainingSamples``. Videos without a label have no targets."""

    train: pa.Table
    validation: pa.Table
    num_labelled: int  # of both tables; 0 if there are no labels


def unseen_probe(model: Folder, files: ModelFiles) -> Mapping[str, torch.Tensor] | None:
    """Return the weights of the probe that its training fitted to the training videos alone.

    With few videos, ``train`` fits the probe again to training and validation videos at the end, so that the accuracy
    on these validation videos would mean little. Return None if this was not so, or if only the model folder was given.

    Raises:
        CommitError: the stored probe cannot be read.
    """
    if read_config(files).probe is None or not model.exists(PROBE):
        return None
    probe = read_probe(model)
    stored = build_classifier(files).probe.state_dict()
    is_refitted = probe.refitted is not None and all(
        torch.equal(stored[name], tensor) for name, tensor in probe.refitted.items()
    )
    return probe.weights if is_refitted else None


def find_videos(config: CompressConfig, files: ModelFiles) -> DistillVideos:
    """Return all videos with frames, except those of the split ``test``, with the split that ``train`` makes.

    Without labels, a random sample is held out for validation. More than ``distill.max_videos`` videos to learn from
    are thinned evenly.

    Raises:
        ConfigError: the labels cannot be read, do not fit the model or match no video.
        FingerprintError: the model was trained on embeddings with other settings.
        JobError: the embeddings are not sealed.
    """
    learned = read_config(files)
    if config.labels is None and config.labels_from is None:
        whole = find_samples(_train_config(config, learned))
        _check(files, whole)
        return _videos(config, whole.train, whole.validation, num_labelled=0)
    labelled = find_samples(_train_config(config, learned, labels=config.labels, labels_from=config.labels_from))
    _check(files, labelled)
    numbers = _label_numbers(learned, labelled)
    train, validation = (_numbered_as(table, numbers) for table in (labelled.train, labelled.validation))
    num_labelled = train.num_rows + validation.num_rows
    if config.labels is not None:  # all others are unlabelled; with labels_from, no others have frames
        every = find_samples(_train_config(config, learned, fraction=0.0)).train
        in_test = ids_in_test(read_labels(config.labels, split_column=config.data.split_column))
        known = pa.chunked_array([*train[VIDEO_ID].chunks, *validation[VIDEO_ID].chunks, in_test], pa.string())
        others = every.filter(pc.invert(pc.is_in(every[VIDEO_ID], value_set=known.combine_chunks())))
        train = pa.concat_tables([train, others.select(train.column_names)])
    return _videos(config, train, validation, num_labelled=num_labelled)


def _check(files: ModelFiles, samples: TrainingSamples) -> None:
    check_embeddings(files, samples.fingerprint, samples.embedding_dim, comparable=samples.comparable_fingerprints)


def _train_config(
    config: CompressConfig,
    learned: VideoClassifierConfig,
    *,
    labels: str | None = None,
    labels_from: str | None = None,
    fraction: float | None = None,
) -> TrainConfig:
    """Return the configuration of a training on the same videos. Without labels, its objective is masked_frame."""
    data = config.data if fraction is None else config.data.model_copy(update={"validation_fraction": fraction})
    has_labels = labels is not None or labels_from is not None
    tree = {
        "embeddings": config.embeddings,
        "output": config.output,
        "labels": labels,
        "labels_from": labels_from,
        "objective": "classify" if has_labels else "masked_frame",
        "problem_type": ("multi_label" if learned.multi_label else "single_label") if has_labels else "auto",
        "data": data.model_dump(),
        "seed": config.seed,
    }
    return TrainConfig.model_validate(tree)


def _label_numbers(learned: VideoClassifierConfig, labelled: TrainingSamples) -> list[int]:
    """Return the model's number of each label.

    Raises:
        ConfigError: the model does not know a label.
    """
    names = learned.label_names
    for name in labelled.label_names:
        if name not in names:
            msg = f"The model does not know the label {name!r}."
            raise ConfigError(msg, key=LABEL, value=name, choices=names, remedy="Give the labels of its training.")
    return [names.index(name) for name in labelled.label_names]


def _numbered_as(table: pa.Table, numbers: list[int]) -> pa.Table:
    """Return the table with other label numbers: ``numbers[n]`` instead of n."""
    targets = [[numbers[number] for number in given] for given in table[TARGETS].to_pylist()]
    column = pa.array(targets, pa.list_(pa.int32()))
    return table.set_column(table.column_names.index(TARGETS), TARGETS, column)


def _videos(config: CompressConfig, train: pa.Table, validation: pa.Table, *, num_labelled: int) -> DistillVideos:
    if validation.num_rows < _MIN_VIDEOS or not train.num_rows:
        msg = f"{validation.num_rows} videos are left for validation, and {train.num_rows} to learn from."
        remedy = "Give more videos, or another data.validation_fraction."
        raise ConfigError(msg, key="data.validation_fraction", value=config.data.validation_fraction, remedy=remedy)
    kept = _thinned(train, config.distill.max_videos), _thinned(validation, _MAX_VALIDATION_VIDEOS)
    return DistillVideos(*kept, num_labelled)


def _thinned(table: pa.Table, most: int) -> pa.Table:
    """Return evenly chosen rows, numbered from 0, as the column ``index`` says."""
    some = table.take(pa.array(np.linspace(0, table.num_rows - 1, min(most, table.num_rows)).round().astype(np.int64)))
    numbers = pa.array(np.arange(some.num_rows))
    return some.select([FILE, VIDEO_ID, TARGETS]).append_column(INDEX, numbers)


def find_users(config: CompressConfig, files: RankerFiles) -> HistorySamples:
    """Return the histories of the ranker's training, with the same users and videos for validation.

    Raises:
        ConfigError: the history cannot be used.
        IndexVersionError: the index does not have the version that the ranker was trained on.
    """
    facts = files.facts
    ranker = RankerConfig(
        holdout=facts["holdout"],
        cut=facts["cut"] if facts["holdout"] == "time" else None,
        history_ordered=config.history_ordered,
        index_version=facts["index_version"],
        max_events=files.config["max_events"],
    )
    tree: dict[str, Any] = {
        "objective": "next_video",
        "index": config.index,
        "history": config.history,
        "output": config.output,
    }
    tree |= {"cache": config.cache, "ranker": ranker.model_dump(), "seed": config.seed}
    found = find_histories(TrainConfig.model_validate(tree))
    samples = found if found.selection is None else found.selection
    if samples.validation.num_rows < _MIN_VIDEOS:
        msg = f"{config.history} has {samples.validation.num_rows} users for validation."
        raise ConfigError(msg, key="history", value=config.history, remedy="Give the history of the training.")
    return samples
