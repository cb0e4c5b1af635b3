"""Several trainings of a small grid on Ray Tune, each resumed by itself; the best one's model is kept."""

import math
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import ray
from ray import tune
from rich.console import Console
from rich.text import Text

from raypipe.config import TrainConfig, load_config
from raypipe.errors import ConfigError, JobError, RaypipeError
from raypipe.jobs.train.feed import listen, start_feed
from raypipe.jobs.train.samples import find_samples
from raypipe.jobs.train.setup import check_same_run, prepare, run_facts
from raypipe.jobs.train.single import REPORT, TrainingRun, is_finished, train_once
from raypipe.jobs.train.story import earlier_record, first_record
from raypipe.jobs.train.trainer import decide_gpu
from raypipe.models.classifier_files import COMPLETE, CONFIG, MODEL_FOLDER, WEIGHTS
from raypipe.records import TrainingRecord, Trial
from raypipe.report import write_training_report
from raypipe.report.model_card import model_card
from raypipe.runs.actors import connect, reason_of
from raypipe.storage import Folder
from raypipe.text import visible

MAX_TRIALS = 256
_TRIAL_CPUS = 0.1  # a trial only waits for the workers of its training


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a grid: its trial's name, what it sets, and the whole configuration."""

    name: str
    settings: Mapping[str, Any]
    config: TrainConfig


def grid(config: TrainConfig) -> list[Point]:
    """Every combination of the choices, each checked, with an output of its own below ``trials/``.

    Raises:
        ConfigError: a key or a value is wrong, or there are too many combinations.
    """
    if (count := math.prod(map(len, config.search.values()))) > MAX_TRIALS:
        msg = f"search has {count} combinations; the most are {MAX_TRIALS}."
        raise ConfigError(msg, key="search", value=count, remedy="Give fewer choices.")
    points = []
    for number, choices in enumerate(product(*config.search.values())):
        settings = dict(zip(config.search, choices, strict=True))
        tree = config.model_dump() | {"search": {}, "output": Folder(config.output).child(f"trials/{number:03d}")}
        for key, value in settings.items():
            *sections, leaf = key.split(".")
            node = tree
            for section in sections:
                node = node.setdefault(section, {})
                if not isinstance(node, dict):
                    msg = f"search: {key!r} is below {section!r}, which holds {node!r}."
                    raise ConfigError(msg, key=key, value=node, remedy="Give sizes, or another key.")
            node[leaf] = value
        points.append(Point(f"{number:03d}", settings, load_config(TrainConfig, values=tree)))
    return points


def search_grid(config: TrainConfig, *, console: Console | None = None) -> TrainingRun:
    """Train every point of the grid, and keep the best one's model; a trial that fails is told and passed over.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: every trial failed, or Ray ended the work.
    """
    output = Folder(config.output)
    output.check_writable()
    samples = find_samples(config)
    points = grid(config)
    setups = [prepare(point.config, samples) for point in points]
    check_same_run(output, run_facts(replace(setups[0], config=config)))
    connect()
    use_gpu = decide_gpu(config)
    record = replace(first_record(setups[0], time.time(), use_gpu=use_gpu), settings=config.model_dump(mode="json"))
    if is_finished(output):
        return TrainingRun(earlier_record(output, record), output.child(REPORT), is_new=False)
    console = console or Console()
    records: dict[str, TrainingRecord] = {}
    for name, ended in _run_trials(points, use_gpu=use_gpu):
        records[name] = ended
        console.print(Text(visible(_line(points, records, name))), soft_wrap=True)
    return _keep_best(output, record, points, records)


def _run_trials(points: list[Point], *, use_gpu: bool) -> Iterator[tuple[str, TrainingRecord]]:
    """Run all trials, as many at once as the cluster holds, and yield each as it ends."""
    total = ray.cluster_resources()
    num_workers = points[0].config.resources.num_workers
    at_once = total.get("GPU", 0) // num_workers if use_gpu else total.get("CPU", 1) // (num_workers + 1)
    feed = start_feed()
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the one way to keep Tune off the terminal

    def trial(parameters: dict[str, Any]) -> None:
        point = points[parameters["point"]]
        try:
            ended = train_once(point.config, console=Console(quiet=True)).record
        except RaypipeError as error:
            now = time.time()
            ended = TrainingRecord(
                objective=point.config.objective, outcome="failed", message=str(error), started_at=now, finished_at=now
            )
        ray.get(feed.tell.remote("trial", {"name": point.name, "record": ended}))
        tune.report({"done": 1})

    with tempfile.TemporaryDirectory() as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"CPU": _TRIAL_CPUS}),
            param_space={"point": tune.grid_search(list(range(len(points))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=max(1, int(at_once))),
            run_config=tune.RunConfig(name=f"raypipe-{uuid.uuid4().hex[:12]}", storage_path=scratch, verbose=0),
        )
        try:
            for _, about in listen(feed, tuner.fit):
                yield about["name"], about["record"]
        except (ray.exceptions.RayError, tune.TuneError) as error:
            msg = f"Ray ended the search: {reason_of(error)}. The same command goes on with what is not finished."
            raise JobError(msg) from error


def _line(points: list[Point], records: Mapping[str, TrainingRecord], name: str) -> str:
    ended, point = records[name], next(point for point in points if point.name == name)
    what = ", ".join(f"{key}={str(value).replace(chr(39), '')}" for key, value in point.settings.items())
    if ended.kept is None:
        result = f"failed: {ended.message}"
    elif ended.kept.accuracy is not None:
        result = f"accuracy {ended.kept.accuracy:.1%}, macro-F1 {ended.kept.macro_f1:.3f}"
    else:
        result = f"loss {ended.kept.validation_loss or ended.kept.train_loss:.4g}"
    return f"trial {len(records)}/{len(points)} · {what} · {result}"


def _keep_best(
    output: Folder, record: TrainingRecord, points: list[Point], records: Mapping[str, TrainingRecord]
) -> TrainingRun:
    trials = tuple(
        Trial(
            name=point.name,
            settings=point.settings,
            outcome=records[point.name].outcome if point.name in records else "failed",
            best_epoch=records[point.name].best_epoch if point.name in records else None,
            metrics=records[point.name].kept if point.name in records else None,
        )
        for point in points
    )
    best = replace(record, trials=trials).best_trial
    if best is None:
        messages = [ended.message for ended in records.values() if ended.message]
        msg = f"All {len(points)} trials failed: {messages[0] if messages else 'they did not say why.'}"
        raise JobError(msg)
    chosen = records[best.name]
    source, kept = (Folder(output.child(folder)) for folder in (f"trials/{best.name}/{MODEL_FOLDER}", MODEL_FOLDER))
    for name in (CONFIG, WEIGHTS, COMPLETE):
        kept.put_new(name, source.read(name))
    outcome: Literal["finished"] = "finished"
    record = replace(
        chosen,
        command=record.command,
        output_uri=output.uri,
        model_uri=kept.uri,
        outcome=outcome,
        started_at=record.started_at,
        finished_at=time.time(),
        settings={**chosen.settings, "search": record.settings["search"]},
        trials=trials,
    )
    kept.put("README.md", model_card(record).encode())
    write_training_report(record, output.put)
    return TrainingRun(record, output.child(REPORT))
