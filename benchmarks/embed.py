"""Embed against its floor, and the memory that it takes, in one run on one machine, on processors.

    python benchmarks/embed.py [--videos 200] [--repeats 5] [--backbones resnet18 resnet50] [--quick]

The catalogue is mixed: 240p to 720p, 3 to 40 s, H.264 as x264 makes it by default, some with a key frame every 2 s,
some VP9 and HEVC. 18 clips are encoded once and copied under many names, which costs a decoder the same. 16 uniform
frames of each, raypipe's defaults otherwise: dtype ``auto``, shards, concurrency.

The floor is decoding alone plus the model alone, each with every processor busy and nothing else: the same frames by
the same functions, in plain processes without sandbox and Ray, what they cost shared evenly. It is measured before and
after every run of raypipe, which is held against the mean of both: the pace of a shared machine wanders.

raypipe's steady state is the time from the first committed shard of each actor to the last commit of all, over the
floor of the very shards committed in that time; ``until its own`` leaves out what an actor waits for the last one,
which on a catalogue so small is much. ``processor time`` is that of the actors and their decode children over the
floor's, which a busy machine hardly touches; Ray's own processes are not in it.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from _common import describe_machine, median, print_table, spread
from _floor import SLOTS, Floor, measure_floor, settle
from _mixed import mixed_catalogue, parse_options
from _steady import Run, embed_config, run_raypipe

from raypipe.models.networks import build_network

TARGET, TARGET_BYTES = 1.10, 1024**3


def measure(backbone: str, paths: list[Path], options: argparse.Namespace) -> list[tuple[Floor, Run]]:
    """The floor and raypipe, in turn."""
    scratch = Path(tempfile.mkdtemp(prefix="raypipe-benchmark-"))
    videos, name = paths[0].parent, f"backbone.name={backbone}"
    config = embed_config(videos, scratch / "none", name)
    measured = []
    try:
        before = measure_floor(paths, config)
        for repeat in range(options.repeats):
            run = run_raypipe(videos, scratch / f"out-{repeat}", name)
            after = measure_floor(paths, config)
            measured.append((before.halfway(after), run))
            before = after
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return measured


def rows_of(measured: list[tuple[Floor, Run]]) -> list[tuple[str, ...]]:
    """Seconds, and how often the floor."""
    steady = [run.steady(floor) for floor, run in measured]
    seconds = [
        ("decode alone, all processors", [floor.decode_wall_seconds for floor, _ in measured]),
        ("model alone, all processors", [floor.model_wall_seconds for floor, _ in measured]),
        ("the floor: both", [floor.wall_seconds for floor, _ in measured]),
    ]
    base = median(seconds[-1][1])
    whole = [run.seconds for _, run in measured]
    return [
        *((name, spread(values, 1), f"{median(values) / base:.2f}") for name, values in seconds),
        ("raypipe, steady state until the last commit of all", "", spread([one.until_end for one in steady])),
        ("raypipe, steady state until its own last commit", "", spread([one.until_own for one in steady])),
        ("raypipe, steady state, processor time", "", spread([one.cpu for one in steady])),
        ("raypipe, whole process", spread(whole, 1), f"{median(whole) / base:.2f}"),
    ]


def print_memory(backbone: str, measured: list[tuple[Floor, Run]], dtype: str) -> None:
    """The most that one actor and its decode child held."""
    peak = max((run.peak for _, run in measured), key=lambda one: one.together)
    numbers = sum(tensor.numel() for tensor in build_network(backbone).state_dict().values())
    model = numbers * (2 if dtype == "bfloat16" else 4)
    parts = f"{peak.actor / 1e6:.0f} MB the actor, {peak.child / 1e6:.0f} MB its decode child"
    print(f"\nMemory of one processor at its peak: {peak.together / 1e6:.0f} MB of PSS, {parts};")
    met = "met" if peak.together <= TARGET_BYTES + model else "MISSED"
    print(f"the model's numbers are {model / 1e6:.0f} MB of it. The target, 1 GiB beside the model, is {met}.")


def main() -> None:
    """Print a table for each backbone."""
    options = parse_options(__doc__, videos=200, repeats=5, backbones=("resnet18", "resnet50"))
    paths = mixed_catalogue(options)
    print(describe_machine())
    for backbone in options.backbones:
        measured = measure(backbone, paths, options)
        config = embed_config(paths[0].parent, Path("none"), f"backbone.name={backbone}")
        dtype = settle(config)[1]
        num_frames = sum(measured[0][0].num_frames.values())
        kinds = f"{len(paths)} videos of {len(options.clips)} kinds"
        print(f"\n{kinds}, 16 uniform frames, {num_frames} in all, {backbone} {dtype},")
        print(f"{SLOTS} actors; medians of {options.repeats}, in brackets the least and the most\n")
        print_table(("way", "seconds", "of the floor"), rows_of(measured))
        ratio = median([run.steady(floor).until_end for floor, run in measured])
        print(f"\nThe target, {TARGET} in steady state, is {'met' if ratio <= TARGET else 'MISSED'} with {ratio:.2f}.")
        print_memory(backbone, measured, dtype)


if __name__ == "__main__":
    main()
