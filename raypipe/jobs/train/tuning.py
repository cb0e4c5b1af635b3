"""A small grid search with Ray Tune. Each trial is a training that can be resumed. The best trial's model is kept."""

import json
import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import ray
from ray import tune
from rich.console import Console
from rich.text import Text

from raypipe.config import TrainConfig, load_config
from raypipe.errors import ConfigError, JobError
from raypipe.jobs.train.events import listen, open_queue
from raypipe.models.model_files import COMPLETE, MODEL_FOLDER
from raypipe.models.ranker_files import BLEND
from raypipe.records import TrainingRecord, Trial
from raypipe.runs.actors import reason_of
from raypipe.storage import Folder
from raypipe.text import visible

MAX_TRIALS = 256
_TRIAL_CPUS = 0.1  # a trial only waits for the workers of its training


@dataclass(frozen=True, slots=True)
class SearchPoint:
    """One point of a grid: the name of its trial, the keys and values that it sets, and the whole configuration."""

    name: str
    settings: Mapping[str, Any]
    config: TrainConfig


def grid(config: TrainConfig) -> list[SearchPoint]:
    """Return one point for every combination of the choices in ``config.search``.

    Each point has a validated configuration, and its own output folder below ``trials/``.

    Raises:
        ConfigError: a key or a value is invalid, or there are too many combinations.
    """
    if (count := math.prod(map(len, config.search.values()))) > MAX_TRIALS:
        msg = f"search has {count} combinations; at most {MAX_TRIALS} are allowed."
        raise ConfigError(msg, key="search", value=count, remedy="Remove some choices.")
    points = []
    for number, choices in enumerate(product(*config.search.values())):
        settings = dict(zip(config.search, choices, strict=True))
        tree = config.model_dump() | {"search": {}, "output": Folder(config.output).child(f"trials/{number:03d}")}
        if config.objective != "next_video":
            tree["model"]["compare"] = "none"  # each point would fit the same simple models
        for key, value in settings.items():
            *sections, leaf = key.split(".")
            node = tree
            for section in sections:
                node = node.setdefault(section, {})
                if not isinstance(node, dict):
                    msg = f"search: {key!r} is below {section!r}, which is {node!r}."
                    raise ConfigError(msg, key=key, value=node, remedy="Give sizes, or another key.")
            node[leaf] = value
        points.append(SearchPoint(f"{number:03d}", settings, load_config(TrainConfig, values=tree)))
    return points


def search_grid(
    points: Sequence[SearchPoint], train: Callable[[TrainConfig], TrainingRecord], *, use_gpu: bool, console: Console
) -> dict[str, TrainingRecord]:
    """Train every point of a grid, as many at the same time as fit into the cluster.

    A line is printed for each trial that ends. The returned dict maps the name of each point to its record.

    Raises:
        JobError: Ray ended the search.
    """
    records: dict[str, TrainingRecord] = {}
    total = ray.cluster_resources()
    num_workers = points[0].config.resources.num_workers
    at_once = total.get("GPU", 0) // num_workers if use_gpu else total.get("CPU", 1) // (num_workers + 1)
    events = open_queue()
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the only way to silence Tune on the terminal

    def trial(parameters: dict[str, Any]) -> None:
        number = parameters["point"]
        events.put(("trial", {"point": number, "record": train(points[number].config)}))
        tune.report({"done": 1})

    with tempfile.TemporaryDirectory() as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"CPU": _TRIAL_CPUS}),
            param_space={"point": tune.grid_search(list(range(len(points))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=max(1, int(at_once))),
            run_config=tune.RunConfig(name=f"raypipe-{uuid.uuid4().hex[:12]}", storage_path=scratch, verbose=0),
        )
        try:
            for _, about in listen(events, tuner.fit):
                point, record = points[about["point"]], about["record"]
                records[point.name] = record
                line = f"trial {len(records)}/{len(points)} · {_describe(point, record)}"
                console.print(Text(visible(line)), soft_wrap=True)
        except (ray.exceptions.RayError, tune.TuneError) as error:
            msg = f"Ray ended the search: {reason_of(error)}. The same command continues with the unfinished trials."
            raise JobError(msg) from error
    return records


def _describe(point: SearchPoint, record: TrainingRecord) -> str:
    what = ", ".join(f"{key}={str(value).replace(chr(39), '')}" for key, value in point.settings.items())
    if record.kept is None:
        return f"{what} · failed: {record.message}"
    if record.kept.accuracy is not None:
        return f"{what} · accuracy {record.kept.accuracy:.1%}, macro-F1 {record.kept.macro_f1:.3f}"
    if record.kept.ndcg_at_10 is not None:
        return f"{what} · NDCG@10 {record.kept.ndcg_at_10:.4f}, HR@10 {record.kept.hr_at_10:.4f}"
    return f"{what} · loss {record.kept.validation_loss or record.kept.train_loss:.4g}"


def keep_best(
    output: Folder, record: TrainingRecord, points: Sequence[SearchPoint], records: Mapping[str, TrainingRecord]
) -> TrainingRecord:
    """Copy the best trial's model to the output, and return the record of the whole search.

    ``record`` is the record with which the search started. ``records`` are the records of the trials, by name. The
    returned record has the metrics of the best trial, and lists all trials.

    Raises:
        JobError: all trials failed.
    """
    trials = tuple(
        Trial(
            name=point.name,
            settings=point.settings,
            outcome=ended.outcome if ended else "failed",
            best_epoch=ended.best_epoch if ended else None,
            metrics=ended.kept if ended else None,
        )
        for point, ended in ((point, records.get(point.name)) for point in points)
    )
    best = replace(record, trials=trials).best_trial
    if best is None:
        messages = [ended.message for ended in records.values() if ended.message]
        msg = f"All {len(points)} trials failed: {messages[0] if messages else 'they gave no reason.'}"
        raise JobError(msg)
    chosen = records[best.name]
    source, kept = (Folder(output.child(folder)) for folder in (f"trials/{best.name}/{MODEL_FOLDER}", MODEL_FOLDER))
    complete = source.read(COMPLETE)
    for name in json.loads(complete)["sha256"]:
        kept.put_new(name, source.read(name))
    if source.exists(BLEND):
        kept.put_new(BLEND, source.read(BLEND))
    kept.put_new(COMPLETE, complete)
    return replace(
        chosen,
        command=record.command,
        output_uri=output.uri,
        model_uri=kept.uri,
        outcome="finished",
        started_at=record.started_at,
        finished_at=time.time(),
        settings={**chosen.settings, "search": record.settings["search"]},
        trials=trials,
    )
