"""Recommendations as a person reads of them at the end of a run."""

from rich.console import RenderableType
from rich.text import Text

from raypipe.jobs.recommend.job import RecommendRun
from raypipe.runs.summary_tables import Flow, named_rows
from raypipe.text import format_count, format_rate, format_seconds, plural, visible

_NAMES = {"ok": "by their history", "popular": "by what is popular", "error": "with an error, and no answer"}


def recommend_table(run: RecommendRun) -> RenderableType:
    """How many users were answered, of which version, and where it lies."""
    made = run.manifest
    counts = [
        Text(f"{format_count(made['counts'][kind])} {_NAMES[kind]}") for kind in _NAMES if made["counts"].get(kind)
    ]
    rate = f"{format_rate(run.num_users_here / run.seconds)} users/s" if run.num_users_here and run.seconds else ""
    rows: list[tuple[str, Text | Flow]] = [
        ("users", Text(format_count(made["num_users"]))),
        ("answered", Flow(counts)),
        ("unknown ids", Text(visible(unknown_ids(run)))),
        ("index", Text(visible(f"{made['settings']['index']} at {made['settings']['index_version']}"))),
        ("wall time", Text(format_seconds(run.seconds) if run.is_new else "")),
        ("rate", Text(rate)),
        ("output", Text(visible(run.output_uri))),
    ]
    return named_rows(rows)


def unknown_ids(run: RecommendRun) -> str:
    """How many ids of the histories the index does not hold, and a few of them; nothing where it holds all."""
    unknown = run.unknown
    if unknown is None or not unknown.num_unknown:
        return ""
    share = f"{format_count(unknown.num_unknown)} of {format_count(unknown.num_ids)} ({unknown.fraction:.1%})"
    shown = ", ".join(map(repr, unknown.examples))
    return f"{share}, of {plural(unknown.num_users, 'user')}: {shown}"
