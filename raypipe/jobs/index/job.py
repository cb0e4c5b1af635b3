"""The index job, from a configuration to the version that ``CURRENT`` names."""

import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.padding import Padding

from raypipe import schema
from raypipe.config import IndexConfig
from raypipe.dataset.plan import job_of, plan_numbers
from raypipe.dataset.read import embedding_dim, embeddings_manifests, read_rows, sealed_manifests
from raypipe.errors import ConfigError, FingerprintError
from raypipe.jobs.index.changes import Changes, compare
from raypipe.jobs.index.inputs import Joined, join, read_catalogue
from raypipe.jobs.index.rows import IndexedRows, find_rows
from raypipe.runs.summary_tables import summary_table
from raypipe.search.build import build_version
from raypipe.search.index import VideoIndex
from raypipe.search.items import ITEMS
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from raypipe.storage.tables import TypedTable
from raypipe.text import format_bytes, format_count, format_seconds, plural

_OF_THE_LABELS = (schema.VIDEO_ID, schema.ETAG, schema.LABEL, schema.SCORE)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is settled before any vector is read."""

    config: IndexConfig
    embeddings: Folder
    output: Folder
    manifests: list[dict[str, Any]]  # of the embeddings' plans
    embedding_dim: int
    catalogue: TypedTable | None

    @property
    def fingerprint(self) -> str:
        """Of the embeddings."""
        return str(self.manifests[-1]["fingerprint"])

    @property
    def source(self) -> dict[str, Any]:
        """What the embeddings are, as the manifest of a version says it."""
        return {
            "uri": self.embeddings.uri,
            "fingerprint": self.fingerprint,
            "settings": self.manifests[-1]["settings"],
            "num_plans": len(self.manifests),
        }


@dataclass(frozen=True, slots=True)
class Base:
    """The version that is appended to, and the local folder of its files."""

    index: VideoIndex
    folder: Path


@dataclass(frozen=True, slots=True)
class IndexRun:
    """What a run did: the manifest of the version that is current now, and how its rows came about."""

    manifest: Mapping[str, Any]
    is_new: bool
    num_left_out: int
    joined: Joined
    changes: Changes | None  # since the version that was appended to


def prepare(config: IndexConfig) -> Setup:
    """Read the catalogue and every manifest, and hold them against one another.

    Raises:
        ConfigError: a folder is not what it is given for, or the catalogue does not fit.
        FingerprintError: the labels are of other embeddings.
        JobError: the embeddings or the labels are not sealed.
    """
    embeddings, output = Folder(config.embeddings), Folder(config.output)
    manifests = embeddings_manifests(embeddings)
    if plan_numbers(output):
        msg = f"{output} is the output of a batch job, not an index."
        raise ConfigError(msg, key=str(output), remedy="Choose another output.")
    catalogue = None if config.catalogue is None else read_catalogue(config.catalogue)
    setup = Setup(config, embeddings, output, manifests, embedding_dim(embeddings, manifests), catalogue)
    if config.labels is not None:
        _check_labels(Folder(config.labels), setup)
    return setup


def _check_labels(labels: Folder, setup: Setup) -> None:
    settings = sealed_manifests(labels)[-1]["settings"]
    if (job := job_of(settings)) != "classify":
        msg = f"{labels} is an output of raypipe {job}."
        remedy = "Give an output of raypipe classify as labels."
        raise ConfigError(msg, key=str(labels), value=job, remedy=remedy)
    found, expected = settings["embeddings"], setup.fingerprint
    if found != expected:
        msg = (
            f"{labels} holds labels of embeddings of fingerprint {found}; those of {setup.embeddings} have {expected}."
        )
        remedy = "Run raypipe classify on these embeddings, or give the embeddings that were classified."
        raise FingerprintError(msg, key=str(labels), value=found, expected=expected, remedy=remedy)


def run_index(config: IndexConfig, *, console: Console | None = None) -> IndexRun:
    """Build a version of what is sealed now, store it, and make it the current one.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: what is stored is not what was sealed.
    """
    setup = prepare(config)
    setup.output.check_writable()
    versions = Versions(setup.output)
    with tempfile.TemporaryDirectory(prefix="raypipe-index-") as work:
        base = _open_base(setup, versions, Path(work, "base")) if config.append else None
        with _status(console, "Reading which videos there are"):
            rows = find_rows(setup.embeddings, setup.manifests, embedding_dim=setup.embedding_dim)
            joined = join(rows.items, catalogue=setup.catalogue, labels=_read_labels(config))
        changes = None
        if base is not None:
            same_plans = base.index.manifest["embeddings"] == setup.source
            changes = compare(pq.read_table(base.folder / ITEMS), joined.items, same_plans=same_plans)
            if not changes and base.index.manifest["settings"] == config.index.model_dump():
                return IndexRun(base.index.manifest, False, rows.num_left_out, joined, changes)  # noqa: FBT003
        with _status(console, f"Building an index of {rows.items.num_rows:,} videos"):
            manifest = _build(setup, versions, Path(work, "version"), rows=rows, items=joined.items, base=base)
    return IndexRun(manifest, True, rows.num_left_out, joined, changes)  # noqa: FBT003


def _open_base(setup: Setup, versions: Versions, cache: Path) -> Base | None:
    """The current version, None where there is none yet.

    Raises:
        FingerprintError: it was built of other embeddings.
        IndexVersionError: it is not whole.
    """
    if (version := versions.current()) is None:
        return None
    folder = versions.fetch(version, cache)
    index = VideoIndex.open(folder, versions.read_manifest(version))
    found, expected = index.manifest["embeddings"]["fingerprint"], setup.fingerprint
    if found != expected:
        msg = (
            f"Cannot append to version {version}: it holds embeddings of fingerprint {found}; those of "
            f"{setup.embeddings} have {expected}."
        )
        remedy = "Leave out --append to build the whole index again."
        raise FingerprintError(msg, key=version, value=found, expected=expected, remedy=remedy)
    return Base(index, folder)


def _read_labels(config: IndexConfig) -> pa.Table | None:
    if config.labels is None:
        return None
    return pa.concat_tables(read_rows(Folder(config.labels), columns=_OF_THE_LABELS))


def _build(
    setup: Setup, versions: Versions, work: Path, *, rows: IndexedRows, items: pa.Table, base: Base | None
) -> dict[str, Any]:
    work.mkdir()
    made = build_version(
        work,
        items=items,
        batches=rows.batches,
        settings=setup.config.index,
        base=None if base is None else base.index,
    )
    stored = versions.put(made["id"], work, {**made, "embeddings": setup.source})
    versions.set_current(stored["id"])
    return stored


def _status(console: Console | None, text: str) -> AbstractContextManager[object]:
    return nullcontext() if console is None else console.status(text)


def index_table(run: IndexRun) -> Padding:
    """Return what the current version contains, how accurate and large it is, and what could not be indexed."""
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


def _left_out(run: IndexRun) -> str:
    joined = run.joined
    counts = (
        (run.num_left_out, "video", "whose status is not ok"),
        (run.manifest["num_skipped"], "video", "whose embedding is zero or not finite"),
        (joined.num_not_embedded, "catalogue row", "without an embedded video"),
        (joined.num_uncatalogued, "video", "not in the catalogue (indexed, their columns are null)"),
        (joined.num_unlabelled, "video", "without a label (indexed)"),
    )
    return "; ".join(f"{plural(count, noun)} {reason}" for count, noun, reason in counts if count)
