"""Run ``raypipe embed`` in processes that report events, and measure its floor: decoding alone plus the model alone."""

import argparse
import functools
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from raypipe import schema
from raypipe.config import DecodeConfig, EmbedConfig, load_config
from raypipe.dataset.plan import PlannedVideo
from raypipe.models.backbones import Dtype, resolve_dtype, resolve_engine
from raypipe.models.engines import load_embedder
from raypipe.status import Status
from raypipe.video.decode_request import DecodeRequest, Pixels, request_of_settings
from raypipe.video.sandbox.protocol import SharedFrames
from support import NUM_CPUS, make_parser
from support.clips import MIXED
from support.processes import Seconds, Stopwatch, family_cpu_seconds

if TYPE_CHECKING:
    from raypipe.models.backbone import Backbone
    from raypipe.runs.job import BatchRun

RANDOM = "backbone.weights=random"
_RESNET = {"resize_size": 256, "crop_size": 224, "format": schema.ROW_FORMAT}
# What raypipe embed asks of a video by default, for a ResNet-18.
EXACT = request_of_settings({"sampling": {"mode": "uniform", "num_frames": 16}, **_RESNET}, DecodeConfig())


def parse_options(
    description: str | None, *, videos: int, repeats: int, backbones: Sequence[str], quick_videos: int = 40
) -> argparse.Namespace:
    """Parse the options of a script that embeds the mixed catalogue, with these defaults."""
    parser = make_parser(description, quick=f"1 repeat, {quick_videos} videos, {backbones[0]}", videos=True)
    parser.add_argument("--videos", type=int, default=videos)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--backbones", nargs="+", default=list(backbones))
    options = parser.parse_args()
    options.clips = MIXED[:8] if options.quick else MIXED
    if options.quick:
        options.videos, options.repeats, options.backbones = quick_videos, 1, [backbones[0]]
    return options


def embed_config(videos: Path | str, output: Path, *overrides: str) -> EmbedConfig:
    """Return the default configuration of ``raypipe embed`` on Ray, with overrides."""
    values = {"input": str(videos), "output": str(output), "executor": "ray"}
    return load_config(EmbedConfig, values=values, overrides=overrides)


# --- decoding and the model, each alone


def decode_here(path: Path, request: DecodeRequest, decoder: str = "pyav") -> tuple[Pixels, Seconds]:
    """Decode with the sandbox's own function, but in this process; return no frames if it fails."""
    from raypipe.video.sandbox.child import decode_video  # noqa: PLC0415 - only processes that decode load the decoders

    shared = _shared_frames(request.crop_size, request.max_frames)
    watch = Stopwatch()
    with path.open("rb") as file:
        reply = decode_video(file, request, decoder=decoder, shared=shared)
    spent = watch.read()
    return shared.frames[: reply.num_frames if reply.status == Status.OK else 0].copy(), spent


@functools.cache
def _shared_frames(crop_size: int, max_frames: int) -> SharedFrames:
    memory = mmap.mmap(-1, SharedFrames.size_bytes(crop_size=crop_size, max_frames=max_frames))
    return SharedFrames(memory, crop_size=crop_size, max_frames=max_frames)


def random_model(name: str, **options: Any) -> tuple["Backbone", Callable[[int], Pixels]]:  # noqa: ANN401 - of Backbone
    """Return a backbone with random weights, and a function that makes random frames for it."""
    from raypipe.models.backbone import Backbone  # noqa: PLC0415 - torch: only processes that embed load it
    from raypipe.models.weights import preprocessing, resolve_weights  # noqa: PLC0415 - torch takes seconds, in which Ray can start

    weights = resolve_weights(name, "random", read_bytes=lambda _: b"")
    side = preprocessing(name).crop_size
    random = np.random.default_rng(0)
    model = Backbone(weights.state_dict, name=name, **options)
    return model, lambda count: random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Floor:
    """The cost of each video on one CPU without a pipeline: a lower bound. Keys are file names."""

    decode: Mapping[str, Seconds]
    num_frames: Mapping[str, int]
    model_per_frame: Seconds

    def work(self, names: Iterable[str]) -> Seconds:
        """Return the time to decode these videos and embed their frames on one CPU."""
        names = list(names)
        frames = sum(self.num_frames[name] for name in names)
        return sum((self.decode[name] for name in names), Seconds()) + self.model_per_frame * frames

    @property
    def decode_seconds(self) -> float:
        """Wall time to decode all videos on all CPUs."""
        return sum(one.wall for one in self.decode.values()) / NUM_CPUS

    @property
    def model_seconds(self) -> float:
        """Wall time of the model for all frames on all CPUs."""
        return sum(self.num_frames.values()) * self.model_per_frame.wall / NUM_CPUS

    @property
    def seconds(self) -> float:
        """Wall time of both, which share the CPUs."""
        return self.decode_seconds + self.model_seconds

    def mean(self, other: "Floor") -> "Floor":
        """Average two measurements of the same videos."""
        decode = {name: (spent + other.decode[name]) * 0.5 for name, spent in self.decode.items()}
        return replace(self, decode=decode, model_per_frame=(self.model_per_frame + other.model_per_frame) * 0.5)


