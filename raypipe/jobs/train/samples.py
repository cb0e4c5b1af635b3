"""Which videos are learned from: sealed embeddings joined with labels, checked, and split."""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

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
from raypipe.jobs.train.labels import SPLIT, folder_labels, read_labels
from raypipe.jobs.train.split import stratified
from raypipe.status import HAS_FRAMES, Status
from raypipe.storage import Folder

FILE, INDEX, TARGETS = "file", "index", "targets"
_READS_AT_ONCE = 16
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Samples:
    """What there is to learn from; ``train`` and ``validation`` have ``file``, ``video_id``, ``index``, ``targets``.

    ``index`` numbers the training videos from 0, and the validation videos too; ``targets`` are label numbers, none
    where nothing is to be classified.
    """

    train: pa.Table
    validation: pa.Table
    label_names: tuple[str, ...]
    multi_label: bool
    embedding_dim: int
    fingerprint: str  # of the embeddings
    comparable_fingerprints: frozenset[str]  # of embeddings that mean the same
    num_unknown: int  # labelled videos that the embeddings lack
    num_without_frames: int  # labelled videos that could not be embedded
    digest: str  # of which videos are learned from and held out, as what


def find_samples(config: TrainConfig) -> Samples:
    """Join the embeddings with the labels, and split.

    Raises:
        JobError: the embeddings are not sealed.
        ConfigError: labels that cannot be read, fit no video, or cannot be split.
    """
    output = Folder(config.embeddings)
    manifests = embeddings_manifests(output)
    catalogue, gone = _catalogue(output, manifests)
    if config.objective == "masked_frame":
        return _unlabelled(config, output, manifests, catalogue)
    if config.labels is None:
        labels = folder_labels(catalogue[schema.VIDEO_ID])
    else:
        labels = read_labels(config.labels, split_column=config.data.split_column)
        labels = labels.filter(pc.invert(pc.is_in(labels[schema.VIDEO_ID], value_set=gone)))
    at = pc.index_in(labels[schema.VIDEO_ID], catalogue[schema.VIDEO_ID]).combine_chunks()
    num_unknown = _check_known(config, labels, at)
    labels = labels.append_column("at", at).filter(pc.is_valid(at))
    has_frames = catalogue[schema.STATUS].take(labels["at"])
    num_without_frames = pc.count_distinct(labels[schema.VIDEO_ID].filter(pc.invert(has_frames))).as_py()
    labels = labels.filter(has_frames)
    if SPLIT in labels.column_names:
        labels = labels.filter(pc.not_equal(labels[SPLIT], "test"))
    if not labels.num_rows:
        msg = f"No labelled video of {config.labels or 'the folders'} has embeddings in {output}."
        raise ConfigError(msg, key="labels", value=config.labels)
    label_names = tuple(sorted(pc.unique(labels[schema.LABEL]).to_pylist()))
    numbers = pc.index_in(labels[schema.LABEL], pa.array(label_names)).to_numpy().astype(np.int64)
    at_unique, videos = np.unique(labels["at"].to_numpy(), return_inverse=True)
    multi_label = _is_multi_label(config, len(numbers) > len(at_unique))
    held_out = _held_out(config, labels, videos, numbers, label_names)
    order = np.lexsort((numbers, videos))
    stops = np.cumsum(np.bincount(videos))
    targets = pa.ListArray.from_arrays(pa.array([0, *stops], pa.int32()), pa.array(numbers[order], pa.int32()))
    rows = catalogue.take(pa.array(at_unique)).select([FILE, schema.VIDEO_ID]).append_column(TARGETS, targets)
    if not multi_label and len(label_names) == 1:
        msg = f"Every video has the label {label_names[0]!r}: there is nothing to tell apart."
        remedy = "Give a second label, or set problem_type=multi_label."
        raise ConfigError(msg, key=schema.LABEL, value=label_names[0], remedy=remedy)
    return _samples(
        output,
        manifests,
        rows,
        held_out,
        label_names=label_names,
        multi_label=multi_label,
        num_unknown=num_unknown,
        num_without_frames=num_without_frames,
    )


def _unlabelled(config: TrainConfig, output: Folder, manifests: list[dict[str, Any]], catalogue: pa.Table) -> Samples:
    rows = catalogue.filter(catalogue[schema.STATUS])
    if not rows.num_rows:
        msg = f"No video in {output} has frames."
        remedy = "Look at the statuses with raypipe verify."
        raise ConfigError(msg, key="embeddings", value=output.uri, remedy=remedy)
    videos = np.arange(rows.num_rows)
    fraction = config.data.validation_fraction if rows.num_rows > 1 else 0.0
    held_out = stratified(videos, np.zeros_like(videos), fraction=fraction, seed=config.seed, names=["video"])
    no_targets = pa.array([[]] * rows.num_rows, pa.list_(pa.int32()))
    rows = rows.select([FILE, schema.VIDEO_ID]).append_column(TARGETS, no_targets)
    num_without_frames = catalogue.num_rows - rows.num_rows
    return _samples(output, manifests, rows, held_out, num_without_frames=num_without_frames)


