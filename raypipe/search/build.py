"""Build the files of a version in two passes over the embeddings: one learns a projection, the other applies it."""

import datetime as dt
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.config.index import IndexSettings
from raypipe.errors import JobError
from raypipe.search.ann import Ann, kind_for
from raypipe.search.index import VideoIndex
from raypipe.search.items import DUPLICATE_GROUP, ITEMS, THUMBNAILS, Items, ThumbnailWriter
from raypipe.search.projection import PROJECTION, Moments, Projection, is_usable, unit_length
from raypipe.search.tower import TowerInput, TowerWriter
from raypipe.search.vectors import Positions, Vectors, VectorWriter, widen
from raypipe.search.versions import EMBEDDINGS, FORMAT, SEARCH, VECTORS, new_version_id

Batch: TypeAlias = tuple[npt.NDArray[np.float32], list[bytes | None]]  # embeddings [n, D], and a thumbnail per video
Batches: TypeAlias = Callable[[], Iterator[Batch]]

LEARN_FROM = 65_536  # fit the projection to about this many random embeddings: more take longer and do not improve it
GROWTH = 2  # train again if an index has more than this many times the videos that it was trained on
EMBEDDINGS_BELOW = 10_000  # an index of fewer videos also holds their embeddings: novelty.py says why
_COMPARED_ROWS = 2_048  # rows to compare at a time with at most as many others


def build_version(
    work: Path,
    *,
    items: pa.Table,
    batches: Batches,
    settings: IndexSettings,
    base: VideoIndex | None,
    tower: TowerInput | None = None,
) -> dict[str, Any]:
    """Write the files of a version to the folder ``work``, and return its manifest.

    With ``tower``, the version gets the vectors of a learned ranker, too.

    The entries ``files`` and ``embeddings`` of the manifest are added later. Every call of ``batches()`` must yield the
    embeddings and thumbnails of all items, in the order of the items. A video whose embedding is zero or not finite is
    left out and counted in ``num_skipped``.

    The projection and lists of ``base`` are reused unless the index has drifted. This is the case if the settings or
    the kind have changed, if there are more than twice as many videos as in the training, or if the recall is too low.

    Raises:
        JobError: no video can be indexed, a video occurs twice, or the embeddings do not match the items.
    """
    began = time.monotonic()
    _check(items)
    work.mkdir(parents=True, exist_ok=True)
    if base is not None and _has_drifted(base, items.num_rows, settings):
        base = None
    manifest = _build(work, items, batches, settings, base, tower=tower)
    if base is not None and manifest["recall_at_10"] < settings.min_recall:
        manifest = _build(work, items, batches, settings, None, tower=tower)
    return {**manifest, "build_seconds": round(time.monotonic() - began, 3)}


def _check(items: pa.Table) -> None:
    if not items.num_rows:
        msg = "There is no video to index: no embedding has status ok."
        raise JobError(msg, key=schema.STATUS, remedy="Run raypipe embed, or give the output of another run.")
    if twice := repeated_ids(items):
        video_id, count = twice[0]
        msg = f"The video {video_id!r} occurs {count} times, but ids must be unique."
        raise JobError(msg, key=schema.VIDEO_ID, value=video_id)


def repeated_ids(items: pa.Table) -> list[tuple[str, int]]:
    """Return each video id that occurs in several rows, and in how many, in the order of the first rows."""
    counts = pc.value_counts(items[schema.VIDEO_ID].combine_chunks())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    return list(zip(repeated.field("values").to_pylist(), repeated.field("counts").to_pylist(), strict=True))


def _has_drifted(base: VideoIndex, num_videos: int, settings: IndexSettings) -> bool:
    before = base.manifest
    changed = any(before.get("settings", {}).get(key) != getattr(settings, key) for key in ("dim", "whitening"))
    grown = num_videos > GROWTH * before["trained"]["num_videos"]
    return changed or grown or before["kind"] != kind_for(num_videos, settings)


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
    base: VideoIndex | None,
    *,
    tower: TowerInput | None,
) -> dict[str, Any]:
    writer = None if tower is None else TowerWriter(work, tower)
    projection = _learn(batches, items.num_rows, settings) if base is None else base.projection
    kept = items.filter(pa.array(_write(work, batches, items.num_rows, projection, writer)))
    projection.save(work / PROJECTION)
    vectors = np.load(work / VECTORS, mmap_mode="r", allow_pickle=False)
    ann = Ann.build(vectors, settings=settings, base=None if base is None else base.ann)
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
        **_search_facts(ann),
        "bytes_per_vector": (work / SEARCH).stat().st_size / len(vectors),
        "num_duplicate_groups": len(np.unique(groups[groups >= 0])),
        "trained": dict(base.manifest["trained"] if base else {"num_videos": len(vectors), "version": version}),
        "settings": settings.model_dump(),
        **({} if writer is None else {"ranker": _search_facts(writer.finish(settings))}),
        "columns": {name: str(column) for name, column in Items(kept.slice(0, 0), None).columns.items()},
    }


def _search_facts(ann: Ann) -> dict[str, Any]:
    return {"nprobe": ann.nprobe, "reach": asdict(ann.reach), "recall_at_10": float(ann.recall_at_10)}


