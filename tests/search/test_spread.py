from dataclasses import replace

import numpy as np
import pytest

from raypipe.search.filters import Eligible
from raypipe.search.spread import Reach, Spread

SIZES = np.array([100, 50, 0, 200, 650])
LIST_OF = np.repeat(np.arange(5), SIZES).astype(np.uint8)


def spread_of(mask: np.ndarray) -> Spread:
    return Spread.of(Eligible.of(mask), LIST_OF, SIZES)


def test_lists_with_few_eligible_vectors_are_sparse() -> None:
    mask = np.zeros(1_000, np.bool_)
    mask[[0, 99, 100, 101, 102, 150, 350, 999]] = True
    spread = spread_of(mask)
    assert spread.is_empty.tolist() == [False, False, True, False, False]
    assert spread.is_sparse.tolist() == [True, False, True, True, True]  # 3 of 50 are more than 5 %
    assert spread.few(np.arange(5)).tolist() == [0, 99, 150, 350, 999]
    assert spread.few(np.array([3, 1, 0])).tolist() == [0, 99, 150]
    assert spread.few(np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize("share", [0.5, 0.3, 0.05])
def test_the_correlation_says_how_much_a_filter_depends_on_the_contents(share: float) -> None:
    chance = np.random.default_rng(0)
    list_of = chance.integers(2_000, size=200_000).astype(np.uint16)
    sizes = np.bincount(list_of, minlength=2_000)
    for expected in (0.01, 0.1, 0.5):
        weight = 1 / expected - 1  # shares from this beta distribution have the expected correlation
        shares = chance.beta(share * weight, (1 - share) * weight, size=2_000)
        eligible = Eligible.of(chance.random(len(list_of)) < shares[list_of])
        assert Spread.of(eligible, list_of, sizes).correlation == pytest.approx(expected, rel=0.2)
    random = Eligible.of(chance.random(len(list_of)) < share)
    assert Spread.of(random, list_of, sizes).correlation < 0.002
    assert Spread.of(Eligible.of(list_of % 3 == 0), list_of, sizes).correlation == pytest.approx(1, rel=0.01)
    assert Spread.of(Eligible.of(list_of >= 0), list_of, sizes).correlation == 0


def test_the_reach_depends_on_the_filter() -> None:
    reach = Reach(all=0.1, tenth=0.2, hundredth=0.4, clustered=0.5)
    assert [reach.of(share, None) for share in (1, 0.1, 0.01, 0.001)] == pytest.approx([0.1, 0.2, 0.4, 0.4])
    assert 0.1 < reach.of(0.5, None) < 0.2
    one_list = spread_of(np.arange(1_000) < 100)
    assert reach.of(0.1, one_list) == pytest.approx(0.5)
    assert reach.of(0.1, replace(one_list, correlation=0.05)) == pytest.approx(0.35)
    assert reach.of(0.1, replace(one_list, correlation=0)) == pytest.approx(0.2)


def test_a_manifest_without_reach_gets_the_default() -> None:
    assert Reach.load({"nprobe": 3}) == Reach()
    assert Reach.load({"reach": {"all": 1, "tenth": 2, "hundredth": 3, "clustered": 4}}) == Reach(1, 2, 3, 4)
    for invalid in ({"all": None}, {"none": 1}, 3):
        with pytest.raises((TypeError, ValueError)):
            Reach.load({"reach": invalid})
