import numpy as np
import pytest

from raypipe.search import ann as ann_module
from raypipe.search.ann import Ann
from raypipe.search.filters import Eligible
from raypipe.search.trials import RANK, Trials, trial_queries
from support.vectors import clustered, settings_of

VECTORS = clustered(20_000, dim=24)


@pytest.fixture(scope="module")
def anns() -> dict[float, Ann]:
    """Return indexes by their target recall. Every filter is searched with lists, and the first pass is short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann_module, "SCANNED", 0)
        patch.setattr(ann_module, "_NPROBE", 2)
        options = [settings_of("ivf_sq8", target_recall=target, min_recall=0) for target in (0.5, 0.97)]
        return {one.target_recall: Ann.build(VECTORS, settings=one) for one in options}


def filters() -> dict[str, Eligible | None]:
    chance = np.random.default_rng(5)
    near = np.max([VECTORS @ VECTORS[row] for row in chance.integers(len(VECTORS), size=20)], axis=0) > 0.5
    random = {f"{share:.0%}": Eligible.of(chance.random(len(VECTORS)) < share) for share in (0.3, 0.1, 0.02)}
    return {"none": None, "clusters": Eligible.of(near), **random}


def test_the_target_recall_is_reached_with_and_without_filters(
    anns: dict[float, Ann], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann_module, "SCANNED", 0)
    queries = trial_queries(VECTORS, count=300, seed=9)
    recalls = {}
    for name, eligible in filters().items():
        trials = Trials.of(VECTORS, queries, eligible)
        for target, ann in anns.items():
            recalls[name, target] = trials.recall(ann.search(queries, top_k=RANK, eligible=eligible)[0])
    assert min(recall for (_, target), recall in recalls.items() if target > 0.9) >= 0.95, recalls
    assert recalls["none", 0.5] < 0.9, recalls  # it scans fewer lists
    assert anns[0.97].recall_at_10 >= 0.95 > anns[0.5].recall_at_10


def test_a_higher_target_needs_a_longer_reach(anns: dict[float, Ann]) -> None:
    low, high = (ann.reach for ann in anns.values())
    for name in ("all", "tenth", "hundredth", "clustered"):
        assert 0 <= getattr(low, name) < getattr(high, name), name


def test_recall_counts_results_as_near_as_the_nearest() -> None:
    trials = Trials(np.zeros((2, 3), np.float32), np.zeros((2, 2), np.int64), np.array([0.5, 0.8], np.float32))
    assert trials.recall(np.array([[0.9, 0.4], [0.9, 0.8]], np.float32)) == 0.75


def test_of_equal_vectors_any_is_found() -> None:
    trials = Trials.of(np.ones((100, 1), np.float16), np.ones((7, 1), np.float32))
    assert trials.recall(np.ones((7, trials.top_k), np.float32)) == 1


def test_neighbors_are_eligible() -> None:
    mask = np.arange(len(VECTORS)) % 5 == 0
    trials = Trials.of(VECTORS, trial_queries(VECTORS, count=8, seed=0), Eligible.of(mask))
    assert mask[trials.neighbors].all()
    few = Trials.of(VECTORS, trials.queries, Eligible.of(np.arange(len(VECTORS)) < 3))
    assert few.top_k == 3
    assert (np.sort(few.neighbors) == [0, 1, 2]).all()


def test_queries_are_of_length_one_and_half_are_vectors_of_the_index() -> None:
    vectors = clustered(50, dim=6)
    queries = trial_queries(vectors, count=40, seed=0)
    assert np.linalg.norm(queries, axis=1) == pytest.approx(np.ones(40), abs=1e-5)
    closest = (queries @ vectors.astype(np.float32).T).max(axis=1)
    assert 15 <= np.sum(closest > 0.999) <= 30
