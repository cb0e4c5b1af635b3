"""The index job: build a new version of an index from a configuration, and point ``CURRENT`` to it."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.padding import Padding

from raypipe import schema
from raypipe.config import IndexConfig
from raypipe.dataset.plan import job_of, plan_numbers
from raypipe.dataset.read import embedding_dim, embeddings_manifests, sealed_manifests
from raypipe.errors import ConfigError, FingerprintError
from raypipe.jobs.index.gate import evaluate_version
from raypipe.jobs.index.inputs import IndexedRows, Joined, find_rows, join, read_catalogue, read_labels
from raypipe.jobs.index.own_vectors import OwnVectors
from raypipe.jobs.index.watching import RankerSource, WatchHistory, add_history, counting_settings
from raypipe.models.int8_files import read_int8_file
from raypipe.runs.progress import status
from raypipe.runs.summary_tables import summary_table
from raypipe.search.build import build_version
from raypipe.search.index import VideoIndex
from raypipe.search.items import DUPLICATE_GROUP, ITEMS
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from raypipe.tables import TypedTable
from raypipe.text import format_bytes, format_count, format_seconds, plural


@dataclass(frozen=True, slots=True)
class IndexSetup:
    """Everything that is known before any vector is read."""

    embeddings: Folder
    output: Folder
    source: Mapping[str, Any]  # the description of the embeddings that is stored in a version's manifest
    find_rows: Callable[[], IndexedRows | OwnVectors]
    catalogue: TypedTable | None
    ranker: RankerSource | None = None
    history: WatchHistory | None = None

    @property
    def history_etag(self) -> str | None:
        """The version of the history file."""
        return None if self.history is None else self.history.file.stored.etag

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the embeddings."""
        return str(self.source["fingerprint"])


@dataclass(frozen=True, slots=True)
class Changes:
    """How many videos are new, were embedded again, or are gone, compared with the previous version.

    ``describes_anew`` is True if the videos are the same and only their catalogue columns or labels differ.
    """

    num_new: int
    num_changed: int
    num_deleted: int
    describes_anew: bool

    def __bool__(self) -> bool:
        return bool(self.num_new or self.num_changed or self.num_deleted or self.describes_anew)


@dataclass(frozen=True, slots=True)
class IndexRun:
    """The result of a run: the manifest of the current version, and statistics about its rows.

    ``is_new`` is False if the current version was already up to date, so that no version was built.
    """

    manifest: Mapping[str, Any]
    is_new: bool
    num_left_out: int  # videos whose status is neither ``ok`` nor ``gone``
    joined: Joined
    changes: Changes | None  # since the version that was appended to, if any


def run_index(config: IndexConfig, *, console: Console | None = None) -> IndexRun:
    """Build a version from the plans that are sealed now, store it, and make it the current version.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: a stored file has changed since it was sealed.
    """
    setup = prepare(config)
    setup.output.check_writable()
    versions = Versions(setup.output)
    with tempfile.TemporaryDirectory(prefix="raypipe-index-") as work:
        base, folder = _open_base(setup, versions, Path(work, "base")) if config.append else (None, Path())
        with status(console, "Reading the rows of the embeddings"):
            rows = setup.find_rows()
            labels = None if config.labels is None else read_labels(config.labels)
            joined = join(rows.items, catalogue=setup.catalogue, labels=labels)
        changes = None
        if base is not None:
            before = base.manifest
            same_plans = before["embeddings"] == setup.source
            changes = compare(pq.read_table(folder / ITEMS), joined.items, same_plans=same_plans)
            _refuse_without_history(before, setup)
            is_same = before["settings"] == config.index.model_dump() and _same_watching(before, setup, config)
            if not changes and is_same:
                return IndexRun(before, False, rows.num_left_out, joined, changes)  # noqa: FBT003
        new = Path(work, "version")
        made = _make_version(new, setup, config, rows=rows, items=joined.items, base=base, console=console)
        with status(console, "Storing the version"):
            manifest = versions.put(made["id"], new, made)
            versions.set_current(manifest["id"])
    return IndexRun(manifest, True, rows.num_left_out, joined, changes)  # noqa: FBT003


