"""Measure the wall time of ``raypipe embed`` on a few short clips, on Ray and in local processes.

    python benchmarks/startup.py [--repeats 5] [--quick]

It embeds 48 clips of 2 to 4 s, 240p and 360p, 16 uniform frames of each, with resnet18 and raypipe's defaults
otherwise. A phase is the time from the start of the process until one of these: the driver has finished its imports,
Ray is up, the videos are planned, the first actor starts, it is ready, the first and the last shard are committed, the
output is sealed. The last table compares the whole command on both executors, in turns.
"""

from statistics import median

from support import describe_machine, make_parser, print_table, scratch_folder, spread, verdict
from support.clips import Clip, make_catalogue
from support.embedding import Run, run_raypipe, seconds_of_command

TARGETS = {"bfloat16": 15.0, "float32": 20.0}  # seconds of the whole command
CLIPS = (
    Clip(2, 426, 240),
    Clip(3, 426, 240, options={"g": "60"}),
    Clip(2, 640, 360),
    Clip(4, 426, 240),
    Clip(3, 640, 360),
    Clip(4, 640, 360, options={"g": "60"}),
)
PHASES = ("imported", "Ray is up", "planned", "actor starts", "actor ready", "first commit", "last commit", "sealed")


def phases(run: Run) -> dict[str, float]:
    """Return the seconds from the start of the process to each phase, and to its end."""
    times: dict[str, list[float]] = {}
    for event in run.events:
        times.setdefault(event.name, []).append(event.at - run.started_at)
    times |= {"first commit": times["put"], "last commit": [max(times["put"])]}
    return {**{phase: min(times[phase]) for phase in PHASES}, "the whole process": run.seconds}


def main() -> None:
    parser = make_parser(__doc__, quick="1 repeat", videos=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    videos = make_catalogue(options.videos_folder / "short", 48, clips=CLIPS)[0].parent
    repeats = 1 if options.quick else options.repeats
    with scratch_folder() as scratch:
        runs = [
            phases(run_raypipe(videos, scratch / f"out-{repeat}", "backbone.name=resnet18"))
            for repeat in range(repeats)
        ]
        commands: dict[tuple[str, str], list[float]] = {}
        for repeat in range(repeats):
            for dtype in TARGETS:
                for executor in ("local", "ray"):
                    settings = ("backbone.name=resnet18", f"backbone.dtype={dtype}", f"executor={executor}")
                    seconds = seconds_of_command(videos, scratch / f"{executor}-{dtype}-{repeat}", *settings)
                    commands.setdefault((executor, dtype), []).append(seconds)
    print(describe_machine())
    print(f"\n48 clips of 2 to 4 s, 16 uniform frames, resnet18; medians of {repeats} (minimum to maximum)\n")
    rows = [(phase, spread([run[phase] for run in runs], 1)) for phase in runs[0]]
    print_table(("seconds since the start", "s"), rows)
    print()
    rows = [(*names, spread(seconds, 1)) for names, seconds in commands.items()]
    print_table(("executor", "dtype", "seconds of the command"), rows)
    for dtype, target in TARGETS.items():
        found = median(commands["local", dtype])
        print(f"\nlocal, {dtype}: the target, {target:g} s, is {verdict(met=found <= target)} with {found:.1f} s.")


if __name__ == "__main__":
    main()
