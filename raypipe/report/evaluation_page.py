"""The page of an evaluation: rankers with their intervals, slices of the users, and lists of some users."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raypipe.records import EvaluationRecord, ExampleUser, is_thumbnail
from raypipe.report.templating import Tile, render_page
from raypipe.text import NOTHING, format_count, format_score, heading, plural

_CONTENTS = (
    ("Coverage", "coverage"),
    ("Gini", "gini"),
    ("Popularity lift", "popularity_lift"),
    ("Novelty, bits", "novelty"),
    ("Diversity", "diversity"),
)  # the headings and metrics of what lists contain
_REFERENCES = {"random", "served_exact", "served_shuffled"}
_NUM_IN_SLICES = 4
_SLICE_TITLES = {
    "target_frequency": "Viewers of the target",
    "newness": "Newness of the target",
    "history_length": "Videos watched before",
    "days_since_publication": "Days since the publication of the target",
}


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
    names = (metric, f"hr@{k}", "mrr")
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
        notes=metrics["notes"],
        k=k,
        content_columns=[title for title, _ in _CONTENTS],
        contents=_contents(metrics, metric, k),
        examples=[(_outcome_of(user), user) for user in record.examples],
        is_thumbnail=is_thumbnail,
        slice_rankers=_in_slices(metrics, metric),
        slices=_slices(metrics, _in_slices(metrics, metric), metric),
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
    ordered = [(name, rankers[name]) for name in _ordered(metrics, metric)]
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


def _ordered(metrics: Mapping[str, Any], metric: str) -> list[str]:
    """Return the names of the rankers, the best one first."""
    rankers: Mapping[str, Any] = metrics["rankers"]
    return sorted(rankers, key=lambda name: -rankers[name][metric]["value"])


def _contents(metrics: Mapping[str, Any], metric: str, k: str) -> list[tuple[str, list[str]]]:
    """Return one row per ranker with the metrics of its lists; a metric that could not be computed is a dash."""
    rankers: Mapping[str, Any] = metrics["rankers"]

    def text(found: Mapping[str, Any], name: str) -> str:
        return _number(found[f"{name}@{k}"]["value"]) if f"{name}@{k}" in found else NOTHING

    return [(ranker, [text(rankers[ranker], name) for _, name in _CONTENTS]) for ranker in _ordered(metrics, metric)]


def _outcome_of(user: ExampleUser) -> str:
    if user.place is None:
        return f"not among the {plural(user.num_listed, 'recommended video')}"
    return f"at place {user.place} of the list"


def _slices(
    metrics: Mapping[str, Any], rankers: list[str], metric: str
) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Return for each slice its title, and for each group of users its name, its size and the value of each ranker.

    A slice with one group says nothing and is left out.
    """
    return [
        (
            _SLICE_TITLES.get(title, f"{heading(title)} of the target"),
            [
                (group, [format_count(found["users"]["count"]), *(_number(found[name][metric]) for name in rankers)])
                for group, found in groups.items()
            ],
        )
        for title, groups in metrics["slices"].items()
        if len(groups) > 1
    ]


def _in_slices(metrics: Mapping[str, Any], metric: str) -> list[str]:
    """Return the names of the rankers that slices show: served, then the best baselines."""
    against = [name for name in _ordered(metrics, metric) if name not in {"served", *_REFERENCES}]
    return ["served", *against[:_NUM_IN_SLICES]]


def _name_of(metric: str) -> str:
    name, at, k = metric.partition("@")
    return f"{name.upper() if name in {'hr', 'ndcg', 'mrr'} else heading(name)}{at}{k}"


def _number(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else format_score(value)  # noqa: PLR2004 - three digits either way
