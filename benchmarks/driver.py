"""Measure the overhead of everything except decoding and the model, in CPU time and driver memory, by catalogue size.

    python benchmarks/driver.py [--videos 1000 10000 100000] [--quick]

Planning, Ray Data, commits, seal and report are the real ones. The videos do not exist: the decode step returns 16 grey
frames for each, and the embed step returns random vectors. CPU time is for all processes, including Ray's, from start
to end; "a further video" is relative to the row above. Peak memory is the driver's ``VmHWM``, without Ray's own
processes.
"""

import argparse
import json
import sys
import time

import ray

from raypipe.dataset.read import read_rows
from raypipe.storage import Folder
from support import describe_machine, make_parser, print_table, scratch_folder
from support.embedding import run_without_videos
from support.processes import peak_bytes, run_counting_cpu


def run_once(num_videos: int) -> None:
    """Run the job, and print its cost as a line of JSON."""
    with scratch_folder() as scratch:
        start = time.perf_counter()
        record = run_without_videos(num_videos, scratch).record
        seconds, peak = time.perf_counter() - start, peak_bytes()
        ray.shutdown()
        rows = sum(table.num_rows for table in read_rows(Folder(str(scratch)), columns=("video_id",)))
    if rows != num_videos:
        sys.exit(f"{rows} rows are committed of {num_videos} videos.")
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "num_shards": record.num_shards}))


def main() -> None:
    parser = make_parser(__doc__, quick="1,000 and 3,000 videos")
    parser.add_argument("--videos", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--once", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        run_once(options.once)
        return
    rows = []
    videos_before, cpu_before = 0, 0.0
    for num_videos in [1_000, 3_000] if options.quick else options.videos:
        printed, cpu_seconds = run_counting_cpu([sys.executable, __file__, "--once", str(num_videos)])
        run = json.loads(printed.splitlines()[-1])
        further = (cpu_seconds - cpu_before) / (num_videos - videos_before)
        wall = (f"{run['seconds']:.1f}", f"{run['seconds'] / num_videos * 1000:.2f}")
        cpus = (f"{cpu_seconds:.1f}", f"{cpu_seconds / num_videos * 1000:.2f}", f"{further * 1000:.2f}")
        rows.append((str(num_videos), str(run["num_shards"]), *wall, *cpus, f"{run['peak_bytes'] / 1e9:.2f}"))
        videos_before, cpu_before = num_videos, cpu_seconds
    print(describe_machine())
    times = ("s", "ms a video", "CPU s", "CPU ms a video", "CPU ms a further video")
    print_table(("videos", "shards", *times, "driver's peak GB"), rows)


if __name__ == "__main__":
    main()
