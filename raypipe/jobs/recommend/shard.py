"""Compute recommendations for one shard of users: the step that an actor runs, and the functions that it calls.

Ray is not used here.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raypipe import schema
from raypipe.config import RankingConfig
from raypipe.dataset.commit import Totals
from raypipe.errors import QueryError
from raypipe.records import ShardSummary, VideoNote
from raypipe.runs.stages import identity
from raypipe.search.index import VideoIndex
from raypipe.search.query import Recommendations, query_of
from raypipe.search.versions import Versions, cache_folder
from raypipe.status import UserStatus
from raypipe.storage import Folder
from raypipe.tables.history import User, parse, watched

NUM_IDS = "num_ids"  # the number of distinct ids in the history of an answered row
SECONDS = "seconds"  # the seconds for the whole shard are in the first row; other rows have 0
_NUM_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class RecommendSettings:
    """The settings of ``RecommendToUsers``: the version of the index to use, and the ranking options."""

    index_uri: str
    version: str
    cache: str | None
    ranking: RankingConfig


class RecommendToUsers:
    """A step that turns rows of the history file into rows of recommendations. The index is opened only once."""

    def __init__(self, settings: RecommendSettings) -> None:
        self._ranking = settings.ranking
        self._index = open_index(settings)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Compute the recommendations for one shard."""
        start = time.perf_counter()
        rows = recommend_shard(block, self._index, self._ranking)
        seconds = [time.perf_counter() - start, *[0.0] * (rows.num_rows - 1)]
        return rows.append_column(SECONDS, pa.array(seconds, pa.float64()))


def open_index(settings: RecommendSettings) -> VideoIndex:
    """Open the version of the index. Its files are fetched once per machine, and all actors of the machine share them.

    Raises:
        IndexVersionError: the version does not exist or is not complete.
    """
    versions = Versions(Folder(settings.index_uri))
    return VideoIndex.load(
        versions.fetch(settings.version, cache_folder(settings.cache)), versions.read_manifest(settings.version)
    )


def recommend_shard(block: pa.Table, index: VideoIndex, ranking: RankingConfig) -> pa.Table:
    """Return a row of recommendations for each row of a block, in the same order.

    The columns are those of ``recommendations_schema`` and ``NUM_IDS``. A row for which recommendations cannot be
    computed has an error, and null instead of the lists.
    """
    rows = [_row(user, index, ranking) for user in parse(block)]
    kinds = {field.name: field.type for field in schema.recommendations_schema()} | {NUM_IDS: pa.int64()}
    columns = {name: block[name] for name in (schema.ROW, schema.GENERATION, schema.SHARD)}
    answered = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds.items()}
    return pa.table(answered | columns)


def _row(user: User, index: VideoIndex, ranking: RankingConfig) -> Mapping[str, Any]:
    if user.error is not None:
        return _error(user, user.error)
    history = watched(user, index.items.positions)
    try:
        found = index.recommend(query_of(ranking, history))
    except QueryError as error:
        return _error(user, str(error))
    status = UserStatus.POPULAR if found.fallback else UserStatus.OK
    return {schema.USER_ID: user.user_id, schema.STATUS: status, NUM_IDS: len(set(history)), **_lists(found)}


def _error(user: User, error: str) -> Mapping[str, Any]:
    return {schema.USER_ID: user.user_id, schema.STATUS: UserStatus.ERROR, schema.ERROR: error}


def _lists(found: Recommendations) -> Mapping[str, Any]:
    return {
        schema.VIDEO_IDS: [one.video_id for one in found.results],
        schema.SCORES: [one.score for one in found.results],
        schema.CLOSEST: [one.closest for one in found.results],
        schema.REASONS: [one.reason for one in found.results],
        schema.AFTER: [one.after for one in found.results],
        schema.NUM_USERS: [one.num_users for one in found.results],
        schema.STRATEGY: found.strategy,
        schema.RANKER: found.ranker,
        schema.FALLBACK: found.fallback,
        schema.UNKNOWN: list(found.unknown),
    }


def unknown_ids(answered: pa.Table) -> Totals:
    """Count the ids in histories, and how many of them are not in the index. An id counts once per user."""
    unknown = [ids for ids in answered[schema.UNKNOWN].to_pylist() if ids]
    counts = {
        "num_ids": sum(count or 0 for count in answered[NUM_IDS].to_pylist()),
        "num_unknown_ids": sum(map(len, unknown)),
        "num_users_with_unknown_ids": len(unknown),
    }
    examples = dict.fromkeys(one for ids in unknown for one in ids)
    return Totals(counts, tuple(examples)[:_NUM_EXAMPLES])


def summarize(answered: pa.Table) -> ShardSummary:
    """Return the summary of a finished shard, which the driver adds to its record."""
    columns = (answered[name].to_pylist() for name in (schema.USER_ID, schema.STATUS, schema.ERROR))
    return ShardSummary(
        *identity(answered),
        stage_seconds={"recommend": answered[SECONDS][0].as_py()},
        failures=tuple(
            VideoNote(user_id or "", status, error or "", 0.0)
            for user_id, status, error in zip(*columns, strict=True)
            if status == UserStatus.ERROR
        ),
    )
