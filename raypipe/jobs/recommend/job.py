"""The recommend job: produce a sealed output of recommendations from a configuration."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.console import Console

from raypipe import schema
from raypipe.config import RecommendConfig
from raypipe.dataset.commit import Totals, unsealed_plans
from raypipe.dataset.plan import (
    MAX_PLAN_VIDEOS,
    Plan,
    StoredPlans,
    check_fingerprint,
    fingerprint,
    job_of,
    plan_numbers,
    range_table,
    read_plan,
    row_range,
)
from raypipe.dataset.read import sealed_manifests
from raypipe.errors import CommitError, ConfigError, FingerprintError, refuse_other_settings
from raypipe.jobs.recommend import shard
from raypipe.jobs.recommend.shard import RecommendSettings, RecommendToUsers, open_index
from raypipe.jobs.recommend.verify import refuse_format_1
from raypipe.runs.executor import Executor, Needs, Placement
from raypipe.runs.job import BatchRun, Job, run_job
from raypipe.runs.stages import Stage
from raypipe.search.versions import CURRENT, Versions
from raypipe.storage import Folder
from raypipe.tables import table_place
from raypipe.tables.history import IS_REPEATED, HistoryFile, parse, repeated_rows
from raypipe.text import plural

_logger = logging.getLogger(__name__)
_FORMAT = 3  # the row format: increased by every change that makes old rows incompatible
_VERSION = "index_version"  # the key in the settings; the driver that plans first decides its value


def run_recommend(
    config: RecommendConfig, *, executor: Executor | None = None, console: Console | None = None
) -> BatchRun:
    """Compute recommendations for every user without a row in the output, seal the output, and write the report.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished. Call again to resume.
    """
    return run_job(RecommendJob(config), executor=executor, console=console)


class RecommendJob(Job):
    """The job that computes recommendations for every row of a history file, with one version of an index.

    Unlike in other jobs, a plan lists row ranges of the history file instead of videos.
    """

    name = "recommend"
    noun = "user"
    packages = ("faiss-cpu",)
    summarize = staticmethod(shard.summarize)
    totals = staticmethod(shard.unknown_ids)

    def __init__(self, config: RecommendConfig) -> None:
        self.config: RecommendConfig = config
        self.output = Folder(config.output)
        self.history = HistoryFile.find(*table_place(config.history, what="history"))
        self.input_uri = self.history.folder.child(self.history.name)
        self._version = ""
        self._repeated: frozenset[int] = frozenset()

    def is_done(self) -> bool:
        """Return whether the output is already complete. The history file is not read for this.

        Raises:
            ConfigError: the output belongs to another job, or was written by raypipe 0.1.
            FingerprintError: the output holds recommendations for another history, from another index, or with other
                settings.
        """
        numbers = plan_numbers(self.output)
        refuse_format_1(self.output)
        stored = read_plan(self.output, numbers[0]).settings if numbers else None
        if self.output.exists(CURRENT) or (stored is not None and job_of(stored) != self.name):
            msg = f"{self.output} is the output of another job."
            raise ConfigError(msg, key="output", value=self.output.uri, remedy="Choose another output.")
        if stored is None:
            return False
        self._version = str(stored[_VERSION])
        refuse_other_settings(stored, self.settings, subject="The output holds recommendations")
        return not unsealed_plans(self.output)

    def prepare(self) -> None:
        """Open the index, and check that it supports the configured ranking options.

        Raises:
            ConfigError: the index does not support them, such as a filter on a column that it lacks.
            IndexVersionError: there is no index, or the index is incomplete.
        """
        self._version = self._version or Versions(Folder(self.config.index)).require_current()
        index = open_index(self._of_actors)
        index.check_ranking(self.config.ranking)
        days = index.watched.age_days
        if index.ranker is not None and days is not None and days > self.config.max_ranker_days:
            _logger.warning(
                "The ranker of %s has learned from events up to %.0f days ago; train it again.", self.config.index, days
            )

    @property
    def _of_actors(self) -> RecommendSettings:
        config = self.config
        return RecommendSettings(Folder(config.index).uri, self._version, config.cache, config.ranking)

    def needs(self) -> Needs:
        """Return a request for one actor per processor."""
        return Needs(concurrency=self.config.concurrency, asked=f"concurrency={self.config.concurrency}")

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return all settings that affect the content of the rows, or the division of the rows into shards."""
        return {
            "job": self.name,
            "format": _FORMAT,
            "index": Folder(self.config.index).uri,
            _VERSION: self._version,
            "history": self.input_uri,
            "history_etag": self.history.stored.etag,
            "ranking": self.config.ranking.model_dump(),
            "users_per_shard": self.config.users_per_shard,
        }

    def plan(self, plans: StoredPlans, *, num_slots: int) -> None:  # noqa: ARG002 - a shard has a fixed number of users
        """Plan every row of the history file, in ranges of rows.

        If another driver has planned first with another version of the index, use that version.

        Raises:
            ConfigError: the history has no rows, or cannot be read.
            FingerprintError: the output holds recommendations for another history, from another index, or with other
                settings.
        """
        size = self.config.users_per_shard
        blocks = self.history.blocks(size, only_ids=True)
        num_users, self._repeated = repeated_rows(user.user_id for block in blocks for user in parse(block))
        if not num_users:
            msg = f"{self.input_uri} has no rows."
            raise ConfigError(msg, key="history", value=self.input_uri, remedy="Give one for each user.")
        try:
            self._plan_ranges(plans, num_users)
        except FingerprintError as error:
            if not isinstance(error.expected, dict) or list(error.expected) != [_VERSION]:
                raise
            self._version = error.expected[_VERSION]
            self._plan_ranges(plans, num_users)

    def _plan_ranges(self, plans: StoredPlans, num_users: int) -> None:
        size, mark = self.config.users_per_shard, fingerprint(self.settings)
        num_shards = -(-num_users // size)
        for number, first in enumerate(range(0, num_shards, MAX_PLAN_VIDEOS)):
            count = min(MAX_PLAN_VIDEOS, num_shards - first)
            rows = range_table(num_users, rows_per_shard=size, first_shard=first, num_shards=count)
            plan = Plan(number, rows, mark, self.settings, self.input_uri)
            if not plans.put(plan):
                check_fingerprint(plans.read(number), self.settings)

    def load(self, missing: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Read the history file once, and yield the rows of each missing range as a block."""
        wanted = next(missing, None)
        first = 0
        for block in self.history.blocks(self.config.users_per_shard):
            if wanted is not None and row_range(wanted) == (first, block.num_rows):
                yield self._numbered(block, first, wanted)
                wanted = next(missing, None)
            first += block.num_rows
        if wanted is not None:
            msg = f"{self.input_uri} lacks the rows {row_range(wanted)} of the plan."
            raise CommitError(msg, key=self.input_uri, remedy="Choose another output.")

    def _numbered(self, block: pa.Table, first: int, planned: pa.Table) -> pa.Table:
        numbers = range(first, first + block.num_rows)
        columns = {
            IS_REPEATED: pa.array([number in self._repeated for number in numbers]),
            schema.ROW: pa.array(numbers, pa.int64()),
            schema.GENERATION: pa.repeat(planned[schema.GENERATION][0], block.num_rows),
            schema.SHARD: pa.repeat(planned[schema.SHARD][0], block.num_rows),
        }
        for name, column in columns.items():
            block = block.append_column(name, column)
        return block

    def stages(self, executor: Executor, placement: Placement) -> Sequence[Stage]:  # noqa: ARG002 - nothing is shared
        """Return one stage, whose actors compute the recommendations."""
        return [placement.stage((RecommendToUsers, self._of_actors))]

    @property
    def rows(self) -> pa.Schema:
        """Return the schema of the recommendation files."""
        return schema.recommendations_schema()


@dataclass(frozen=True, slots=True)
class RecommendOutput:
    """The totals of a sealed output of recommend."""

    output_uri: str
    index: str
    index_version: str
    num_users: int
    statuses: Mapping[str, int]
    unknown: Totals

    @classmethod
    def read(cls, output: Folder) -> "RecommendOutput":
        """Add up the manifests of an output. Raises the same errors as ``sealed_manifests``."""
        manifests = sealed_manifests(output)
        settings = manifests[0]["settings"]
        statuses = Totals.sum(Totals(manifest["statuses"]) for manifest in manifests).counts
        unknown = Totals.sum(map(Totals.of, manifests))
        num_users = sum(manifest["num_videos"] for manifest in manifests)
        return cls(output.uri, settings["index"], settings[_VERSION], num_users, statuses, unknown)

    @property
    def unknown_fraction(self) -> float:
        """Return the fraction (0 to 1) of the ids in histories that are not in the index."""
        counts = self.unknown.counts
        return counts["num_unknown_ids"] / counts["num_ids"] if counts.get("num_ids") else 0.0

    @property
    def unknown_ids(self) -> str:
        """Return a text with the number of ids that are not in the index, and a few examples.

        The text is empty if the index has all ids.
        """
        counts = self.unknown.counts
        if not counts.get("num_unknown_ids"):
            return ""
        share = f"{counts['num_unknown_ids']:,} of {counts['num_ids']:,} ({self.unknown_fraction:.1%})"
        shown = ", ".join(map(repr, self.unknown.examples))
        return f"{share}, of {plural(counts['num_users_with_unknown_ids'], 'user')}: {shown}"
