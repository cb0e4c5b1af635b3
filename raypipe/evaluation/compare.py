"""Compare rankers on the same users: metrics with intervals, differences to the best baseline, and one sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from raypipe.evaluation.protocols import Split
from raypipe.evaluation.ranking_metrics import Floats, Interval, expected_ranks, gini, intervals, user_metrics
from raypipe.results import Shown
from raypipe.search.watch_events import Events, Ints

MIN_USERS = 200  # with fewer users there is no verdict
_SCORES_AT_ONCE = 2**25
_GROUPS = ("0", "1-4", "5-9", "10-29", "30+")  # of the counts in a slice
_GROUP_ENDS = (0, 4, 9, 29)
NOT_COMPARED = "random"
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
        against: For each metric and baseline, ``main`` minus this baseline on the same users.
        slices: For each slice, its value and each ranker: hr and ndcg at the middle k.
        ranks: The rank of the first target of each user by ranker, [U] in the order of ``users``.
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
        return {
            **self.facts,
            "rankers": {name: plain(metrics) for name, metrics in self.rankers.items()},
            "best_baseline": dict(self.best_baseline),
            "differences": {self.main: differences},
            "slices": self.slices,
            "outcome": self.outcome,
            "verdict": self.verdict,
        }


def compare(
    split: Split,
    rankers: Mapping[str, Ranker],
    *,
    num_items: int,
    ks: Sequence[int],
    main: str = "served",
    seed: int = 0,
) -> Evaluation:
    """Rank the full catalogue for each test user by each ranker.

    A user's known videos are not ranked. ``main`` is compared with all other rankers except ``random``.

    Raises:
        ValueError: a target is also an event that the rankers know or were fitted on.
    """
    check_no_leak(split, num_items=num_items)
    ks = sorted(set(ks))
    middle = ks[len(ks) // 2]
    values: dict[str, dict[str, Floats]] = {}
    ranks: dict[str, Floats] = {}
    spread: dict[str, dict[str, Interval]] = {}
    for name, ranker in rankers.items():
        values[name], ranks[name], counts = _measure(split, ranker, num_items=num_items, ks=ks, top=middle)
        covered, unequal = float((counts > 0).mean()), gini(counts)
        spread[name] = {
            f"coverage@{middle}": Interval(covered, covered, covered),
            f"gini@{middle}": Interval(unequal, unequal, unequal),
        }
    found = intervals(
        {f"{name} {metric}": series for name, metrics in values.items() for metric, series in metrics.items()},
        seed=seed,
    )
    metrics = list(values[main])
    table = {name: {metric: found[f"{name} {metric}"] for metric in metrics} | spread[name] for name in rankers}
    baselines = [name for name in rankers if name not in {main, NOT_COMPARED}]
    best = {metric: max(baselines, key=lambda name: table[name][metric].value) for metric in metrics}
    differences = intervals(
        {f"{metric} {name}": values[main][metric] - values[name][metric] for metric in metrics for name in baselines},
        seed=seed,
    )
    against = {metric: {name: differences[f"{metric} {name}"] for name in baselines} for metric in metrics}
    shown = (f"hr@{middle}", f"ndcg@{middle}")
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
        slices=_slices(split, {name: {m: values[name][m] for m in shown} for name in rankers}, num_items),
        ranks=ranks,
        users=split.users,
        main=main,
    )


def check_no_leak(split: Split, *, num_items: int) -> None:
    """Raise ValueError if a target is also an event to fit on, or a known one."""
    targets = split.targets.users * num_items + split.targets.items
    for name, events in (("fitted on", split.train), ("known", split.known)):
        if (leaked := np.isin(targets, events.users * num_items + events.items)).any():
            msg = f"{int(leaked.sum())} targets are also events that are {name}."
            raise ValueError(msg)


def _measure(
    split: Split, ranker: Ranker, *, num_items: int, ks: Sequence[int], top: int
) -> tuple[dict[str, Floats], Floats, Ints]:
    """Return the metrics of each test user, the rank of the best target, and how often each video is in a list."""
    rows: list[dict[str, float]] = []
    best_ranks: list[float] = []
    counts = np.zeros(num_items, np.int64)
    at_once = max(1, _SCORES_AT_ONCE // num_items)
    for start in range(0, len(split.users), at_once):
        users = split.users[start : start + at_once]
        histories = [split.known.history(user) for user in users]
        for user, history, scores in zip(users, histories, ranker.scores(histories), strict=True):
            is_known = np.zeros(num_items, np.bool_)
            is_known[history] = True
            found = expected_ranks(scores, is_known, split.targets.history(user))
            rows.append(user_metrics(found, ks=ks))
            best_ranks.append(float(found.min()))
            masked = np.where(is_known | ~np.isfinite(scores), -np.inf, scores)
            listed = np.argpartition(-masked, min(top, num_items) - 1)[:top]
            np.add.at(counts, listed[masked[listed] > -np.inf], 1)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, np.array(best_ranks), counts


def _slices(
    split: Split, values: Mapping[str, Mapping[str, Floats]], num_items: int
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return the metrics of users by how often their first target was watched, and by how much they have watched."""
    watched = np.bincount(split.train.items, minlength=num_items)
    first = split.targets.items[split.targets.starts[:-1][split.users]]
    lengths = np.diff(split.known.starts)[split.users]
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for title, numbers in (("target_frequency", watched[first]), ("history_length", lengths)):
        groups = np.searchsorted(_GROUP_ENDS, numbers, side="left")
        found[title] = {
            _GROUPS[group]: {
                "users": {"count": int((groups == group).sum())},
                **{
                    name: {metric: float(series[groups == group].mean()) for metric, series in metrics.items()}
                    for name, metrics in values.items()
                },
            }
            for group in np.unique(groups).tolist()
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
