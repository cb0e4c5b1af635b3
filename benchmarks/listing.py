"""How long it takes to list and plan a million videos, and in how much memory.

    python benchmarks/listing.py [--videos 1000000] [--page-ms 100]

A server on the loopback answers ListObjectsV2 for made-up keys, each page of 1000 after the time that S3 takes for one.
The job's own listing, planning and packing run against it in a process of their own; plans go to a local folder. The
second plan of a row finds every video planned. The peak is of the process that plans, by ``VmHWM``.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial

from _common import describe_machine, print_table
from _listing_server import serve
from _processes import peak_bytes

from raypipe.jobs.embed.packing import pack
from raypipe.jobs.embed.planning import Planning, plan_listing
from raypipe.storage import Folder

_SHAPES = {
    "flat, numbered": lambda number: f"catalogue/a-video-of-some-length-of-name-{number:09d}.mp4",
    "flat, random": lambda number: f"catalogue/{number * 0x9E3779B97F4A7C15 % 2**64:016x}{number:016x}.mp4",
    "1000 folders": lambda number: f"catalogue/folder-{number % 1000:04d}/a-video-of-some-name-{number:09d}.mp4",
    "10 videos a folder": lambda number: f"catalogue/{number // 10:09d}/a-video-of-some-name-{number % 10}.mp4",
}


def plan(input_uri: str, output_uri: str) -> int:
    """List and plan what is new; how many videos are known then."""
    planning = Planning.load(Folder(output_uri), {"format": 1}, input_uri)
    packing = partial(pack, max_videos=64, max_frames=8192, frames_per_video=16, slots=8)
    plan_listing(planning, max_gone_fraction=0.2, pack=packing)
    return len(planning.planner.known)


def run_once(input_uri: str, output_uri: str) -> None:
    """Plan in this process, and print what it took as a line of JSON."""
    start, cpu = time.perf_counter(), time.process_time()
    known = plan(input_uri, output_uri)
    took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps({"known": known, "peak_bytes": peak_bytes(), **took}))


def measure(shape: str, *, num_videos: int, page_seconds: float) -> list[tuple[str, ...]]:
    """The rows of one shape of keys: first everything is new, then nothing is."""
    asked = [sys.executable, __file__, "--videos", str(num_videos), "--page-ms", str(page_seconds * 1000)]
    scratch = tempfile.mkdtemp(prefix="raypipe-benchmark-")
    server = subprocess.Popen([*asked, "--serve", shape], stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline()) if server.stdout else 0
        account = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
        environment = {**os.environ, **account, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        rows = []
        for what in ("all new", "all known"):
            once = [sys.executable, __file__, "--once", "s3://videos/catalogue", scratch]
            ran = json.loads(subprocess.run(once, check=True, capture_output=True, text=True, env=environment).stdout)
            if ran["known"] != num_videos:
                sys.exit(f"{ran['known']} videos are known of {num_videos}.")
            peak = f"{ran['peak_bytes'] / 1e9:.2f}"
            rows.append((shape, what, f"{ran['seconds']:.1f}", f"{ran['cpu_seconds']:.1f}", peak))
        return rows
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--page-ms", type=float, default=100.0)
    parser.add_argument("--shapes", nargs="+", default=list(_SHAPES), choices=_SHAPES)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="20,000 videos")
    options = parser.parse_args()
    if options.quick:
        options.videos = 20_000
    if options.once:
        run_once(*options.once)
        return
    if options.serve:
        keys = sorted(map(_SHAPES[options.serve], range(options.videos)))
        asyncio.run(serve(keys, page_seconds=options.page_ms / 1000))
        return
    rows = []
    for shape in options.shapes:
        rows += measure(shape, num_videos=options.videos, page_seconds=options.page_ms / 1000)
    print(f"{describe_machine()}; {options.videos} videos, {options.page_ms:g} ms a page of 1000")
    print_table(("keys", "videos", "s", "CPU s", "peak GB"), rows)


if __name__ == "__main__":
    main()
