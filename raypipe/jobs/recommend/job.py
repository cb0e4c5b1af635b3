"""The recommend job, from a configuration to a sealed output."""

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from raypipe.config import RecommendConfig
from raypipe.dataset.plan import plan_numbers
from raypipe.errors import ConfigError, QueryError
from raypipe.jobs.recommend import output as stored
from raypipe.jobs.recommend.cluster import Work, finish
from raypipe.jobs.recommend.history import HistoryFile
from raypipe.jobs.recommend.output import Run
from raypipe.jobs.recommend.progress import UserProgress
from raypipe.jobs.recommend.shard import query_of
from raypipe.jobs.recommend.stages import RecommendSettings, open_index
from raypipe.jobs.recommend.unknown import UnknownIds
from raypipe.jobs.recommend.users import parse, repeated_rows
from raypipe.runs.actors import connect
from raypipe.runs.job import versions
from raypipe.search.versions import CURRENT, Versions
from raypipe.storage import Folder
from raypipe.storage.tables import table_place

_FORMAT = 1  # of the rows; a change that old rows do not fit raises it


@dataclass(frozen=True, slots=True)
class RecommendRun:
    """The manifest of the output, and what this run did for it."""

    manifest: dict[str, Any]
    output_uri: str
    is_new: bool
    num_users_here: int = 0
    seconds: float = 0.0

    @property
    def unknown(self) -> UnknownIds | None:
        """The ids of histories that the index does not hold; None of an output that did not count them."""
        counted = self.manifest.get("unknown")
        return None if counted is None else UnknownIds.from_json(counted)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is settled before anything is recommended."""

    config: RecommendConfig
    history: HistoryFile
    output: Folder

    def settings(self, version: str) -> dict[str, Any]:
        """Everything that changes what a row holds, or which rows a shard has."""
        return {
            "job": "recommend",
            "format": _FORMAT,
            "index": Folder(self.config.index).uri,
            "index_version": version,
            "history": self.history.folder.child(self.history.name),
            "history_etag": self.history.stored.etag,
            "ranking": self.config.ranking.model_dump(),
            "users_per_shard": self.config.users_per_shard,
        }

    def of_actors(self, run: Run) -> RecommendSettings:
        """What an actor is made with."""
        config = self.config
        index_uri = Folder(config.index).uri
        return RecommendSettings(index_uri, run.version, config.cache, config.ranking, self.output.uri, run.fingerprint)


def prepare(config: RecommendConfig) -> Setup:
    """Find the history, and see that the output is none of another job.

    Raises:
        ConfigError: there is no history, or the output is something else.
    """
    output = Folder(config.output)
    if plan_numbers(output) or output.exists(CURRENT):
        msg = f"{output} is the output of another job."
        raise ConfigError(msg, key="output", value=output.uri, remedy="Choose another output.")
    return Setup(config, HistoryFile.find(*table_place(config.history, what="history")), output)


def run_recommend(config: RecommendConfig, *, console: Console | None = None) -> RecommendRun:
    """Recommend to every user who has no row yet, and seal it.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished; the same call continues.
    """
    start = time.monotonic()
    setup = prepare(config)
    run = stored.read_run(setup.output)
    if run is not None:
        stored.check_settings(run, setup.settings(run.version))
    if (manifest := stored.read_manifest(setup.output)) is not None:
        return RecommendRun(manifest, setup.output.uri, is_new=False)
    setup.output.check_writable()
    run, repeated = _begin(setup, run)
    num_done = sum(_num_users(run, shard, config) for shard in stored.committed_shards(setup.output))
    with UserProgress(num_users=run.num_users, num_done_before=num_done, console=console) as progress:
        if num_done < run.num_users:
            connect()
            work = Work(setup.history, config.users_per_shard, setup.of_actors(run), repeated)
            finish(work, progress, concurrency=config.concurrency)
    manifest = stored.seal(setup.output, run, versions=versions(("faiss-cpu",)))
    seconds = time.monotonic() - start
    return RecommendRun(manifest, setup.output.uri, True, progress.counts.total(), seconds)  # noqa: FBT003


def _begin(setup: Setup, run: Run | None) -> tuple[Run, frozenset[int]]:
    """Settle what the output is of, and which rows of the history name a user again.

    Raises:
        ConfigError: the history has no rows, or the index cannot answer such queries.
        IndexVersionError: there is no index, or it is not whole.
    """
    config = setup.config
    version = run.version if run is not None else Versions(Folder(config.index)).require_current()
    settings = setup.settings(version)
    index = open_index(setup.of_actors(Run(settings, 0, 0)))
    try:
        index.recommend(query_of(config.ranking, ()))
    except QueryError as error:
        msg = f"ranking: {error}"
        raise ConfigError(msg, key="ranking") from None
    blocks = setup.history.blocks(config.users_per_shard, only_ids=True)
    num_users, repeated = repeated_rows(user.user_id for block in blocks for user in parse(block))
    if not num_users:
        msg = f"{settings['history']} has no rows."
        raise ConfigError(msg, key="history", value=settings["history"], remedy="Give one for each user.")
    if run is None:
        run = stored.put_run(setup.output, Run(settings, num_users, -(-num_users // config.users_per_shard)))
    return run, repeated


def _num_users(run: Run, shard: int, config: RecommendConfig) -> int:
    return max(0, min(config.users_per_shard, run.num_users - shard * config.users_per_shard))