def _make_version(
    new: Path,
    setup: IndexSetup,
    config: IndexConfig,
    *,
    rows: IndexedRows | OwnVectors,
    items: pa.Table,
    base: VideoIndex | None,
    console: Console | None,
) -> dict[str, Any]:
    """Write the files of a version to the folder ``new``, measure it if that is configured, and return its manifest."""
    ranker = setup.ranker
    tower = None if ranker is None else ranker.files.tower(items[schema.VIDEO_ID].combine_chunks())
    with status(console, f"Building an index of {items.num_rows:,} videos"):
        made = build_version(new, items=items, batches=rows.batches, settings=config.index, base=base, tower=tower)
    made["embeddings"] = dict(setup.source)
    if setup.source["settings"].get("dtype") == "int8":
        (new / schema.INT8_NETWORK).write_bytes(read_int8_file(setup.embeddings, setup.source["settings"]))
    if ranker is not None:
        made["ranker"] |= ranker.facts
    if setup.history is not None:
        with status(console, "Counting what users watched"):
            watching = add_history(new, config, setup.history, ranker)
        made["history"] = watching.facts | {"etag": setup.history_etag}
        if config.evaluate is not None and watching.events is not None:
            with status(console, "Evaluating the version"):
                made["evaluation"] = evaluate_version(new, made, config, watching.events).as_json()
    return made


def _refuse_without_history(before: Mapping[str, Any], setup: IndexSetup) -> None:
    """Raise ConfigError if an appended version would silently lose its history or its ranker."""
    for key, given in (("history", setup.history_etag), ("ranker", setup.ranker)):
        if before.get(key) and given is None:
            uri = before[key]["uri"]
            msg = f"The current version has a {key} ({uri}), but none is given."
            remedy = f"Give --{key}, or omit --append to build a version without it."
            raise ConfigError(msg, key=key, value=uri, remedy=remedy)


def _same_watching(before: Mapping[str, Any], setup: IndexSetup, config: IndexConfig) -> bool:
    """Return whether the history and the ranker are those of the current version."""
    history, ranker = before.get("history") or {}, before.get("ranker") or {}
    given = None if setup.ranker is None else setup.ranker.files.digest[:16]
    if (history.get("etag"), ranker.get("id")) != (setup.history_etag, given):
        return False
    return not history or history["settings"] == counting_settings(config.events)


def prepare(config: IndexConfig) -> IndexSetup:
    """Read the catalogue and the manifests, and check that the inputs belong together.

    Raises:
        ConfigError: a folder does not hold the output of the expected job, or the catalogue cannot be used.
        FingerprintError: the labels were made from other embeddings.
        JobError: the embeddings or the labels are not sealed.
    """
    embeddings, output = Folder(config.embeddings), Folder(config.output)
    if plan_numbers(output):
        msg = f"{output} is the output of a batch job, not an index."
        raise ConfigError(msg, key=str(output), remedy="Choose another output.")
    catalogue = None if config.catalogue is None else read_catalogue(config.catalogue)
    rows: Callable[[], IndexedRows | OwnVectors]
    own = OwnVectors.find(config.embeddings)
    if own is None:
        source, rows = _sealed_rows(embeddings)
    else:
        source, rows = own.source, lambda: own
    ranker = None if config.ranker is None else RankerSource.read(config.ranker)
    if ranker is not None:
        ranker.check(source)
    history = None if config.history is None else WatchHistory.find(config)
    setup = IndexSetup(embeddings, output, source, rows, catalogue, ranker, history)
    if config.labels is not None:
        _check_labels(Folder(config.labels), setup)
    return setup


def _sealed_rows(embeddings: Folder) -> tuple[dict[str, Any], Callable[[], IndexedRows]]:
    """Return the description of an output of ``raypipe embed``, and a function that selects its rows."""
    manifests = embeddings_manifests(embeddings)
    dim = embedding_dim(embeddings, manifests)
    source = {
        "uri": embeddings.uri,
        "fingerprint": manifests[-1]["fingerprint"],
        "settings": manifests[-1]["settings"],
        "num_plans": len(manifests),
    }
    return source, partial(find_rows, embeddings, manifests, embedding_dim=dim)


def _check_labels(labels: Folder, setup: IndexSetup) -> None:
    settings = sealed_manifests(labels)[-1]["settings"]
    if (job := job_of(settings)) != "classify":
        msg, remedy = f"{labels} is an output of raypipe {job}.", "Give an output of raypipe classify as labels."
        raise ConfigError(msg, key=str(labels), value=job, remedy=remedy)
    remedy = "Run raypipe classify on these embeddings, or give the embeddings that were classified."
    what = f"The labels in {labels} were made"
    _refuse_other_embeddings(setup, settings["embeddings"], what, key=str(labels), remedy=remedy)


def _refuse_other_embeddings(setup: IndexSetup, found: str, what: str, *, key: str, remedy: str) -> None:
    if found != (expected := setup.fingerprint):
        msg = f"{what} from embeddings with fingerprint {found}, but {setup.embeddings} has {expected}."
        raise FingerprintError(msg, key=key, value=found, expected=expected, remedy=remedy)


