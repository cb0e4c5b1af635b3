import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.search.ranking import Caps, choose, complete, freshness, percentile_rank
from support.vectors import units

DAY = 86_400.0


@st.composite
def candidates(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Draw categories and groups of up to 40 candidates, a cap, and how many to pick."""
    size = draw(st.integers(0, 40))
    categories = draw(st.lists(st.integers(-1, 4), min_size=size, max_size=size))
    groups = draw(st.lists(st.sampled_from([-1, 0, 1, 2, 3, 4, 5, 6]), min_size=size, max_size=size))
    return np.array(categories, np.int32), np.array(groups, np.int64), draw(st.integers(1, 4)), draw(st.integers(1, 25))


def most_possible(categories: np.ndarray, groups: np.ndarray, cap: int | None) -> int:
    """Apply König's theorem: return the smallest cover of all candidates by whole categories and by groups."""
    alone = groups == -1
    group_of = np.where(alone, np.arange(len(groups)) + 1_000, groups)
    if cap is None:
        return len(set(group_of.tolist()))
    kinds = sorted(set(categories.tolist()))
    covers = []
    for covered in itertools.product((False, True), repeat=len(kinds)):
        closed = [kind for kind, cover in zip(kinds, covered, strict=True) if cover]
        open_groups = set(group_of[~np.isin(categories, closed)].tolist())
        covers.append(cap * len(closed) + len(open_groups))
    return min(covers, default=0)


@given(candidates(), st.sampled_from(["categories", "groups", "categories and groups", "neither"]))
def test_as_many_as_the_caps_allow_and_no_more(drawn: tuple[np.ndarray, np.ndarray, int, int], which: str) -> None:
    categories, groups, cap, top_k = drawn
    by_category, by_group = "categories" in which, "groups" in which
    caps = Caps(categories if by_category else None, groups if by_group else None, cap)
    relevance = -np.arange(len(categories), dtype=np.float32)
    picked = choose(relevance, top_k=top_k, caps=caps)
    assert picked == sorted(set(picked))
    whole = complete(picked, top_k=top_k, caps=caps)
    assert len(whole) >= len(picked)
    assert len(set(whole)) == len(whole)
    if by_category:
        assert max(Counter(categories[whole].tolist()).values(), default=0) <= cap
    used = [group for group in groups[whole].tolist() if group != -1]
    assert not by_group or len(set(used)) == len(used)
    unlimited = groups if by_group else np.full(len(groups), -1)
    assert len(whole) == min(top_k, most_possible(categories, unlimited, cap if by_category else None))


def test_one_is_exchanged_to_make_room() -> None:
    caps = Caps(np.array([1, 1, 2]), np.array([7, -1, 7]))
    picked = choose(np.array([3.0, 2.0, 1.0], np.float32), top_k=2, caps=caps)
    assert picked == [0]
    assert complete(picked, top_k=2, caps=caps) == [1, 2]


def test_blocked_candidates_are_the_ones_that_caps_exclude() -> None:
    caps = Caps(np.array([1, 1, 2, 2, -1, -1]), np.array([7, -1, 7, -1, -1, -1]))
    assert caps.blocked([0]).tolist() == [True, True, True, False, False, False]
    assert caps.blocked([4]).tolist() == [False, False, False, False, True, True]
    assert caps.blocked([]).tolist() == [False] * 6


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_without_diversity_the_order_stays(size: int, top_k: int, seed: int) -> None:
    relevance = np.sort(np.random.default_rng(seed).random(size).astype(np.float32))[::-1]
    assert choose(relevance, top_k=top_k, caps=Caps()) == list(range(min(size, top_k)))


@given(st.integers(2, 20), st.sampled_from([0.1, 0.5, 0.9, 1.0]), st.integers(0, 99))
def test_diversity_is_the_maximal_marginal_relevance(size: int, diversity: float, seed: int) -> None:
    chance = np.random.default_rng(seed)
    vectors = units(chance.standard_normal((size, 5))).astype(np.float32)
    relevance = np.sort(chance.random(size).astype(np.float32))[::-1]
    picked = choose(relevance, top_k=size, caps=Caps(), diversity=diversity, vectors=vectors)
    assert sorted(picked) == list(range(size))
    assert picked[0] == 0
    for number in range(1, size):
        before, rest = picked[:number], picked[number:]
        worth = {
            one: (1 - diversity) * relevance[one]
            - diversity * max(float(vectors[one] @ vectors[other]) for other in before)
            for one in rest
        }
        assert worth[picked[number]] == pytest.approx(max(worth.values()), abs=1e-5)


def test_freshness_halves_every_thirty_days() -> None:
    times = np.array([0.0, -30 * DAY, np.nan, -60 * DAY, np.inf])
    np.testing.assert_allclose(freshness(times), [1, 0.5, 0, 0.25, 0])
    np.testing.assert_allclose(freshness(np.array([np.nan])), [0])
    assert freshness(np.empty(0)).tolist() == []


def test_popularity_is_a_percentile() -> None:
    np.testing.assert_allclose(percentile_rank(np.array([5.0, 1.0, np.nan, 5.0, 9.0])), [0.75, 0.25, 0, 0.75, 1])
    assert percentile_rank(np.array([np.nan, np.nan])).tolist() == [0, 0]


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=20))
def test_a_percentile_keeps_the_order(values: list[float]) -> None:
    numbers = np.array(values)
    ranks = percentile_rank(numbers)
    assert ranks.max() == 1
    for one, other in itertools.combinations(range(len(values)), 2):
        assert (numbers[one] < numbers[other]) == (ranks[one] < ranks[other])
