"""Compare the accuracy of a GPT-2 over frames with simpler models that ignore their order, on held-out clips.

    python benchmarks/temporal.py [--seeds 0 1 2] [--keep FOLDER] [--quick]
    python benchmarks/temporal.py --drone ../shared/assets/labelled/drone

The first command embeds 400 generated clips of four classes that differ only in the order of their frames, and 80
held-out clips of another seed. It trains at the defaults of ``raypipe train``, and compares with a linear model on
mean-pooled vectors, which trains and validates on the same clips.

The second command uses real clips, 4 classes x 40, in which clips with consecutive numbers were recorded one after the
other. Each class is divided into 5 blocks of consecutive clips. A fold holds out one block of each class, validates on
the next, and trains on the other three. GPT-2, at the defaults and with ``--set``, is compared with a linear model and
with the nearest neighbour. The validation block chooses the linear model's penalty as it chooses GPT-2's epoch.
"""

import argparse
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev

from support import describe_machine, learning, print_table, scratch_folder, verdict

TARGET = 0.93
BLOCKS = 5


def compare_motion(options: argparse.Namespace, scratch: Path) -> None:
    """Train once per seed at the defaults, and print the accuracy on the held-out clips."""
    kept = options.keep or scratch
    train_labels, held_out = learning.embed_motion_clips(kept, options)
    truth = train_labels | held_out
    labels = learning.write_labels(scratch / "labels.csv", train_labels.items())
    frames = {**learning.read_frames(kept / "emb-train"), **learning.read_frames(kept / "emb-held")}
    gpt2, linear, rows = [], [], []
    for seed in options.seeds:
        model = scratch / f"model-{seed}"
        config = learning.train_config(kept / "emb-train", labels, model, f"seed={seed}")
        record = learning.train(config)
        gpt2.append(learning.accuracy(learning.classify(frames, held_out, model), truth))
        train, validation = learning.split_of(config)
        probe = learning.linear_probe(frames, truth, train=train, validation=validation, test=list(held_out))
        linear.append(learning.accuracy(probe, truth))
        rows.append((f"seed {seed}", gpt2[-1], linear[-1], f"{record.best_epoch} of {len(record.epochs)}"))
    if len(options.seeds) > 1:
        rows.append(("mean", fmean(gpt2), fmean(linear), ""))
    print(describe_machine())
    print(f"{options.clips} clips to learn from, {options.held_out} held out, resnet18, 16 frames; accuracy on those\n")
    rows = [(name, f"{ours:.3f}", f"{probe:.3f}", epoch) for name, ours, probe, epoch in rows]
    print_table(("", "GPT-2, defaults", "linear, mean-pooled", "epoch kept"), rows)
    if options.quick:
        print("\nThis few clips show only that it runs, not what it learns.")
        return
    print(f"\nThe target of {TARGET} is {verdict(met=fmean(gpt2) >= TARGET)}; chance is 0.25.")


def compare_drone(options: argparse.Namespace, scratch: Path) -> None:
    options.embeddings = (options.keep or scratch) / "emb-drone"
    learning.embed(options.drone, options.embeddings)
    frames = learning.read_frames(options.embeddings)
    truth = {video_id: video_id.partition("/")[0] for video_id in frames}
    blocks = blocks_of(truth)
    folds = []
    for fold in range(BLOCKS):
        splits = dict.fromkeys(range(BLOCKS), "train") | {fold: "test", (fold + 1) % BLOCKS: "validation"}
        split = {video_id: splits[block] for video_id, block in blocks.items()}
        (scratch / str(fold)).mkdir()
        folds.append(fold_accuracies(split, truth, frames, options, scratch / str(fold)))
    print(describe_machine())
    print(f"{len(frames)} clips of {len(set(truth.values()))} classes, resnet18, 16 frames; accuracy on held-out")
    print(f"blocks, learned from three, validated on a fourth; GPT-2: mean of {len(options.seeds)} seeds\n")
    rows = []
    for model in folds[0]:
        values = [fold[model] for fold in folds]
        rows.append((model, *(f"{value:.3f}" for value in values), f"{fmean(values):.3f} ± {stdev(values):.3f}"))
    print_table(("", *(f"fold {fold}" for fold in range(BLOCKS)), "mean ± deviation"), rows)


def blocks_of(truth: learning.Labels) -> dict[str, int]:
    """Return the number of each video's block: each class is divided into 5 blocks of consecutive clips."""
    blocks = {}
    for _, members in groupby(sorted(truth), key=lambda video_id: truth[video_id]):
        clips = list(members)
        blocks |= {video_id: BLOCKS * at // len(clips) for at, video_id in enumerate(clips)}
    return blocks


def fold_accuracies(
    split: learning.Labels, truth: learning.Labels, frames: learning.Frames, options: argparse.Namespace, scratch: Path
) -> dict[str, float]:
    """Return the accuracy of each model on the videos of the split ``test``."""
    rows = [(video_id, truth[video_id], its) for video_id, its in split.items()]
    labels = learning.write_labels(scratch / "labels.csv", rows, split=True)
    ids = {name: [video_id for video_id, its in split.items() if its == name] for name in set(split.values())}

    def mean_over_seeds(name: str, *overrides: str) -> float:
        values = []
        for seed in options.seeds:
            model = scratch / f"{name}-{seed}"
            learning.train(learning.train_config(options.embeddings, labels, model, f"seed={seed}", *overrides))
            values.append(learning.accuracy(learning.classify(frames, ids["test"], model), truth))
        return fmean(values)

    nearest = learning.nearest_neighbour(frames, truth, train=ids["train"], test=ids["test"])
    return {
        "GPT-2, defaults": mean_over_seeds("default"),
        f"GPT-2, {' '.join(options.overrides)}": mean_over_seeds("set", *options.overrides),
        "linear, mean-pooled": learning.accuracy(learning.linear_probe(frames, truth, **ids), truth),
        "1-NN, mean-pooled": learning.accuracy(nearest, truth),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    overrides = ["optimizer.learning_rate=3e-4"]
    parser.add_argument("--set", dest="overrides", nargs="+", default=overrides, help="options of train, for --drone")
    parser.add_argument("--drone", type=Path, help="a folder with CLASS/CLIP.mp4, for the second comparison")


def main() -> None:
    options = learning.parse_options(__doc__, add_options)
    with scratch_folder() as scratch:
        (compare_drone if options.drone else compare_motion)(options, scratch)


if __name__ == "__main__":
    main()
