"""Answer a query: what the watched videos say of a taste, which videos are picked for it, and why each of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raypipe.errors import QueryError
from raypipe.search.ann import Ranked
from raypipe.search.candidates import Boost, Nearest, Popular, pick
from raypipe.search.exact import Floats, Positions, widen
from raypipe.search.query import Query, Recommendation, Recommendations
from raypipe.search.rerank import Caps

if TYPE_CHECKING:
    from raypipe.search.index import VideoIndex

RECENCY = 0.9  # what a watched video weighs, of the next one's weight
BOOST_COLUMNS = {"freshness": "published_at", "popularity": "popularity"}
_SMALLEST = 1e-6  # a shorter mean of unit vectors points nowhere


@dataclass(frozen=True)
class Taste:
    """The watched videos ``[H, d]``, with the id of each that the index holds, and the direction ``[d]`` of their mean.

    There is no direction where nothing watched is known, or all of it cancels out.
    """

    vectors: Floats
    ids: tuple[str | None, ...]
    positions: Positions  # of those that the index holds
    unknown: tuple[str, ...]
    direction: Floats | None


def recommend(index: "VideoIndex", query: Query) -> Recommendations:
    """Answer one query; the answer is the same whatever other queries are answered.

    Raises:
        QueryError: the index cannot answer it: a column that it does not have, a number out of its range.
    """
    _check(query)
    caps, boosts = _caps(index, query), _boosts(index, query)
    taste = taste_of(index, query)
    excluded = [position for position in index.items.positions(query.exclude) if position is not None]
    if query.exclude_history:
        excluded += taste.positions.tolist()
    eligible = index.filters.eligible(query.filters, exclude=excluded)
    known = taste.direction is not None
    source = Nearest(index, taste.direction, boosts) if taste.direction is not None else Popular(index.popular)
    scores, positions = pick(
        source, index.vectors, top_k=query.top_k, eligible=eligible, caps=caps, diversity=query.diversity
    )
    return Recommendations(
        results=_explained(index, taste, (scores, positions), boosts if known else index.popular_boosts),
        unknown=taste.unknown,
        fallback=None if known else "popular",
        num_eligible=len(index.items) if eligible is None else eligible.count,
    )


def taste_of(index: "VideoIndex", query: Query) -> Taste:
    """The mean of what was watched, each weighing 0.9 of the next one, times its own weight.

    Raises:
        QueryError: an embedding is not one of those that the index was built from.
    """
    found = index.items.positions(query.history)
    known = [number for number, position in enumerate(found) if position is not None]
    positions = np.array([found[number] for number in known], np.int64)
    embedded = _projected(index, query.embeddings)
    vectors = np.concatenate([widen(index.vectors[positions]), embedded])
    return Taste(
        vectors=vectors,
        ids=(*(query.history[number] for number in known), *(None,) * len(embedded)),
        positions=positions,
        unknown=tuple(dict.fromkeys(video_id for video_id, at in zip(query.history, found, strict=True) if at is None)),
        direction=_direction(vectors, _weights(query.weights, known, len(found), len(embedded))),
    )


def _weights(weights: tuple[float, ...] | None, known: list[int], num_watched: int, num_embedded: int) -> Floats:
    """Those of the known of a history, and then those of the embeddings, the largest 1."""
    places = np.array([*known, *range(num_watched, num_watched + num_embedded)], np.int64)
    given = np.ones(num_watched + num_embedded)
    given[:num_watched] = 1 if weights is None else weights
    decayed = given[places] * RECENCY ** (places.max(initial=0) - places)
    return np.asarray(decayed / (decayed.max(initial=0) or 1), np.float32)


def _direction(vectors: Floats, weights: Floats) -> Floats | None:
    total: Floats = np.einsum("i,ij->j", weights, vectors)
    length = np.sqrt(np.einsum("i,i->", total, total))
    return total / length if length > _SMALLEST else None


def _projected(index: "VideoIndex", embeddings: npt.NDArray[np.float32] | None) -> Floats:
    if embeddings is None:
        return np.empty((0, index.projection.dim), np.float32)
    given = np.asarray(embeddings, np.float32)
    expected = index.projection.embedding_dim
    if given.ndim != 2 or given.shape[1] != expected or not np.isfinite(given).all():  # noqa: PLR2004 - rows of numbers
        msg = f"The embeddings are {given.shape}; this index takes any number of finite ones of {expected} numbers."
        raise QueryError(msg, key="embeddings", value=given.shape, expected=expected)
    return index.projection.apply(given)


def _explained(
    index: "VideoIndex", taste: Taste, ranked: Ranked, boosts: Mapping[str, Boost]
) -> tuple[Recommendation, ...]:
    """The closest watched video to each result, by exact cosine, and its boosts."""
    scores, positions = ranked
    given = {name: boost.of(positions).tolist() for name, boost in boosts.items()}
    closest: list[str | None] = [None] * len(positions)
    similarity: list[float | None] = [None] * len(positions)
    if len(taste.vectors) and len(positions):
        cosines = np.einsum("ij,kj->ik", widen(index.vectors[positions]), taste.vectors)
        nearest = cosines.argmax(axis=1)
        closest = [taste.ids[number] for number in nearest.tolist()]
        similarity = np.minimum(cosines.max(axis=1), 1).tolist()  # float16 makes some a little longer than one
    return tuple(
        Recommendation(
            position=position,
            video_id=index.items.video_id(position),
            score=score,
            closest=closest[number],
            similarity=similarity[number],
            boosts={name: values[number] for name, values in given.items()},
        )
        for number, (position, score) in enumerate(zip(positions.tolist(), scores.tolist(), strict=True))
    )


def _caps(index: "VideoIndex", query: Query) -> Caps:
    categories = None
    if query.max_per_category is not None:
        categories = index.items.codes(query.category_column)
        if categories is None:
            column, choices = query.category_column, sorted(index.items.columns)
            msg = f"There is no column {column!r} to count categories by."
            raise QueryError(msg, key="category_column", value=column, choices=choices)
    groups = index.items.duplicate_groups if query.one_per_duplicate_group else None
    return Caps(categories, groups, query.max_per_category or 1)


def _boosts(index: "VideoIndex", query: Query) -> dict[str, Boost]:
    boosts = {}
    for name, weight in (("freshness", query.freshness), ("popularity", query.popularity)):
        if weight:
            ranking = index.ranking(name)
            if ranking is None:
                column = BOOST_COLUMNS[name]
                msg = f"The catalogue has no column {column!r} of numbers or times for {name}."
                raise QueryError(msg, key=column, remedy=f"Leave {name} at 0.")
            boosts[name] = Boost(weight, ranking)
    return boosts


def _check(query: Query) -> None:
    if query.top_k < 1:
        msg = f"top_k is {query.top_k}; ask for 1 or more."
        raise QueryError(msg, key="top_k", value=query.top_k)
    if query.max_per_category is not None and query.max_per_category < 1:
        msg = f"max_per_category is {query.max_per_category}; give 1 or more, or leave it out."
        raise QueryError(msg, key="max_per_category", value=query.max_per_category)
    for name in ("diversity", "freshness", "popularity"):
        if not 0 <= (value := getattr(query, name)) <= 1:
            msg = f"{name} is {value}; give a number from 0 to 1."
            raise QueryError(msg, key=name, value=value)
    if query.weights is None:
        return
    if len(query.weights) != len(query.history):
        found, expected = len(query.weights), len(query.history)
        msg = f"There are {found} weights for {expected} watched videos; give one for each."
        raise QueryError(msg, key="weights", value=found, expected=expected)
    if wrong := [weight for weight in query.weights if not 0 <= weight < math.inf]:
        msg = f"A weight is {wrong[0]}; give finite numbers from 0."
        raise QueryError(msg, key="weights", value=wrong[0])
