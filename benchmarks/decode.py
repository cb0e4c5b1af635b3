"""Measure the CPU time to decode 16 frames of a video, and the overhead of row format 2 and of the sandbox.

    python benchmarks/decode.py [--repeats 5] [--seconds 60] [--quick]

The first table is for generated 60 s videos of 720p H.264 with x264's defaults: one has a cut, and therefore a key
frame, every 4 s; the other is a single take, with key frames as rare as x264 allows. ``reading everything`` opens the
file with PyAV, decodes every frame in one thread, and scales and crops the wanted ones, without an index or a second
pass. The other ways are raypipe's functions with everything they need, such as the packet index. Each way runs in its
own process, after one warm-up. Figures are CPU seconds of all threads. ``exact`` is compared with ``reading
everything`` pixel by pixel. With ``loop_filter`` off the frames differ: ``accuracy.py`` measures how much.

The second part compares the rules of row format 2 (time stamps, corrupt frames, display properties) with format 1, in
this process, in pairs of alternating order: first all H.264 and HEVC clips of the mixed catalogue, then VP9, which
format 2 decodes with libvpx.

The third part decodes every clip of the mixed catalogue in the sandbox and with the same function in a plain process,
video by video. It compares wall time, and the CPU time of parent and child with that of the plain process.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import av
import numpy as np

from raypipe.video.decode_request import Pixels
from raypipe.video.display import FrameWriter
from raypipe.video.sampling import Wanted
from raypipe.video.sandbox.parent import DecodeSandbox
from support import describe_machine, make_parser, print_table, spread, verdict
from support.clips import FPS, MIXED, Clip, encode, encode_all
from support.embedding import EXACT, decode_here
from support.processes import Seconds, Stopwatch, family_cpu_seconds

TARGETS = {"exact": 0.50, "nearest_keyframe": 0.15}
TARGET_SECONDS = 60  # the targets are for a video of this length: 16 frames of a shorter one are denser
RULES_TARGET = 1.03  # of the upper 95 % bound
MIN_PAIRS = 10
SANDBOX_TARGET = 1.05


def read_everything(path: Path) -> tuple[Pixels, Seconds]:
    """Decode every frame, and scale the 16 frames that ``exact`` takes."""
    num_frames = EXACT.num_frames
    frames = np.zeros((num_frames, EXACT.crop_size, EXACT.crop_size, 3), np.uint8)
    writer = FrameWriter(Wanted(np.zeros(num_frames, np.int64), np.zeros(num_frames)), frames, EXACT)
    watch = Stopwatch()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        interval = stream.frames / num_frames
        slots = {ceil((slot + 0.5) * interval - 0.5): slot for slot in range(num_frames)}  # by frame number
        for frame in container.decode(stream):
            if (slot := slots.get(round(frame.time * FPS))) is not None:
                writer.put([slot], frame, 0.0)
    return frames, watch.read()


def compare_ways(path: Path, repeats: int, *, targets: Mapping[str, float]) -> None:
    """Print the first table."""
    others = [name for name in ("decord", "torchcodec") if find_spec(name)]
    ways = {
        "reading everything": (read_everything, (path,)),
        "exact": (decode_here, (path, EXACT)),
        "exact, loop_filter off": (decode_here, (path, replace(EXACT, loop_filter=False))),
        "nearest_keyframe": (decode_here, (path, replace(EXACT, nearest_keyframe=True))),
        "keyframes": (decode_here, (path, replace(EXACT, mode="keyframes"))),
        **{f"exact, {name}": (decode_here, (path, EXACT, name)) for name in others},
    }
    spent: dict[str, list[float]] = {way: [] for way in ways}
    frames: dict[str, Pixels] = {}
    pools = {way: ProcessPoolExecutor(1, mp_context=get_context("spawn")) for way in ways}
    for repeat in range(repeats + 1):
        for way, (function, arguments) in ways.items():
            frames[way], seconds = pools[way].submit(function, *arguments).result()
            if repeat:  # the first loads libraries and warms caches
                spent[way].append(seconds.cpu)
    for pool in pools.values():
        pool.shutdown()
    base = median(spent["reading everything"])
    rows = []
    for way, seconds in spent.items():
        ratio = median(seconds) / base
        target = f"{targets[way]:.2f}: {verdict(met=ratio <= targets[way])}" if way in targets else ""
        rows.append((way, str(len(frames[way])), spread(seconds, 3), f"{ratio:.3f}", target))
    print_table(("way", "frames", "CPU seconds", "of everything", "target"), rows)
    same = np.array_equal(frames["exact"], frames["reading everything"])
    print(f"\nThe frames of `exact` are {'' if same else 'NOT '}identical to those of reading everything.")


def compare_formats(paths: Sequence[Path], pairs: int, *, target: float | None) -> None:
    """Print the ratio of the CPU seconds of row format 2 to the CPU seconds of format 1, and its upper bound."""
    formats = {number: replace(EXACT, row_format=number) for number in (1, 2)}
    logs = []
    for pair in range(pairs + 1):
        spent = dict.fromkeys(formats, 0.0)
        for path in paths:
            for number in (1, 2) if pair % 2 else (2, 1):
                spent[number] += decode_here(path, formats[number])[1].cpu
        if pair:  # the first loads libraries and warms caches
            logs.append(np.log(spent[2] / spent[1]))
    mean, error = np.mean(logs), np.std(logs, ddof=1) / len(logs) ** 0.5
    ratio, bound = np.exp(mean), np.exp(mean + 1.96 * error)
    met = "" if target is None else f"; target {target:.2f}: {verdict(met=bound <= target)}"
    print(f"row format 2 / format 1, {len(paths)} clips, {pairs} pairs: {ratio:.3f}, at most {bound:.3f}{met}")


def compare_sandbox(paths: Sequence[Path], repeats: int) -> None:
    """Print the third table. Each video is decoded both ways, in alternating order, as the machine's speed varies."""
    measured: dict[str, list[Seconds]] = {"in-process": [], "sandbox": []}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, DecodeSandbox(EXACT, decoder="pyav") as box:
        ways = {
            "in-process": lambda path: pool.submit(decode_here, path, EXACT).result()[1],
            "sandbox": lambda path: spent_in_sandbox(box, path),
        }
        for repeat in range(repeats + 1):
            sums = dict.fromkeys(ways, Seconds())
            for number, path in enumerate(paths):
                for way in list(ways)[:: -1 if (repeat + number) % 2 else 1]:
                    sums[way] += ways[way](path)
            for way in ways if repeat else ():
                measured[way].append(sums[way])
    rows = [
        (way, spread([one.wall for one in seconds], 3), spread([one.cpu for one in seconds], 3))
        for way, seconds in measured.items()
    ]
    pairs = list(zip(measured["sandbox"], measured["in-process"], strict=True))
    walls, cpus = [box.wall / plain.wall for box, plain in pairs], [box.cpu / plain.cpu for box, plain in pairs]
    rows.append(("sandbox / in-process", spread(walls, 3), spread(cpus, 3)))
    print(f"\n{len(paths)} videos, 240p to 720p, 3 to 40 s, 16 uniform frames each\n")
    print_table(("way", "seconds", "CPU seconds"), rows)
    ratio = median(walls)
    print(f"\nThe target, {SANDBOX_TARGET} in wall time, is {verdict(met=ratio <= SANDBOX_TARGET)} with {ratio:.3f}.")