def cpu_dtype(config: EmbedConfig) -> Dtype:
    """Return the dtype that ``raypipe embed`` uses on this machine's CPUs."""
    return resolve_dtype(config.backbone.dtype, "cpu")


def measure_floor(paths: Sequence[Path], config: EmbedConfig) -> Floor:
    """Decode every video, then embed a quarter as many frames as they have, in one plain process per CPU."""
    decoded = decode_all(paths, config)
    num_frames = {name: frames for name, (frames, _) in decoded.items()}
    share = -(-sum(num_frames.values()) // (4 * NUM_CPUS))
    work = partial(_embed_frames, name=config.backbone.name, dtype=cpu_dtype(config))
    spent = sum(_on_all_cpus(work, [share] * NUM_CPUS), Seconds())
    return Floor({name: one for name, (_, one) in decoded.items()}, num_frames, spent * (1 / (NUM_CPUS * share)))


def decode_all(paths: Sequence[Path], config: EmbedConfig) -> dict[str, tuple[int, Seconds]]:
    """Return the number of frames and the cost of each video by file name, while all CPUs decode."""
    from raypipe.models.weights import preprocessing  # noqa: PLC0415

    sizes = {"resize_size": preprocessing(config.backbone.name).resize_size}
    request = request_of_settings({**_RESNET, **sizes, "sampling": config.sampling.model_dump()}, DecodeConfig())
    decoded = _on_all_cpus(partial(_decode_one, request=request), paths)
    return dict(zip((path.name for path in paths), decoded, strict=True))


def _on_all_cpus(function: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
    with ProcessPoolExecutor(NUM_CPUS, mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, items))


def _decode_one(path: Path, request: DecodeRequest) -> tuple[int, Seconds]:
    frames, spent = decode_here(path, request)
    return len(frames), spent


def _embed_frames(count: int, name: str, dtype: Dtype) -> Seconds:
    """Return the time of the model for ``count`` frames in one thread."""
    from raypipe.models.weights import preprocessing, resolve_weights  # noqa: PLC0415 - torch takes seconds, in which Ray can start

    weights, side = resolve_weights(name, "random", read_bytes=lambda _: b""), preprocessing(name).crop_size
    engine = resolve_engine("auto", "cpu", dtype)
    model = load_embedder(name, lambda: weights.state_dict, engine=engine, dtype=dtype, num_threads=1)
    frames = np.random.default_rng(0).integers(0, 256, (64, side, side, 3), dtype=np.uint8)
    model.embed(frames[:16])
    watch = Stopwatch()
    for at in range(0, count, len(frames)):
        model.embed(frames[: count - at])
    return watch.read()


# --- raypipe embed in its own process


@dataclass(frozen=True)
class Event:
    """An event that a process of ``raypipe embed`` reports: a phase of the run, or a decoded or committed shard."""

    name: str
    at: float  # Unix time
    pid: int
    cpu_seconds: float  # of that process and its decode child
    shard: int = -1
    videos: Sequence[str] = ()  # of a decoded shard


@dataclass(frozen=True)
class Run:
    """One run of ``raypipe embed``, from the start of its process to its end."""

    started_at: float  # Unix time
    seconds: float
    events: Sequence[Event]

    @property
    def videos_of(self) -> dict[int, Sequence[str]]:
        """The videos of each shard."""
        return {event.shard: event.videos for event in self.events if event.name == "decoded"}

    def by_actor(self, name: str) -> list[list[Event]]:
        """Group the events of one kind by process, in the order of time."""
        groups: dict[int, list[Event]] = {}
        for event in sorted(self.events, key=lambda event: event.at):
            if event.name == name:
                groups.setdefault(event.pid, []).append(event)
        return list(groups.values())


@dataclass(frozen=True)
class Steady:
    """The time of the steady state divided by the floor of the same shards."""

    until_end: float  # every actor until the last commit of all: waiting for the last actor counts
    until_own: float  # every actor until its own last commit
    cpu: float  # CPU time of the actors and their decode children, without Ray's own processes


def steady_state(run: Run, floor: Floor) -> Steady:
    """Compare the shards committed after each actor's first one, which includes the startup, with their floor.

    The largest shards come first, so counting videos instead of their cost would flatter raypipe.
    """
    actors, videos_of = run.by_actor("put"), run.videos_of
    end = max(shards[-1].at for shards in actors)
    work = sum((floor.work(videos_of[one.shard]) for _, *rest in actors for one in rest), Seconds())
    until_end = sum(end - shards[0].at for shards in actors)
    until_own = sum(shards[-1].at - shards[0].at for shards in actors)
    cpu = sum(shards[-1].cpu_seconds - shards[0].cpu_seconds for shards in actors)
    return Steady(until_end / work.wall, until_own / work.wall, cpu / work.cpu)


def run_raypipe(videos: Path, output: Path, *overrides: str) -> Run:
    """Run ``raypipe embed`` with random weights, including Ray's start and end."""
    log = output.with_name(f"{output.name}.events")
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "support.embedding", str(videos), str(output), str(log), RANDOM, *overrides]
    started_at = time.time()
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    seconds = time.time() - started_at
    return Run(started_at, seconds, [Event(**json.loads(line)) for line in log.read_text().splitlines()])


