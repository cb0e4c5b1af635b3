import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import QueryError
from raypipe.search import ann as ann_module
from raypipe.search import ranking
from raypipe.search.index import VideoIndex
from raypipe.search.query import Query, Recommendations
from raypipe.search.ranking import freshness, percentile_rank
from support.properties import examples
from support.vectors import KINDS, clustered, index_of, units

CATEGORIES = ("music", "news", "sport", None)
DAY = 86_400.0


def catalogue_of(num_videos: int, *, seed: int, kind: str = "flat") -> VideoIndex:
    """Return an index of videos of four categories and none; a third of them are in groups of near-duplicates."""
    chance = np.random.default_rng(seed)
    groups = chance.integers(0, max(1, num_videos // 3), num_videos)
    smallest = [int(np.flatnonzero(groups == group)[0]) for group in groups]
    alone = np.bincount(groups, minlength=num_videos)[groups] == 1
    columns = {
        "category": pa.array([CATEGORIES[number] for number in chance.integers(0, 4, num_videos)], pa.string()),
        "views": chance.integers(0, 10, num_videos).tolist(),
        "popularity": pa.array(
            [None if one < 1 else one for one in chance.uniform(0, 9, num_videos).tolist()], pa.float64()
        ),
        "published_at": (chance.integers(0, 90, num_videos) * DAY).tolist(),
        "duplicate_group": pa.array(smallest, pa.int64(), mask=alone),
    }
    return index_of(clustered(num_videos, dim=8, seed=seed), columns, kind=kind)


@pytest.fixture(scope="module", autouse=True)
def however_few() -> Any:  # noqa: ANN401 - pytest's
    """Search with faiss even for few videos, and start with pools so small that they must grow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann_module, "SCANNED", 0)
        patch.setattr(ann_module, "NUM_QUERIES", 16)
        patch.setattr(ranking, "_POOL", (1, 2))
        yield


@pytest.fixture(scope="module")
def index() -> VideoIndex:
    return catalogue_of(200, seed=5)


def queries(num_videos: int) -> st.SearchStrategy[Query]:
    ids = st.lists(st.integers(0, num_videos + 2).map("v{}".format), max_size=6).map(tuple)
    filters = st.fixed_dictionaries(
        {},
        optional={
            "category": st.sampled_from(["music", "news", ["sport", "music"], "nothing"]),
            "views": st.sampled_from([3, {"gte": 2}, {"gt": 4, "lt": 9}, [0, 1, 2]]),
        },
    )
    return st.builds(
        Query,
        history=ids,
        exclude=ids,
        exclude_history=st.booleans(),
        filters=filters,
        top_k=st.integers(1, 30),
        max_per_category=st.sampled_from([None, 1, 2, 5]),
        one_per_duplicate_group=st.booleans(),
        diversity=st.sampled_from([0, 0.3, 1]),
        freshness=st.sampled_from([0, 0.5]),
        popularity=st.sampled_from([0, 1]),
    )


def eligible_rows(index: VideoIndex, query: Query) -> list[int]:
    """Find the eligible rows by checking each row in plain Python."""
    excluded = {*query.exclude, *(query.history if query.exclude_history else ())}

    def passes(value: Any, wanted: Any) -> bool:  # noqa: ANN401 - as filters are
        if isinstance(wanted, dict):
            tests = {"gt": value.__gt__, "gte": value.__ge__, "lt": value.__lt__}
            return all(tests[name](operand) for name, operand in wanted.items())
        return value in wanted if isinstance(wanted, list) else value == wanted

    rows = [index.items.row(position) for position in range(len(index.items))]
    return [
        position
        for position, row in enumerate(rows)
        if row["video_id"] not in excluded and all(passes(row[name], wanted) for name, wanted in query.filters.items())
    ]


def most_possible(index: VideoIndex, rows: list[int], query: Query) -> int:
    """Return how many rows the caps allow: the smallest cover of the rows by whole categories and by groups."""
    groups = {row: int(index.items.duplicate_groups[row]) for row in rows}
    unit = {row: groups[row] if query.one_per_duplicate_group and groups[row] >= 0 else -2 - row for row in rows}
    if query.max_per_category is None:
        return len(set(unit.values()))
    category = {row: index.items.row(row)["category"] for row in rows}
    present = sorted(set(category.values()), key=str)
    covers = []
    for covered in itertools.product((False, True), repeat=len(present)):
        closed = {one for one, cover in zip(present, covered, strict=True) if cover}
        covers.append(
            query.max_per_category * len(closed) + len({unit[row] for row in rows if category[row] not in closed})
        )
    return min(covers)


def check(index: VideoIndex, query: Query, answer: Recommendations) -> None:
    """Check: exactly ``top_k`` if enough are eligible, only eligible ones, no duplicate, no exceeded cap."""
    rows = eligible_rows(index, query)
    found = [one.position for one in answer.results]
    assert set(found) <= set(rows)
    assert len(set(found)) == len(found) == min(query.top_k, most_possible(index, rows, query))
    assert answer.num_eligible == len(rows)
    assert [one.video_id for one in answer.results] == [f"v{position}" for position in found]
    if query.max_per_category is not None:
        counts = Counter(index.items.row(position)["category"] for position in found)
        assert max(counts.values(), default=0) <= query.max_per_category
    groups = [group for group in index.items.duplicate_groups[found].tolist() if group >= 0]
    assert not query.one_per_duplicate_group or len(set(groups)) == len(groups)
    assert answer.unknown == tuple(dict.fromkeys(one for one in query.history if index.items.position(one) is None))
    known = any(index.items.position(video_id) is not None for video_id in query.history)
    assert answer.fallback == (None if known else "popular")


@given(data=st.data(), num_videos=st.integers(1, 90), seed=st.integers(0, 9), kind=st.sampled_from(list(KINDS)))
@settings(max_examples=examples(80))
def test_exactly_top_k_if_enough_are_eligible(data: st.DataObject, num_videos: int, seed: int, kind: str) -> None:
    index = catalogue_of(num_videos, seed=seed, kind=kind)
    for _ in range(3):
        query = data.draw(queries(num_videos))
        check(index, query, index.recommend(query))


def interest_scores(vectors: npt.NDArray[np.float64], places: dict[int, int]) -> npt.NDArray[np.float64]:
    """Score all videos by the interests of a history, given the watched video at each place, by definition."""
    interests: list[list[int]] = []  # of places; the first one started the interest
    for place in sorted(places, reverse=True):
        cosines = [vectors[places[place]] @ vectors[places[interest[0]]] for interest in interests]
        if len(interests) < 4 and all(cosine < 0.3 for cosine in cosines):
            interests.append([place])
        else:
            interests[int(np.argmax(cosines))].append(place)
    shares = [sum(0.5**-place for place in interest) for interest in interests]
    found = []
    for interest, share in zip(interests, shares, strict=True):
        direction = units(sum(0.5**-place * vectors[places[place]] for place in interest)[None])[0]
        found.append((share / max(shares)) ** 0.5 * (vectors @ direction))
    return np.max(found, axis=0)


@given(query=queries(200))
@settings(max_examples=examples(100))
def test_the_best_first(index: VideoIndex, query: Query) -> None:
    """Without caps, diversity and boosts, the answer is the best of all eligible videos."""
    plain = replace(query, max_per_category=None, one_per_duplicate_group=False, diversity=0, freshness=0, popularity=0)
    answer = index.recommend(plain)
    rows = np.array(eligible_rows(index, plain), np.int64)
    if answer.fallback:
        columns = index.items.numbers("published_at"), index.items.numbers("popularity")
        scores = (freshness(columns[0]) + percentile_rank(columns[1]))[rows]
    else:
        places = {number: int(one[1:]) for number, one in enumerate(plain.history) if int(one[1:]) < 200}
        scores = interest_scores(index.vectors.astype(np.float64), places)[rows]
    np.testing.assert_allclose([one.score for one in answer.results], np.sort(scores)[::-1][: plain.top_k], atol=1e-5)
    by_position = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    for one in answer.results:
        assert one.score == pytest.approx(by_position[one.position], abs=1e-5)


@given(query=queries(200))
@settings(max_examples=examples(100))
def test_why(index: VideoIndex, query: Query) -> None:
    answer = index.recommend(query)
    known = [one for one in query.history if index.items.position(one) is not None]
    wide = index.vectors.astype(np.float64)
    for one in answer.results:
        boosts = (
            {"freshness", "popularity"}
            if answer.fallback
            else {n for n in ("freshness", "popularity") if getattr(query, n)}
        )
        assert set(one.boosts) == boosts
        if not known:
            assert (one.closest, one.similarity) == (None, None)
            assert one.score == pytest.approx(sum(one.boosts.values()), abs=1e-5)
            continue
        cosines = {watched: min(1, float(wide[one.position] @ wide[int(watched[1:])])) for watched in known}
        assert one.similarity == pytest.approx(max(cosines.values()), abs=1e-5)
        assert cosines[str(one.closest)] == pytest.approx(one.similarity, abs=1e-5)


@given(asked=st.lists(queries(200), min_size=2, max_size=4))
@settings(max_examples=examples(30))
def test_a_query_alone_and_among_others(index: VideoIndex, asked: list[Query]) -> None:
    together = [index.recommend(query) for query in asked]
    assert [index.recommend(query) for query in reversed(asked)] == together[::-1]


def test_with_boosts_the_newest_and_the_most_popular_are_among_the_pool(index: VideoIndex) -> None:
    answer = index.recommend(Query(history=("v7",), top_k=5, freshness=1, popularity=1))
    scores = index.vectors.astype(np.float32) @ index.vectors[7].astype(np.float32)
    boosts = freshness(index.items.numbers("published_at")) + percentile_rank(index.items.numbers("popularity"))
    total = scores + boosts
    total[7] = -9
    assert answer.results[0].score == pytest.approx(max(total), abs=1e-2)
    for one in answer.results:
        assert one.score == pytest.approx(total[one.position], abs=1e-3)


def test_the_newest_weighs_most(index: VideoIndex) -> None:
    near = index.similar("v9", top_k=1).results[0].video_id
    older, newer = (index.recommend(Query(history=history, top_k=199)) for history in (("v9", "v50"), ("v50", "v9")))
    ranks = [[one.video_id for one in answer.results].index(near) for answer in (older, newer)]
    assert ranks[1] <= ranks[0]
    only = index.recommend(Query(history=("v50", "v9"), weights=(0, 1), top_k=5))
    assert [one.score for one in only.results] == pytest.approx(
        [one.score for one in index.recommend(Query(history=("v9",), exclude=("v50",), top_k=5)).results], abs=1e-6
    )


def test_a_long_unknown_history_before_and_after(index: VideoIndex) -> None:
    unknown = tuple(f"x{number}" for number in range(20_000))
    answer = index.recommend(Query(history=("v9", *unknown), top_k=3))
    assert [one.video_id for one in answer.results] == [one.video_id for one in index.similar("v9", top_k=3).results]
    assert len(answer.unknown) == 20_000


def test_a_history_without_weight_is_the_fallback(index: VideoIndex) -> None:
    assert index.recommend(Query(history=("v9",), weights=(0,), top_k=3)).fallback == "popular"
    assert index.recommend(Query(history=("v9",), weights=(0,), top_k=3)).results[0].closest is not None


def test_embeddings_are_watched_videos_without_an_id(index: VideoIndex) -> None:
    embedding = index.vectors[9:10].astype(np.float32) * 3
    answer = index.recommend(Query(embeddings=embedding, top_k=3))
    assert answer.fallback is None
    assert answer.results[0].video_id == "v9"
    assert answer.results[0].closest is None
    assert answer.results[0].similarity == pytest.approx(1, abs=2e-3)
    both = index.recommend(Query(history=("v50",), embeddings=embedding, top_k=20))
    assert {one.closest for one in both.results} == {None, "v50"}


def test_without_columns_the_fallback_is_the_catalogues_order() -> None:
    bare = index_of(clustered(20, dim=4), {})
    assert [one.position for one in bare.recommend(Query(exclude=("v1",), top_k=3)).results] == [0, 2, 3]


@pytest.mark.parametrize(
    ("query", "key", "value", "expected"),
    [
        (Query(top_k=0), "top_k", 0, None),
        (Query(diversity=1.5), "diversity", 1.5, None),
        (Query(freshness=float("nan")), "freshness", float("nan"), None),
        (Query(popularity=-1), "popularity", -1, None),
        (Query(max_per_category=0), "max_per_category", 0, None),
        (Query(history=("v1",), weights=(1, 2)), "weights", 2, 1),
        (Query(history=("v1",), weights=(-1,)), "weights", -1, None),
        (Query(max_per_category=1, category_column="genre"), "category_column", "genre", None),
        (Query(embeddings=np.ones((2, 3), np.float32)), "embeddings", (2, 3), 8),
        (Query(embeddings=np.full((1, 8), np.nan, np.float32)), "embeddings", (1, 8), 8),
        (Query(filters={"genre": "x"}), "filters", "genre", None),
    ],
)
def test_invalid_queries_are_refused(
    index: VideoIndex, query: Query, key: str, value: object, expected: int | None
) -> None:
    with pytest.raises(QueryError) as raised:
        index.recommend(query)
    assert (raised.value.key, repr(raised.value.value), raised.value.expected) == (key, repr(value), expected)
    assert raised.value.choices == (tuple(sorted(index.items.columns)) if value == "genre" else ())


def test_boosts_take_a_column() -> None:
    bare = index_of(clustered(20, dim=4), {"popularity": ["a"] * 20})
    for name, column in (("freshness", "published_at"), ("popularity", "popularity")):
        with pytest.raises(QueryError) as raised:
            bare.recommend(Query(**{name: 0.5}))
        assert raised.value.key == column
        assert f"{name} " in raised.value.remedy


def test_an_exact_query_returns_the_most_relevant_of_all_videos() -> None:
    compact = catalogue_of(2_000, seed=1, kind="compact")
    compact.ann.nprobe = 1
    popularity = compact.ranking("popularity")
    assert popularity is not None
    num_different = 0
    for row, weight in itertools.product(range(20), (0, 0.4)):
        query = Query(history=(f"v{row}",), popularity=weight, top_k=20, exclude_history=False)
        values = compact.vectors.astype(np.float32) @ units(compact.vectors[row][None])[0] + weight * popularity.values
        found = [one.position for one in compact.recommend(replace(query, exact=True))]
        np.testing.assert_allclose(values[found], np.sort(values)[::-1][:20], atol=1e-5)
        num_different += found != [one.position for one in compact.recommend(query)]
    assert num_different
