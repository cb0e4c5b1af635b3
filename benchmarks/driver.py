"""What everything but decoding and embedding costs, in CPU and in the driver's memory, as a catalogue grows.

    python benchmarks/driver.py [--videos 1000 10000 100000]

Lists nothing real: planning, Ray Data, commits, seal and report are the job's own; the stage that fetches and decodes
gives every video 16 grey frames, and the stage that embeds gives each a random vector. CPU is of all processes, Ray's
own too, from start-up to the end; a further video is one more than in the row above. The peak is of the process that
drives, by ``VmHWM``; Ray's own processes are beside it.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from _common import describe_machine, print_table
from _processes import peak_bytes, run_counting_cpu
from rich.console import Console

from raypipe.config import EmbedConfig, load_config
from raypipe.dataset.plan import Video
from raypipe.dataset.seal import read_manifest
from raypipe.jobs.embed import cluster, job, planning, shard
from raypipe.jobs.embed.stages import DecodeSettings, EmbedSettings
from raypipe.status import Status
from raypipe.storage import Folder
from raypipe.video.sandbox import DecodedVideo


class StubDecode:
    """Every video is the same grey frames."""

    def __init__(self, settings: DecodeSettings) -> None:
        request = settings.request
        self._pts = np.arange(request.num_frames, dtype=np.float64)
        self._frames = np.full((request.num_frames, request.crop_size, request.crop_size, 3), 128, np.uint8)

    def __call__(self, rows: pa.Table) -> pa.Table:
        outcome = DecodedVideo(Status.OK, "", "stub", self._pts, self._frames, "mov", "h264", 64, 64, 1.0, 1.0)
        zeros = [0.0] * rows.num_rows
        return shard.decoded_table(rows, [outcome] * rows.num_rows, fetch_seconds=zeros, decode_seconds=zeros)


class StubEmbed:
    """Every frame is one of many random vectors."""

    def __init__(self, settings: EmbedSettings) -> None:
        self._settings = settings
        self._vectors = np.random.default_rng(0).standard_normal((16_384, settings.embedding_dim), dtype=np.float32)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        def embed(frames: np.ndarray) -> np.ndarray:
            return self._vectors[: len(frames)]

        dim, crop_size = self._settings.embedding_dim, self._settings.crop_size
        return shard.embed_shard(decoded, embed, embedding_dim=dim, crop_size=crop_size)


def catalogue(count: int) -> Iterator[Video]:
    """Videos that are nowhere."""
    for number in range(count):
        name = f"folder-{number % 1000:04d}/a-video-of-some-length-of-name-{number:09d}.mp4"
        yield Video(name, f"s3://a-bucket-of-videos/{name}", f"{number:032x}", 1_000_000 + number)


def run_once(num_videos: int) -> None:
    """Run the job, and print what it took as a line of JSON."""
    scratch = Path(tempfile.mkdtemp(prefix="raypipe-benchmark-"))
    try:
        cluster.DecodeVideos, cluster.EmbedFrames = StubDecode, StubEmbed
        planning.find_videos = lambda *_, **__: catalogue(num_videos)
        values = {"input": "s3://a-bucket-of-videos/", "output": str(scratch)}
        overrides = ("backbone.name=resnet18", "backbone.weights=random")
        config = load_config(EmbedConfig, values=values, overrides=overrides)
        start = time.perf_counter()
        run = job.run_embed(config, console=Console(file=sys.stderr))
        seconds, peak = time.perf_counter() - start, peak_bytes()
        ray.shutdown()
        rows = sum(read_manifest(Folder(str(scratch)), plan)["num_videos"] for plan in run.record.plans)
        if rows != num_videos:
            sys.exit(f"{rows} rows are committed of {num_videos} videos.")
        print(json.dumps({"seconds": seconds, "peak_bytes": peak, "num_shards": run.record.num_shards}))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--once", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="1,000 and 3,000 videos")
    options = parser.parse_args()
    if options.quick:
        options.videos = [1_000, 3_000]
    if options.once:
        run_once(options.once)
        return
    rows, shares = [], []
    before = (0, 0.0)
    for num_videos in options.videos:
        printed, cpu = run_counting_cpu([sys.executable, __file__, "--once", str(num_videos)])
        ran, cpu_seconds = json.loads(printed.splitlines()[-1]), sum(cpu.values())
        each = (cpu_seconds - before[1]) / (num_videos - before[0]) * 1000
        rows.append(
            (
                str(num_videos),
                str(ran["num_shards"]),
                f"{ran['seconds']:.1f}",
                f"{ran['seconds'] / num_videos * 1000:.2f}",
                f"{cpu_seconds:.1f}",
                f"{cpu_seconds / num_videos * 1000:.2f}",
                f"{each:.2f}",
                f"{ran['peak_bytes'] / 1e9:.2f}",
            )
        )
        largest = sorted(cpu.items(), key=lambda item: -item[1])[:8]
        shares.append(f"{num_videos}: {', '.join(f'{name} {used:.1f}' for name, used in largest)}")
        before = (num_videos, cpu_seconds)
    print(describe_machine())
    head = (
        "videos",
        "shards",
        "s",
        "ms a video",
        "CPU s",
        "CPU ms a video",
        "CPU ms a further video",
        "driver's peak GB",
    )
    print_table(head, rows)
    print("CPU s by process:", *shares, sep="\n  ")


if __name__ == "__main__":
    main()
