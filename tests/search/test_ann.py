from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import IndexVersionError
from raypipe.search import ann as ann_module
from raypipe.search.ann import Ann
from raypipe.search.filters import Eligible
from raypipe.search.trials import trial_queries
from support.properties import examples
from support.vectors import KINDS, clustered, settings_of, true_neighbours, units

VECTORS = clustered(2_000, dim=24)
VECTORS[1_500:1_850] = VECTORS[3]  # more equal vectors than faiss is first asked for, so the position breaks ties
EVERY = np.ones(len(VECTORS), np.bool_)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_scanned() -> Iterator[None]:
    """Search with faiss even for few vectors, and calibrate with few queries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann_module, "SCANNED", 0)
        patch.setattr(ann_module, "NUM_QUERIES", 64)
        yield


@pytest.fixture(scope="module", params=list(KINDS))
def ann(request: pytest.FixtureRequest) -> Ann:
    return Ann.build(VECTORS, settings=settings_of(request.param))


@given(top_k=st.integers(1, 40), allowed=st.sampled_from([1.0, 0.5, 0.1, 0.01]), seed=st.integers(0, 999))
@settings(max_examples=examples(60))
def test_exactly_as_many_as_asked_and_only_eligible_ones(ann: Ann, top_k: int, allowed: float, seed: int) -> None:
    chance = np.random.default_rng(seed)
    mask = chance.random(len(VECTORS)) < allowed
    query = units(chance.standard_normal((1, 24)))
    scores, positions = ann.search(query, top_k=top_k, eligible=Eligible.of(mask))
    found = positions[0][positions[0] >= 0].tolist()
    assert len(set(found)) == len(found) == min(top_k, mask.sum())
    assert mask[found].all()
    assert (positions[0][len(found) :] == -1).all()
    assert (scores[0][len(found) :] == -1).all()
    given_order = list(zip((-scores[0]).tolist(), positions[0].tolist(), strict=True))[: len(found)]
    assert given_order == sorted(given_order)
    np.testing.assert_allclose(scores[0][: len(found)], VECTORS[found].astype(np.float64) @ query[0], atol=1e-6)
    if ann.kind == "flat":
        assert found == true_neighbours(VECTORS, query[0].astype(np.float32), mask)[:top_k]


def test_without_a_filter_a_flat_index_is_exact() -> None:
    ann = Ann.build(VECTORS, settings=settings_of("flat"))
    for row in (0, 3, 1_999):
        query = VECTORS[row].astype(np.float32)
        assert ann.search(query[None], top_k=50)[1][0].tolist() == true_neighbours(VECTORS, query, EVERY)[:50]


def test_ties_go_to_the_first_vectors(ann: Ann) -> None:
    _, positions = ann.search(VECTORS[3:4].astype(np.float32), top_k=5)
    assert positions[0].tolist() == [3, 1_500, 1_501, 1_502, 1_503]


def test_filtered_vectors_far_from_the_query_are_found(ann: Ann) -> None:
    for row in range(0, 1_000, 50):
        query = VECTORS[row].astype(np.float32)
        farthest = VECTORS[np.argmin(VECTORS.astype(np.float32) @ query)]
        around = VECTORS.astype(np.float32) @ farthest.astype(np.float32)
        mask = around > np.quantile(around, 0.8)
        _, positions = ann.search(query[None], top_k=30, eligible=Eligible.of(mask))
        assert mask[positions[0]].all()
        assert len(set(positions[0].tolist()) & set(true_neighbours(VECTORS, query, mask)[:30])) >= 24


@pytest.mark.parametrize("share", [0.5, 0.04])  # 0.04: eligible vectors of a list are compared, not scanned
def test_excluded_vectors_are_not_found(ann: Ann, share: float) -> None:
    eligible = Eligible.of(np.random.default_rng(4).random(len(VECTORS)) < share)
    query = VECTORS[3].astype(np.float32)
    found = ann.nearest(query, top_k=5, eligible=eligible)[1]
    fewer = eligible.without(found[:3])
    rest = ann.nearest(query, top_k=5, eligible=fewer)[1]
    assert rest[:2].tolist() == found[3:].tolist()
    assert fewer.contains(rest).all()


def test_a_batch_gives_the_same_results_as_single_queries(ann: Ann) -> None:
    queries = trial_queries(VECTORS, count=40, seed=1)
    for eligible in (None, Eligible.of(np.arange(len(VECTORS)) % 3 == 0)):
        scores, positions = ann.search(queries, top_k=12, eligible=eligible)
        for row, query in enumerate(queries):
            alone = ann.search(query[None], top_k=12, eligible=eligible)
            np.testing.assert_array_equal(alone[0][0], scores[row])
            np.testing.assert_array_equal(alone[1][0], positions[row])


def test_top_k_above_the_number_of_vectors(ann: Ann) -> None:
    _, positions = ann.search(VECTORS[:1].astype(np.float32), top_k=2_500)
    assert sorted(positions[0].tolist()) == [-1] * 500 + list(range(2_000))
    assert ann.search(VECTORS[:1].astype(np.float32), top_k=3, eligible=Eligible.of(~EVERY))[1].tolist() == [[-1] * 3]


def test_a_query_of_other_numbers_is_refused(ann: Ann) -> None:
    with pytest.raises(ValueError, match=r"\(23,\).* 24 "):
        ann.search(np.ones((1, 23), np.float32), top_k=3)


def test_a_saved_index_finds_the_same(ann: Ann, tmp_path: Path) -> None:
    ann.save(tmp_path / "index.faiss")
    opened = Ann.open(tmp_path / "index.faiss", VECTORS, nprobe=ann.nprobe, recall_at_10=ann.recall_at_10)
    assert (opened.kind, opened.nlist, opened.nprobe) == (ann.kind, ann.nlist, ann.nprobe)
    queries = trial_queries(VECTORS, count=20, seed=2)
    for one, other in zip(opened.search(queries, top_k=10), ann.search(queries, top_k=10), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_index_of_other_vectors_is_refused(ann: Ann, tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    ann.save(path)
    with pytest.raises(IndexVersionError) as raised:
        Ann.open(path, VECTORS[:-1], nprobe=1)
    assert (raised.value.key, raised.value.value, raised.value.expected) == (str(path), (2_000, 24), (1_999, 24))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(IndexVersionError) as raised:
        Ann.open(path, VECTORS, nprobe=1)
    assert (raised.value.key, raised.value.value) == (str(path), None)


@pytest.mark.parametrize("kind", ["ivf_sq8", "compact"])
def test_a_base_is_not_trained_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Ann.build(VECTORS[:1_200], settings=settings_of(kind))
    monkeypatch.delattr(ann_module, "_train")
    grown = Ann.build(VECTORS, settings=settings_of(kind), base=base)
    assert grown.nlist == base.nlist
    assert grown.search(VECTORS[1_900:1_901].astype(np.float32), top_k=1)[1].tolist() == [[1_900]]
    assert base.search(VECTORS[7:8].astype(np.float32), top_k=1)[1].tolist() == [[7]]
    assert grown.recall_at_10 >= 0.9


def test_a_base_of_another_kind_is_not_used() -> None:
    base = Ann.build(VECTORS[:1_200], settings=settings_of("flat"))
    built = Ann.build(VECTORS, settings=settings_of("ivf_sq8"), base=base)
    again = Ann.build(VECTORS, settings=settings_of("ivf_sq8"))
    assert (built.kind, built.nlist, built.nprobe) == (again.kind, again.nlist, again.nprobe)


def test_the_same_seed_builds_the_same(ann: Ann) -> None:
    again = Ann.build(VECTORS, settings=settings_of(ann.kind))
    queries = trial_queries(VECTORS, count=20, seed=3)
    np.testing.assert_array_equal(again.search(queries, top_k=20)[1], ann.search(queries, top_k=20)[1])
    assert (again.nprobe, again.recall_at_10) == (ann.nprobe, ann.recall_at_10)


@pytest.mark.parametrize(("num_vectors", "dim"), [(1, 3), (5, 1), (64, 7), (130, 4)])
@pytest.mark.parametrize("kind", list(KINDS))
def test_few_and_short_vectors(kind: str, num_vectors: int, dim: int) -> None:
    vectors = clustered(num_vectors, dim=dim)
    built = Ann.build(vectors, settings=settings_of(kind))
    assert built.kind == (kind if num_vectors >= 64 else "flat")
    _, positions = built.search(vectors[:1].astype(np.float32), top_k=num_vectors)
    assert sorted(positions[0].tolist()) == list(range(num_vectors))


def test_smaller_kinds_are_smaller(tmp_path: Path) -> None:
    for kind in KINDS:
        Ann.build(VECTORS, settings=settings_of(kind)).save(tmp_path / kind)
    sizes = {kind: (tmp_path / kind).stat().st_size for kind in KINDS}
    assert sizes["flat"] > sizes["ivf_sq8"] > sizes["compact"]