def seconds_of_command(videos: Path, output: Path, *overrides: str) -> float:
    """Return the seconds of the command ``raypipe embed`` with random weights, from the start of Python to its end."""
    words = ["--input", str(videos), "--output", str(output)]
    words += [word for override in (RANDOM, *overrides) for word in ("--set", override)]
    started_at = time.monotonic()
    subprocess.run([sys.executable, "-m", "raypipe", "embed", *words], check=True, capture_output=True)
    return time.monotonic() - started_at


def _report_events(videos: str, output: str, log: str, *overrides: str) -> None:
    """Run ``raypipe embed`` in this process; all of its processes append their events to the log."""
    from raypipe.jobs.embed import job  # noqa: PLC0415
    from raypipe.runs import actors, stages  # noqa: PLC0415
    from raypipe.runs import job as skeleton  # noqa: PLC0415

    def report(name: str, **about: object) -> None:
        event = {"name": name, "at": time.time(), "pid": os.getpid(), "cpu_seconds": family_cpu_seconds(), **about}
        with Path(log).open("a") as file:
            file.write(json.dumps(event) + "\n")

    def reporting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:  # noqa: ANN401
            result = function(*args, **options)
            report(name)
            return result

        return call

    report("imported")
    run_steps, decode_videos, commit_shard = actors.RunSteps, job.DecodeVideos, stages.CommitShard

    class ReportingSteps(run_steps):
        def __init__(self, steps):  # noqa: ANN001, ANN204
            report("actor starts")
            super().__init__(steps)
            report("actor ready")

    class ReportingDecode(decode_videos):
        def __call__(self, rows):  # noqa: ANN001, ANN204
            decoded = super().__call__(rows)
            report("decoded", shard=rows[schema.SHARD][0].as_py(), videos=rows[schema.VIDEO_ID].to_pylist())
            return decoded

    class ReportingCommit(commit_shard):
        def __call__(self, embedded):  # noqa: ANN001, ANN204
            summary = super().__call__(embedded)
            report("put", shard=summary.shard)
            return summary

    actors.RunSteps, job.DecodeVideos, stages.CommitShard = ReportingSteps, ReportingDecode, ReportingCommit
    actors.connect = reporting("Ray is up", actors.connect)
    job.plan_new = reporting("planned", job.plan_new)
    skeleton.put_report = reporting("sealed", skeleton.put_report)
    job.run_embed(embed_config(videos, Path(output), *overrides))


# --- raypipe embed without videos


def run_without_videos(num_videos: int, output: Path) -> "BatchRun":
    """Run ``raypipe embed`` on made-up videos that decode to 16 grey frames and embed to random vectors."""
    from raypipe.jobs.embed import inputs, job, shard  # noqa: PLC0415
    from raypipe.video.sandbox.parent import DecodedVideo  # noqa: PLC0415

    class StubDecode:
        def __init__(self, settings: Any) -> None:  # noqa: ANN401 - of the real stage
            times, size = np.arange(settings.request.num_frames, dtype=np.float64), settings.request.crop_size
            frames = np.full((len(times), size, size, 3), 128, np.uint8)
            self._video = DecodedVideo(Status.OK, "", "stub", times, frames, "mov", "h264", 64, 64, 1.0, 1.0)

        def __call__(self, rows: pa.Table) -> pa.Table:
            zeros = [0.0] * rows.num_rows
            return shard.decoded_table(rows, [self._video] * rows.num_rows, fetch_seconds=zeros, decode_seconds=zeros)

    class StubEmbed:
        def __init__(self, settings: Any) -> None:  # noqa: ANN401 - of the real stage
            self._sizes = {"embedding_dim": settings.embedding_dim, "crop_size": settings.crop_size}
            self._random = np.random.default_rng(0)
            self._vectors = self._random.standard_normal((16_384, settings.embedding_dim), dtype=np.float32)

        def _embed(self, frames: Pixels) -> np.ndarray:
            start = self._random.integers(len(self._vectors) - len(frames))
            return self._vectors[start : start + len(frames)]

        def __call__(self, decoded: pa.Table) -> pa.Table:
            return shard.embed_shard(decoded, self._embed, **self._sizes)

    job.DecodeVideos, job.EmbedFrames = StubDecode, StubEmbed
    inputs.find_videos = lambda *_, **__: made_up_videos(num_videos)
    config = embed_config("s3://a-bucket-of-videos/", output, "backbone.name=resnet18", RANDOM)
    return job.run_embed(config, console=Console(file=sys.stderr))


def made_up_videos(count: int) -> Iterator[PlannedVideo]:
    """List videos that do not exist."""
    for number in range(count):
        name = f"folder-{number % 1000:04d}/a-video-of-some-length-of-name-{number:09d}.mp4"
        yield PlannedVideo(name, f"s3://a-bucket-of-videos/{name}", f"{number:032x}", 1_000_000 + number)


if __name__ == "__main__":
    _report_events(*sys.argv[1:])
