"""What happens to one shard of users, as a function from table to table. No Ray here."""

from collections import Counter
from typing import Any

import pyarrow as pa

from raypipe.config import RankingConfig
from raypipe.errors import QueryError
from raypipe.jobs.recommend.unknown import UnknownIds
from raypipe.jobs.recommend.users import USER_ID, User, other_readings, parse
from raypipe.search.index import VideoIndex
from raypipe.search.query import Query, Recommendations

ROWS = pa.schema(
    [
        (USER_ID, pa.string()),
        ("video_ids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("closest", pa.list_(pa.string())),
        ("fallback", pa.string()),
        ("unknown", pa.list_(pa.string())),
        ("error", pa.string()),
    ]
)


def query_of(ranking: RankingConfig, history: tuple[str, ...]) -> Query:
    """What is asked of the index for one user: the query that the endpoint makes of the same options."""
    return Query(history=history, **dict(ranking))


def recommend_shard(block: pa.Table, index: VideoIndex, ranking: RankingConfig) -> tuple[pa.Table, UnknownIds]:
    """Answer each row of a block, in its order, and count the ids that the index does not hold.

    A row that cannot be answered says why, and has no lists.
    """
    rows, unknown = [], UnknownIds()
    for user in parse(block):
        history = watched(user, index)
        row = _row(user, history, index, ranking)
        if row.get("error") is None:
            unknown += UnknownIds.of(history, row["unknown"])
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=ROWS), unknown


def watched(user: User, index: VideoIndex) -> tuple[str, ...]:
    """Return the ids of a history; of the readings of a text, the one of which the index holds the most ids."""

    def num_known(ids: tuple[str, ...]) -> int:
        return sum(position is not None for position in index.items.positions(ids))

    if user.text is None or num_known(user.video_ids) == len(user.video_ids):
        return user.video_ids
    return max((user.video_ids, *other_readings(user.text)), key=num_known)


def _row(user: User, history: tuple[str, ...], index: VideoIndex, ranking: RankingConfig) -> dict[str, Any]:
    if user.error is not None:
        return {USER_ID: user.user_id, "error": user.error}
    try:
        found = index.recommend(query_of(ranking, history))
    except QueryError as error:
        return {USER_ID: user.user_id, "error": str(error)}
    return {USER_ID: user.user_id, **_lists(found)}


def _lists(found: Recommendations) -> dict[str, Any]:
    return {
        "video_ids": [one.video_id for one in found.results],
        "scores": [one.score for one in found.results],
        "closest": [one.closest for one in found.results],
        "fallback": found.fallback,
        "unknown": list(found.unknown),
    }


def count(rows: pa.Table) -> dict[str, int]:
    """How many rows were answered by their history, by what is popular, or not at all."""
    kinds: Counter[str] = Counter()
    for fallback, error in zip(rows["fallback"].to_pylist(), rows["error"].to_pylist(), strict=True):
        kinds["error" if error is not None else fallback or "ok"] += 1
    return dict(kinds)
