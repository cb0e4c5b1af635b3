"""How much of a long video on S3 is fetched for 16 frames, against the whole of it, and that the frames are the same.

    python benchmarks/fetch.py [--minutes 60] [--quick]

A 1080p H.264 file: one generated scene of 30 s, its packets
written again and again, so that an hour takes seconds to make. It is put to a real S3 server on this machine. Fetching
is what the job does: ``ranges`` a first megabyte, then what the decode child asks for; ``whole`` one GET.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from _clips import Clip, encode
from _common import describe_machine, print_table, videos_folder
from _decoding import EXACT

from raypipe.dataset.plan import Video
from raypipe.demo.s3_server import local_s3
from raypipe.jobs.embed import fetch
from raypipe.storage import Folder
from raypipe.video.sandbox import DecodedVideo, DecodeSandbox

TARGET = 0.05
SCENE = Clip(30, 1920, 1080, options={"preset": "veryfast", "crf": "20"})


def make_long(folder: Path, minutes: int) -> Path:
    """The scene's packets as often as they fill so many minutes."""
    path = folder / f"long-{minutes}-minutes.mp4"
    if path.exists():
        return path
    scene = encode(folder / "clips", SCENE)
    unfinished = path.with_suffix(".unfinished.mp4")
    with av.open(str(scene)) as source, av.open(str(unfinished), "w") as container:
        copied = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        length = sum(packet.duration or 0 for packet in packets)
        times = [(packet.pts or 0, packet.dts or 0) for packet in packets]
        for again in range(minutes * 2):
            for packet, (pts, dts) in zip(packets, times, strict=True):
                packet.stream = copied
                packet.time_base = source.streams.video[0].time_base
                packet.pts, packet.dts = pts + again * length, dts + again * length
                container.mux(packet)
    unfinished.rename(path)
    return path


@contextmanager
def on_s3(path: Path) -> Iterator[Video]:
    """The file as an object of a real S3 server."""
    with tempfile.TemporaryDirectory(prefix="raypipe-benchmark-") as folder, local_s3(Path(folder)) as server:
        os.environ.update(server.environment())
        bucket = Folder("s3://videos/long")
        bucket.put_new(path.name, path.read_bytes())
        (stored,) = bucket.list()
        yield Video.of(stored)


def take(video: Video, *, nearest_keyframe: bool, whole: bool) -> tuple[DecodedVideo, float, float, float]:
    """The decoded video, the share of its bytes that was fetched, and the seconds of fetching and decoding."""
    request = replace(EXACT, nearest_keyframe=nearest_keyframe)
    fetch._WHOLE_BYTES = video.size_bytes if whole else 2**26  # noqa: SLF001 - the two ways of one function
    with DecodeSandbox(request, decoder="pyav", timeout_seconds=600) as sandbox:
        sandbox.isolation()
        fetched = fetch.fetch_video(video, max_size_bytes=2**40)
        decoded, fetching, decoding = fetch.decode_fetched(fetched, sandbox)
    parts = fetched.part.there if fetched.part else [(0, video.size_bytes)]
    return decoded, sum(stop - start for start, stop in parts) / video.size_bytes, fetching, decoding


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--videos-folder", type=Path, default=videos_folder())
    parser.add_argument("--quick", action="store_true", help="5 minutes of video")
    options = parser.parse_args()
    minutes = 5 if options.quick else options.minutes
    path = make_long(options.videos_folder, minutes)
    print(describe_machine())
    print(f"{minutes} minutes of 1080p H.264, {path.stat().st_size / 1e6:.0f} MB, on S3 (SeaweedFS, this machine)\n")
    rows = []
    with on_s3(path) as video:
        for name, nearest_keyframe in (("exact uniform 16", False), ("nearest_keyframe", True)):
            whole, *about_whole = take(video, nearest_keyframe=nearest_keyframe, whole=True)
            part, *about_part = take(video, nearest_keyframe=nearest_keyframe, whole=False)
            same = np.array_equal(whole.frames, part.frames) and len(whole.frames) == 16  # noqa: PLR2004
            for way, (share, fetching, decoding) in (("whole", about_whole), ("ranges", about_part)):
                verdict = "" if way == "whole" or minutes < 60 else f"0.05: {'met' if share <= TARGET else 'MISSED'}"  # noqa: PLR2004
                figures = (f"{share:.4f}", f"{fetching:.2f}", f"{decoding:.2f}", "yes" if same else "NO", verdict)
                rows.append((f"{name}, {way}", *figures))
    print_table(("way", "share of bytes", "fetch s", "decode s", "same frames", "target"), rows)


if __name__ == "__main__":
    main()
