"""The one step of recommend as an actor takes a shard through it; the index is opened once."""

import time
from dataclasses import dataclass

import pyarrow as pa

from raypipe.config import RankingConfig
from raypipe.jobs.recommend.output import ShardCounts, put_shard
from raypipe.jobs.recommend.shard import count, recommend_shard
from raypipe.records import ShardSummary
from raypipe.runs.stages import identity
from raypipe.search.fetching import cache_folder
from raypipe.search.index import VideoIndex
from raypipe.search.versions import Versions
from raypipe.storage import Folder


@dataclass(frozen=True, slots=True)
class RecommendSettings:
    """Which version of which index answers what, and where the answers go."""

    index_uri: str
    version: str
    cache: str | None
    ranking: RankingConfig
    output_uri: str
    fingerprint: str


class RecommendToUsers:
    """Rows of the history to the committed file, and the summary of it."""

    def __init__(self, settings: RecommendSettings) -> None:
        self._settings = settings
        self._output = Folder(settings.output_uri)
        self._index = open_index(settings)

    def __call__(self, block: pa.Table) -> ShardSummary:
        """One shard."""
        start = time.perf_counter()
        plan, shard = identity(block)
        rows, unknown = recommend_shard(block, self._index, self._settings.ranking)
        counts = count(rows)
        about = ShardCounts(counts, unknown)
        created = put_shard(self._output, rows, shard=shard, fingerprint=self._settings.fingerprint, counts=about)
        seconds = {"recommend": time.perf_counter() - start}
        return ShardSummary(plan, shard, counts, 0, 0, seconds, time.time(), already_committed=not created)


def open_index(settings: RecommendSettings) -> VideoIndex:
    """The version, on this machine; the actors of one machine share its files.

    Raises:
        IndexVersionError: it is not there, or not whole.
    """
    versions = Versions(Folder(settings.index_uri))
    return VideoIndex.open(
        versions.fetch(settings.version, cache_folder(settings.cache)), versions.read_manifest(settings.version)
    )
