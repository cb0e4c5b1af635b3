"""Compare ``raypipe embed`` on CPUs with its floor and with the prediction of ``raypipe plan``; measure its memory.

    python benchmarks/embed.py [--videos 200] [--repeats 5] [--backbones resnet18 resnet50] [--quick]

The catalogue is mixed: 240p to 720p, 3 to 40 s, mostly H.264 with x264's defaults, some with a key frame every 2 s,
some VP9 and HEVC. 18 clips are encoded once and copied under many names, which costs a decoder the same as different
clips. 16 uniform frames of each are embedded; all else is at raypipe's defaults: dtype ``auto``, shards, concurrency.

The floor is a lower bound: decoding alone plus the model alone, each with every CPU busy. It runs the same functions on
the same frames in plain processes, without sandbox and Ray, with the cost divided evenly. It is measured before and
after every run of raypipe, which is compared with the mean of both, because the speed of a shared machine varies.

raypipe's steady state is the time from the first committed shard of each actor to the last commit of all actors,
divided by the floor of the shards committed in that time. ``until its own`` excludes the time that an actor waits for
the slowest actor, which is long on a catalogue this small. ``CPU time`` is the CPU time of the actors and their decode
children, without Ray's own processes, divided by that of the floor; a busy machine hardly changes it.

The prediction is the wall time that ``raypipe plan`` estimates from a probe, just before each run.
"""

import argparse
from pathlib import Path
from statistics import median

from raypipe.jobs.embed.estimate import estimate
from raypipe.models.weights import build_network
from support import NUM_CPUS, describe_machine, embedding, print_table, scratch_folder, spread, verdict
from support.clips import make_catalogue
from support.processes import Peak, watching_memory

TARGET, TARGET_BYTES, PREDICTION_TARGET = 1.10, 1024**3, 0.25


class Measured:
    """The floors, runs, memory peaks and predicted seconds of one backbone."""

    def __init__(self, backbone: str, paths: list[Path], *, repeats: int) -> None:
        self.floors: list[embedding.Floor] = []
        self.runs: list[embedding.Run] = []
        self.peaks: list[Peak] = []
        self.predicted: list[float] = []
        videos, name = paths[0].parent, f"backbone.name={backbone}"
        with scratch_folder() as scratch:
            self.config = embedding.embed_config(videos, scratch / "none", name, embedding.RANDOM)
            before = embedding.measure_floor(paths, self.config)
            for repeat in range(repeats):
                self.predicted.append(estimate(self.config).wall_seconds)
                with watching_memory() as peak:
                    self.runs.append(embedding.run_raypipe(videos, scratch / f"out-{repeat}", name))
                self.peaks.append(peak)
                after = embedding.measure_floor(paths, self.config)
                self.floors.append(before.mean(after))
                before = after

    def print_floor(self) -> None:
        floors, whole = self.floors, [run.seconds for run in self.runs]
        steady = [embedding.steady_state(run, floor) for run, floor in zip(self.runs, floors, strict=True)]
        seconds = [
            ("decode alone, all CPUs", [floor.decode_seconds for floor in floors]),
            ("model alone, all CPUs", [floor.model_seconds for floor in floors]),
            ("the floor: both", [floor.seconds for floor in floors]),
        ]
        base = median(seconds[-1][1])
        rows = [
            *((name, spread(values, 1), f"{median(values) / base:.2f}") for name, values in seconds),
            ("raypipe, steady state until the last commit of all", "", spread([one.until_end for one in steady])),
            ("raypipe, steady state until its own last commit", "", spread([one.until_own for one in steady])),
            ("raypipe, steady state, CPU time", "", spread([one.cpu for one in steady])),
            ("raypipe, whole process", spread(whole, 1), f"{median(whole) / base:.2f}"),
        ]
        print_table(("way", "seconds", "of the floor"), rows)
        ratio = median([one.until_end for one in steady])
        print(f"\nThe target, {TARGET} in steady state, is {verdict(met=ratio <= TARGET)} with {ratio:.2f}.")

    def print_memory(self) -> None:
        """Print the peak memory of one actor and its decode child."""
        peak = max(self.peaks, key=lambda one: one.total)
        numbers = sum(tensor.numel() for tensor in build_network(self.config.backbone.name).state_dict().values())
        model = numbers * (2 if embedding.cpu_dtype(self.config) == "bfloat16" else 4)
        parts = f"{peak.actor / 1e6:.0f} MB the actor, {peak.child / 1e6:.0f} MB its decode child"
        print(f"\nPeak memory of one CPU: {peak.total / 1e6:.0f} MB of PSS, {parts};")
        met = verdict(met=peak.total <= TARGET_BYTES + model)
        print(f"{model / 1e6:.0f} MB of it are the model's weights. The target, 1 GiB plus the weights, is {met}.")

    def print_prediction(self) -> None:
        whole = [run.seconds for run in self.runs]
        ratio = median([predicted / seconds for predicted, seconds in zip(self.predicted, whole, strict=True)])
        print(f"\nPredicted {spread(self.predicted, 1)} s, took {spread(whole, 1)} s: {ratio:.2f} of it.")
        met = verdict(met=abs(ratio - 1) <= PREDICTION_TARGET)
        print(f"The target, within {PREDICTION_TARGET:.0%}, is {met}.")


def report(backbone: str, paths: list[Path], options: argparse.Namespace) -> None:
    measured = Measured(backbone, paths, repeats=options.repeats)
    num_frames = sum(measured.floors[0].num_frames.values())
    sizes = f"{len(paths)} videos of {len(options.clips)} kinds, 16 uniform frames each, {num_frames} in all"
    print(f"\n{sizes}, {backbone} {embedding.cpu_dtype(measured.config)},")
    print(f"{NUM_CPUS} actors; medians of {options.repeats} (minimum to maximum)\n")
    measured.print_floor()
    measured.print_memory()
    measured.print_prediction()


def main() -> None:
    options = embedding.parse_options(__doc__, videos=200, repeats=5, backbones=("resnet18", "resnet50"))
    paths = make_catalogue(options.videos_folder, options.videos, clips=options.clips)
    print(describe_machine())
    for backbone in options.backbones:
        report(backbone, paths, options)


if __name__ == "__main__":
    main()
