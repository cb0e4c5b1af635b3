"""The inputs of suggest: the videos of sealed embeddings, with labels and without."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe import schema
from raypipe.config import SuggestConfig, TrainConfig
from raypipe.config.train import DataConfig
from raypipe.dataset.read import embedding_dim, embeddings_manifests
from raypipe.errors import ConfigError
from raypipe.jobs.train.inputs import (
    find_labels,
    ids_in_test,
    is_multi_label,
    join_labels,
    numbered,
    read_catalogue,
    usable_labels,
    without_label,
    without_targets,
)
from raypipe.storage import Folder


@dataclass(frozen=True, slots=True)
class SortedVideos:
    """The videos with frames: those with labels, and those without. No video is in the split ``test``.

    Both tables have the columns ``file``, ``video_id``, ``index`` and ``targets``, as samples of a training.
    """

    labelled: pa.Table
    unlabelled: pa.Table
    label_names: tuple[str, ...]
    multi_label: bool
    embedding_dim: int
    max_frames: int  # that a classifier reads of each video
    num_test: int  # videos in the split test
    num_unknown: int  # labelled videos that are not in the embeddings
    num_without_frames: int  # labelled videos that could not be embedded


def sort_videos(config: SuggestConfig) -> SortedVideos:
    """Join the embeddings with the labels.

    Raises:
        JobError: the embeddings are not sealed.
        ConfigError: the labels cannot be read or match no video, or no video has frames.
    """
    output = Folder(config.embeddings)
    manifests = embeddings_manifests(output)
    catalogue, gone = read_catalogue(output, manifests)
    training = _training(config)
    if config.labels_from is not None:  # a video that is in no folder has no label yet
        in_folder = catalogue.filter(pc.match_substring(catalogue[schema.VIDEO_ID], "/"))
        labels = find_labels(training, in_folder, gone)
    elif config.labels is not None:
        labels = find_labels(training, catalogue, gone)
    else:
        labels = pa.table({schema.VIDEO_ID: pa.array([], pa.string()), schema.LABEL: pa.array([], pa.string())})
    free = without_targets(without_label(catalogue, pc.unique(labels[schema.VIDEO_ID])))
    num_test = len(ids_in_test(labels))
    num_unknown = num_without_frames = 0
    if labels.num_rows > 0:
        labels, num_unknown, num_without_frames = usable_labels(training, labels, catalogue)
    found = join_labels(labels if "at" in labels.column_names else _no_positions(labels), catalogue)
    if not found.rows.num_rows and not free.num_rows:
        msg = f"No video in {output.uri} has frames."
        raise ConfigError(msg, key="embeddings", value=output.uri, remedy="Check the statuses with raypipe verify.")
    return SortedVideos(
        labelled=numbered(found.rows.sort_by(schema.VIDEO_ID)),
        unlabelled=numbered(free.sort_by(schema.VIDEO_ID)),
        label_names=found.label_names,
        multi_label=is_multi_label(training, several=found.several),
        embedding_dim=embedding_dim(output, manifests),
        max_frames=training.model.max_frames,
        num_test=num_test,
        num_unknown=num_unknown,
        num_without_frames=num_without_frames,
    )


def _training(config: SuggestConfig) -> TrainConfig:
    """Return the configuration of a training that reads the same labels. Without labels, its labels are not read."""
    data = DataConfig(split_column=config.data.split_column, max_unknown_fraction=config.data.max_unknown_fraction)
    return TrainConfig(
        embeddings=config.embeddings,
        output=config.output,
        labels=config.labels,
        labels_from="folder" if config.labels is None else None,
        problem_type=config.problem_type,
        data=data,
    )


def _no_positions(labels: pa.Table) -> pa.Table:
    return labels.append_column("at", pa.array(np.zeros(0, np.int64)))