def _catalogue(output: Folder, manifests: list[dict[str, Any]]) -> tuple[pa.Table, pa.Array]:
    """Return every video that counts, as ``file``, ``video_id`` and ``status``, which is whether it has frames.

    The ids of those that are gone are given apart.
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


def _check_known(config: TrainConfig, labels: pa.Table, at: pa.Array) -> int:
    unknown = pc.unique(labels[schema.VIDEO_ID].filter(pc.is_null(at)))
    num_labelled = pc.count_distinct(labels[schema.VIDEO_ID]).as_py()
    if len(unknown) > config.data.max_unknown_fraction * num_labelled:
        first = ", ".join(repr(video_id) for video_id in unknown[:_NAMED].to_pylist())
        allowed = config.data.max_unknown_fraction
        msg = (
            f"{len(unknown)} of the {num_labelled} labelled videos are not in {config.embeddings}: {first}"
            f"{', …' if len(unknown) > _NAMED else ''}. data.max_unknown_fraction={allowed:g} allows fewer."
        )
        remedy = "A video_id is the key below the input of raypipe embed."
        raise ConfigError(msg, key="data.max_unknown_fraction", value=allowed, remedy=remedy)
    return len(unknown)


def _is_multi_label(config: TrainConfig, several: bool) -> bool:  # noqa: FBT001 - what the labels show
    if several and config.problem_type == "single_label":
        msg = "problem_type=single_label: a video has several labels."
        remedy = "Choose multi_label, or give each video one."
        raise ConfigError(msg, key="problem_type", value=config.problem_type, remedy=remedy)
    return several if config.problem_type == "auto" else config.problem_type == "multi_label"


def _held_out(
    config: TrainConfig,
    labels: pa.Table,
    videos: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int64],
    label_names: tuple[str, ...],
) -> npt.NDArray[np.bool_]:
    if SPLIT not in labels.column_names:
        fraction = config.data.validation_fraction
        return stratified(videos, numbers, fraction=fraction, seed=config.seed, names=label_names)
    held_out = np.zeros(videos.max() + 1, dtype=bool)
    held_out[videos] = pc.equal(labels[SPLIT], "validation").to_numpy()
    if held_out.all():
        msg = f"{config.labels}: no video is in the split train."
        remedy = "Choose train, validation or test for each."
        raise ConfigError(msg, key=config.data.split_column, expected="train", remedy=remedy)
    return held_out


def _samples(
    output: Folder,
    manifests: list[dict[str, Any]],
    rows: pa.Table,
    held_out: npt.NDArray[np.bool_],
    *,
    label_names: tuple[str, ...] = (),
    multi_label: bool = False,
    num_unknown: int = 0,
    num_without_frames: int,
) -> Samples:
    rows = rows.append_column(SPLIT, pa.array(held_out)).sort_by(schema.VIDEO_ID)  # whatever the order of plans
    digest = hashlib.sha256(repr(label_names).encode())
    for batch in rows.select([FILE, schema.VIDEO_ID, SPLIT, TARGETS]).to_batches(max_chunksize=65_536):
        digest.update(repr(batch.to_pydict()).encode())
    is_held_out = rows[SPLIT]
    parts = []
    for part in (rows.filter(pc.invert(is_held_out)), rows.filter(is_held_out)):
        part = part.select([FILE, schema.VIDEO_ID, TARGETS])  # noqa: PLW2901
        parts.append(part.append_column(INDEX, pa.array(np.arange(part.num_rows), pa.int64())))
    return Samples(
        train=parts[0],
        validation=parts[1],
        label_names=label_names,
        multi_label=multi_label,
        embedding_dim=embedding_dim(output, manifests),
        fingerprint=manifests[-1]["fingerprint"],
        comparable_fingerprints=comparable_fingerprints(manifests[-1]["settings"]),
        num_unknown=num_unknown,
        num_without_frames=num_without_frames,
        digest=digest.hexdigest(),
    )


def blocks(samples: pa.Table, *, num_workers: int, seed: int) -> Iterator[pa.Table]:
    """Pieces of the samples for one read each: whole files where they are small, in an order drawn once."""
    rows_per_block = int(np.clip(samples.num_rows // (8 * num_workers), 1, 512))
    ordered = samples.sort_by([(FILE, "ascending"), (INDEX, "ascending")])
    starts = np.arange(0, ordered.num_rows, rows_per_block)
    for start in np.random.default_rng([seed, 1]).permutation(starts).tolist():
        yield ordered.slice(start, rows_per_block)


def class_counts(samples: pa.Table, num_labels: int) -> npt.NDArray[np.int64]:
    """How many samples have each label ``[C]``."""
    counts: npt.NDArray[np.int64] = np.bincount(samples[TARGETS].combine_chunks().flatten(), minlength=num_labels)
    return counts


def facts(samples: Samples) -> Mapping[str, object]:
    """What a run stores of its samples, to know them again."""
    return {
        "embeddings": samples.fingerprint,
        "samples": samples.digest,
        "num_train": samples.train.num_rows,
        "num_validation": samples.validation.num_rows,
    }
