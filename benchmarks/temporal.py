"""What a GPT-2 over frames knows that their mean does not: accuracy on held-out clips beside simpler models.

    python benchmarks/temporal.py [--seeds 0 1 2] [--keep FOLDER] [--quick]
    python benchmarks/temporal.py --drone ../shared/assets/labelled/drone

The first embeds 400 generated clips of four classes that differ in the order of time alone, and 80 of another seed;
trains at the defaults of ``raypipe train``; and gives the labels of ``raypipe classify``. Beside it stands a linear
model on mean-pooled vectors, which learns from the same clips and is validated on the same.

The second takes real clips, 4 classes x 40, whose neighbouring numbers are neighbouring moments: each class is cut
into 5 blocks of consecutive clips; a fold holds one block of each out, is validated on the next, and learns from the
other three. GPT-2 at the defaults and with ``--set`` stands beside a linear model, whose penalty the validation block
chooses as it chooses GPT-2's epoch, and the nearest neighbour: all learn from the same three blocks. With ``--refit``
all learn from all four blocks that are not held out: GPT-2 without validation, so that its last epoch is kept, and the
linear model once more with the penalty that was chosen.
"""

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from _common import describe_machine, print_table
from _learning import (
    WEIGHTS,
    Vectors,
    accuracy,
    classify,
    embed,
    labels_by_model,
    read_frames,
    split_of,
    train,
    train_config,
    weights_or_random,
    write_labels,
)
from _motion import make_motion_clips
from _probe import linear_probe, nearest_neighbour

TARGET = 0.93
TRAIN_SEED, HELD_OUT_SEED = 1, 2
BLOCKS = 5


def motion(options: argparse.Namespace, weights: str) -> None:
    """Train at the defaults, once for each seed, and print what it gives on the held-out clips."""
    scratch = options.scratch
    kept = options.keep or scratch
    sets = {}
    for name, count, seed in (("train", options.clips, TRAIN_SEED), ("held", options.held_out, HELD_OUT_SEED)):
        sets[name] = dict(make_motion_clips(kept / name, count, seed=seed))
        embed(kept / name, kept / f"emb-{name}", weights=weights)
    truth = sets["train"] | sets["held"]
    labels = write_labels(scratch / "labels.csv", sets["train"].items())
    frames = {**read_frames(kept / "emb-train"), **read_frames(kept / "emb-held")}
    ours, probes, rows = [], [], []
    for seed in options.seeds:
        model = scratch / f"model-{seed}"
        config = train_config(kept / "emb-train", labels, model, f"seed={seed}")
        record = train(config)
        given = classify(kept / "emb-held", model, scratch / f"labels-{seed}")
        learned_from, validated_on = split_of(config)
        linear = linear_probe(frames, truth, train=learned_from, validation=validated_on, test=list(sets["held"]))
        ours.append(accuracy(given, truth))
        probes.append(accuracy(linear, truth))
        kept_epoch = f"{record.best_epoch} of {len(record.epochs)}"
        rows.append((f"seed {seed}", f"{ours[-1]:.3f}", f"{probes[-1]:.3f}", kept_epoch))
    if len(options.seeds) > 1:
        rows.append(("mean", f"{statistics.fmean(ours):.3f}", f"{statistics.fmean(probes):.3f}", ""))
    print(describe_machine())
    print(f"{options.clips} clips to learn from, {options.held_out} held out, resnet18, 16 frames; accuracy on those\n")
    print_table(("", "GPT-2, defaults", "linear, mean-pooled", "epoch kept"), rows)
    if options.quick:
        print("\nSo few clips show that it runs, and not what it learns.")
        return
    print(f"\nThe target of {TARGET} is {'met' if statistics.fmean(ours) >= TARGET else 'MISSED'}; chance is 0.25.")


