"""Recommendations as a person reads of them at the end of a run."""

from rich.console import RenderableType
from rich.text import Text

from raypipe.jobs.recommend.job import RecommendOutput
from raypipe.records import RunRecord
from raypipe.runs.summary_tables import Flow, named_rows
from raypipe.text import format_count, format_rate, format_seconds, plural, visible

_NAMES = {"ok": "by their history", "popular": "by what is popular", "error": "with an error, and no answer"}


def recommend_table(held: RecommendOutput, record: RunRecord, *, report_uri: str) -> RenderableType:
    """How many users were answered, by which version, and where the output is."""
    counts = [Text(f"{format_count(held.statuses[kind])} {_NAMES[kind]}") for kind in _NAMES if held.statuses.get(kind)]
    rate = f"{format_rate(record.mean_rate(record.num_videos))} users/s" if record.num_videos else ""
    rows: list[tuple[str, Text | Flow]] = [
        ("users", Text(format_count(held.num_users))),
        ("answered", Flow(counts)),
        ("unknown ids", Text(visible(unknown_ids(held)))),
        ("index", Text(visible(f"{held.index} at {held.index_version}"))),
        ("wall time", Text(format_seconds(record.elapsed_seconds) if record.plans else "")),
        ("rate", Text(rate)),
        ("output", Text(visible(held.output_uri))),
        ("report", Text(visible(report_uri))),
    ]
    return named_rows(rows)


def unknown_ids(held: RecommendOutput) -> str:
    """How many ids of the histories the index does not hold, and a few of them; nothing where it holds all."""
    counts = held.unknown.counts
    if not counts.get("num_unknown_ids"):
        return ""
    share = f"{format_count(counts['num_unknown_ids'])} of {format_count(counts['num_ids'])}"
    shown = ", ".join(map(repr, held.unknown.examples))
    return f"{share} ({held.unknown_fraction:.1%}), of {plural(counts['num_users_with_unknown_ids'], 'user')}: {shown}"
