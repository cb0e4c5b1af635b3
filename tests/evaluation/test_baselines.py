"""The baselines equal their definitions, and the comparison finds the one that is best by construction."""

from collections import Counter, defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raypipe.evaluation import baselines
from raypipe.evaluation.compare import Ranker, compare
from raypipe.evaluation.protocols import leave_one_out
from raypipe.search.successors import EASE_REGULARIZATION, count_successors
from raypipe.search.watch_events import Events

NUM_ITEMS = 12
HISTORIES = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=8, unique=True), min_size=1, max_size=6)


@given(HISTORIES, st.lists(st.integers(0, NUM_ITEMS - 1), max_size=5))
def test_transitions_are_weighted_counts_of_successors(histories: list[list[int]], history: list[int]) -> None:
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    for items in histories:
        for at, item in enumerate(items):
            for distance, later in enumerate(items[at + 1 : at + 6], start=1):
                counts[item][later] += 1 / distance  # type: ignore[assignment]
    expected = np.zeros(NUM_ITEMS)
    for age, item in enumerate(reversed(history)):
        for later, weight in counts[item].items():
            expected[later] += 0.6**age * weight
    found = count_successors("transitions", Events.of_histories(histories), num_items=NUM_ITEMS).scores(
        [np.array(history, np.int64)]
    )
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


@given(HISTORIES)
def test_item_knn_sums_cosines_between_users(histories: list[list[int]]) -> None:
    events = Events.of_histories(histories)
    matrix = np.zeros((len(histories), NUM_ITEMS))
    matrix[events.users, events.items] = 1
    norms = np.maximum(np.linalg.norm(matrix, axis=0), 1)
    cosines = (matrix / norms).T @ (matrix / norms)
    np.fill_diagonal(cosines, 0)
    known = [events.history(user) for user in range(events.num_users)]
    np.testing.assert_allclose(
        count_successors("item_knn", events, num_items=NUM_ITEMS).scores(known), matrix @ cosines, atol=1e-5
    )


@given(HISTORIES)
def test_ease_is_the_regression_without_a_diagonal(histories: list[list[int]]) -> None:
    events = Events.of_histories(histories)
    matrix = np.zeros((len(histories), NUM_ITEMS))
    matrix[events.users, events.items] = 1
    weights = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for item in range(NUM_ITEMS):  # each column is a ridge regression on all other items
        others = np.arange(NUM_ITEMS) != item
        gram = matrix[:, others].T @ matrix[:, others] + EASE_REGULARIZATION * np.eye(NUM_ITEMS - 1)
        weights[others, item] = np.linalg.solve(gram, matrix[:, others].T @ matrix[:, item])
    known = [events.history(user) for user in range(events.num_users)]
    np.testing.assert_allclose(baselines.Ease(events, NUM_ITEMS).scores(known), matrix @ weights, atol=1e-5)


def test_popular_counts_users_of_the_last_days() -> None:
    items, day = np.array([0, 0, 1, 1, 1]), 86_400.0
    events = Events(items, np.arange(6), np.array([9.0, 10.0, 1.0, 2.0, 10.0]) * day)
    assert baselines.Popular(events, 3).scores([items]).tolist() == [[2, 3, 0]]
    assert baselines.Popular(events, 3, days=7).scores([items]).tolist() == [[2, 1, 0]]


def test_content_scores_by_the_cosine() -> None:
    vectors = np.array([[2, 0], [0, 1], [1, 1]], np.float16)
    history = np.array([0, 1])
    half = 0.5**0.5
    for pooling, expected in (("last", [0, 1, half]), ("mean", [half, half, 1]), ("max", [1, 1, half])):
        found = baselines.Content(vectors, pooling=pooling).scores([history, history[:0]])
        np.testing.assert_allclose(found, [expected, [0, 0, 0]], atol=1e-6)


def chains(num_users: int, num_items: int) -> Events:
    """Make users who mostly watch the next video of a fixed circle: transitions predict them, popularity does not."""
    random = np.random.default_rng(0)
    histories = []
    for _ in range(num_users):
        history = [int(random.integers(num_items))]
        for _ in range(7):
            follows = random.random() < 0.8
            history.append((history[-1] + 1) % num_items if follows else int(random.integers(num_items)))
        histories.append(list(dict.fromkeys(history)))
    return Events.of_histories(histories)


class Oracle:
    """Knows the targets."""

    def __init__(self, targets: np.ndarray) -> None:
        self._targets = iter(targets)

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        scores = np.zeros((len(histories), 200), np.float32)
        for row in scores:
            row[next(self._targets)] = 1
        return scores


def test_the_comparison_finds_what_is_better_by_construction() -> None:
    split = leave_one_out(chains(400, 200))
    rankers: dict[str, Ranker] = {
        "served": baselines.Popular(split.train, 200),
        "random": baselines.Random(200),
        "transitions": count_successors("transitions", split.train, num_items=200),
        "item_knn": count_successors("item_knn", split.train, num_items=200),
    }
    found = compare(split, rankers, num_items=200, ks=[10])
    assert found.best_baseline["ndcg@10"] == "transitions"
    assert found.is_worse_than("transitions", "ndcg@10")
    assert found.outcome == "worse"
    # The interval of the expectation of a random order covers its value: k of the videos that are left.
    chance = float(np.mean([10 / (200 - len(split.known.history(user))) for user in split.users]))
    assert found.rankers["random"]["hr@10"].low <= chance <= found.rankers["random"]["hr@10"].high
    assert sum(one["users"]["count"] for one in found.slices["history_length"].values()) == len(split.users)
    same = compare(split, rankers | {"random": baselines.Random(200)}, num_items=200, ks=[10])
    assert same.as_json() == found.as_json()


def test_an_oracle_is_perfect_and_better_than_every_baseline() -> None:
    split = leave_one_out(chains(300, 200))
    rankers: dict[str, Ranker] = {
        "served": Oracle(split.targets.items),
        "transitions": count_successors("transitions", split.train, num_items=200),
    }
    found = compare(split, rankers, num_items=200, ks=[10])
    assert [found.rankers["served"][metric].value for metric in ("hr@10", "ndcg@10", "mrr")] == [1, 1, 1]
    assert not found.is_worse_than("transitions", "ndcg@10")
    assert found.outcome == "better"


def test_few_users_get_no_verdict() -> None:
    split = leave_one_out(chains(50, 200))
    rankers: dict[str, Ranker] = {"served": baselines.Random(200), "popular": baselines.Popular(split.train, 200)}
    assert compare(split, rankers, num_items=200, ks=[10]).outcome == "too_few_users"