def spent_in_sandbox(box: DecodeSandbox, path: Path) -> Seconds:
    watch = Stopwatch(family_cpu_seconds)
    with path.open("rb") as file:
        box.decode(file)
    return watch.read()


def main() -> None:
    parser = make_parser(__doc__, quick="2 repeats, videos of 20 s, 8 clips through the sandbox", videos=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    clips, folder = MIXED[:8] if options.quick else MIXED, options.videos_folder
    if options.quick:
        options.repeats, options.seconds = 2, 20.0
    print(describe_machine())
    for name, scene_seconds in (("cuts every 4 s", 4.0), ("one take", options.seconds)):
        path = encode(folder, Clip(options.seconds, 1280, 720, scene_seconds=scene_seconds))
        rate = path.stat().st_size * 8e-6 / options.seconds
        print(f"\n{options.seconds:g} s of 720p H.264, {name}, {rate:.1f} Mbit/s, 16 uniform frames;")
        print(f"medians of {options.repeats} (minimum to maximum)\n")
        targets = TARGETS if options.seconds == TARGET_SECONDS else {}
        compare_ways(path, options.repeats, targets=targets)
    print()
    vp9 = [clip for clip in clips if clip.encoder == "libvpx-vp9"]
    pairs = max(MIN_PAIRS, options.repeats)
    compare_formats(encode_all(folder, [clip for clip in clips if clip not in vp9]), pairs, target=RULES_TARGET)
    if vp9:
        compare_formats(encode_all(folder, vp9), pairs, target=None)
    compare_sandbox(encode_all(folder, clips), options.repeats)


if __name__ == "__main__":
    main()
