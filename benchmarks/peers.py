"""Compare ``raypipe embed`` with Ray Data's documented pipeline, a PyTorch DataLoader and Daft.

    python benchmarks/peers.py [--videos 100] [--repeats 3] [--backbone resnet18] [--daft-python PATH] [--quick]

The catalogue is that of ``embed.py``. There are two samplings, each with every way that supports it: one frame per
second (raypipe, Ray Data's ``read_videos(fps, resize) → map_batches → write_parquet``, Daft's ``read_video_frames``),
and 16 uniform frames (raypipe, a ``DataLoader`` whose workers decode with decord, a Daft class that decodes with
decord). Every way writes its vectors as Parquet and runs raypipe's own network, its fastest known form, in the same
dtype. Ray Data's pipeline also runs with torchvision's network as documented. If a way has several possible settings,
each is tried once on a part of the catalogue, and the best is used.

``whole`` is the process from start to end. For the other ways, ``steady`` is the time of the last three quarters of
their vectors, scaled to all vectors. This favours them, because some of these frames were decoded before. For raypipe
it is as in ``embed.py``: the floor times its ratio. The other ways decode in their own process, without limits and
without a row for a corrupt video.

``--daft-python`` is a Python that has Daft in addition to what raypipe needs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

from support import NUM_CPUS, describe_machine, make_parser, print_table, scratch_folder, spread, verdict
from support import peers as programs
from support.clips import MIXED, make_catalogue
from support.embedding import RANDOM, cpu_dtype, embed_config, measure_floor, run_raypipe, steady_state

RAY_DATA_TARGET = 2.0
TIMEOUT_SECONDS = 900  # of one run of a peer
_ONE, _EACH = {"actors": 1, "threads": NUM_CPUS}, {"actors": NUM_CPUS, "threads": 1}
_RAY_DATA = [
    {**one, "processors": NUM_CPUS} for one in ({**_ONE, "cpus": 1}, {**_ONE, "cpus": 0}, {**_EACH, "cpus": 0})
]
_LOADER = [{"workers": NUM_CPUS, "threads": threads} for threads in (NUM_CPUS, 1)]
_DAFT = [{**one, "processes": processes} for one in (_ONE, _EACH) for processes in (False, True)]


@dataclass
class Peer:
    """Another way to compute the same vectors, and its measured times."""

    name: str
    way: str
    settings: list[programs.Settings]  # the settings to try; later only the best
    python: str = sys.executable
    whole: list[float] = field(default_factory=list)
    steady: list[float] = field(default_factory=list)
    num_frames: int = 0

    def run(self, videos: Path, output: Path, options: argparse.Namespace, settings: programs.Settings) -> tuple:
        """Return the seconds of the whole process and in steady state, and the number of frames."""
        marks = output.with_name(f"{output.name}.marks")
        job = programs.Job(str(videos), str(output), str(marks), options.backbone, options.dtype, settings)
        command = [self.python, programs.__file__, self.way, json.dumps(asdict(job))]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        start = time.perf_counter()
        done = subprocess.run(command, env=env, check=False, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        num_frames, steady = programs.read_marks(marks)
        return seconds, steady, num_frames

    def choose(self, videos: Path, scratch: Path, options: argparse.Namespace) -> None:
        """Keep the settings that are fastest in steady state."""
        if len(self.settings) == 1:
            return
        tried = []
        for number, settings in enumerate(self.settings):
            seconds, steady, _ = self.run(videos, scratch / f"try-{self.way}-{number}", options, settings)
            tried.append(steady)
            print(f"- {self.name}, {settings}: {steady:.1f} s in steady state, {seconds:.1f} s in all")
        self.settings = [self.settings[tried.index(min(tried))]]


def peers_of(daft_python: str | None) -> dict[str, list[Peer]]:
    fps = [
        Peer("Ray Data as documented", "ray-data-documented", _RAY_DATA),
        Peer("Ray Data, raypipe's network", "ray-data", _RAY_DATA),
    ]
    uniform = [Peer("DataLoader + decord", "data-loader", _LOADER)]
    if daft_python:
        fps.append(Peer("Daft, read_video_frames", "daft-frames", _DAFT, daft_python))
        uniform.append(Peer("Daft, a class with decord", "daft-udf", _DAFT, daft_python))
    return {"fps": fps, "uniform": uniform}


def measure(mode: str, peers: list[Peer], options: argparse.Namespace, scratch: Path) -> list[tuple[str, ...]]:
    clips = MIXED[:8] if options.quick else MIXED
    paths = make_catalogue(options.videos_folder, options.videos, clips=clips)
    few = make_catalogue(options.videos_folder, len(clips), clips=clips)[0].parent
    videos = paths[0].parent
    overrides = (f"backbone.name={options.backbone}", f"sampling.mode={mode}", "sampling.fps=1")
    for peer in peers:
        peer.choose(few, scratch, options)
    whole, steady, num_frames = [], [], 0
    for repeat in range(options.repeats):
        floor = measure_floor(paths, embed_config(videos, scratch / "none", RANDOM, *overrides))
        run = run_raypipe(videos, scratch / f"raypipe-{mode}-{repeat}", *overrides)
        num_frames = sum(floor.num_frames.values())
        whole.append(run.seconds)
        steady.append(steady_state(run, floor).until_end * floor.seconds)
        for peer in peers:
            output = scratch / f"{peer.way}-{repeat}"
            seconds, paced, peer.num_frames = peer.run(videos, output, options, peer.settings[0])
            peer.whole.append(seconds)
            peer.steady.append(paced)
    rows = [("raypipe", str(num_frames), spread(whole, 1), spread(steady, 1), "", "")]
    for peer in peers:
        ratios = (median(peer.whole) / median(whole), median(peer.steady) / median(steady))
        seconds = (spread(peer.whole, 1), spread(peer.steady, 1))
        rows.append((peer.name, str(peer.num_frames), *seconds, *(f"{ratio:.2f}" for ratio in ratios)))
    return rows


def daft_version(python: str) -> str:
    """Return the version of Daft in this Python installation; empty if it is not installed."""
    program = "from importlib.metadata import version; print(version('daft'))"
    done = subprocess.run([python, "-c", program], check=False, capture_output=True, text=True)
    return done.stdout.strip()


def report(mode: str, peers: list[Peer], options: argparse.Namespace, scratch: Path) -> None:
    sampling = "one frame a second" if mode == "fps" else "16 uniform frames"
    model = f"{options.backbone} {options.dtype}"
    print(f"\n{options.videos} videos, {sampling}, {model}; medians of {options.repeats}\n")
    rows = measure(mode, peers, options, scratch)
    print()
    print_table(("way", "frames", "whole s", "steady s", "whole / raypipe's", "steady / raypipe's"), rows)
    if options.quick:
        print("\nThis few videos show only that it runs, not which way is faster.")
        return
    for peer, row in zip(peers, rows[1:], strict=True):
        target, ratio = RAY_DATA_TARGET if peer.way == "ray-data-documented" else 1.0, float(row[-1])
        met = verdict(met=ratio >= target and ratio > 1)
        print(f"\n{peer.name}, best with {peer.settings[0]}:")
        print(f"raypipe is {ratio} x as fast in steady state; the target, {target:g}, is {met}.")


def main() -> None:
    parser = make_parser(__doc__, quick="1 repeat, 16 videos of 8 clips, one setting of each way", videos=True)
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--daft-python", default=sys.executable, help="a Python that has daft")
    parser.add_argument("--samplings", nargs="+", choices=("fps", "uniform"), default=["fps", "uniform"])
    options = parser.parse_args()
    daft = daft_version(options.daft_python)
    peers = peers_of(options.daft_python if daft else None)
    if options.quick:
        options.videos, options.repeats = 16, 1
        for peer in (*peers["fps"], *peers["uniform"]):
            peer.settings = peer.settings[-1:]
    options.dtype = cpu_dtype(embed_config("none", Path("none"), f"backbone.name={options.backbone}"))
    print(f"{describe_machine()}, decord {version('decord')}, daft {daft or 'skipped: it is not installed'}")
    with scratch_folder() as scratch:
        for mode in options.samplings:
            report(mode, peers[mode], options, scratch)


if __name__ == "__main__":
    main()
