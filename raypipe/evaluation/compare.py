"""Compare rankers on the same users: metrics with intervals, differences to the best baseline, and one sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from raypipe.evaluation.groupings import Grouping, by_history
from raypipe.evaluation.list_metrics import EMPTY, Audience, diversity, mean_in_lists
from raypipe.evaluation.protocols import Split
from raypipe.evaluation.ranking_metrics import Floats, Interval, expected_ranks, gini, intervals, ratios, user_metrics
from raypipe.results import Shown
from raypipe.search.watch_events import Events, Ints

MIN_USERS = 200  # with fewer users there is no verdict
_SCORES_AT_ONCE = 2**25
RANDOM, EXACT, SHUFFLED, TOWER = "random", "served_exact", "served_shuffled", "tower"
REFERENCES = frozenset({RANDOM, EXACT, SHUFFLED, TOWER})  # shown for orientation: never the best baseline
Outcome = Literal["better", "worse", "not_distinguishable", "too_few_users"]


class Ranker(Protocol):
    """Anything that scores a whole catalogue."""

    def scores(self, histories: Sequence[Ints]) -> npt.NDArray[np.float32]:
        """Return the score of each of N videos for each of B histories: [B, N]."""


@dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """How well rankers predict what users watched next.

    Attributes:
        facts: The protocol, its parameters, and how many users, events and videos there are.
        rankers: For each ranker its metrics by name, such as ``ndcg@10``.
        best_baseline: For each metric the baseline with the highest value.
        against: For each metric and other ranker, ``main`` minus this ranker on the same users.
        slices: For each slice, its value and each ranker: hr and ndcg at the middle k.
        ranks: The rank of the best-ranked target of each user by ranker, [U] in the order of ``users``.
        users: The numbers of the users.
        main: The ranker in question.
    """

    facts: Mapping[str, Any]
    rankers: Mapping[str, Mapping[str, Interval]]
    best_baseline: Mapping[str, str]
    against: Mapping[str, Mapping[str, Interval]]
    slices: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
    ranks: Mapping[str, Floats] = field(repr=False)
    users: Ints = field(repr=False)
    main: str = "served"

    @property
    def metric(self) -> str:
        """Return the metric that the verdict is about: NDCG at the middle k."""
        return str(self.facts["metric"])

    @property
    def differences(self) -> Mapping[str, Interval]:
        """Return, for each metric, ``main`` minus the best baseline on the same users."""
        return {metric: self.against[metric][baseline] for metric, baseline in self.best_baseline.items()}

    @property
    def outcome(self) -> Outcome:
        """Return how ``main`` compares with the best baseline; ``too_few_users`` if there is no verdict."""
        found = self.differences[self.metric]
        if self.facts["num_users"] < MIN_USERS:
            return "too_few_users"
        if found.low > 0:
            return "better"
        return "worse" if found.high < 0 else "not_distinguishable"

    @property
    def verdict(self) -> str:
        """Return the outcome as one sentence, with the difference to the best baseline and its interval."""
        baseline, found = self.best_baseline[self.metric], self.differences[self.metric]
        interval = f"{abs(found.value):.4f} [{found.low:.4f}, {found.high:.4f}] in {self.metric}"
        return {
            "too_few_users": f"No verdict: {self.facts['num_users']} users are too few, {MIN_USERS} are needed.",
            "better": f"raypipe is better than {baseline} by {interval}.",
            "worse": f"raypipe is worse than {baseline} by {interval}.",
            "not_distinguishable": f"raypipe is not distinguishable from {baseline}: {interval}.",
        }[self.outcome]

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what approximate search costs and what the order of the histories is worth, if both were measured."""
        known = self.against[self.metric]
        texts = {EXACT: "Approximate search changes", SHUFFLED: "The order of the histories changes"}
        return tuple(
            f"{text} {self.metric} by {known[name].value:+.4f} [{known[name].low:+.4f}, {known[name].high:+.4f}]."
            for name, text in texts.items()
            if name in known
        )

    def is_worse_than(self, baseline: str, metric: str) -> bool:
        """Return whether ``main`` is measurably worse: the interval of the difference is below 0."""
        return self.against[metric][baseline].high < 0

    def shown(self) -> Mapping[str, object]:
        """Return the protocol, the main metric of each ranker, and the verdict."""
        values = {name: round(metrics[self.metric].value, 4) for name, metrics in self.rankers.items()}
        return {"protocol": self.facts["protocol"], self.metric: values, "verdict": self.verdict}

    def as_json(self) -> dict[str, Any]:
        """Return everything but the ranks, for ``metrics.json``."""

        def plain(metrics: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
            return {name: asdict(interval) for name, interval in metrics.items()}

        differences = {
            metric: {"against": self.best_baseline[metric], **asdict(found)}
            for metric, found in self.differences.items()
        }
        references = {
            name: {metric: asdict(found[name]) for metric, found in self.against.items()}
            for name in self.rankers
            if name in REFERENCES
        }
        return {
            **self.facts,
            "rankers": {name: plain(metrics) for name, metrics in self.rankers.items()},
            "best_baseline": dict(self.best_baseline),
            "differences": {self.main: differences},
            "references": references,
            "slices": self.slices,
            "outcome": self.outcome,
            "verdict": self.verdict,
            "notes": list(self.notes),
        }


def compare(
    split: Split,
    rankers: Mapping[str, Ranker],
    *,
    num_items: int,
    ks: Sequence[int],
    vectors: npt.NDArray[np.floating] | None = None,
    groupings: Mapping[str, Grouping] = MappingProxyType({}),
    main: str = "served",
    seed: int = 0,
) -> Evaluation:
    """Rank the full catalogue for each test user by each ranker.

    A user's known videos are not ranked. ``main`` is compared with all other rankers; those in ``REFERENCES`` are never
    the best baseline. The vectors of the videos, [N, d], are for the diversity of the lists. ``groupings`` are slices
    in addition to those by history.

    Raises:
        ValueError: a target is also an event that the rankers know or were fitted on.
    """
    check_no_leak(split, num_items=num_items)
    ks = sorted(set(ks))
    middle = ks[len(ks) // 2]
    values: dict[str, dict[str, Floats]] = {}
    ranks: dict[str, Floats] = {}
    lists: dict[str, Ints] = {}
    for name, ranker in rankers.items():
        values[name], ranks[name], lists[name] = _measure(split, ranker, num_items=num_items, ks=ks, top=middle)
    found = intervals(_flat(values), seed=seed)
    contents = _contents(split, lists, num_items=num_items, k=middle, vectors=vectors, seed=seed)
    metrics = list(values[main])
    table = {name: {metric: found[f"{name} {metric}"] for metric in metrics} | contents[name] for name in rankers}
    others = [name for name in rankers if name != main]
    baselines = [name for name in others if name not in REFERENCES]
    best = {metric: max(baselines, key=lambda name: table[name][metric].value) for metric in metrics}
    differences = intervals(
        {f"{metric} {name}": values[main][metric] - values[name][metric] for metric in metrics for name in others},
        seed=seed,
    )
    against = {metric: {name: differences[f"{metric} {name}"] for name in others} for metric in metrics}
    shown = (f"hr@{middle}", f"ndcg@{middle}")
    groups = {**by_history(split, num_items=num_items), **groupings}
    return Evaluation(
        facts={
            **split.facts,
            "metric": f"ndcg@{middle}",
            "num_users": len(split.users),
            "num_train_events": len(split.train),
            "num_targets": len(split.targets),
            "num_videos": num_items,
            "seed": seed,
        },
        rankers=table,
        best_baseline=best,
        against=against,
        slices=_slices({name: {m: values[name][m] for m in shown} for name in rankers}, groups),
        ranks=ranks,
        users=split.users,
        main=main,
    )


def _flat(values: Mapping[str, Mapping[str, Floats]]) -> dict[str, Floats]:
    return {f"{name} {metric}": series for name, metrics in values.items() for metric, series in metrics.items()}


def _contents(
    split: Split,
    lists: Mapping[str, Ints],
    *,
    num_items: int,
    k: int,
    vectors: npt.NDArray[np.floating] | None,
    seed: int,
) -> dict[str, dict[str, Interval]]:
    """Return for each ranker the metrics of what its lists [U, k] contain."""
    audience = Audience.of(split, num_items=num_items)
    lifts = ratios(
        {name: mean_in_lists(listed, audience.viewers) for name, listed in lists.items()}, audience.watched, seed=seed
    )
    means: dict[str, dict[str, Floats]] = {
        name: {f"novelty@{k}": mean_in_lists(listed, audience.surprise)}
        | ({} if vectors is None else {f"diversity@{k}": diversity(listed, vectors)})
        for name, listed in lists.items()
    }
    found = intervals(_flat(means), seed=seed)
    contents: dict[str, dict[str, Interval]] = {}
    for name, listed in lists.items():
        counts = np.bincount(listed[listed != EMPTY], minlength=num_items)
        contents[name] = {
            f"coverage@{k}": Interval.exactly(float((counts > 0).mean())),
            f"gini@{k}": Interval.exactly(gini(counts)),
        }
        if name in lifts:
            contents[name][f"popularity_lift@{k}"] = lifts[name]
        contents[name] |= {metric: found[key] for metric in means[name] if (key := f"{name} {metric}") in found}
    return contents


def check_no_leak(split: Split, *, num_items: int) -> None:
    """Raise ValueError if a target is also an event to fit on, or a known one, or if an event is after the cut."""
    targets = split.targets.users * num_items + split.targets.items
    for name, events in (("fitted on", split.train), ("known", split.known)):
        if (leaked := np.isin(targets, events.users * num_items + events.items)).any():
            msg = f"{int(leaked.sum())} targets are also events that are {name}."
            raise ValueError(msg)
        if (cut := split.facts.get("cut")) is not None and events.times is not None and (events.times > cut).any():
            msg = f"{int((events.times > cut).sum())} events that are {name} are after the cut."
            raise ValueError(msg)


def _measure(
    split: Split, ranker: Ranker, *, num_items: int, ks: Sequence[int], top: int
) -> tuple[dict[str, Floats], Floats, Ints]:
    """Return the metrics of each test user, the rank of the best target, and the first ``top`` videos in any order."""
    rows: list[dict[str, float]] = []
    best_ranks: list[float] = []
    lists = np.full((len(split.users), min(top, num_items)), EMPTY, np.int64)
    at_once = max(1, _SCORES_AT_ONCE // num_items)
    for start in range(0, len(split.users), at_once):
        users = split.users[start : start + at_once]
        histories = [split.known.history(user) for user in users]
        places = lists[start : start + at_once]
        for user, history, scores, listed in zip(users, histories, ranker.scores(histories), places, strict=True):
            is_known = np.zeros(num_items, np.bool_)
            is_known[history] = True
            found = expected_ranks(scores, is_known, split.targets.history(user))
            rows.append(user_metrics(found, ks=ks))
            best_ranks.append(float(found.min()))
            masked = np.where(is_known | ~np.isfinite(scores), -np.inf, scores)
            first = np.argpartition(-masked, len(listed) - 1)[: len(listed)]
            first = first[masked[first] > -np.inf]
            listed[: len(first)] = first
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, np.array(best_ranks), lists


def _slices(
    values: Mapping[str, Mapping[str, Floats]], groupings: Mapping[str, Grouping]
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return the metrics of each group of users; groups without users are left out."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for title, grouping in groupings.items():
        found[title] = {}
        for group in np.unique(grouping.codes).tolist():
            is_in = grouping.codes == group
            found[title][grouping.names[group]] = {
                "users": {"count": int(is_in.sum())},
                **{
                    name: {metric: float(series[is_in].mean()) for metric, series in metrics.items()}
                    for name, metrics in values.items()
                },
            }
    return found


def sample_users(split: Split, *, max_users: int | None, seed: int) -> Split:
    """Return the split with at most ``max_users`` test users, drawn at random; the events to fit on stay the same."""
    if max_users is None or len(split.users) <= max_users:
        return split
    drawn = np.sort(np.random.default_rng(seed).choice(split.users, max_users, replace=False))
    is_kept = np.isin(split.targets.users, drawn)
    targets: Events = split.targets.where(is_kept)
    return Split(split.train, split.known, targets, drawn, {**split.facts, "max_users": max_users})