def blocks_of(ids: Sequence[str]) -> dict[str, int]:
    """The block of each video: those of a class, in order, in 5 parts of consecutive ones."""
    blocks = {}
    for _, members in groupby(sorted(ids), key=_label):
        clips = list(members)
        blocks |= {video_id: BLOCKS * at // len(clips) for at, video_id in enumerate(clips)}
    return blocks


def _label(video_id: str) -> str:
    return video_id.partition("/")[0]


def drone(options: argparse.Namespace, weights: str) -> None:
    """Compare the four on every fold."""
    embeddings = (options.keep or options.scratch) / "emb-drone"
    embed(options.drone, embeddings, weights=weights)
    frames = read_frames(embeddings)
    blocks = blocks_of(list(frames))
    results: dict[str, list[float]] = {}
    for fold in range(BLOCKS):
        for name, value in _fold(fold, blocks, embeddings, frames, options).items():
            results.setdefault(name, []).append(value)
    print(describe_machine())
    sizes = f"{len(frames)} clips of {len({_label(video_id) for video_id in frames})} classes, resnet18, 16 frames"
    blocks_used = "four blocks, no validation" if options.refit else "three blocks, validated on a fourth"
    print(f"{sizes}; accuracy on held-out blocks, learned from {blocks_used};")
    print(f"GPT-2: mean of {len(options.seeds)} seeds\n")
    folds = [f"fold {fold}" for fold in range(BLOCKS)]
    rows = []
    for name, values in results.items():
        spread = f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"
        rows.append((name, *(f"{value:.3f}" for value in values), spread))
    print_table(("", *folds, "mean ± deviation"), rows)


def _fold(
    fold: int, blocks: Mapping[str, int], embeddings: Path, frames: Vectors, options: argparse.Namespace
) -> dict[str, float]:
    """Accuracy of each of the four on the held-out block."""
    scratch = options.scratch
    after = (fold + 1) % BLOCKS
    splits = dict.fromkeys(range(BLOCKS), "train") | {fold: "test", after: "validation"}
    truth = {video_id: _label(video_id) for video_id in blocks}
    rows = [(video_id, truth[video_id], splits[block]) for video_id, block in blocks.items()]
    learned = [
        (id_, label, "train" if options.refit and split == "validation" else split) for id_, label, split in rows
    ]
    labels = write_labels(scratch / f"fold-{fold}.csv", learned, split=True)
    ids = {split: [video_id for video_id, _, its in rows if its == split] for split in ("train", "validation", "test")}

    def mean_over_seeds(name: str, *overrides: str) -> float:
        values = []
        for seed in options.seeds:
            model = scratch / f"{name}-{fold}-{seed}"
            train(train_config(embeddings, labels, model, f"seed={seed}", *overrides))
            values.append(accuracy(labels_by_model(model, frames, ids["test"]), truth))
        return statistics.fmean(values)

    linear = linear_probe(
        frames, truth, train=ids["train"], validation=ids["validation"], test=ids["test"], refit=options.refit
    )
    known = [video_id for video_id, _, split in learned if split == "train"]
    return {
        "GPT-2, defaults": mean_over_seeds("default"),
        f"GPT-2, {' '.join(options.overrides)}": mean_over_seeds("set", *options.overrides),
        "linear, mean-pooled": accuracy(linear, truth),
        "1-NN, mean-pooled": accuracy(nearest_neighbour(frames, truth, train=known, test=ids["test"]), truth),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", default=str(WEIGHTS), help="of resnet18: a safetensors file, or random")
    parser.add_argument("--keep", type=Path, help="a folder for clips and embeddings, which the next run finds there")
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=["optimizer.learning_rate=3e-4"],
        help="of train, beside its defaults",
    )
    parser.add_argument("--refit", action="store_true", help="of --drone: learn from the validation block too")
    parser.add_argument("--drone", type=Path, help="a folder of CLASS/CLIP.mp4: the second of the two")
    parser.add_argument("--quick", action="store_true", help="80 clips, 20 held out, one seed: too few to be accurate")
    options = parser.parse_args()
    if options.quick:
        options.clips, options.held_out, options.seeds = 80, 20, [0]
    weights = weights_or_random(options.weights)
    options.scratch = Path(tempfile.mkdtemp(prefix="raypipe-benchmark-"))
    try:
        (drone if options.drone else motion)(options, weights)
    finally:
        shutil.rmtree(options.scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