def _open_base(setup: IndexSetup, versions: Versions, cache: Path) -> tuple[VideoIndex | None, Path]:
    """Return the current version and the local folder with its files. Without a current version, return None for it.

    Raises:
        FingerprintError: the version was built from other embeddings.
        IndexVersionError: the version is corrupt or incomplete.
    """
    if (version := versions.current()) is None:
        return None, cache
    folder = versions.fetch(version, cache)
    index = VideoIndex.load(folder, versions.read_manifest(version))
    found, what = index.manifest["embeddings"]["fingerprint"], f"Cannot append to version {version}: it was built"
    _refuse_other_embeddings(setup, found, what, key=version, remedy="Omit --append to rebuild the whole index.")
    return index, folder


def compare(before: pa.Table, now: pa.Table, *, same_plans: bool) -> Changes:
    """Compare the items of the current version (``before``) with the items of the new one (``now``).

    ``now`` has no column of duplicate groups yet. ``same_plans`` means that no plan was sealed in between. Then videos
    that ``before`` lacks are not counted as new: they could not be indexed the last time, and still cannot be.
    """
    known = before[schema.VIDEO_ID].combine_chunks()
    if same_plans:
        now = now.filter(pc.is_in(now[schema.VIDEO_ID], value_set=known))
    positions = pc.index_in(now[schema.VIDEO_ID], value_set=known)
    found = before.select([schema.GENERATION, schema.ETAG]).take(positions)
    is_same = pc.and_(*(pc.equal(found[name], now[name]) for name in found.column_names))
    num_known = now.num_rows - positions.null_count
    num_same = int(pc.sum(is_same).as_py() or 0)
    changes = Changes(now.num_rows - num_known, num_known - num_same, before.num_rows - num_known, describes_anew=False)
    return changes or Changes(0, 0, 0, describes_anew=not _is_equal(before, now))


def _is_equal(before: pa.Table, now: pa.Table) -> bool:
    if {*before.column_names} - {DUPLICATE_GROUP} != set(now.column_names):
        return False
    try:
        return bool(before.select(now.column_names).cast(now.schema).equals(now))
    except pa.ArrowException:  # the type of a column changed
        return False


def index_table(run: IndexRun) -> Padding:
    """Return a table that describes the current version: its content, accuracy and size, and what was left out."""
    made = run.manifest
    return summary_table(
        [
            ("version", str(made["id"])),
            ("videos", format_count(made["num_videos"])),
            ("changes", _changes(run.changes)),
            ("kind", f"{made['kind']}, {made['dim']} of {made['embedding_dim']} dimensions"),
            ("recall@10", f"{made['recall_at_10']:.4f}"),
            ("bytes per vector", f"{made['bytes_per_vector']:.0f}"),
            ("size", format_bytes(sum(file["size_bytes"] for file in made["files"].values()))),
            ("near-duplicates", plural(made["num_duplicate_groups"], "group")),
            ("history", _history(made)),
            ("ranker", _ranker(made)),
            ("evaluation", made.get("evaluation", {}).get("verdict", "")),
            ("left out", _left_out(run)),
            ("dates", "; ".join(reading.summary for reading in run.joined.readings if reading.kind == "dates")),
            ("build time", format_seconds(made["build_seconds"])),
        ]
    )


def _changes(changes: Changes | None) -> str:
    if changes is None:
        return ""
    counts = f"{changes.num_new:,} new, {changes.num_changed:,} embedded again, {changes.num_deleted:,} gone"
    return f"{counts}, other columns or labels" if changes.describes_anew else counts


def _history(made: Mapping[str, Any]) -> str:
    if not (about := made.get("history")):
        return ""
    users, events = plural(about["num_users"], "user"), plural(about["num_events"], "event")
    counted = f"{about['counts']} of {events} of {users}, holdout {about['holdout']}"
    left_out = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in about["left_out"].items())
    return f"{counted}; left out: {left_out}" if left_out else counted


def _ranker(made: Mapping[str, Any]) -> str:
    if not (about := made.get("ranker")):
        return ""
    return f"{about['id']}, {1 - about['weight']:.0%} of the score; recall@10 {about['recall_at_10']:.4f}"


def _why_left_out(run: IndexRun) -> str:
    return "without an id or a vector" if run.manifest["embeddings"].get("own_vectors") else "whose status is not ok"


def _left_out(run: IndexRun) -> str:
    joined = run.joined
    counts = (
        (run.num_left_out, "video", _why_left_out(run)),
        (run.manifest["num_skipped"], "video", "whose embedding is zero or not finite"),
        (joined.num_not_embedded, "catalogue row", "without an embedded video"),
        (joined.num_uncatalogued, "video", "not in the catalogue (indexed, their columns are null)"),
        (joined.num_unlabelled, "video", "without a label (indexed)"),
    )
    return "; ".join(f"{plural(count, noun)} {reason}" for count, noun, reason in counts if count)
