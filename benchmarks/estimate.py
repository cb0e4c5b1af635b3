"""What ``raypipe plan`` says that a run takes, beside what it takes.

    python benchmarks/estimate.py [--videos 200] [--repeats 3] [--backbones resnet18 resnet50] [--quick]

The catalogue of ``embed.py``, 16 uniform frames, raypipe's defaults otherwise. A repeat is the plan's probe, then the
run, from the start of its process to its end.
"""

import shutil
import tempfile
from pathlib import Path

from _common import describe_machine, median, print_table, spread
from _mixed import mixed_catalogue, parse_options
from _steady import embed_config, run_raypipe

from raypipe.jobs.embed.estimate import estimate

TARGET = 0.25


def measure(videos: Path, backbone: str, repeats: int) -> list[tuple[float, float]]:
    """Seconds as planned, and as they were, of each repeat."""
    scratch = Path(tempfile.mkdtemp(prefix="raypipe-benchmark-"))
    name = f"backbone.name={backbone}"
    try:
        return [
            (
                estimate(embed_config(videos, scratch / "none", name)).wall_seconds,
                run_raypipe(videos, scratch / f"out-{repeat}", name).seconds,
            )
            for repeat in range(repeats)
        ]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    """Print one row for each backbone."""
    options = parse_options(__doc__, videos=200, repeats=3, backbones=("resnet18", "resnet50"))
    videos = mixed_catalogue(options)[0].parent
    print(describe_machine())
    rows = []
    for backbone in options.backbones:
        measured = measure(videos, backbone, options.repeats)
        ratio = median([planned / was for planned, was in measured])
        met = "met" if abs(ratio - 1) <= TARGET else "MISSED"
        planned, was = ([pair[at] for pair in measured] for at in (0, 1))
        rows.append((backbone, spread(planned, 1), spread(was, 1), f"{ratio:.2f}", f"within {TARGET:.0%}: {met}"))
    print(f"\n{options.videos} videos, 16 uniform frames; medians of {options.repeats}, in brackets least and most\n")
    print_table(("backbone", "planned s", "taken s", "planned / taken", "target"), rows)


if __name__ == "__main__":
    main()
