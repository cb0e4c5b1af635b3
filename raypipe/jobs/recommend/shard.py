"""Recommend to one shard of users: the step of an actor, and functions from table to table. No Ray here."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raypipe import schema
from raypipe.config import RankingConfig
from raypipe.dataset.commit import Totals
from raypipe.errors import QueryError
from raypipe.jobs.recommend.inputs import User, other_readings, parse
from raypipe.records import ShardSummary, VideoNote
from raypipe.runs.stages import identity
from raypipe.search.index import VideoIndex
from raypipe.search.query import Query, Recommendations
from raypipe.search.versions import Versions, cache_folder
from raypipe.status import UserStatus
from raypipe.storage import Folder

NUM_IDS = "num_ids"  # the number of distinct ids in the history of an answered row
SECONDS = "seconds"  # of the whole shard, in its first row
_NUM_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class RecommendSettings:
    """The version of the index to use, and the ranking options."""

    index_uri: str
    version: str
    cache: str | None
    ranking: RankingConfig


class RecommendToUsers:
    """A step that turns rows of the history into rows of recommendations. It opens the index once."""

    def __init__(self, settings: RecommendSettings) -> None:
        self._ranking = settings.ranking
        self._index = open_index(settings)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Answer one shard."""
        start = time.perf_counter()
        rows = recommend_shard(block, self._index, self._ranking)
        seconds = [time.perf_counter() - start, *[0.0] * (rows.num_rows - 1)]
        return rows.append_column(SECONDS, pa.array(seconds, pa.float64()))


def open_index(settings: RecommendSettings) -> VideoIndex:
    """Open the version on this machine; all actors of a machine share its files.

    Raises:
        IndexVersionError: the version does not exist or is not complete.
    """
    versions = Versions(Folder(settings.index_uri))
    return VideoIndex.load(
        versions.fetch(settings.version, cache_folder(settings.cache)), versions.read_manifest(settings.version)
    )


def query_of(ranking: RankingConfig, history: tuple[str, ...]) -> Query:
    """Return the query of one user, the same query that the endpoint builds from these options."""
    return Query(history=history, **dict(ranking))


def recommend_shard(block: pa.Table, index: VideoIndex, ranking: RankingConfig) -> pa.Table:
    """Answer each row of a block in order, with the columns of ``recommendations_schema`` and ``NUM_IDS``.

    A row that cannot be answered has an error and no lists.
    """
    rows = [_row(user, index, ranking) for user in parse(block)]
    kinds = {field.name: field.type for field in schema.recommendations_schema()} | {NUM_IDS: pa.int64()}
    columns = {name: block[name] for name in (schema.ROW, schema.GENERATION, schema.SHARD)}
    answered = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds.items()}
    return pa.table(answered | columns)


def watched(user: User, index: VideoIndex) -> tuple[str, ...]:
    """Return the ids of a history. If its text is ambiguous, choose the reading with the most ids in the index."""

    def num_known(ids: tuple[str, ...]) -> int:
        return sum(position is not None for position in index.items.positions(ids))

    if user.text is None or num_known(user.video_ids) == len(user.video_ids):
        return user.video_ids
    return max((user.video_ids, *other_readings(user.text)), key=num_known)


def _row(user: User, index: VideoIndex, ranking: RankingConfig) -> Mapping[str, Any]:
    if user.error is not None:
        return _error(user, user.error)
    history = watched(user, index)
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
        schema.FALLBACK: found.fallback,
        schema.UNKNOWN: list(found.unknown),
    }


def unknown_ids(answered: pa.Table) -> Totals:
    """Count the ids of histories that the index does not hold; an id counts once for each user who watched it."""
    unknown = [ids for ids in answered[schema.UNKNOWN].to_pylist() if ids]
    counts = {
        "num_ids": sum(count or 0 for count in answered[NUM_IDS].to_pylist()),
        "num_unknown_ids": sum(map(len, unknown)),
        "num_users_with_unknown_ids": len(unknown),
    }
    examples = dict.fromkeys(one for ids in unknown for one in ids)
    return Totals(counts, tuple(examples)[:_NUM_EXAMPLES])


def summarize(answered: pa.Table) -> ShardSummary:
    """Return the summary of a shard for the driver."""
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
