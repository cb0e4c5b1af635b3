import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.search.filters import Eligible
from raypipe.search.ranking import Boost, Caps, Ranking, pick


@given(st.integers(1, 300), st.integers(1, 40), st.sampled_from([0.0, 0.02, 0.5, 1.0]), st.integers(0, 99))
def test_the_first_of_an_order_that_are_eligible(size: int, count: int, part: float, seed: int) -> None:
    chance = np.random.default_rng(seed)
    order, mask = chance.permutation(size), chance.random(size) < part
    ranking = Ranking(np.empty(0, np.float32), order)
    assert ranking.first(count, Eligible.of(mask)).tolist() == [one for one in order.tolist() if mask[one]][:count]
    assert ranking.first(count, None).tolist() == order[:count].tolist()


def test_a_ranking_keeps_the_order_of_equals() -> None:
    ranking = Ranking.of(np.array([1, 3, 1, 3, 2], np.float32))
    assert ranking.order.tolist() == [1, 3, 4, 0, 2]
    assert Boost(0.5, ranking).of(np.array([4, 1])).tolist() == [1.0, 1.5]


@pytest.mark.parametrize("cap", [1, 2])
def test_a_pool_of_one_category_grows_until_the_pick_is_whole(cap: int) -> None:
    """A thousand candidates of one category rank before two of each other category."""
    categories = np.array([0] * 1_000 + [1, 1, 2, 2, 3, 3])
    scores = -np.arange(len(categories), dtype=np.float32)
    source, vectors = Ranking.of(scores), np.zeros((len(scores), 2), np.float16)
    caps = Caps(categories, None, cap)
    _, found = pick(source, vectors, top_k=6, eligible=None, caps=caps, diversity=0)
    assert found.tolist() == [[0, 1_000, 1_002, 1_004], [0, 1, 1_000, 1_001, 1_002, 1_003]][cap - 1]
    odd = Eligible.of(np.arange(len(scores)) % 2 == 1)
    _, found = pick(source, vectors, top_k=4, eligible=odd, caps=caps, diversity=0)
    assert found.tolist() == [[1, 1_001, 1_003, 1_005], [1, 3, 1_001, 1_003]][cap - 1]


def test_both_caps_together_take_an_exchange() -> None:
    categories, groups = np.array([1, 1, 2]), np.array([7, -1, 7])
    source = Ranking.of(np.array([3, 2, 1], np.float32))
    scores, found = pick(
        source, np.zeros((3, 2), np.float16), top_k=2, eligible=None, caps=Caps(categories, groups), diversity=0
    )
    assert found.tolist() == [1, 2]
    assert scores.tolist() == [2, 1]
