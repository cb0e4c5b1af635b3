"""A version of an index as a person reads it at the end of a run."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from raypipe.jobs.index.job import IndexRun
from raypipe.runs.summary_tables import named_rows
from raypipe.text import format_bytes, format_count, format_seconds, plural, visible


def index_table(run: IndexRun) -> RenderableType:
    """What the version holds, how good and how large it is, and what did not fit."""
    made = run.manifest
    rows = [
        ("version", made["id"]),
        ("videos", format_count(made["num_videos"])),
        ("since before", _changes(run)),
        ("kind", f"{made['kind']}, {made['dim']} of {made['embedding_dim']} dimensions"),
        ("recall@10", f"{made['recall_at_10']:.4f}"),
        ("bytes per vector", f"{made['bytes_per_vector']:.0f}"),
        ("size", format_bytes(sum(file["size_bytes"] for file in made["files"].values()))),
        ("near-duplicates", plural(made["num_duplicate_groups"], "group")),
        ("left out", "; ".join(_left_out(run))),
        ("dates", "; ".join(reading.summary for reading in run.joined.readings if reading.kind == "dates")),
        ("build time", format_seconds(made["build_seconds"])),
    ]
    return named_rows([(name, Text(visible(value))) for name, value in rows])


def _changes(run: IndexRun) -> str:
    changes = run.changes
    if changes is None:
        return ""
    counts = f"{changes.num_new:,} new, {changes.num_changed:,} embedded again, {changes.num_deleted:,} gone"
    return f"{counts}, other columns or labels" if changes.describes_anew else counts


def _left_out(run: IndexRun) -> Iterator[str]:
    joined = run.joined
    if run.num_left_out:
        yield f"{plural(run.num_left_out, 'video')} whose status is not ok"
    if run.manifest["num_skipped"]:
        yield f"{plural(run.manifest['num_skipped'], 'video')} whose embedding is zero or not finite"
    if joined.num_not_embedded:
        yield f"{plural(joined.num_not_embedded, 'catalogue row')} of no embedded video"
    if joined.num_uncatalogued:
        yield f"{plural(joined.num_uncatalogued, 'video')} not in the catalogue (indexed, their columns null)"
    if joined.num_unlabelled:
        yield f"{plural(joined.num_unlabelled, 'video')} without a label (indexed)"
