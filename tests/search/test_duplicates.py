import numpy as np
import pytest

from raypipe.search import build as build_module
from raypipe.search.ann import Ann
from raypipe.search.build import duplicate_groups
from support.vectors import KINDS, clustered, settings_of, units


def with_near_duplicates(num_vectors: int, *, copies: int, dim: int = 32) -> np.ndarray:
    """Return clustered vectors, some of them replaced by noisy copies of others."""
    vectors = clustered(num_vectors, dim=dim)
    chance = np.random.default_rng(3)
    sources, targets = chance.integers(0, num_vectors, (2, copies))
    noise = 0.15 / np.sqrt(dim) * chance.standard_normal((copies, dim))
    vectors[targets] = units(vectors[sources].astype(np.float64) + noise).astype(np.float16)
    return vectors


def by_pairs(vectors: np.ndarray, cosine: float) -> list[int]:
    """Group vectors by brute force; return the smallest row of each vector's group, or -1 if it is alone."""
    near = vectors.astype(np.float32) @ vectors.astype(np.float32).T >= cosine
    groups = [-1] * len(vectors)
    for row in range(len(vectors)):
        if groups[row] >= 0:
            continue
        group, waiting = {row}, [row]
        while waiting:
            found = set(np.flatnonzero(near[waiting.pop()]).tolist()) - group
            group |= found
            waiting += found
        if len(group) > 1:
            for member in group:
                groups[member] = min(group)
    return groups


@pytest.mark.parametrize("kind", list(KINDS))
def test_groups_are_what_near_pairs_connect(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "_COMPARED_ROWS", 100)  # to compare a list in parts
    vectors = with_near_duplicates(2_500, copies=600)
    expected = by_pairs(vectors, 0.98)
    assert len(set(expected)) > 100
    assert max(np.bincount([group for group in expected if group >= 0])) > 3
    ann = Ann.build(vectors, settings=settings_of(kind))
    assert duplicate_groups(ann, vectors, cosine=0.98).tolist() == expected


def test_a_chain_is_one_group() -> None:
    angles = np.arange(30) * np.arccos(0.99)
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)[::-1]
    ann = Ann.build(chain, settings=settings_of("flat"))
    assert duplicate_groups(ann, chain, cosine=0.98).tolist() == [0] * 30
    assert duplicate_groups(ann, chain, cosine=0.999).tolist() == [-1] * 30


def test_equal_vectors_are_one_group_and_zero_is_alone() -> None:
    vectors = np.zeros((5_000, 4), np.float16)
    vectors[1:4_999, 0] = 1
    ann = Ann.build(vectors, settings=settings_of("ivf_sq8"))
    assert duplicate_groups(ann, vectors, cosine=0.98).tolist() == [-1, *[1] * 4_998, -1]


def test_one_vector_is_alone() -> None:
    vectors = np.ones((1, 1), np.float16)
    ann = Ann.build(vectors, settings=settings_of("flat"))
    assert duplicate_groups(ann, vectors, cosine=0.98).tolist() == [-1]
