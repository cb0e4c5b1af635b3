"""The whole process on a few short clips, from its start to a sealed output, the start of Ray included.

    python benchmarks/startup.py [--repeats 5] [--quick]

48 clips of 2 to 4 s, 240p and 360p, 16 uniform frames of each, resnet18, raypipe's defaults otherwise. The phases are
seconds since the process began: when the driver has imported what it needs, when Ray is up, when weights and plan are
there, when the first actor has begun and can work, when its first shard and the last of all are committed, and the end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import wraps
from pathlib import Path
from typing import Any

from _clips import Clip, make_catalogue
from _common import describe_machine, median, print_table, spread, videos_folder
from _steady import embed_config

TARGET = 25.0
CLIPS = (
    Clip(2, 426, 240),
    Clip(3, 426, 240, options={"g": "60"}),
    Clip(2, 640, 360),
    Clip(4, 426, 240),
    Clip(3, 640, 360),
    Clip(4, 640, 360, options={"g": "60"}),
)
_PHASES = (
    "imported",
    "Ray is up",
    "planned",
    "actor begins",
    "actor can work",
    "first commit",
    "last commit",
    "sealed",
)


def run(videos: Path, output: Path) -> dict[str, float]:
    """Seconds since the start of each phase, and of the end."""
    log = output.with_name(f"{output.name}.phases")
    begun = time.time()
    subprocess.run([sys.executable, __file__, "--child", str(videos), str(output), str(log)], check=True)
    ended = time.time()
    times: dict[str, list[float]] = {}
    for line in log.read_text().splitlines():
        phase, at = json.loads(line)
        times.setdefault(phase, []).append(at - begun)
    times["last commit"] = [max(times["first commit"])]
    return {**{phase: min(times[phase]) for phase in _PHASES}, "the whole process": ended - begun}


def _child(videos: str, output: str, log: str) -> None:
    def note(phase: str) -> None:
        with Path(log).open("a") as file:
            file.write(json.dumps([phase, time.time()]) + "\n")

    def noted(phase: str, work: Any) -> Any:  # noqa: ANN401 - any function
        @wraps(work)
        def call(*args: Any, **options: Any) -> Any:  # noqa: ANN401
            result = work(*args, **options)
            note(phase)
            return result

        return call

    from raypipe.jobs.embed import cluster, job  # noqa: PLC0415
    from raypipe.runs import actors  # noqa: PLC0415

    note("imported")
    run_steps, put_shard = actors.RunSteps, cluster.PutShard

    class WatchedSteps(run_steps):
        """Says when an actor begins and when it can work."""

        def __init__(self, steps):  # noqa: ANN001, ANN204
            note("actor begins")
            super().__init__(steps)
            note("actor can work")

    class WatchedPut(put_shard):
        """Says when a shard is committed."""

        __call__ = noted("first commit", put_shard.__call__)

    actors.RunSteps, cluster.PutShard = WatchedSteps, WatchedPut
    job.connect = noted("Ray is up", job.connect)
    job.plan_new = noted("planned", job.plan_new)
    job.finish = noted("sealed", job.finish)
    job.run_embed(embed_config(Path(videos), Path(output), "backbone.name=resnet18"))


def main() -> None:
    """Print the phases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--videos-folder", type=Path, default=videos_folder(), help="where the next run finds them")
    parser.add_argument("--quick", action="store_true", help="once")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(*options.child)
        return
    paths = make_catalogue(options.videos_folder / "short", 48, clips=CLIPS)
    scratch = Path(tempfile.mkdtemp(prefix="raypipe-benchmark-"))
    try:
        runs = [
            run(paths[0].parent, scratch / f"out-{repeat}") for repeat in range(1 if options.quick else options.repeats)
        ]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(describe_machine())
    print(f"\n48 clips of 2 to 4 s, 16 uniform frames, resnet18; medians of {len(runs)}, in brackets least and most\n")
    print_table(
        ("seconds since the start", "s"), [(phase, spread([one[phase] for one in runs], 1)) for phase in runs[0]]
    )
    whole = median([one["the whole process"] for one in runs])
    print(
        f"\nThe target, {TARGET:g} s, is {'met' if whole <= TARGET else 'MISSED'} with {whole:.1f} s; "
        f"{os.cpu_count()} processors."
    )


if __name__ == "__main__":
    main()
