"""Embed beside Ray Data's documented pipeline, a PyTorch DataLoader and Daft, in one run on one machine.

    python benchmarks/peers.py [--videos 100] [--repeats 3] [--backbone resnet18] [--daft-python PATH] [--quick]

The catalogue is that of ``embed.py``. Two samplings, each with every way that has it: one frame a second (raypipe,
Ray Data's ``read_videos(fps, resize) → map_batches → write_parquet``, Daft's ``read_video_frames``), and 16 uniform
frames (raypipe, a ``DataLoader`` whose workers decode with decord, a Daft class that decodes with decord). Every way
writes its vectors as Parquet and runs raypipe's own network, the fastest form of it known here, at one dtype; Ray
Data's pipeline once more with torchvision's network as it is, which is how documentation has it. Ways that can be set
in several ways are tried in all of them once, on a part of the catalogue, and take part with the best.

``whole`` is the process from its start to its end. ``steady`` is, for the others, the pace of their last three quarters
of the vectors, scaled to all: what was decoded ahead before is a gift to them. For raypipe it is that of ``embed.py``:
the floor times its ratio. The others decode in their own process, with neither limits nor a row for what is broken.

``--daft-python`` is a Python that has Daft besides what raypipe needs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _clips import MIXED, make_catalogue
from _common import describe_machine, median, print_table, spread, videos_folder
from _floor import SLOTS, measure_floor, settle
from _peers import read_marks
from _steady import embed_config, run_raypipe

RAY_DATA_TARGET = 2.0
_ONE = {"actors": 1, "threads": SLOTS}
_EACH = {"actors": SLOTS, "threads": 1}


@dataclass
class Peer:
    """Another way to the same vectors."""

    name: str
    way: str
    settings: list[dict[str, Any]]  # to try
    python: str = sys.executable
    whole: list[float] = field(default_factory=list)
    steady: list[float] = field(default_factory=list)
    num_frames: int = 0

    def run(self, videos: Path, output: Path, options: argparse.Namespace, settings: dict[str, Any]) -> tuple:
        """Seconds of the whole process and in steady state, and the number of frames."""
        marks = output.with_name(f"{output.name}.marks")
        job = {"videos": str(videos), "output": str(output), "marks": str(marks), "settings": settings}
        job |= {"backbone": options.backbone, "dtype": options.dtype}
        start = time.perf_counter()
        command = [self.python, str(Path(__file__).with_name("_peers.py")), self.way, json.dumps(job)]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            command, env=env, check=False, capture_output=True, text=True, timeout=options.timeout_seconds
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        num_frames, steady = read_marks(marks)
        return seconds, steady, num_frames

    def choose(self, videos: Path, scratch: Path, options: argparse.Namespace) -> None:
        """Keep the settings with which it is quickest in steady state."""
        if len(self.settings) == 1:
            return
        tried = []
        for number, settings in enumerate(self.settings):
            seconds, steady, _ = self.run(videos, scratch / f"try-{self.way}-{number}", options, settings)
            tried.append((steady, settings))
            print(f"- {self.name}, {settings}: {steady:.1f} s in steady state, {seconds:.1f} s in all")
        self.settings = [min(tried, key=lambda one: one[0])[1]]


def ways(daft_python: str | None) -> dict[str, list[Peer]]:
    """Who takes part, by sampling."""
    actors = [{**_ONE, "cpus": 1}, {**_ONE, "cpus": 0}, {**_EACH, "cpus": 0}]
    ray_data = [{**one, "processors": SLOTS} for one in actors]
    loaders = [{"workers": SLOTS, "threads": SLOTS}, {"workers": SLOTS, "threads": 1}]
    daft = [{**one, "processes": processes} for one in (_ONE, _EACH) for processes in (False, True)]
    fps = [
        Peer("Ray Data as documented", "ray-data-documented", ray_data),
        Peer("Ray Data, raypipe's network", "ray-data", ray_data),
    ]
    uniform = [Peer("DataLoader + decord", "data-loader", loaders)]
    if daft_python:
        fps.append(Peer("Daft, read_video_frames", "daft-frames", daft, daft_python))
        uniform.append(Peer("Daft, a class with decord", "daft-udf", daft, daft_python))
    return {"fps": fps, "uniform": uniform}


def measure(mode: str, peers: list[Peer], options: argparse.Namespace, scratch: Path) -> list[tuple[str, ...]]:
    """The rows of one sampling."""
    clips = MIXED[:8] if options.quick else MIXED
    paths = make_catalogue(options.videos_folder, options.videos, clips=clips)
    few = make_catalogue(options.videos_folder, len(clips), clips=clips)[0].parent
    videos = paths[0].parent
    overrides = (f"backbone.name={options.backbone}", f"sampling.mode={mode}", "sampling.fps=1")
    for peer in peers:
        peer.choose(few, scratch, options)
    whole, steady, num_frames = [], [], 0
    for repeat in range(options.repeats):
        floor = measure_floor(paths, embed_config(videos, scratch / "none", *overrides))
        run = run_raypipe(videos, scratch / f"raypipe-{mode}-{repeat}", *overrides)
        num_frames = sum(floor.num_frames.values())
        whole.append(run.seconds)
        steady.append(run.steady(floor).until_end * floor.wall_seconds)
        for peer in peers:
            output = scratch / f"{peer.way}-{repeat}"
            seconds, paced, peer.num_frames = peer.run(videos, output, options, peer.settings[0])
            peer.whole.append(seconds)
            peer.steady.append(paced)
    rows = [("raypipe", str(num_frames), spread(whole, 1), spread(steady, 1), "", "")]
    for peer in peers:
        ratios = [
            f"{median(theirs) / median(ours):.2f}" for theirs, ours in ((peer.whole, whole), (peer.steady, steady))
        ]
        rows.append((peer.name, str(peer.num_frames), spread(peer.whole, 1), spread(peer.steady, 1), *ratios))
    return rows


def daft_of(python: str) -> str:
    """The version of Daft that a Python has; empty where it has none."""
    program = "from importlib.metadata import version; print(version('daft'))"
    done = subprocess.run([python, "-c", program], check=False, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> None:
    """Print a table for each sampling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--daft-python", default=sys.executable, help="a Python that has daft")
    parser.add_argument("--timeout-seconds", type=float, default=900, help="of one run of a peer")
    parser.add_argument("--videos-folder", type=Path, default=videos_folder(), help="where the next run finds them")
    parser.add_argument("--samplings", nargs="+", choices=("fps", "uniform"), default=["fps", "uniform"])
    parser.add_argument("--quick", action="store_true", help="once, 16 videos of 8 clips, one setting of each")
    options = parser.parse_args()
    daft = daft_of(options.daft_python)
    everyone = ways(options.daft_python if daft else None)
    if options.quick:
        options.videos, options.repeats = 16, 1
        for peer in (one for peers in everyone.values() for one in peers):
            peer.settings = peer.settings[-1:]
    options.dtype = settle(embed_config(Path("none"), Path("none"), f"backbone.name={options.backbone}"))[1]
    print(f"{describe_machine()}, decord {version('decord')}, daft {daft or 'left out: it is not installed'}")
    scratch = Path(tempfile.mkdtemp(prefix="raypipe-benchmark-"))
    try:
        for mode in options.samplings:
            peers, what = everyone[mode], "one frame a second" if mode == "fps" else "16 uniform frames"
            print(
                f"\n{options.videos} videos, {what}, {options.backbone} {options.dtype}; medians of {options.repeats}\n"
            )
            rows = measure(mode, peers, options, scratch)
            print()
            head = ("way", "frames", "whole s", "steady s", "whole / raypipe's", "steady / raypipe's")
            print_table(head, rows)
            if options.quick:
                print("\nSo few videos show that it runs, and not who is quicker.")
                continue
            for peer, row in zip(peers, rows[1:], strict=True):
                target, ratio = RAY_DATA_TARGET if peer.way == "ray-data-documented" else 1.0, float(row[-1])
                verdict = "met" if ratio >= target and ratio > 1 else "MISSED"
                print(f"\n{peer.name}, best with {peer.settings[0]}:")
                print(f"raypipe is {ratio} x as fast in steady state; the target, {target:g}, is {verdict}.")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
