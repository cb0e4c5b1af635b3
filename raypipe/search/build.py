"""Make the files of a version: two passes over the embeddings, one to learn a projection and one to apply it."""

import datetime as dt
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.config.index import IndexSettings
from raypipe.errors import JobError
from raypipe.search.ann import Ann
from raypipe.search.duplicates import duplicate_groups
from raypipe.search.items import DUPLICATE_GROUP, ITEMS, THUMBNAILS, Items
from raypipe.search.projection import PROJECTION, Moments, Projection, is_usable
from raypipe.search.versions import FORMAT, SEARCH, VECTORS, new_version_id
from raypipe.search.writers import ThumbnailWriter, VectorWriter

if TYPE_CHECKING:
    from raypipe.search.index import VideoIndex

Batch: TypeAlias = tuple[npt.NDArray[np.float32], list[bytes | None]]  # [n, D], and a thumbnail of each
Batches: TypeAlias = Callable[[], Iterator[Batch]]

LEARN_FROM = 65_536  # embeddings, chosen at random: more make the projection slower and not better
GROWTH = 2  # times the videos that an index learned from: with more, it learns again


def build_version(
    work: Path, *, items: pa.Table, batches: Batches, settings: IndexSettings, base: "VideoIndex | None"
) -> dict[str, Any]:
    """Write the files of a version into ``work`` and return its manifest, without its files and its embeddings.

    ``batches()`` yields the embeddings and thumbnails of the items, in their order, as often as it is called. A video
    whose embedding is zero or not finite is left out, and counted as ``num_skipped``. What ``base`` has learned is kept
    unless the index has drifted from it: other settings or another kind, more than twice the videos, too low a recall.

    Raises:
        JobError: no video can be indexed, one is there twice, or the embeddings are not those of the items.
    """
    began = time.monotonic()
    _check(items)
    work.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] | None = None
    if base is not None and not _drifted(base.manifest, items.num_rows, settings):
        learned = base.projection, base.ann, base.manifest["trained"]
        manifest = _build(work, items, batches, settings, learned)
        if manifest["recall_at_10"] < settings.min_recall:
            manifest = None
    if manifest is None:
        projection = _learn(batches, items.num_rows, settings)
        manifest = _build(work, items, batches, settings, (projection, None, None))
    return {**manifest, "build_seconds": round(time.monotonic() - began, 3)}


def _check(items: pa.Table) -> None:
    if not items.num_rows:
        msg = "There is no video to index: no embedding has status ok."
        raise JobError(msg, key=schema.STATUS, remedy="Run raypipe embed, or give another output of it.")
    counts = pc.value_counts(items[schema.VIDEO_ID].combine_chunks())
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        video_id, count = twice[0]["values"].as_py(), twice[0]["counts"].as_py()
        msg = f"The video {video_id!r} is there {count} times; each counts once."
        raise JobError(msg, key=schema.VIDEO_ID, value=video_id)


def _drifted(base: Mapping[str, Any], num_videos: int, settings: IndexSettings) -> bool:
    changed = any(base.get("settings", {}).get(key) != getattr(settings, key) for key in ("dim", "whitening"))
    grown = num_videos > GROWTH * base["trained"]["num_videos"]
    return changed or grown or base["kind"] != Ann.kind_for(num_videos, settings=settings)


def _learn(batches: Batches, num_videos: int, settings: IndexSettings) -> Projection:
    moments, chance = Moments(), np.random.default_rng(settings.seed)
    for embeddings, _ in batches():
        usable = is_usable(embeddings)
        if num_videos > LEARN_FROM:
            usable &= chance.random(len(usable)) < LEARN_FROM / num_videos
        moments.add(embeddings[usable])
    if not moments.count:
        raise _none_usable(num_videos)
    return moments.fit(settings.dim, whitening=settings.whitening)


def _build(
    work: Path,
    items: pa.Table,
    batches: Batches,
    settings: IndexSettings,
    learned: tuple[Projection, Ann | None, Mapping[str, Any] | None],
) -> dict[str, Any]:
    projection, base, trained = learned
    kept = items.filter(pa.array(_write(work, batches, items.num_rows, projection)))
    projection.save(work / PROJECTION)
    vectors = np.load(work / VECTORS, mmap_mode="r", allow_pickle=False)
    ann = Ann.build(vectors, settings=settings, base=base)
    ann.save(work / SEARCH)
    groups = duplicate_groups(ann, vectors, cosine=settings.duplicate_cosine)
    kept = _with_groups(kept, groups)
    pq.write_table(kept, work / ITEMS, compression="zstd")
    version = new_version_id()
    return {
        "format": FORMAT,
        "id": version,
        "created_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "num_videos": len(vectors),
        "num_skipped": items.num_rows - len(vectors),
        "dim": projection.dim,
        "embedding_dim": projection.embedding_dim,
        "kind": ann.kind,
        "nlist": ann.nlist,
        "nprobe": ann.nprobe,
        "recall_at_10": float(ann.recall_at_10),
        "bytes_per_vector": (work / SEARCH).stat().st_size / len(vectors),
        "num_duplicate_groups": len(np.unique(groups[groups >= 0])),
        "trained": dict(trained or {"num_videos": len(vectors), "version": version}),
        "settings": settings.model_dump(),
        "columns": {name: str(column) for name, column in Items(kept.slice(0, 0), None).columns.items()},
    }


def _write(work: Path, batches: Batches, num_videos: int, projection: Projection) -> npt.NDArray[np.bool_]:
    """Write the vectors and thumbnails of the usable embeddings, and say which those are."""
    usable = []
    with (
        VectorWriter(work / VECTORS, projection.dim) as vectors,
        ThumbnailWriter(work / THUMBNAILS) as thumbnails,
    ):
        for embeddings, pictures in batches():
            if embeddings.shape[1] != projection.embedding_dim:
                found, expected = embeddings.shape[1], projection.embedding_dim
                msg = f"An embedding has {found} numbers, those of the index {expected}."
                remedy = "Build it without --append, or give embeddings of the same backbone."
                raise JobError(msg, key=schema.EMBEDDING, value=found, expected=expected, remedy=remedy)
            usable.append(is_usable(embeddings))
            vectors.add(projection.apply(embeddings[usable[-1]]))
            thumbnails.add([one for one, use in zip(pictures, usable[-1], strict=True) if use])
    mask = np.concatenate([np.zeros(0, np.bool_), *usable])
    if len(mask) != num_videos:
        msg = f"{num_videos} videos had {len(mask)} embeddings: they changed during the build."
        raise JobError(msg, value=len(mask), expected=num_videos, remedy="Run the same command again.")
    if not mask.any():
        raise _none_usable(num_videos)
    return mask


def _none_usable(num_videos: int) -> JobError:
    msg = f"None of the {num_videos} embeddings can be indexed: each is zero or not finite."
    return JobError(msg, key=schema.EMBEDDING, remedy="Embed them again.")


def _with_groups(items: pa.Table, groups: npt.NDArray[np.int64]) -> pa.Table:
    """Add ``duplicate_group`` behind the prediction, where there is one; null is a video alone."""
    names = [name for name in items.column_names if name != DUPLICATE_GROUP]
    at = names.index(schema.SCORE) + 1 if schema.SCORE in names else len(names)
    column = pa.array(groups, pa.int64(), mask=groups < 0)
    return items.select(names).add_column(at, DUPLICATE_GROUP, column)
