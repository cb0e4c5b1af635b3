"""The demo, end to end: clips into a bucket, embed from S3 to S3, verify, train, classify, index, serve."""

import csv
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raypipe.config import ClassifyConfig, EmbedConfig, IndexConfig, TrainConfig, load_config
from raypipe.demo.clips import LABELS, Clip, make_catalogue
from raypipe.demo.endpoint import show_endpoint, write_catalogue
from raypipe.demo.s3_server import local_s3
from raypipe.errors import ConfigError, VerifyError, WeightsError
from raypipe.storage import Folder

_INPUT = "s3://videos/clips/"
_OUTPUT = "s3://embeddings/v1/"
_MODEL = "s3://models/v1/"
_PREDICTIONS = "s3://predictions/v1/"
_INDEX = "s3://index/"
_BUCKETS = ("videos", "embeddings", "models", "predictions", "index")
_BACKBONE = "resnet18"
_MARKER = ".raypipe-demo"
_CLIPS_PER_CLASS = 16
_SPLITS = ("train",) * 10 + ("validation",) * 2 + ("test",) * 4  # of each class, in the order of its clips


def run_demo(folder: Path, *, keep: bool = False) -> int:
    """Do everything in ``folder``, whose earlier demo is replaced; 0 when every promise holds.

    With ``keep`` the endpoint stays until Ctrl-C.

    Raises:
        ConfigError: the folder holds something else than an earlier demo.
        VerifyError: the output breaks a promise.
    """
    console = Console(highlight=False)
    _clear(folder)
    console.print(f"[bold]1/8[/] Making {_CLIPS_PER_CLASS * len(LABELS)} clips in 6 classes in {folder / 'clips'}")
    clips = make_catalogue(folder / "clips", clips_per_class=_CLIPS_PER_CLASS)
    splits = _write_labels(folder, clips)
    console.print("[bold]2/8[/] Starting an S3 server on loopback and uploading the clips")
    with local_s3(folder / "s3", buckets=_BUCKETS) as server, _environment(server.environment()):
        bucket = Folder(_INPUT)
        for clip in clips:
            bucket.put_new(clip.path.relative_to(folder / "clips").as_posix(), clip.path.read_bytes())
        weights = _weights(console)
        console.print(f"[bold]3/8[/] raypipe embed --input {_INPUT} --output {_OUTPUT} --set backbone.name={_BACKBONE}")
        reports = [_embed(console, folder, weights)]
        console.print(f"[bold]4/8[/] raypipe verify {_OUTPUT}")
        _verify(console)
        labels = folder / "labels.csv"
        console.print(f"[bold]5/8[/] raypipe train --embeddings {_OUTPUT} --labels {labels} --output {_MODEL}")
        reports.append(_train(console, folder, labels))
        console.print(f"[bold]6/8[/] raypipe classify --embeddings {_OUTPUT} --model {_MODEL} --output {_PREDICTIONS}")
        reports.append(_classify(console, folder))
        _compare(console, splits, weights)
        catalogue = write_catalogue(folder, clips)
        console.print(
            f"[bold]7/8[/] raypipe index --embeddings {_OUTPUT} --catalogue {catalogue} --labels {_PREDICTIONS} "
            f"--output {_INDEX}"
        )
        _index(console, catalogue)
        for report in reports:
            console.print(f"Report: [bold]{report.resolve()}[/]", soft_wrap=True)
        console.print(f"[bold]8/8[/] raypipe serve --index {_INDEX} --model {_MODEL}")
        _end_ray()
        show_endpoint(console, index=_INDEX, model=_MODEL, weights=weights, log=folder / "serve.log", keep=keep)
    return 0


