"""The page of an evaluation: rankers with their intervals, and slices of the users."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raypipe.records import EvaluationRecord
from raypipe.report.templating import Tile, render_page
from raypipe.text import format_count, format_score, heading, plural


@dataclass(frozen=True, slots=True)
class RankerRow:
    """One ranker: its metrics as text, and the bar of the main metric as percentages of the longest bar."""

    name: str
    is_main: bool
    numbers: tuple[str, ...]
    interval: str
    bar: tuple[float, float, float]  # the value, and the ends of the interval


def evaluation_page(record: EvaluationRecord) -> str:
    """Return the report of an evaluation as one HTML document."""
    metrics = record.metrics
    metric = str(metrics["metric"])
    k = metric.partition("@")[2]
    names = (f"hr@{k}", metric, "mrr", f"coverage@{k}")
    return render_page(
        "evaluation.html",
        record,
        job="evaluate",
        headline=str(metrics["verdict"]).rstrip("."),
        uris=(record.index_uri, record.history_uri),
        tiles=_tiles(record),
        bad_tile="" if metrics["meets_requirement"] else "Requirement",
        run={name: metrics[name] for name in ("protocol", "index_version", "num_train_events", "num_targets")},
        metric=_name_of(metric),
        columns=[_name_of(name) for name in names],
        rows=_rows(metrics, names, metric),
        slices=_slices(metrics, metric),
        left_out=[(heading(reason.replace("_", " ")), format_count(count)) for reason, count in record.counts.items()],
        numbers_file="metrics.json",
    )


def _tiles(record: EvaluationRecord) -> list[Tile]:
    metrics = record.metrics
    served = metrics["rankers"]["served"][metrics["metric"]]["value"]
    best = metrics["best_baseline"][metrics["metric"]]
    tiles = [
        ("Users", format_count(metrics["num_users"]), f"by the protocol {metrics['protocol']}"),
        ("Videos", format_count(metrics["num_videos"]), "ranked for each user"),
        (f"Served, {_name_of(metrics['metric'])}", _number(served), "the lists that the endpoint returns"),
        ("Best baseline", _number(metrics["rankers"][best][metrics["metric"]]["value"]), best),
    ]
    if metrics["require"]:
        met = "met" if metrics["meets_requirement"] else "not met"
        tiles.append(("Requirement", met, str(metrics["require"])))
    return tiles


def _rows(metrics: Mapping[str, Any], names: tuple[str, ...], metric: str) -> list[RankerRow]:
    rankers: Mapping[str, Any] = metrics["rankers"]
    longest = max(found[metric]["high"] for found in rankers.values()) or 1.0
    ordered = sorted(rankers.items(), key=lambda item: -item[1][metric]["value"])
    return [
        RankerRow(
            name,
            name == "served",
            tuple(_number(found[one]["value"]) for one in names),
            f"{_number(found[metric]['low'])} to {_number(found[metric]['high'])}",
            tuple(100 * found[metric][part] / longest for part in ("value", "low", "high")),
        )
        for name, found in ordered
    ]


def _slices(metrics: Mapping[str, Any], metric: str) -> list[tuple[str, list[str], list[tuple[str, list[str]]]]]:
    """Return for each slice its title, the groups of users, and one row per ranker with a value for each group."""
    rankers = sorted(metrics["rankers"], key=lambda name: -metrics["rankers"][name][metric]["value"])
    return [
        (
            title.replace("_", " "),
            [f"{group} ({plural(found['users']['count'], 'user')})" for group, found in groups.items()],
            [(name, [_number(found[name][metric]) for found in groups.values()]) for name in rankers],
        )
        for title, groups in metrics["slices"].items()
    ]


def _name_of(metric: str) -> str:
    name, at, k = metric.partition("@")
    return f"{name.upper() if name in {'hr', 'ndcg', 'mrr'} else heading(name)}{at}{k}"


def _number(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else format_score(value)  # noqa: PLR2004 - three digits either way
