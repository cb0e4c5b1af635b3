"""The demo, end to end: make clips, put them into a bucket, embed from S3 to S3, verify, show."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raypipe.config import EmbedConfig, load_config
from raypipe.demo.clips import make_catalogue
from raypipe.demo.s3_server import local_s3
from raypipe.errors import ConfigError, VerifyError, WeightsError
from raypipe.storage import Folder

_INPUT = "s3://videos/clips/"
_OUTPUT = "s3://embeddings/v1/"
_BACKBONE = "resnet18"
_MARKER = ".raypipe-demo"


def run_demo(folder: Path) -> int:
    """Do everything in ``folder``, whose earlier demo is replaced; 0 when every promise holds.

    Raises:
        ConfigError: the folder holds something else than an earlier demo.
        VerifyError: the output breaks a promise.
    """
    console = Console(highlight=False)
    _clear(folder)
    console.print(f"[bold]1/4[/] Making 48 clips in 6 classes in {folder / 'clips'}")
    clips = make_catalogue(folder / "clips")
    console.print("[bold]2/4[/] Starting an S3 server on loopback and uploading the clips")
    with local_s3(folder / "s3", buckets=("videos", "embeddings")) as server, _environment(server.environment()):
        bucket = Folder(_INPUT)
        for clip in clips:
            bucket.put_new(clip.path.relative_to(folder / "clips").as_posix(), clip.path.read_bytes())
        weights = _weights(console)
        console.print(f"[bold]3/4[/] raypipe embed --input {_INPUT} --output {_OUTPUT} --set backbone.name={_BACKBONE}")
        report = _embed(console, folder, weights)
        console.print(f"[bold]4/4[/] raypipe verify {_OUTPUT}")
        _verify(console)
    console.print(f"Report: [bold]{report.resolve()}[/]", soft_wrap=True)
    return 0


def _clear(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).exists():
        msg = f"{str(folder)!r} holds something else than an earlier demo. Give --folder an empty or a new one."
        raise ConfigError(msg)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARKER).touch()


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
    from raypipe.embed.pipeline import run_embed  # noqa: PLC0415  # Ray, which the clips do without
    from raypipe.progress import final_table  # noqa: PLC0415

    values = {"input": _INPUT, "output": _OUTPUT}
    overrides = (f"backbone.name={_BACKBONE}", f"backbone.weights={weights}")
    run = run_embed(load_config(EmbedConfig, values=values, overrides=overrides), console=console)
    console.print(final_table(run.record, report_uri=run.report_uri))
    report = folder / "report.html"
    report.write_bytes(Folder(_OUTPUT).read(run.report_uri.removeprefix(Folder(_OUTPUT).child(""))))
    return report


def _verify(console: Console) -> None:
    from raypipe import schema  # noqa: PLC0415
    from raypipe.embed.verify import verify  # noqa: PLC0415
    from raypipe.sealed.dataset import read_embeddings  # noqa: PLC0415

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
