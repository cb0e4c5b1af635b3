"""The inputs of train: the videos of sealed embeddings, joined with their labels and split for validation."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe import schema
from raypipe.config import TrainConfig
from raypipe.dataset.footer import read_parquet
from raypipe.dataset.plan import comparable_fingerprints, data_name, gone_flags
from raypipe.dataset.read import embedding_dim, embeddings_manifests, planned_rows
from raypipe.errors import ConfigError
from raypipe.status import HAS_FRAMES, Status
from raypipe.storage import Folder
from raypipe.tables import empty_rows, read_text_columns, table_place
from raypipe.text import one_line

FILE, INDEX, TARGETS, SPLIT = "file", "index", "targets", "split"
_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
_READS_AT_ONCE = 16
_NAMED = 3
_logger = logging.getLogger(__name__)
_EMPTY = pa.table({name: pa.array([], kind) for name, kind in ((FILE, pa.string()), (schema.VIDEO_ID, pa.string()))})
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TrainingSamples:
    """The videos of a training, split into ``train`` and ``validation``.

    Both tables have the columns ``file``, ``video_id``, ``index`` and ``targets``. ``index`` counts from 0 in each
    table. ``targets`` is the list of a video's label numbers. It is empty if the training has no labels.
    """

    train: pa.Table
    validation: pa.Table
    label_names: tuple[str, ...]
    multi_label: bool
    embedding_dim: int
    fingerprint: str  # the fingerprint of the embeddings
    comparable_fingerprints: frozenset[str]  # fingerprints of the same settings in every row format
    num_unknown: int  # labelled videos that are not in the embeddings
    num_without_frames: int  # labelled videos that could not be embedded
    digest: str  # a hash of the videos, their labels and their split
    # videos without a label, for objective self_train; their targets are empty
    unlabelled: pa.Table = field(default_factory=lambda: without_targets(_EMPTY))


class _Chosen(NamedTuple):
    """The videos that were chosen for a training.

    ``rows`` are rows of the catalogue with two more columns: ``targets``, and ``split``, which is True for validation.
    ``unlabelled`` are rows of the catalogue.
    """

    rows: pa.Table
    num_without_frames: int
    label_names: tuple[str, ...] = ()
    multi_label: bool = False
    num_unknown: int = 0
    unlabelled: pa.Table = _EMPTY


def find_samples(config: TrainConfig) -> TrainingSamples:
    """Choose the videos of a training: join the embeddings with the labels, and hold out videos for validation.

    Raises:
        JobError: the embeddings are not sealed.
        ConfigError: the labels cannot be read, match no video, or cannot be split.
    """
    output = Folder(config.embeddings_uri)
    manifests = embeddings_manifests(output)
    catalogue, gone = read_catalogue(output, manifests)
    chosen = _choose_all(config, catalogue) if config.is_pretraining else _choose_labelled(config, catalogue, gone)
    rows = chosen.rows.sort_by(schema.VIDEO_ID)  # independent of the order of the plans
    digest = hashlib.sha256(repr(chosen.label_names).encode())
    for batch in rows.select([FILE, schema.VIDEO_ID, SPLIT, TARGETS]).to_batches(max_chunksize=65_536):
        digest.update(repr(batch.to_pydict()).encode())
    unlabelled = chosen.unlabelled.sort_by(schema.VIDEO_ID)
    unlabelled = every_nth(unlabelled, even_stride(unlabelled.num_rows, config.self_train.max_videos))
    for batch in unlabelled.select([FILE, schema.VIDEO_ID]).to_batches(max_chunksize=65_536):
        digest.update(repr(batch.to_pydict()).encode())
    return TrainingSamples(
        train=numbered(rows.filter(pc.invert(rows[SPLIT]))),
        validation=numbered(rows.filter(rows[SPLIT])),
        label_names=chosen.label_names,
        multi_label=chosen.multi_label,
        embedding_dim=embedding_dim(output, manifests),
        fingerprint=manifests[-1]["fingerprint"],
        comparable_fingerprints=comparable_fingerprints(manifests[-1]["settings"]),
        num_unknown=chosen.num_unknown,
        num_without_frames=chosen.num_without_frames,
        digest=digest.hexdigest(),
        unlabelled=numbered(without_targets(unlabelled)),
    )


def even_stride(count: int, limit: int) -> int:
    """Return the smallest n for which every n-th of ``count`` items is at most ``limit`` items."""
    return max(1, -(-count // limit))


def every_nth(rows: pa.Table, stride: int) -> pa.Table:
    """Return the rows with the numbers 0, ``stride``, 2 ``stride`` and so on."""
    return rows.take(pa.array(np.arange(0, rows.num_rows, stride)))


def numbered(rows: pa.Table) -> pa.Table:
    """Return the samples of rows: their columns ``file``, ``video_id`` and ``targets``, and their ``index`` from 0."""
    return rows.select([FILE, schema.VIDEO_ID, TARGETS]).append_column(INDEX, pa.array(np.arange(rows.num_rows)))


def _choose_all(config: TrainConfig, catalogue: pa.Table) -> _Chosen:
    """Choose every video with frames, and hold out a random sample for validation. The videos get no labels."""
    rows = catalogue.filter(catalogue[schema.STATUS])
    if not rows.num_rows:
        uri = Folder(config.embeddings_uri).uri
        msg = f"No video in {uri} has frames."
        raise ConfigError(msg, key="embeddings", value=uri, remedy="Check the statuses with raypipe verify.")
    videos = np.arange(rows.num_rows)
    fraction = config.data.validation_fraction if rows.num_rows > 1 else 0.0
    held_out = stratified(videos, np.zeros_like(videos), fraction=fraction, seed=config.seed, names=["video"])
    rows = without_targets(rows).append_column(SPLIT, pa.array(held_out))
    return _Chosen(rows, catalogue.num_rows - rows.num_rows)


def ids_by_file(samples: pa.Table) -> dict[str, list[str]]:
    """Return the ids of the videos in each embeddings file."""
    groups = samples.group_by(FILE).aggregate([(schema.VIDEO_ID, "list")])
    return dict(zip(groups[FILE].to_pylist(), groups[f"{schema.VIDEO_ID}_list"].to_pylist(), strict=True))


def without_targets(rows: pa.Table) -> pa.Table:
    """Return the rows with a column ``targets`` of empty lists."""
    return rows.append_column(TARGETS, pa.array([[]] * rows.num_rows, pa.list_(pa.int32())))


def _choose_labelled(config: TrainConfig, catalogue: pa.Table, gone: pa.Array) -> _Chosen:
    """Choose every video that has frames and a label. Its ``targets`` are the numbers of its labels."""
    every_label = find_labels(config, catalogue, gone)
    labels, num_unknown, num_without_frames = usable_labels(config, every_label, catalogue)
    found = join_labels(labels, catalogue)
    multi_label = is_multi_label(config, several=found.several)
    held_out = _held_out(config, labels, found)
    if not multi_label and len(found.label_names) == 1:
        name = found.label_names[0]
        msg = f"Every video has the label {name!r}, so there is nothing to classify."
        remedy = "Add a second label, or set problem_type=multi_label."
        raise ConfigError(msg, key=schema.LABEL, value=name, remedy=remedy)
    rows = found.rows.append_column(SPLIT, pa.array(held_out))
    chosen = _Chosen(rows, num_without_frames, found.label_names, multi_label, num_unknown)
    if config.objective != "self_train":
        return chosen
    labelled = pc.unique(every_label[schema.VIDEO_ID])
    return chosen._replace(unlabelled=_unlabelled(config, catalogue, labelled, multi_label=multi_label))


def _unlabelled(config: TrainConfig, catalogue: pa.Table, labelled: pa.Array, *, multi_label: bool) -> pa.Table:
    """Return the videos that have frames and no label, not even one that is left out, as in the split ``test``."""
    if multi_label:
        msg = "objective=self_train needs one label per video, and these labels are multi_label."
        raise ConfigError(msg, key="objective", value="self_train", remedy="Choose classify.")
    rows = without_label(catalogue, labelled)
    if not rows.num_rows:
        uri = Folder(config.embeddings_uri).uri
        msg = f"objective=self_train learns from videos without a label, and every video in {uri} has one."
        raise ConfigError(msg, key="objective", value="self_train", remedy="Choose classify, or embed more videos.")
    return rows


def without_label(catalogue: pa.Table, labelled: pa.Array) -> pa.Table:
    """Return the videos of the catalogue that have frames, and whose IDs are not among those with a label."""
    is_labelled = pc.is_in(catalogue[schema.VIDEO_ID], value_set=labelled)
    return catalogue.filter(pc.and_(catalogue[schema.STATUS], pc.invert(is_labelled)))


class LabelledVideos(NamedTuple):
    """The V videos that have labels, and the pairs of a video number (0 to V - 1) and a label number.

    ``rows`` are rows of the catalogue with one more column, ``targets``: the label numbers of the video.
    """

    rows: pa.Table
    label_names: tuple[str, ...]
    videos: Ints
    numbers: Ints

    @property
    def several(self) -> bool:
        """Whether a video has several labels."""
        return bool(len(self.numbers) > self.rows.num_rows)


def join_labels(labels: pa.Table, catalogue: pa.Table) -> LabelledVideos:
    """Return the videos of the catalogue at the positions ``at`` of the labels, each with the numbers of its labels."""
    label_names = tuple(sorted(pc.unique(labels[schema.LABEL]).to_pylist()))
    numbers = pc.index_in(labels[schema.LABEL], pa.array(label_names, pa.string())).to_numpy().astype(np.int64)
    at_unique, videos = np.unique(labels["at"].to_numpy(), return_inverse=True)
    stops = np.cumsum(np.bincount(videos))
    ordered = pa.array(numbers[np.lexsort((numbers, videos))], pa.int32())
    targets = pa.ListArray.from_arrays(pa.array([0, *stops], pa.int32()), ordered)
    rows = catalogue.take(pa.array(at_unique)).append_column(TARGETS, targets)
    return LabelledVideos(rows, label_names, videos, numbers)


def read_catalogue(output: Folder, manifests: list[dict[str, Any]]) -> tuple[pa.Table, pa.Array]:
    """Return a table of all current videos, and separately the ids of the videos that are gone.

    The table has the columns ``file``, ``video_id`` and ``status``. Here ``status`` is a boolean: whether the video has
    frames.
    """
    tables, gone = [], [pa.array([], pa.string())]
    statuses = {manifest["plan"]: manifest["statuses"] for manifest in manifests}
    for number, planned in planned_rows(output, manifests):
        is_gone = pa.array(gone_flags(planned), pa.bool_())
        gone += planned.filter(is_gone)[schema.VIDEO_ID].chunks
        rows = planned.filter(pc.invert(is_gone))
        shards = rows[schema.SHARD].to_numpy()
        names = [data_name(number, shard) for shard in range(int(shards.max(initial=-1)) + 1)]
        files = pa.DictionaryArray.from_arrays(pa.array(shards, pa.int32()), pa.array(names, pa.string()))
        if HAS_FRAMES.issuperset(statuses[number].keys() - {Status.GONE}):
            has_frames = pa.repeat(pa.scalar(value=True), rows.num_rows)
        else:
            present = pa.array(sorted(_with_frames(output, names)), pa.string())
            has_frames = pc.is_in(rows[schema.VIDEO_ID], present)
        columns = {FILE: files.cast(pa.string()), schema.VIDEO_ID: rows[schema.VIDEO_ID], schema.STATUS: has_frames}
        tables.append(pa.table(columns))
    return pa.concat_tables(tables).combine_chunks(), pa.concat_arrays(gone)


def _with_frames(output: Folder, names: list[str]) -> set[str]:
    def read(name: str) -> list[str]:
        rows = read_parquet(output, name, columns=[schema.VIDEO_ID, schema.NUM_FRAMES])
        ids: list[str] = rows.filter(pc.greater(rows[schema.NUM_FRAMES], 0))[schema.VIDEO_ID].to_pylist()
        return ids

    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return {video_id for ids in pool.map(read, names) for video_id in ids}


def find_labels(config: TrainConfig, catalogue: pa.Table, gone: pa.Array) -> pa.Table:
    """Return the labels of a file or of the folders, without the videos that are gone."""
    if config.labels is None:
        is_usable = pc.or_(catalogue[schema.STATUS], pc.match_substring(catalogue[schema.VIDEO_ID], "/"))
        return folder_labels(catalogue[schema.VIDEO_ID].filter(is_usable))  # a README is no video, and has no label
    labels = read_labels(config.labels, split_column=config.data.split_column)
    return labels.filter(pc.invert(pc.is_in(labels[schema.VIDEO_ID], value_set=gone)))


def usable_labels(config: TrainConfig, labels: pa.Table, catalogue: pa.Table) -> tuple[pa.Table, int, int]:
    """Return the labels of videos with frames, the number of unknown labelled videos, and the number without frames.

    The column ``at`` of the labels is the position of the video in the catalogue. Videos in the split ``test`` are left
    out.
    """
    at = pc.index_in(labels[schema.VIDEO_ID], catalogue[schema.VIDEO_ID]).combine_chunks()
    num_unknown = _check_known(config, labels, at)
    labels = labels.append_column("at", at).filter(pc.is_valid(at))
    has_frames = catalogue[schema.STATUS].take(labels["at"])
    num_without_frames = pc.count_distinct(labels[schema.VIDEO_ID].filter(pc.invert(has_frames))).as_py()
    labels = labels.filter(has_frames)
    if SPLIT in labels.column_names:
        labels = labels.filter(pc.not_equal(labels[SPLIT], "test"))
    if not labels.num_rows:
        msg = (
            f"No labelled video of {config.labels or 'the folders'} has embeddings in {Folder(config.embeddings_uri)}."
        )
        raise ConfigError(msg, key="labels", value=config.labels)
    return labels, num_unknown, num_without_frames


def _check_known(config: TrainConfig, labels: pa.Table, at: pa.Array) -> int:
    unknown = pc.unique(labels[schema.VIDEO_ID].filter(pc.is_null(at)))
    num_labelled = pc.count_distinct(labels[schema.VIDEO_ID]).as_py()
    allowed = config.data.max_unknown_fraction
    if len(unknown) > allowed * num_labelled:
        first = ", ".join([*map(repr, unknown[:_NAMED].to_pylist()), *(["…"] if len(unknown) > _NAMED else [])])
        what = f"{len(unknown)} of the {num_labelled} labelled videos are not in {config.embeddings}: {first}."
        msg = f"{what} data.max_unknown_fraction={allowed:g} allows fewer."
        remedy = "A video_id is the key below the input of raypipe embed."
        raise ConfigError(msg, key="data.max_unknown_fraction", value=allowed, remedy=remedy)
    return len(unknown)


def is_multi_label(config: TrainConfig, *, several: bool) -> bool:
    """Return whether the training is multi-label. By default, it is if a video has ``several`` labels.

    Raises:
        ConfigError: a video has several labels, but ``problem_type`` is ``single_label``.
    """
    if several and config.problem_type == "single_label":
        msg = "problem_type=single_label, but a video has several labels."
        remedy = "Choose multi_label, or give each video one label."
        raise ConfigError(msg, key="problem_type", value=config.problem_type, remedy=remedy)
    return several if config.problem_type == "auto" else config.problem_type == "multi_label"


def ids_in_test(labels: pa.Table) -> pa.Array:
    """Return the ids of the videos in the split ``test``."""
    if SPLIT not in labels.column_names:
        return pa.array([], pa.string())
    return pc.unique(labels.filter(pc.equal(labels[SPLIT], "test"))[schema.VIDEO_ID])


def read_labels(uri: str, *, split_column: str) -> pa.Table:
    """Read the columns ``video_id`` and ``label`` of a file and, if it exists, the column that ``split_column`` names.

    A video may have several rows, one per label. Duplicate rows are removed. The split is returned in the column
    ``split``, as ``train``, ``validation`` or ``test``.

    Raises:
        ConfigError: the file cannot be read, lacks a column or a value, or has an unknown split, or a video is in two
            splits.
    """
    wanted = (schema.VIDEO_ID, schema.LABEL)
    place = table_place(uri, what="labels")
    table = read_text_columns(*place, (*wanted, split_column), required=wanted, what="labels")
    for column in table.column_names:
        if lacking := empty_rows(table[column]):
            msg = f"{uri}: {len(lacking)} rows have no {column}, the first is row {lacking[0]}."
            raise ConfigError(msg, key=column, remedy=f"Every row needs a {' and a '.join(table.column_names)}.")
    if not table.num_rows:
        msg = f"{uri} has no rows."
        raise ConfigError(msg, key=uri, remedy="Add a row for each video and label.")
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


def _splits(column: pa.ChunkedArray, uri: str, *, name: str) -> pa.Array:
    known = pc.index_in(column, pa.array(list(_SPLITS)))
    if known.null_count:
        unknown = column.filter(pc.is_null(known))[0].as_py()
        msg = f"{uri}: unknown split {unknown!r}."
        raise ConfigError(msg, key=name, value=unknown, choices=dict.fromkeys(_SPLITS.values()))
    return pa.array(list(_SPLITS.values())).take(known.combine_chunks())


def _warn_of_near_duplicates(uri: str, labels: list[str]) -> None:
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        spellings[one_line(label).casefold()].append(label)
    for group in spellings.values():
        if len(group) > 1:
            names = ", ".join(map(repr, group))
            _logger.warning("%s: the labels %s differ only in case or spaces, and count as different.", uri, names)


def folder_labels(video_ids: pa.ChunkedArray) -> pa.Table:
    """Return the name of each video's parent folder as its label, as in the layout of UCF101 and Kinetics.

    Raises:
        ConfigError: a video is not in a folder.
    """
    labels = [parent.rpartition("/")[2] for parent, _, _ in (id_.rpartition("/") for id_ in video_ids.to_pylist())]
    if "" in labels:
        video_id = video_ids[labels.index("")].as_py()
        msg = f"labels_from=folder: {video_id!r} is not in a folder that could be its label."
        raise ConfigError(msg, key="labels_from", value=video_id, remedy="Give --labels FILE.")
    return pa.table({schema.VIDEO_ID: video_ids, schema.LABEL: pa.array(labels, pa.string())})


def _held_out(config: TrainConfig, labels: pa.Table, found: LabelledVideos) -> Bools:
    """Return a mask ``[V]`` of the videos for validation.

    These are the videos that the split column names or, without such a column, a stratified sample.
    """
    videos = found.videos
    if SPLIT not in labels.column_names:
        fraction, names = config.data.validation_fraction, found.label_names
        return stratified(videos, found.numbers, fraction=fraction, seed=config.seed, names=names)
    held_out = np.zeros(videos.max() + 1, dtype=bool)
    held_out[videos] = pc.equal(labels[SPLIT], "validation").to_numpy()
    if held_out.all():
        msg, key = f"{config.labels}: no video is in the split train.", config.data.split_column
        raise ConfigError(msg, key=key, expected="train", remedy="Assign some videos to train.")
    return held_out


def stratified(videos: Ints, labels: Ints, *, fraction: float, seed: int, names: Sequence[str]) -> Bools:
    """Return a mask ``[V]`` of held-out videos, with about ``fraction`` of the videos of each label.

    ``videos`` and ``labels`` form pairs of a video number (0 to V - 1) and a label number. If every video has one
    label, at least one video of each label is held out, but never all of them.

    If videos have several labels, the labels are processed from the rarest to the most common. Videos that were held
    out for a rarer label count towards the fraction of the next label. The rest is drawn from the videos without a
    rarer label (Sechidis et al. 2011).

    Raises:
        ConfigError: a label has only one video.
    """
    held_out = np.zeros(videos.max() + 1, dtype=bool)
    if not fraction:
        return held_out
    random = np.random.default_rng([seed, 0])
    is_free = np.ones_like(held_out)
    counts = np.bincount(labels)
    members_of = np.split(videos[np.lexsort((videos, labels))], np.cumsum(counts)[:-1])
    for label in np.argsort(counts, kind="stable").tolist():
        members = members_of[label]
        if len(members) == 1:
            msg = f"The label {names[label]!r} has only one video, which cannot be in both training and validation."
            remedy = "Add videos, remove the label, use a split column, or set data.validation_fraction=0."
            raise ConfigError(msg, key=schema.LABEL, value=names[label], remedy=remedy)
        wanted = np.clip(round(fraction * len(members)), 1, max(1, len(members) - 1)) - held_out[members].sum()
        held_out[random.permutation(members[is_free[members]])[: max(0, wanted)]] = True
        is_free[members] = False
    return held_out
