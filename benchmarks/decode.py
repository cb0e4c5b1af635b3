"""What taking 16 frames of a video costs a processor, and what the sandbox adds, in one run on one machine.

    python benchmarks/decode.py [--repeats 5] [--seconds 60] [--decoders decord torchcodec] [--quick]

First generated videos of 60 s 720p, H.264 as x264 makes it by default: one with a cut, and so a key frame, every 4 s,
and one of a single take, with key frames as rare as x264 lets them be. ``reading everything`` opens it with PyAV,
decodes every frame with one thread, and scales and crops the wanted ones: no index, no second pass. The others are
raypipe's functions with all that belongs to them, such as the index of the packets. Each has a process of its own that
has done it once before; figures are processor seconds, all threads counted. ``exact`` is held against ``reading
everything`` pixel by pixel. With ``loop_filter`` off the frames are others: ``accuracy.py`` says how much.

Then the rules of row format 2 (time stamps, corrupt pictures, display properties) against format 1, in this process, in
pairs of alternating order: every H.264 and HEVC clip of the mixed catalogue, and VP9, which libvpx decodes in format 2.

Then every clip of the mixed catalogue through the sandbox against the same function in a plain process, video by video:
seconds by the clock, and of the processor, parent and child against the one process.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from _clips import MIXED, Clip, encode
from _common import describe_machine, median, print_table, spread, videos_folder
from _decoding import EXACT, decode_here
from _floor import Seconds, Stopwatch
from _memory import tree_cpu_seconds

from raypipe.video.choosing import Wanted, choose_frames
from raypipe.video.display import FrameWriter
from raypipe.video.probe import VideoFile
from raypipe.video.protocol import DecodeRequest, Pixels
from raypipe.video.sandbox import DecodeSandbox

TARGETS = {"exact": 0.50, "nearest_keyframe": 0.15}
RULES_TARGET = 1.03  # of the upper 95 % bound
MIN_PAIRS = 10
TARGET_SECONDS = 60  # of the video that they are meant for: of a shorter one more frames are wanted
SANDBOX_TARGET = 1.05
Way = tuple[Callable[..., tuple[float, Pixels]], tuple[object, ...]]  # a function, and what it is called with


def take(path: Path, request: DecodeRequest, decoder: str = "pyav") -> tuple[float, Pixels]:
    """Processor seconds and frames of raypipe's way, in this process."""
    frames, spent = decode_here(path, request, decoder)
    return spent.cpu, frames


def read_everything(path: Path, wanted_pts: Sequence[int], request: DecodeRequest) -> tuple[float, Pixels]:
    """Processor seconds and frames of decoding every frame and scaling the wanted ones."""
    frames = np.zeros((len(wanted_pts), request.crop_size, request.crop_size, 3), np.uint8)
    slots = {pts: slot for slot, pts in enumerate(wanted_pts)}
    writer = FrameWriter(Wanted(np.zeros(len(slots), np.int64), np.zeros(len(slots))), frames, request)
    watch = Stopwatch()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        for frame in container.decode(stream):
            if frame.pts in slots:
                writer.put([slots[frame.pts]], frame, 0.0)
    return watch.read().cpu, frames


def wanted_pts(path: Path, request: DecodeRequest) -> list[int]:
    """When the frames that raypipe takes are shown, in the units of the file."""
    with path.open("rb") as file:
        video = VideoFile(file, limits=request.limits)
        chosen = choose_frames(video.index, request).packets
        pts: list[int] = video.index.pts[chosen].tolist()
        video.close()
    return pts


def ways(path: Path, others: Sequence[str]) -> dict[str, Way]:
    """What is measured."""
    return {
        "reading everything": (read_everything, (path, wanted_pts(path, EXACT), EXACT)),
        "exact": (take, (path, EXACT)),
        "exact, loop_filter off": (take, (path, replace(EXACT, loop_filter=False))),
        "nearest_keyframe": (take, (path, replace(EXACT, nearest_keyframe=True))),
        "keyframes": (take, (path, replace(EXACT, mode="keyframes"))),
        **{f"exact, {name}": (take, (path, EXACT, name)) for name in others},
    }


def one_video(path: Path, repeats: int, others: Sequence[str], *, targets: Mapping[str, float]) -> None:
    """The first table."""
    asked = ways(path, others)
    context = get_context("spawn")
    pools = {way: ProcessPoolExecutor(1, mp_context=context) for way in asked}
    spent: dict[str, list[float]] = {way: [] for way in asked}
    frames: dict[str, Pixels] = {}
    for repeat in range(repeats + 1):
        for way, (function, arguments) in asked.items():
            seconds, frames[way] = pools[way].submit(function, *arguments).result()
            if repeat:  # the first loads libraries and warms caches
                spent[way].append(seconds)
    for pool in pools.values():
        pool.shutdown()
    base = median(spent["reading everything"])
    rows = []
    for way, seconds in spent.items():
        ratio, target = median(seconds) / base, targets.get(way)
        verdict = "" if target is None else f"{target:.2f}: {'met' if ratio <= target else 'MISSED'}"
        rows.append((way, str(len(frames[way])), spread(seconds, 3), f"{ratio:.3f}", verdict))
    print_table(("way", "frames", "processor seconds", "of everything", "target"), rows)
    same = np.array_equal(frames["exact"], frames["reading everything"])
    print(f"\nThe frames of `exact` are {'the very pixels' if same else 'NOT THOSE'} that reading everything gives.")


