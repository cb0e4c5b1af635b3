"""The evaluate job, from a configuration to metrics and ranks per user. It runs in this process, without Ray."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from raypipe.config.evaluate import EvaluateConfig
from raypipe.config.load import command_line
from raypipe.dataset.footer import parquet_bytes
from raypipe.evaluation.compare import Evaluation, compare, sample_users
from raypipe.evaluation.groupings import by_catalogue, check_columns
from raypipe.evaluation.protocols import Split
from raypipe.evaluation.rankers import SERVED, Requirement, Served, fit_rankers, one_search_thread
from raypipe.jobs.evaluate.examples import example_users
from raypipe.jobs.evaluate.inputs import refuse_fitted, split_events
from raypipe.records import EvaluationRecord, ExampleUser, versions
from raypipe.report.evaluation_page import evaluation_page
from raypipe.runs.progress import status
from raypipe.schema import USER_ID
from raypipe.search.index import VideoIndex
from raypipe.search.items import Items
from raypipe.storage import Folder
from raypipe.tables.event_table import read_events

TARGETS = "target_video_ids"
METRICS, USERS, REPORT = "metrics.json", "users.parquet", "report.html"


@dataclass(frozen=True, slots=True)
class EvaluationRun:
    """The result of a run, the URI of its report, and whether it meets ``require``."""

    evaluation: Evaluation
    counts: dict[str, int]  # events that were left out, by reason
    seconds: float
    report_uri: str
    meets_requirement: bool = True


def run_evaluate(config: EvaluateConfig, *, console: Console | None = None) -> EvaluationRun:
    """Fit the baselines, rank the catalogue for each test user, and write the metrics.

    Raises:
        ConfigError: the history cannot be used, or ``require`` names an unknown baseline.
        IndexVersionError: there is no index, or it is corrupt.
    """
    start = time.monotonic()
    output = Folder(config.output)
    output.check_writable()
    index = VideoIndex.open(config.index, cache=config.cache)
    index.check_ranking(config.ranking)
    check_columns(index.items, tuple(config.slices))
    with status(console, "Reading the history"):
        found = read_events(config.history, index.items, is_ordered=config.history_ordered)
        split = sample_users(split_events(found, config), max_users=config.max_users, seed=config.seed)
        refuse_fitted(index, config.index, found, split)
    with status(console, "Fitting the baselines"):
        require = Requirement.parse(config.require)
        rankers = fit_rankers(
            index, split, ranking=config.ranking, controls=config.controls, require=require, seed=config.seed
        )
    with status(console, f"Ranking {len(index):,} videos for {len(split.users):,} users"), one_search_thread():
        evaluation = compare(
            split,
            rankers,
            num_items=len(index),
            ks=config.k,
            vectors=index.vectors,
            groupings=by_catalogue(split, index.items, tuple(config.slices)),
            main=SERVED,
            seed=config.seed,
        )
        examples = example_users(index, Served(index, config.ranking), split, seed=config.seed)
    run = EvaluationRun(
        evaluation,
        found.counts,
        time.monotonic() - start,
        output.child(REPORT),
        meets_requirement=require is None or require.is_met(evaluation),
    )
    users = _users_table(evaluation, split, found.user_ids, index.items)
    _write(output, run, config, version=index.version, users=users, examples=examples)
    return run


def _users_table(evaluation: Evaluation, split: Split, user_ids: Sequence[str], items: Items) -> pa.Table:
    users = evaluation.users.tolist()
    targets = [[items.video_id(position) for position in split.targets.history(user).tolist()] for user in users]
    columns = {USER_ID: [user_ids[user] for user in users], TARGETS: pa.array(targets, pa.list_(pa.string()))}
    return pa.table({**columns, **evaluation.ranks})


def _write(
    output: Folder,
    run: EvaluationRun,
    config: EvaluateConfig,
    *,
    version: str,
    users: pa.Table,
    examples: tuple[ExampleUser, ...],
) -> None:
    evaluation, finished_at = run.evaluation, time.time()
    command = command_line("evaluate", config)
    metrics = evaluation.as_json() | {
        "command": command,
        "index_version": version,
        "left_out": run.counts,
        "require": config.require,
        "meets_requirement": run.meets_requirement,
        "seconds": round(run.seconds, 1),
    }
    output.put(USERS, parquet_bytes(users, {"job": "evaluate"}))
    output.put(METRICS, json.dumps(metrics, indent=1, allow_nan=False).encode())
    record = EvaluationRecord(
        command=command,
        index_uri=Folder(config.index).uri,
        history_uri=config.history,
        output_uri=output.uri,
        settings=config.model_dump(mode="json"),
        versions=versions(("faiss-cpu",)),
        started_at=finished_at - run.seconds,
        finished_at=finished_at,
        metrics=metrics,
        counts=run.counts,
        examples=examples,
    )
    output.put(REPORT, evaluation_page(record).encode())


def evaluation_table(run: EvaluationRun) -> Group:
    """Return the metrics of each ranker, the best one first, the verdict, and what was left out of the history."""
    evaluation = run.evaluation
    facts, metric = evaluation.facts, evaluation.metric
    k = metric.partition("@")[2]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("ranker", no_wrap=True)
    for name in (f"HR@{k}", f"NDCG@{k}", "95 % interval", "MRR", f"coverage@{k}"):
        table.add_column(name, justify="right", no_wrap=True)
    for ranker in sorted(evaluation.rankers, key=lambda name: -evaluation.rankers[name][metric].value):
        found = evaluation.rankers[ranker]
        values = [found[name].value for name in (f"hr@{k}", metric, "mrr", f"coverage@{k}")]
        hit, gain, reciprocal, covered = (f"{value:.4f}" for value in values)
        between = f"{found[metric].low:.4f} to {found[metric].high:.4f}"
        style = "bold" if ranker == evaluation.main else ""
        table.add_row(ranker, hit, gain, between, reciprocal, covered, style=style)
    size = f"protocol {facts['protocol']}: {facts['num_users']:,} users, {facts['num_videos']:,} videos"
    if without := facts["num_users_without_target"]:
        size += f"; {without:,} users without a target"
    left_out = "; ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in run.counts.items())
    last = f"Left out: {left_out}." if left_out else ""
    texts = (evaluation.verdict, *evaluation.notes, last)
    return Group(Text(size), table, *(Text(line) for line in texts if line))