def _clear(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).exists():
        msg = f"{str(folder)!r} holds something else than an earlier demo."
        raise ConfigError(msg, key="--folder", value=str(folder), remedy="Give --folder an empty or a new folder.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARKER).touch()


def _write_labels(folder: Path, clips: list[Clip]) -> dict[str, tuple[str, str]]:
    """Write ``labels.csv``, and give the label and the split of each video."""
    number = dict.fromkeys(LABELS, 0)
    rows: dict[str, tuple[str, str]] = {}
    for clip in clips:
        rows[clip.path.relative_to(folder / "clips").as_posix()] = (clip.label, _SPLITS[number[clip.label]])
        number[clip.label] += 1
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video_id", "label", "split"))
        writer.writerows((video_id, *row) for video_id, row in rows.items())
    return rows


def _weights(console: Console) -> str:
    from raypipe.models.weights import resolve_weights  # noqa: PLC0415  # torch, which the clips do without

    try:
        resolve_weights(_BACKBONE, "default", read_bytes=lambda uri: Path(uri).read_bytes())
    except WeightsError:
        console.print(
            f"    The pretrained weights of {_BACKBONE} cannot be downloaded: random ones stand in. Everything works "
            "the same, but the vectors say little about what is seen."
        )
        return "random"
    return "default"


def _embed(console: Console, folder: Path, weights: str) -> Path:
    from raypipe.jobs.embed.job import run_embed  # noqa: PLC0415  # Ray, which the clips do without
    from raypipe.runs.summary_tables import final_table  # noqa: PLC0415

    values = {"input": _INPUT, "output": _OUTPUT}
    overrides = (f"backbone.name={_BACKBONE}", f"backbone.weights={weights}")
    run = run_embed(load_config(EmbedConfig, values=values, overrides=overrides), console=console)
    console.print(final_table(run.record, report_uri=run.report_uri))
    return _fetch(run.report_uri, _OUTPUT, folder / "embed.html")


def _train(console: Console, folder: Path, labels: Path) -> Path:
    from raypipe.jobs.train.run import run_train  # noqa: PLC0415
    from raypipe.runs.summary_tables import training_table  # noqa: PLC0415

    values = {"embeddings": _OUTPUT, "labels": str(labels), "output": _MODEL}
    run = run_train(load_config(TrainConfig, values=values), console=console)
    console.print(training_table(run.record, report_uri=run.report_uri))
    return _fetch(run.report_uri, _MODEL, folder / "train.html")


def _classify(console: Console, folder: Path) -> Path:
    from raypipe.jobs.classify.job import run_classify  # noqa: PLC0415
    from raypipe.runs.summary_tables import final_table  # noqa: PLC0415

    values = {"embeddings": _OUTPUT, "model": _MODEL, "output": _PREDICTIONS}
    run = run_classify(load_config(ClassifyConfig, values=values), console=console)
    console.print(final_table(run.record, report_uri=run.report_uri))
    return _fetch(run.report_uri, _PREDICTIONS, folder / "classify.html")


def _index(console: Console, catalogue: Path) -> None:
    from raypipe.jobs.index.job import index_table, run_index  # noqa: PLC0415

    values = {"embeddings": _OUTPUT, "catalogue": str(catalogue), "labels": _PREDICTIONS, "output": _INDEX}
    run = run_index(load_config(IndexConfig, values=values), console=console)
    console.print(index_table(run))


def _end_ray() -> None:
    """The endpoint starts a Ray of its own, and the machine may be small."""
    import ray  # noqa: PLC0415

    ray.shutdown()


def _fetch(report_uri: str, output: str, report: Path) -> Path:
    """Copy a report out of the bucket, which ends with the demo."""
    report.write_bytes(Folder(output).read(report_uri.removeprefix(Folder(output).child(""))))
    return report


def _compare(console: Console, splits: dict[str, tuple[str, str]], weights: str) -> None:
    """Hold the labels of the clips that training never saw against those of a model that knows no order of time."""
    import numpy as np  # noqa: PLC0415

    from raypipe import schema  # noqa: PLC0415
    from raypipe.dataset.read import read_embeddings, read_rows  # noqa: PLC0415
    from raypipe.demo.probe import linear_probe  # noqa: PLC0415

    predicted: dict[str, str] = {}
    for table in read_rows(Folder(_PREDICTIONS), columns=[schema.VIDEO_ID, schema.LABEL]):
        predicted.update(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    means: dict[str, list[float]] = {}
    for table in read_embeddings(Folder(_OUTPUT), columns=[schema.VIDEO_ID, schema.EMBEDDING]):
        means.update(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    tested = [video_id for video_id, (_, split) in splits.items() if split == "test" and means[video_id]]
    learned = [video_id for video_id, (_, split) in splits.items() if split != "test" and means[video_id]]
    numbers = {video_id: LABELS.index(splits[video_id][0]) for video_id in (*tested, *learned)}
    train, test = (np.array([means[one] for one in ids], dtype=np.float32) for ids in (learned, tested))
    probed = linear_probe(train, np.array([numbers[one] for one in learned]), test)
    table = Table("on clips that training never saw", "accuracy")
    right = sum(predicted[one] == splits[one][0] for one in tested)
    table.add_row("GPT-2 over the frames", f"{right}/{len(tested)}")
    right = sum(numbers[one] == found for one, found in zip(tested, probed.tolist(), strict=True))
    table.add_row("linear model on the mean of the frames", f"{right}/{len(tested)}")
    console.print(table)
    said = "random weights, which say little about what is seen" if weights == "random" else "ImageNet weights"
    console.print(f"{_BACKBONE} with {said}; each class is another one played backwards.")


def _verify(console: Console) -> None:
    from raypipe import schema  # noqa: PLC0415
    from raypipe.dataset.read import read_embeddings  # noqa: PLC0415
    from raypipe.jobs.embed.verify import verify  # noqa: PLC0415

    output = Folder(_OUTPUT)
    result = verify(output)
    if result.violations:
        raise VerifyError(result.violations[0])
    columns = [schema.VIDEO_ID, schema.STATUS, schema.NUM_FRAMES, schema.DURATION_SECONDS]
    rows = [row for table in read_embeddings(output, columns=columns) for row in table.to_pylist()]
    table = Table("class", "videos", "ok", "frames", "seconds of video")
    for label in sorted({row[schema.VIDEO_ID].partition("/")[0] for row in rows}):
        of = [row for row in rows if row[schema.VIDEO_ID].startswith(f"{label}/")]
        ok = sum(row[schema.STATUS] == "ok" for row in of)
        frames = sum(row[schema.NUM_FRAMES] for row in of)
        seconds = sum(row[schema.DURATION_SECONDS] or 0 for row in of)
        table.add_row(label, str(len(of)), str(ok), str(frames), f"{seconds:.1f}")
    console.print(table)
    console.print(f"{result.num_rows} videos in {result.num_files} files: every promise holds.")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
