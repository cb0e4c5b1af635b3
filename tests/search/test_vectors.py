import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from raypipe.search.vectors import best, dots, neighbors, widen
from support.vectors import clustered

BITS = arrays.arrays(np.uint16, (7, 5))


@given(BITS)
def test_widen_is_astype(bits: np.ndarray) -> None:
    half = bits.view(np.float16)
    half[~np.isfinite(half)] = 0
    np.testing.assert_array_equal(widen(half), half.astype(np.float32))


def test_a_dot_product_is_the_same_number_whatever_else_is_asked() -> None:
    vectors = clustered(3_000, dim=40)
    query = vectors[7].astype(np.float32)
    every = dots(vectors, np.arange(3_000), query)
    np.testing.assert_allclose(every, vectors.astype(np.float64) @ query, atol=1e-6)
    for start, stop in ((0, 1), (5, 8), (1_020, 1_027), (2_999, 3_000), (0, 1_500)):
        np.testing.assert_array_equal(dots(vectors, np.arange(start, stop), query), every[start:stop])


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), max_size=30), st.integers(0, 12), st.randoms())
def test_best_is_sorted_by_score_and_then_by_position(values: list[float], top_k: int, chance: random.Random) -> None:
    positions = np.arange(len(values)) * 3
    chance.shuffle(positions)
    found_scores, found = best(np.array(values, np.float32), positions, top_k)
    expected = sorted(
        zip(np.array(values, np.float32).tolist(), positions.tolist(), strict=True), key=lambda x: (-x[0], x[1])
    )
    assert list(zip(found_scores.tolist(), found.tolist(), strict=True)) == expected[:top_k]


def test_neighbours_are_those_of_all_vectors() -> None:
    vectors = clustered(9_000, dim=8)  # more than one multiplication block
    queries = vectors[::1_000].astype(np.float32)
    scores = queries @ vectors.astype(np.float32).T
    np.testing.assert_array_equal(neighbors(vectors, queries, top_k=5), np.argsort(-scores, axis=1)[:, :5])


def test_no_vectors_are_no_neighbours() -> None:
    assert neighbors(np.empty((0, 3), np.float16), np.ones((2, 3), np.float32), top_k=0).shape == (2, 0)
