"""The demo, end to end: upload clips to a bucket, embed, train, classify, index, learn from viewers, and serve."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from raypipe import schema
from raypipe.client import Client
from raypipe.config import ClassifyConfig, EmbedConfig, EvaluateConfig, IndexConfig, TrainConfig, load_config
from raypipe.demo.clips import LABELS, Clip, make_catalogue, write_csv
from raypipe.demo.s3_server import local_s3
from raypipe.demo.viewers import NUM_VIEWERS, write_histories
from raypipe.errors import ConfigError, JobError, RaypipeError, VerifyError, WeightsError
from raypipe.free_ports import free_ports
from raypipe.storage import Folder

_INPUT = "s3://videos/clips/"
_OUTPUT = "s3://embeddings/v1/"
_MODEL = "s3://models/v1/"
_PREDICTIONS = "s3://predictions/v1/"
_INDEX = "s3://index/"
_RANKER = "s3://models/ranker/"
_EVALUATION = "s3://evaluations/v1/"
_BUCKETS = ("videos", "embeddings", "models", "predictions", "index", "evaluations")
_BACKBONE = "resnet18"
_MARKER = ".raypipe-demo"
_CLIPS_PER_CLASS = 16
_PORT = 8000
_READY_SECONDS, _END_SECONDS = 120.0, 60.0
_NUM_SHOWN = 3
_MAX_FRAMES = 256
_EPOCHS, _RANKER_EPOCHS = "optimizer.epochs=30", "optimizer.epochs=15"  # fewer than the default: the demo is short
_BROKEN = "not_a_video.mp4"
_SPLITS = ("train",) * 10 + ("validation",) * 2 + ("test",) * 4  # the splits of the clips of each class, in order


def run_demo(folder: Path, *, keep: bool = False) -> int:
    """Run the demo in ``folder``, and return the exit code 0. An earlier demo in the same folder is deleted.

    If ``keep`` is True, the endpoint runs until Ctrl-C.

    Raises:
        ConfigError: the folder holds something other than an earlier demo.
        VerifyError: the output of embed fails verification.
        JobError: the endpoint does not start.
    """
    console = Console(highlight=False)
    start = time.monotonic()
    _clear(folder)
    _step(console, 1, f"Make {_CLIPS_PER_CLASS * len(LABELS)} clips in {len(LABELS)} classes in {folder / 'clips'}")
    clips = make_catalogue(folder / "clips", clips_per_class=_CLIPS_PER_CLASS, num_processes=os.cpu_count() or 1)
    splits = _write_labels(folder, clips)
    _proved(console, "Each class is another class played backwards, so no single frame tells the two apart.")
    _step(console, 2, "Start an S3 server on loopback, and upload the clips and a file that is no video")
    with local_s3(folder / "s3", buckets=_BUCKETS) as server, _environment(server.environment()):
        bucket = Folder(_INPUT)
        for clip in clips:
            bucket.put_new(clip.video_id, clip.path.read_bytes())
        bucket.put_new(_BROKEN, b"This is not a video.")
        weights = _weights(console)
        _step(console, 3, f"raypipe embed --input {_INPUT} --output {_OUTPUT} --set backbone.name={_BACKBONE}")
        reports = [_embed(console, folder, weights)]
        _proved(console, "Every file has exactly one row, also the broken one, which ended nothing.")
        _step(console, 4, f"raypipe verify {_OUTPUT}")
        _verify(console)
        labels = folder / "labels.csv"
        _step(console, 5, f"raypipe train --embeddings {_OUTPUT} --labels {labels} --output {_MODEL} --set {_EPOCHS}")
        reports.append(_train(console, folder, labels))
        _step(console, 6, f"raypipe classify --embeddings {_OUTPUT} --model {_MODEL} --output {_PREDICTIONS}")
        reports.append(_classify(console, folder))
        _compare(console, splits, weights)
        catalogue = _write_catalogue(folder, clips)
        options = f"--embeddings {_OUTPUT} --catalogue {catalogue} --labels {_PREDICTIONS} --output {_INDEX}"
        _step(console, 7, f"raypipe index {options}")
        index = {"embeddings": _OUTPUT, "catalogue": str(catalogue), "labels": _PREDICTIONS, "output": _INDEX}
        _index(console, index)
        _proved(console, "The videos can be searched and filtered by every column of the catalogue, and by label.")
        history = folder / "history.csv"
        write_histories(history, clips)
        _step(
            console,
            8,
            f"raypipe train --set objective=next_video --index {_INDEX} --history {history} --output {_RANKER} "
            f"--set {_RANKER_EPOCHS}",
        )
        reports.append(_train_ranker(console, folder, history))
        _step(console, 9, f"raypipe index … --history {history} --ranker {_RANKER}; raypipe evaluate")
        _index(console, {**index, "history": str(history), "ranker": _RANKER})
        reports.append(_evaluate(console, folder, history))
        _proved(console, "The index predicts what viewers watch next, measured on views that it has not seen.")
        _step(console, 10, f"raypipe serve --index {_INDEX} --model {_MODEL}")
        _serve(console, weights=weights, log=folder / "serve.log", keep=keep)
        console.print(f"\nDone in {time.monotonic() - start:.0f} seconds. Reports of each step:")
        for report in reports:
            console.print(f"    {report.resolve()}", soft_wrap=True)
    return 0


def _step(console: Console, number: int, what: str) -> None:
    console.print(f"\n[bold]{number}/10[/] {what}", soft_wrap=True)


def _proved(console: Console, what: str) -> None:
    console.print(f"[green]→[/] {what}")


def _clear(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).exists():
        msg = f"{str(folder)!r} contains something other than an earlier demo."
        raise ConfigError(msg, key="--folder", value=str(folder), remedy="Set --folder to an empty or new folder.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARKER).touch()


def _write_labels(folder: Path, clips: Sequence[Clip]) -> dict[str, tuple[str, str]]:
    """Write ``labels.csv``, and return a dict from each video id to its label and its split."""
    rows: dict[str, tuple[str, str]] = {
        clip.video_id: (clip.label, _SPLITS[at % _CLIPS_PER_CLASS]) for at, clip in enumerate(clips)
    }
    write_csv(folder / "labels.csv", ("video_id", "label", "split"), ((one, *row) for one, row in rows.items()))
    return rows


def _write_catalogue(folder: Path, clips: Sequence[Clip]) -> Path:
    """Write ``catalogue.csv`` with the kind of metadata that a video platform has, and return its path.

    The values are invented from the number of each clip.
    """
    rows = []
    for number, clip in enumerate(clips):
        title = f"{clip.label.replace('_', ' ').capitalize()}, take {clip.path.stem.rpartition('-')[2]}"
        published = date(2026, 1, 1) + timedelta(days=number * 7 % 300)
        rows.append((clip.video_id, title, clip.label, published.isoformat(), number * 37 % 100))
    path = folder / "catalogue.csv"
    write_csv(path, ("video_id", "title", "category", "published_at", "popularity"), rows)
    return path


def _weights(console: Console) -> str:
    from raypipe.models.weights import resolve_weights  # noqa: PLC0415  # imports torch, which making clips does not need

    try:
        resolve_weights(_BACKBONE, "default", read_bytes=lambda uri: Path(uri).read_bytes())
    except WeightsError:
        console.print(
            f"    The pretrained weights of {_BACKBONE} cannot be downloaded. Using random weights instead: motion can "
            "still be learned, but similar content is found less well."
        )
        return "random"
    return "default"


def _embed(console: Console, folder: Path, weights: str) -> Path:
    from raypipe.jobs.embed.job import run_embed  # noqa: PLC0415  # imports Ray, which making clips does not need
    from raypipe.runs.summary_tables import final_table  # noqa: PLC0415

    values = {"input": _INPUT, "output": _OUTPUT}
    overrides = (f"backbone.name={_BACKBONE}", f"backbone.weights={weights}")
    run = run_embed(load_config(EmbedConfig, values=values, overrides=overrides), console=console)
    console.print(final_table(run.record, report_uri=run.report_uri))
    return _fetch(run.report_uri, _OUTPUT, folder / "embed.html")


def _train(console: Console, folder: Path, labels: Path) -> Path:
    from raypipe.jobs.train.job import run_train  # noqa: PLC0415
    from raypipe.runs.summary_tables import training_table  # noqa: PLC0415

    values = {"embeddings": _OUTPUT, "labels": str(labels), "output": _MODEL}
    run = run_train(load_config(TrainConfig, values=values, overrides=(_EPOCHS,)), console=console)
    console.print(training_table(run.record, report_uri=run.report_uri))
    return _fetch(run.report_uri, _MODEL, folder / "train.html")


def _classify(console: Console, folder: Path) -> Path:
    from raypipe.jobs.classify.job import run_classify  # noqa: PLC0415
    from raypipe.runs.summary_tables import final_table  # noqa: PLC0415

    values = {"embeddings": _OUTPUT, "model": _MODEL, "output": _PREDICTIONS}
    run = run_classify(load_config(ClassifyConfig, values=values), console=console)
    console.print(final_table(run.record, report_uri=run.report_uri))
    return _fetch(run.report_uri, _PREDICTIONS, folder / "classify.html")


def _train_ranker(console: Console, folder: Path, history: Path) -> Path:
    from raypipe.jobs.train.job import run_train  # noqa: PLC0415
    from raypipe.runs.summary_tables import training_table  # noqa: PLC0415

    values = {"objective": "next_video", "index": _INDEX, "history": str(history), "output": _RANKER}
    run = run_train(load_config(TrainConfig, values=values, overrides=(_RANKER_EPOCHS,)), console=console)
    console.print(training_table(run.record, report_uri=run.report_uri))
    return _fetch(run.report_uri, _RANKER, folder / "train_ranker.html")


def _evaluate(console: Console, folder: Path, history: Path) -> Path:
    from raypipe.jobs.evaluate.job import evaluation_table, run_evaluate  # noqa: PLC0415

    values = {"index": _INDEX, "history": str(history), "output": _EVALUATION, "protocol": "leave_one_out"}
    run = run_evaluate(load_config(EvaluateConfig, values=values), console=console)
    console.print(f"{NUM_VIEWERS} synthetic viewers; the last clip of each is predicted from the earlier ones:")
    console.print(evaluation_table(run))
    return _fetch(run.report_uri, _EVALUATION, folder / "evaluate.html")


def _index(console: Console, values: Mapping[str, str]) -> None:
    from raypipe.jobs.index.job import index_table, run_index  # noqa: PLC0415

    run = run_index(load_config(IndexConfig, values=dict(values)), console=console)
    console.print(index_table(run))


def _fetch(report_uri: str, output: str, report: Path) -> Path:
    """Copy a report from its bucket to a local file, because the bucket does not exist after the demo."""
    report.write_bytes(Folder(output).read(report_uri.removeprefix(Folder(output).child(""))))
    return report


def _compare(console: Console, splits: dict[str, tuple[str, str]], weights: str) -> None:
    """Print how many test clips the trained model and simple models label correctly."""
    from raypipe.dataset.read import read_rows  # noqa: PLC0415

    rows = read_rows(Folder(_PREDICTIONS), columns=[schema.VIDEO_ID, schema.LABEL])
    predicted = {row[schema.VIDEO_ID]: row[schema.LABEL] for table in rows for row in table.to_pylist()}
    tested = [video_id for video_id, (_, split) in splits.items() if split == "test"]
    num_right = {"the trained model": sum(predicted[one] == splits[one][0] for one in tested)}
    num_right |= _simple_models(splits, tested)
    table = Table("on clips that training never saw", "correct")
    for name, count in num_right.items():
        table.add_row(name, f"{count} of {len(tested)}")
    console.print(table)
    said = "random weights" if weights == "random" else "ImageNet weights"
    _proved(
        console,
        f"The frame vectors are of a {_BACKBONE} with {said}. Their mean cannot tell a class from the same class "
        "played backwards: only a model that reads the order of the frames can.",
    )


def _simple_models(splits: dict[str, tuple[str, str]], tested: Sequence[str]) -> dict[str, int]:
    """Fit simple models to the clips that are not tested, and return how many of the others each labels correctly."""
    import torch  # noqa: PLC0415

    from raypipe.dataset.read import frame_embeddings, read_embeddings  # noqa: PLC0415
    from raypipe.jobs.train.classifier.peers import simple_probabilities  # noqa: PLC0415
    from raypipe.jobs.train.classifier.probing import LabelSpace, PooledVideos, pool_frames  # noqa: PLC0415

    frames: dict[str, Any] = {}  # [T, D] by video ID
    for rows in read_embeddings(Folder(_OUTPUT), columns=[schema.VIDEO_ID, schema.FRAME_EMBEDDINGS]):
        frames |= dict(zip(rows[schema.VIDEO_ID].to_pylist(), frame_embeddings(rows), strict=True))

    def pooled(ids: Sequence[str]) -> PooledVideos:
        labels = torch.tensor([LABELS.index(splits[one][0]) for one in ids])
        return pool_frames([frames[one] for one in ids], labels, max_frames=_MAX_FRAMES, keep_frames=True)

    learned, asked = pooled([one for one in splits if one not in tested]), pooled(tested)
    found = simple_probabilities(learned, asked, LabelSpace(len(LABELS), multi_label=False))
    return {
        name: int((probabilities.argmax(axis=1) == asked.labels.numpy()).sum()) for name, probabilities in found.items()
    }


def _verify(console: Console) -> None:
    from raypipe.dataset.read import read_embeddings  # noqa: PLC0415
    from raypipe.jobs.embed.verify import verify  # noqa: PLC0415

    output = Folder(_OUTPUT)
    result = verify(output)
    if result.violations:
        raise VerifyError(result.violations[0])
    columns = [schema.VIDEO_ID, schema.STATUS, schema.NUM_FRAMES, schema.DURATION_SECONDS]
    rows = [row for table in read_embeddings(output, columns=columns) for row in table.to_pylist()]
    table = Table("class", "videos", "ok", "frames", "seconds of video")
    for label in LABELS:
        of = [row for row in rows if row[schema.VIDEO_ID].startswith(f"{label}/")]
        ok = sum(row[schema.STATUS] == "ok" for row in of)
        frames = sum(row[schema.NUM_FRAMES] for row in of)
        seconds = sum(row[schema.DURATION_SECONDS] or 0 for row in of)
        table.add_row(label, str(len(of)), str(ok), str(frames), f"{seconds:.1f}")
    console.print(table)
    _proved(
        console,
        f"{result.num_rows} rows in {result.num_files} files, checked from storage: nothing lost, nothing twice.",
    )


def _serve(console: Console, *, weights: str, log: Path, keep: bool) -> None:
    """Start ``raypipe serve``, request recommendations, and stop the server. With ``keep``, wait for Ctrl-C first."""
    import ray  # noqa: PLC0415

    ray.shutdown()  # the endpoint starts its own Ray, and the machine may be small
    port = _free_port()
    command = [sys.executable, "-m", "raypipe", "serve", "--index", _INDEX, "--model", _MODEL]
    command += ["--set", f"port={port}", "--set", f"embedder.weights={weights}"]
    command += ["--set", f"embedder.allowed_prefixes=[{_INPUT}]"]  # so that the page plays the clips
    with _running(command, log) as server:
        client = Client(f"http://127.0.0.1:{port}")
        _await_ready(client, server, log)
        _recommend(console, client)
        if keep:
            console.print(f"The page: [bold]http://127.0.0.1:{port}/[/] (Ctrl-C stops it)")
            server.wait()
        else:
            console.print(f"The page was at http://127.0.0.1:{port}/: [bold]raypipe demo --keep[/] keeps it running.")


def _recommend(console: Console, client: Client) -> None:
    """Print the recommendations for a user who watched two clips."""
    watched = {video["video_id"]: _title(video) for video in client.videos(limit=2)["videos"]}
    answer = client.recommend(list(watched), top_k=_NUM_SHOWN, diversity=0.3)
    table = Table("recommended", "score", "why")
    for result in answer["results"]:
        why = result["why"]
        reason = f"similar to {watched.get(why['closest'], '')} ({why['similarity']:.2f})"
        if why["reason"] == "watched_after":
            reason = f"watched after {watched.get(why['after'], '')} by {why['num_users']} viewers"
        table.add_row(_title(result["video"]), f"{result['score']:.2f}", reason)
    console.print(f"For a user who watched {' and '.join(repr(title) for title in watched.values())}:")
    console.print(table)


def _title(video: Mapping[str, Any]) -> str:
    return str(video["fields"]["title"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _PORT))
        except OSError:
            return free_ports(1)[0]
    return _PORT


@contextmanager
def _running(command: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        # In a new session, so that Ctrl-C reaches only the demo, which then stops the server.
        server = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)  # noqa: S603 - its arguments are ours
        try:
            yield server
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _await_ready(client: Client, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + _READY_SECONDS
    while server.poll() is None and time.monotonic() < end:
        try:
            client.index()
        except RaypipeError:
            time.sleep(0.2)
        else:
            return
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it printed nothing."]
    msg = f"The endpoint did not start: {lines[-1]} Its full output is in {log}."
    raise JobError(msg)


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
