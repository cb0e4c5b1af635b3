import numpy as np
import pytest

from raypipe.search.ann import Ann
from raypipe.search.filters import Eligible
from raypipe.search.trials import trial_queries
from raypipe.search.vectors import neighbors
from support.vectors import clustered, settings_of

NUM_VECTORS = 200_000


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(NUM_VECTORS, dim=64)


@pytest.fixture(scope="module")
def ann(vectors: np.ndarray) -> Ann:
    return Ann.build(vectors, settings=settings_of("ivf_sq8", target_recall=0.97))


def masks(vectors: np.ndarray) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(1)
    around = vectors.astype(np.float32) @ vectors[5].astype(np.float32)
    found = {f"{part:.1%}": chance.random(len(vectors)) < part for part in (1.0, 0.1, 0.01, 0.001)}
    return found | {"the 5 % around one vector": around >= np.quantile(around, 0.95)}


def test_recall_at_10_with_and_without_filters(vectors: np.ndarray, ann: Ann) -> None:
    assert ann.recall_at_10 >= 0.95
    queries = trial_queries(vectors, count=200, seed=9)
    recalls = {}
    for name, mask in masks(vectors).items():
        _, found = ann.search(queries, top_k=10, eligible=None if mask.all() else Eligible.of(mask))
        assert mask[found].all()
        allowed = np.flatnonzero(mask)
        truth = allowed[neighbors(vectors[allowed], queries, top_k=10)]
        recalls[name] = np.mean([np.isin(one, other).sum() for one, other in zip(found, truth, strict=True)]) / 10
    assert min(recalls.values()) >= 0.95, recalls
