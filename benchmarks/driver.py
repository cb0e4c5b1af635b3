"""The driver's memory and time on a large catalogue, with a stub instead of decoding and embedding.

    python benchmarks/driver.py [--videos 100000]

Lists nothing real: planning, Ray Data, commits, seal and report are the job's own; the stage that fetches and decodes
gives every video one grey frame, and the stage that embeds gives it one random vector. The peak is of the process that
drives, by ``VmHWM``; Ray's own processes are beside it.
"""

import argparse
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from _common import describe_machine

from raypipe.config import EmbedConfig, load_config
from raypipe.embed import cluster, pipeline, shard
from raypipe.embed.verify import verify
from raypipe.sealed.plan import Video
from raypipe.status import Status
from raypipe.storage import Folder
from raypipe.video.sandbox import DecodedVideo


class StubDecode:
    """Every video is one grey frame."""

    def __init__(self, _: object) -> None:
        self._frame = np.full((1, 224, 224, 3), 128, np.uint8)

    def __call__(self, rows: pa.Table) -> pa.Table:
        outcome = DecodedVideo(Status.OK, "", "stub", np.zeros(1), self._frame, "mov", "h264", 64, 64, 1.0, 1.0)
        zeros = [0.0] * rows.num_rows
        return shard.decoded_table(rows, [outcome] * rows.num_rows, fetch_seconds=zeros, decode_seconds=zeros)


class StubEmbed:
    """Every frame is one random vector."""

    def __init__(self, _: object) -> None:
        self._random = np.random.default_rng(0)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        def embed(frames: np.ndarray) -> np.ndarray:
            return self._random.standard_normal((len(frames), 512), dtype=np.float32)

        return shard.embed_shard(decoded, embed, embedding_dim=512, crop_size=224)


def catalogue(count: int) -> Iterator[Video]:
    """Videos that are nowhere."""
    for number in range(count):
        name = f"folder-{number % 1000:04d}/a-video-of-some-length-of-name-{number:09d}.mp4"
        yield Video(name, f"s3://a-bucket-of-videos/{name}", f"{number:032x}", 1_000_000 + number)


def peak_bytes() -> int:
    """The most memory this process has held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100_000)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="raypipe-benchmark-"))
    try:
        cluster.DecodeVideos, cluster.EmbedFrames = StubDecode, StubEmbed
        pipeline.find_videos = lambda *_, **__: catalogue(options.videos)
        values = {"input": "s3://a-bucket-of-videos/", "output": str(scratch)}
        overrides = ("backbone.name=resnet18", "backbone.weights=random")
        config = load_config(EmbedConfig, values=values, overrides=overrides)
        start = time.perf_counter()
        run = pipeline.run_embed(config)
        seconds = time.perf_counter() - start
        peak = peak_bytes()
        rows = sum(verify(Folder(str(scratch))).statuses.values())
        print(describe_machine())
        print(f"{options.videos} videos, {run.record.num_shards} shards, {rows} rows verified")
        print(f"{seconds:.1f} s, {seconds / options.videos * 1000:.2f} ms a video; driver's peak {peak / 1e9:.2f} GB")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
