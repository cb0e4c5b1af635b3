"""One training: from a configuration to a model, its card and its report."""

import json
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ray.exceptions import RayError
from ray.train import TrainingFailedError
from rich.console import Console

from raypipe.config import TrainConfig
from raypipe.errors import JobError, ObjectError, RaypipeError
from raypipe.jobs.train.feed import listen, start_feed
from raypipe.jobs.train.outcome import describe_outcome
from raypipe.jobs.train.samples import find_samples
from raypipe.jobs.train.setup import Setup, check_same_run, prepare, run_facts
from raypipe.jobs.train.story import SUMMARY, Story, earlier_record, first_record, show, so_far
from raypipe.jobs.train.trainer import decide_gpu, make_trainer
from raypipe.models.classifier_files import COMPLETE, MODEL_FOLDER
from raypipe.records import TrainingRecord
from raypipe.report import write_training_report
from raypipe.report.model_card import model_card
from raypipe.runs.actors import connect, reason_of
from raypipe.runs.progress import TrainingProgress
from raypipe.storage import Folder

REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What a run did, and where its report lies; ``is_new`` is False where an earlier run had finished it."""

    record: TrainingRecord
    report_uri: str
    is_new: bool = True


def train_once(config: TrainConfig, *, console: Console | None = None) -> TrainingRun:
    """Train, or go on where an earlier run of the same command was cut off; put the model, its card and the report.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: the workers failed too often, or a loss is no longer a number.
    """
    output = Folder(config.output)
    output.check_writable()
    setup = prepare(config, find_samples(config))
    check_same_run(output, run_facts(setup))
    connect()
    use_gpu = decide_gpu(config)
    record = first_record(setup, time.time(), use_gpu=use_gpu)
    if is_finished(output):
        return TrainingRun(earlier_record(output, record), output.child(REPORT), is_new=False)
    story = Story()
    try:
        _train(setup, story, use_gpu=use_gpu, console=console)
    except RaypipeError as error:
        record = replace(so_far(record, story), outcome="failed", message=str(error), finished_at=time.time())
        with suppress(RaypipeError):  # what ended the training may end this too, and is what has to be told
            write_training_report(record, output.put)
        raise
    record = replace(so_far(record, story), outcome="finished", finished_at=time.time())
    record = describe_outcome(record, setup, story.ended or {})
    output.put(f"{MODEL_FOLDER}/README.md", model_card(record).encode())
    write_training_report(record, output.put)
    return TrainingRun(record, output.child(REPORT))


def is_finished(output: Folder) -> bool:
    """Whether a training ended here, its model and its report in place."""
    if not output.exists(f"{MODEL_FOLDER}/{COMPLETE}"):
        return False
    try:
        return bool(json.loads(output.read(SUMMARY))["outcome"] == "finished" and output.exists(REPORT))
    except (ObjectError, KeyError, TypeError, ValueError):
        return False


def _train(setup: Setup, story: Story, *, use_gpu: bool, console: Console | None) -> None:
    """Run the workers, show what they tell, and end as they end."""
    config = setup.config
    feed = start_feed()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(setup, feed, scratch=Path(scratch), use_gpu=use_gpu)
        progress = TrainingProgress(num_epochs=config.optimizer.epochs, console=console)
        try:
            with progress:
                for kind, about in listen(feed, trainer.fit):
                    show(progress, story, kind, about)
        except TrainingFailedError as error:
            msg = (
                f"The workers failed more than {config.resources.max_failures} times: {reason_of(error)}. The same "
                "command goes on from the last checkpoint."
            )
            raise JobError(msg) from error
        except RayError as error:
            msg = f"Ray ended the work: {reason_of(error)}. The same command goes on from the last checkpoint."
            raise JobError(msg) from error
    if story.ended is None:
        msg = "The workers ended without saying how. The same command goes on from the last checkpoint."
        raise JobError(msg)
    if story.ended["state"]["ended"] == "not_finite":
        kept = story.ended["state"]["best_checkpoint"]
        checkpoint = (
            "" if kept is None else f" The best checkpoint until then is {setup.output}/checkpoints/{kept:06d}."
        )
        msg = f"{story.ended['state']['message']}{checkpoint}"
        raise JobError(msg)
