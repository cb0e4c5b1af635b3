"""Measure how much of a long video on S3 is fetched for 16 frames, and check that the frames are the same.

    python benchmarks/fetch.py [--minutes 60] [--quick]

The video is 1080p H.264: the packets of one generated 30 s scene, repeated, so that an hour takes seconds to make. It
is stored on a real S3 server on this machine and fetched as the job does. ``ranges`` fetches the first megabyte, then
the ranges that the decode child asks for. ``whole`` uses one GET.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

from raypipe.dataset.plan import PlannedVideo
from raypipe.demo.s3_server import local_s3
from raypipe.jobs.embed import fetch
from raypipe.storage import Folder
from raypipe.video.sandbox.parent import DecodedVideo, DecodeSandbox
from support import describe_machine, make_parser, print_table, scratch_folder, verdict
from support.clips import Clip, encode
from support.embedding import EXACT

TARGET, TARGET_MINUTES = 0.05, 60
SCENE = Clip(30, 1920, 1080, options={"preset": "veryfast", "crf": "20"})


def make_long(folder: Path, minutes: int) -> Path:
    """Return a file with the scene's packets repeated to this length; reuse an existing file."""
    path = folder / f"long-{minutes}-minutes.mp4"
    if path.exists():
        return path
    scene = encode(folder, SCENE)
    unfinished = path.with_suffix(".unfinished.mp4")
    with av.open(str(scene)) as source, av.open(str(unfinished), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        length = sum(packet.duration or 0 for packet in packets)
        times = [(packet.pts or 0, packet.dts or 0) for packet in packets]
        for repeat in range(minutes * 60 // round(SCENE.seconds)):
            for packet, (pts, dts) in zip(packets, times, strict=True):
                packet.stream = stream
                packet.time_base = source.streams.video[0].time_base
                packet.pts, packet.dts = pts + repeat * length, dts + repeat * length
                container.mux(packet)
    unfinished.rename(path)
    return path


@contextmanager
def stored_on_s3(path: Path) -> Iterator[PlannedVideo]:
    """Serve the file from a real S3 server."""
    with scratch_folder() as folder, local_s3(folder) as server:
        os.environ.update(server.environment())
        bucket = Folder("s3://videos/long")
        bucket.put_new(path.name, path.read_bytes())
        (stored,) = bucket.list()
        yield PlannedVideo.of(stored)


def take(video: PlannedVideo, *, nearest_keyframe: bool, whole: bool) -> tuple[DecodedVideo, float, float, float]:
    """Return the decoded video, the fraction of its bytes that was fetched, and the seconds of fetch and decode."""
    request = replace(EXACT, nearest_keyframe=nearest_keyframe)
    fetch._WHOLE_BYTES = video.size_bytes if whole else 2**26  # noqa: SLF001 - chooses between the two ways
    with DecodeSandbox(request, decoder="pyav", timeout_seconds=600) as sandbox:
        sandbox.isolation()
        fetched = fetch.fetch_video(video, max_size_bytes=2**40)
        decoded, fetch_seconds, decode_seconds = fetch.decode_fetched(fetched, sandbox)
    ranges = fetched.part.there if fetched.part else [(0, video.size_bytes)]
    return decoded, sum(stop - start for start, stop in ranges) / video.size_bytes, fetch_seconds, decode_seconds


def main() -> None:
    parser = make_parser(__doc__, quick="5 minutes of video", videos=True)
    parser.add_argument("--minutes", type=int, default=TARGET_MINUTES)
    options = parser.parse_args()
    minutes = 5 if options.quick else options.minutes
    path = make_long(options.videos_folder, minutes)
    print(describe_machine())
    print(f"{minutes} minutes of 1080p H.264, {path.stat().st_size / 1e6:.0f} MB, on S3 (SeaweedFS, this machine)\n")
    rows = []
    with stored_on_s3(path) as video:
        for name, nearest_keyframe in (("exact uniform 16", False), ("nearest_keyframe", True)):
            whole, *of_whole = take(video, nearest_keyframe=nearest_keyframe, whole=True)
            part, *of_part = take(video, nearest_keyframe=nearest_keyframe, whole=False)
            is_same = len(whole.frames) == EXACT.num_frames and np.array_equal(whole.frames, part.frames)
            for way, (fraction, fetching, decoding) in (("whole", of_whole), ("ranges", of_part)):
                has_target = way == "ranges" and minutes >= TARGET_MINUTES
                target = f"{TARGET}: {verdict(met=fraction <= TARGET)}" if has_target else ""
                figures = (f"{fraction:.4f}", f"{fetching:.2f}", f"{decoding:.2f}", "yes" if is_same else "NO", target)
                rows.append((f"{name}, {way}", *figures))
    print_table(("way", "share of bytes", "fetch s", "decode s", "same frames", "target"), rows)


if __name__ == "__main__":
    main()