def sandbox_against_in_process(paths: Sequence[Path], repeats: int) -> None:
    """The second table. Video by video, the first of the two in turn: the machine is not equally fast for long."""
    measured: dict[str, list[Seconds]] = {"in-process": [], "sandbox": []}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, DecodeSandbox(EXACT, decoder="pyav") as box:
        ways = {
            "in-process": lambda path: pool.submit(spent_here, path).result(),
            "sandbox": lambda path: spent_in_sandbox(box, path),
        }
        for repeat in range(repeats + 1):
            sums = dict.fromkeys(ways, Seconds())
            for number, path in enumerate(paths):
                for way in list(ways)[:: -1 if (repeat + number) % 2 else 1]:
                    sums[way] += ways[way](path)
            for way in ways if repeat else ():
                measured[way].append(sums[way])
    pairs = list(zip(measured["sandbox"], measured["in-process"], strict=True))
    walls, cpus = [ours.wall / plain.wall for ours, plain in pairs], [ours.cpu / plain.cpu for ours, plain in pairs]
    rows = [
        (way, spread([one.wall for one in seconds], 3), spread([one.cpu for one in seconds], 3))
        for way, seconds in measured.items()
    ]
    rows.append(("sandbox / in-process", spread(walls, 3), spread(cpus, 3)))
    print(f"\n{len(paths)} videos, 240p to 720p, 3 to 40 s, 16 uniform frames of each\n")
    print_table(("way", "seconds", "processor seconds"), rows)
    verdict = "met" if median(walls) <= SANDBOX_TARGET else "MISSED"
    print(f"\nThe target, {SANDBOX_TARGET} by the clock, is {verdict} with {median(walls):.3f}.")


def spent_here(path: Path) -> Seconds:
    """One video in this process."""
    return decode_here(path, EXACT)[1]


def spent_in_sandbox(box: DecodeSandbox, path: Path) -> Seconds:
    """One video through the sandbox."""
    start, start_cpu = time.perf_counter(), tree_cpu_seconds()
    with path.open("rb") as file:
        box.decode(file)
    return Seconds(time.perf_counter() - start, tree_cpu_seconds() - start_cpu)


def rules_against_format_1(paths: Sequence[Path], pairs: int, *, target: float | None) -> None:
    """Print what the rules of row format 2 cost on these clips: the ratio of processor seconds, and its bound."""
    formats = {number: replace(EXACT, row_format=number) for number in (1, 2)}
    ratios = []
    for pair in range(pairs + 1):
        spent = dict.fromkeys(formats, 0.0)
        for path in paths:
            for number in (1, 2) if pair % 2 else (2, 1):
                spent[number] += decode_here(path, formats[number])[1].cpu
        ratios.append(np.log(spent[2] / spent[1]))
    logs = np.array(ratios[1:])  # the first loads libraries and warms caches
    mean, error = float(logs.mean()), float(logs.std(ddof=1) / len(logs) ** 0.5)
    ratio, bound = np.exp(mean), np.exp(mean + 1.96 * error)
    verdict = "" if target is None else f"; target {target:.2f}: {'met' if bound <= target else 'MISSED'}"
    print(f"row format 2 of format 1, {len(paths)} clips, {pairs} pairs: {ratio:.3f}, at most {bound:.3f}{verdict}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--decoders", nargs="*", default=["decord", "torchcodec"], help="besides pyav")
    parser.add_argument("--videos-folder", type=Path, default=videos_folder(), help="where the next run finds them")
    parser.add_argument("--quick", action="store_true", help="twice, a video of 20 s, 8 clips through the sandbox")
    options = parser.parse_args()
    clips = MIXED[:8] if options.quick else MIXED
    if options.quick:
        options.repeats, options.seconds = 2, 20.0
    others = [name for name in options.decoders if find_spec(name)]
    for name in sorted(set(options.decoders) - set(others)):
        print(f"{name} was left out: it is not installed.")
    folder = options.videos_folder / "clips"
    videos = {
        "cuts every 4 s": Clip(options.seconds, 1280, 720),
        "one take": Clip(options.seconds, 1280, 720, scene_seconds=options.seconds),
    }
    print(describe_machine())
    for name, clip in videos.items():
        path = encode(folder, clip)
        rate = path.stat().st_size * 8e-6 / options.seconds
        print(f"\n{options.seconds:g} s of 720p H.264, {name}, {rate:.1f} Mbit/s, 16 uniform frames;")
        print(f"medians of {options.repeats}, in brackets the least and the most\n")
        targets = TARGETS if options.seconds == TARGET_SECONDS else {}
        one_video(path, options.repeats, others, targets=targets)
    print()
    vp9 = [clip for clip in clips if clip.encoder == "libvpx-vp9"]
    ordinary = [clip for clip in clips if clip not in vp9]
    pairs = max(MIN_PAIRS, options.repeats)
    rules_against_format_1([encode(folder, clip) for clip in ordinary], pairs, target=RULES_TARGET)
    if vp9:
        rules_against_format_1([encode(folder, clip) for clip in vp9], pairs, target=None)
    sandbox_against_in_process([encode(folder, clip) for clip in clips], options.repeats)


if __name__ == "__main__":
    main()
