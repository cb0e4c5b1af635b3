"""Which labels a video has: a file that says so, or the folder that the video lies in."""

import logging
from collections import defaultdict

import pyarrow as pa
import pyarrow.compute as pc

from raypipe import schema
from raypipe.errors import ConfigError
from raypipe.tables import empty_rows, read_text_columns, table_place

_logger = logging.getLogger(__name__)
SPLIT = "split"
SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}


def read_labels(uri: str, *, split_column: str) -> pa.Table:
    """Read ``video_id``, ``label`` and, where the file has that column, ``split``; several rows a video are allowed.

    ``split`` comes out as ``train``, ``validation`` or ``test``. A row that says the same twice counts once.

    Raises:
        ConfigError: the file cannot be read, lacks a column or a value, or names an unknown split, or two of a video.
    """
    folder, name = table_place(uri, what="labels")
    wanted = (schema.VIDEO_ID, schema.LABEL)
    table = read_text_columns(folder, name, (*wanted, split_column), required=wanted, what="labels")
    for column in table.column_names:
        if lacking := empty_rows(table[column]):
            msg = f"{uri}: {len(lacking)} rows lack their {column}, the first is row {lacking[0]}."
            raise ConfigError(msg, key=column, remedy=f"Every row needs a {' and a '.join(table.column_names)}.")
    if not table.num_rows:
        msg = f"{uri} has no rows."
        raise ConfigError(msg, key=uri, remedy="Give a row for each video and label.")
    if split_column in table.column_names:
        table = table.rename_columns([*wanted, SPLIT])
        table = table.set_column(2, SPLIT, _splits(table[SPLIT], uri, name=split_column))
        splits = table.group_by(schema.VIDEO_ID).aggregate([(SPLIT, "count_distinct")])
        several = splits.filter(pc.greater(splits[f"{SPLIT}_count_distinct"], 1))[schema.VIDEO_ID]
        if len(several):
            video_id = several[0].as_py()
            msg = f"{uri}: {video_id!r} is in several splits."
            raise ConfigError(msg, key=schema.VIDEO_ID, value=video_id, remedy="Give each video one split.")
    _warn_of_near_duplicates(uri, table[schema.LABEL].unique().to_pylist())
    return table.group_by(table.column_names, use_threads=False).aggregate([])


def _warn_of_near_duplicates(uri: str, labels: list[str]) -> None:
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        spellings[" ".join(label.split()).casefold()].append(label)
    for group in spellings.values():
        if len(group) > 1:
            names = ", ".join(map(repr, group))
            _logger.warning("%s: the labels %s differ only in case or spaces, and count as different.", uri, names)


def _splits(column: pa.ChunkedArray, uri: str, *, name: str) -> pa.Array:
    known = pc.index_in(column, pa.array(list(SPLITS)))
    if known.null_count:
        unknown = column.filter(pc.is_null(known))[0].as_py()
        msg = f"{uri}: unknown split {unknown!r}."
        raise ConfigError(msg, key=name, value=unknown, choices=dict.fromkeys(SPLITS.values()))
    return pa.array(list(SPLITS.values())).take(known.combine_chunks() if hasattr(known, "combine_chunks") else known)


def folder_labels(video_ids: pa.ChunkedArray) -> pa.Table:
    """The parent folder of each ``video_id`` as its label, as in UCF101 and Kinetics.

    Raises:
        ConfigError: a video lies in no folder.
    """
    labels = [parent.rpartition("/")[2] for parent, _, _ in (id_.rpartition("/") for id_ in video_ids.to_pylist())]
    if "" in labels:
        video_id = video_ids[labels.index("")].as_py()
        msg = f"labels_from=folder: {video_id!r} is not in a folder that could be its label."
        raise ConfigError(msg, key="labels_from", value=video_id, remedy="Give --labels FILE.")
    return pa.table({schema.VIDEO_ID: video_ids, schema.LABEL: pa.array(labels, pa.string())})
