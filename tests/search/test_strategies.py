"""Recommendations by what users watched: the ranker, the transitions, dislikes and reasons."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import QueryError
from raypipe.search import ann as ann_module
from raypipe.search.index import VideoIndex
from raypipe.search.query import Query
from raypipe.search.watched import Watched
from support.properties import examples
from support.watched_index import NUM_VIDEOS, watched_index


@pytest.fixture(scope="module", autouse=True)
def few_are_searched_with_faiss() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann_module, "SCANNED", 0)
        patch.setattr(ann_module, "NUM_QUERIES", 16)
        yield


@cache
def indexed(weight: float) -> VideoIndex:
    return watched_index(weight=weight)


HISTORY = st.lists(st.integers(0, NUM_VIDEOS + 2).map("v{}".format), min_size=1, max_size=12, unique=True).map(tuple)


def order_by_definition(index: VideoIndex, query: Query, *, weight: float) -> list[int]:
    """Rank the eligible videos by (1 - w) softmax + w shares over all of them."""
    known = [position for position in index.items.positions(query.history) if position is not None]
    history, eligible = np.array(known), np.setdiff1d(np.arange(NUM_VIDEOS), known)
    tower, successors = index.watched.tower, index.watched.successors
    assert tower is not None
    assert successors is not None
    logits = tower.scale * (tower.vectors[eligible].astype(np.float64) @ tower.state(history).astype(np.float64))
    learned = np.exp(logits - logits.max())
    shares = successors.scores([history])[0][eligible].astype(np.float64)
    scores = (1 - weight) * learned / learned.sum() + weight * shares / max(shares.sum(), 1e-300)
    return eligible[np.lexsort((eligible, -scores))].tolist()


@given(history=HISTORY, weight=st.sampled_from([0.0, 0.3, 0.8]))
@settings(max_examples=examples(40))
def test_the_ranker_ranks_by_learned_and_counted_probability(history: tuple[str, ...], weight: float) -> None:
    index = indexed(weight)
    answer = index.recommend(Query(history=history, top_k=5))
    if answer.fallback:
        return
    assert (answer.strategy, answer.ranker) == ("ranker", "r1")
    expected = order_by_definition(index, Query(history=history), weight=weight)
    # The share of the content is a millionth, so that nearly equal videos may change places.
    assert len({*expected[:6]} & {one.position for one in answer.results}) >= 5
    assert [one.score for one in answer.results] == sorted((one.score for one in answer.results), reverse=True)
    assert answer.results[0].score == pytest.approx(1, abs=1e-3)


@given(history=HISTORY)
@settings(max_examples=examples(40))
def test_transitions_come_before_what_nobody_watched_next(history: tuple[str, ...]) -> None:
    index = indexed(0.3)
    answer = index.recommend(Query(history=history, top_k=30, strategy="transitions"))
    if answer.fallback:
        return
    assert (answer.strategy, answer.ranker) == ("transitions", None)
    successors = index.watched.successors
    assert successors is not None
    known = [position for position in index.items.positions(history) if position is not None]
    scores = successors.scores([np.array(known)])[0]
    found = [float(scores[one.position]) for one in answer.results]
    np.testing.assert_allclose(found, sorted(found, reverse=True), atol=1e-5)
    assert sum(score > 0 for score in found) == min(30, int((np.delete(scores, known) > 0).sum()))


@given(
    history=HISTORY,
    category=st.sampled_from(["music", "news"]),
    cap=st.sampled_from([None, 3]),
    popularity=st.sampled_from([0, 0.5]),
    strategy=st.sampled_from(["ranker", "transitions", "content"]),
)
@settings(max_examples=examples(60))
def test_filters_caps_and_boosts_hold_for_every_strategy(
    history: tuple[str, ...], category: str, cap: int | None, popularity: float, strategy: str
) -> None:
    query = Query(
        history=history,
        filters={"category": [category, "sport"]},
        max_per_category=cap,
        popularity=popularity,
        one_per_duplicate_group=True,
        top_k=20,
        strategy=strategy,  # type: ignore[arg-type]
    )
    answer = indexed(0.3).recommend(query)
    rows = [indexed(0.3).items.row(one.position) for one in answer.results]
    assert len(rows) == (20 if cap is None else 2 * cap)
    assert {row["category"] for row in rows} <= {category, "sport"}
    assert not {row["video_id"] for row in rows} & set(history)
    groups = [row["duplicate_group"] for row in rows if row["duplicate_group"] is not None]
    assert len(groups) == len(set(groups))
    assert answer == indexed(0.3).recommend(query)


@pytest.mark.parametrize("strategy", ["content", "transitions", "ranker"])
def test_dislikes_push_away_duplicates_and_neighbors(strategy: str) -> None:
    index = indexed(0.3)
    query = Query(history=("v40", "v41"), top_k=NUM_VIDEOS, strategy=strategy)  # type: ignore[arg-type]
    before = index.recommend(query)
    assert index.recommend(replace(query, dislikes=())) == before
    after = index.recommend(replace(query, dislikes=("v3", "unknown")))
    ids = {one.video_id for one in after.results}
    assert not ids & {"v3", "v4", "v5"}  # one group of near-duplicates
    scores = {one.video_id: one.score for one in before.results}
    cosines = index.vectors.astype(np.float64) @ index.vectors[3].astype(np.float64)
    for one in after.results:
        expected = scores[one.video_id] - 0.5 * max(0, cosines[one.position])
        assert one.score == pytest.approx(expected, abs=2e-3 if strategy == "content" else 0.2)


def test_reasons_name_a_watched_video_and_how_many_people() -> None:
    answer = indexed(0.3).recommend(Query(history=("v40",), top_k=3, strategy="transitions"))
    first = answer.results[0]
    assert (first.video_id, first.reason, first.after) == ("v41", "watched_after", "v40")
    assert first.num_users is not None
    assert first.num_users >= 5
    assert indexed(0.3).recommend(Query(history=("v40",), strategy="content")).results[0].reason == "similar"


def test_without_a_known_history_the_most_watched_come_first() -> None:
    index = indexed(0.3)
    answer = index.recommend(Query(history=("unknown",), top_k=4))
    assert (answer.strategy, answer.fallback) == ("popular", "popular")
    assert index.watched.views is not None
    views = [float(index.watched.views[one.position]) for one in answer.results]
    assert views == sorted(index.watched.views.tolist(), reverse=True)[:4]


def test_auto_is_the_best_that_the_index_supports() -> None:
    index = watched_index(weight=0.5)
    assert index.strategies == ("content", "transitions", "ranker")
    index.watched = replace(index.watched, tower=None)
    assert index.recommend(("v1",)).strategy == "transitions"
    with pytest.raises(QueryError) as raised:
        index.recommend(("v1",), strategy="ranker")
    assert (raised.value.key, raised.value.value) == ("strategy", "ranker")
    index.watched = Watched()
    assert index.recommend(("v1",)).strategy == "content"
    assert index.similar("v1", top_k=2).strategy == "content"


def test_an_upload_moves_the_state_of_the_ranker() -> None:
    index = indexed(0.0)
    embedding = index.vectors[9:10].astype(np.float32)
    answer = index.recommend(Query(embeddings=embedding, top_k=5))
    assert answer.strategy == "ranker"
    assert answer != index.recommend(Query(embeddings=-embedding, top_k=5))