def _write(
    work: Path, batches: Batches, num_videos: int, projection: Projection, tower: TowerWriter | None
) -> npt.NDArray[np.bool_]:
    """Write the vectors and thumbnails of the usable embeddings, and return a mask of these embeddings."""
    usable = []
    whole = None
    if num_videos < EMBEDDINGS_BELOW:
        whole = VectorWriter(work / EMBEDDINGS, projection.embedding_dim)
    with (
        VectorWriter(work / VECTORS, projection.dim) as vectors,
        ThumbnailWriter(work / THUMBNAILS) as thumbnails,
        tower or nullcontext(),
        whole or nullcontext(),
    ):
        for embeddings, pictures in batches():
            if (found := embeddings.shape[1]) != (expected := projection.embedding_dim):
                msg = f"An embedding has {found} numbers, but the index has embeddings of {expected}."
                remedy = "Build it without --append, or use embeddings of the same backbone."
                raise JobError(msg, key=schema.EMBEDDING, value=found, expected=expected, remedy=remedy)
            usable.append(is_usable(embeddings))
            vectors.add(projection.apply(embeddings[usable[-1]]))
            if whole is not None:
                whole.add(unit_length(embeddings[usable[-1]]))
            if tower is not None:
                tower.add(embeddings, usable[-1])
            thumbnails.add([one for one, use in zip(pictures, usable[-1], strict=True) if use])
    mask = np.concatenate([np.zeros(0, np.bool_), *usable])
    if len(mask) != num_videos:
        msg = f"{num_videos} videos had {len(mask)} embeddings: they changed during the build."
        raise JobError(msg, value=len(mask), expected=num_videos, remedy="Run the same command again.")
    if not mask.any():
        raise _none_usable(num_videos)
    return mask


def _none_usable(num_videos: int) -> JobError:
    msg = f"None of the {num_videos} embeddings can be indexed: each one is zero or not finite."
    return JobError(msg, key=schema.EMBEDDING, remedy="Embed the videos again.")


def _with_groups(items: pa.Table, groups: Positions) -> pa.Table:
    """Add the column ``duplicate_group``, after the column ``score`` if there is one.

    The value is null for a video without a group.
    """
    names = [name for name in items.column_names if name != DUPLICATE_GROUP]
    at = names.index(schema.SCORE) + 1 if schema.SCORE in names else len(names)
    column = pa.array(groups, pa.int64(), mask=groups < 0)
    return items.select(names).add_column(at, DUPLICATE_GROUP, column)


def duplicate_groups(ann: Ann, vectors: Vectors, *, cosine: float) -> Positions:
    """Return the group of near-duplicates of each vector ``[N]``.

    A group is identified by its smallest row, and -1 means that a vector has no group. Two vectors with at least this
    ``cosine`` are in the same group, and so are vectors that a chain of such pairs connects. Each vector is compared
    with all vectors in the three lists nearest to it, because near-duplicates are rarely further apart. If the index
    has no lists, each vector is compared with all vectors.
    """
    roots = np.arange(len(vectors))
    for rows, others in _to_compare(ann.nearest_lists(vectors, 3)):
        _join(roots, rows, others, widen(vectors[rows]) @ widen(vectors[others]).T >= cosine)
    groups = _find(roots, np.arange(len(roots)))
    alone = np.bincount(groups, minlength=len(groups))[groups] == 1
    return np.where(alone, -1, groups)


def _to_compare(lists: Positions) -> Iterator[tuple[Positions, Positions]]:
    """Yield pairs of blocks. Each row in the first block is to be compared with each row in the second block.

    ``lists`` ``[N, n]`` contains the numbers of the lists nearest to each row.
    """
    order = [np.argsort(column, kind="stable") for column in lists.T]
    numbers = np.arange(lists.max(initial=0) + 2)
    starts = [np.searchsorted(column, numbers, sorter=by) for column, by in zip(lists.T, order, strict=True)]
    for number in range(len(starts[0]) - 1):
        members, *visitors = (by[at[number] : at[number + 1]] for by, at in zip(order, starts, strict=True))
        others = np.concatenate([members, *visitors])
        for start in range(0, len(members), _COMPARED_ROWS):
            for right in range(start, len(others), _COMPARED_ROWS):  # earlier blocks were compared already
                yield members[start : start + _COMPARED_ROWS], others[right : right + _COMPARED_ROWS]


def _join(roots: Positions, rows: Positions, others: Positions, near: npt.NDArray[np.bool_]) -> None:
    """Merge the groups of each near pair: both rows get the smaller one of their two roots."""
    while near.any():
        left, right = _find(roots, rows), _find(roots, others)
        near &= left[:, None] != right
        a, b = np.nonzero(near)
        np.minimum.at(roots, np.maximum(left[a], right[b]), np.minimum(left[a], right[b]))


def _find(roots: Positions, rows: Positions) -> Positions:
    """Return the root of each row, and let each row point to its root directly (path compression)."""
    found = roots[rows]
    while not np.array_equal(further := roots[found], found):
        found = further
    roots[rows] = found
    return found
