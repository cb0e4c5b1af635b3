"""What pre-training without labels gives where labels are few: accuracy on held-out clips with it and without it.

    python benchmarks/pretrain.py [--per-label 5] [--seeds 0 1 2] [--keep FOLDER] [--quick]

400 generated clips of four classes that differ in the order of time alone; 80 of another seed are held out. A GPT-2
predicts hidden frames of all 400, without a label (``objective=masked_frame``, once, at the defaults); another training
goes on from it with 5 labels a class, and one does the same from random weights. A seed also chooses which clips have
labels. With so few none is held out for validation: both learn for the same number of epochs, and their last is kept.
"""

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from _common import describe_machine, print_table
from _learning import (
    WEIGHTS,
    accuracy,
    embed,
    labels_by_model,
    read_frames,
    train,
    train_config,
    weights_or_random,
    write_labels,
)
from _motion import LABELS, make_motion_clips
from temporal import HELD_OUT_SEED, TRAIN_SEED

PRETRAINING = ("objective=masked_frame",)
FINE_TUNING = ("data.validation_fraction=0", "optimizer.epochs=60")


def choose(truth: Mapping[str, str], *, per_label: int, seed: int) -> list[tuple[str, str]]:
    """The clips that have labels."""
    random = np.random.default_rng(seed)
    chosen = []
    for label in LABELS:
        members = [video_id for video_id, its in truth.items() if its == label]
        chosen += [(members[at], label) for at in random.permutation(len(members))[:per_label]]
    return chosen


def measure(options: argparse.Namespace, scratch: Path, weights: str) -> None:
    """Print the table."""
    kept = options.keep or scratch
    truth = dict(make_motion_clips(kept / "train", options.clips, seed=TRAIN_SEED))
    held_out = dict(make_motion_clips(kept / "held", options.held_out, seed=HELD_OUT_SEED))
    for name in ("train", "held"):
        embed(kept / name, kept / f"emb-{name}", weights=weights)
    frames = read_frames(kept / "emb-held")
    pretrained = scratch / "pretrained"
    record = train(train_config(kept / "emb-train", None, pretrained, *PRETRAINING))
    ways = {"from random weights": (), "from masked frames": (f"init_from={pretrained}",)}
    results: dict[str, list[float]] = {way: [] for way in ways}
    for seed in options.seeds:
        labels = write_labels(scratch / f"{seed}.csv", choose(truth, per_label=options.per_label, seed=seed))
        for number, (way, overrides) in enumerate(ways.items()):
            model = scratch / f"{number}-{seed}"
            train(train_config(kept / "emb-train", labels, model, f"seed={seed}", *FINE_TUNING, *overrides))
            results[way].append(accuracy(labels_by_model(model, frames, list(held_out)), held_out))
    print(describe_machine())
    print(f"{options.per_label} labels a class of {options.clips} clips; accuracy on {options.held_out} held-out ones")
    loss = next(epoch.validation_loss for epoch in record.epochs if epoch.epoch == record.best_epoch)
    print(f"pre-training kept epoch {record.best_epoch} of {len(record.epochs)}: hidden frames' error {loss:.3f}\n")
    head = ("fine-tuned", *(f"seed {seed}" for seed in options.seeds), "mean")
    rows = [
        (way, *(f"{value:.3f}" for value in values), f"{statistics.fmean(values):.3f}")
        for way, values in results.items()
    ]
    print_table(head, rows)
    before, after = (statistics.fmean(values) for values in results.values())
    print(f"\nPre-training gives {after - before:+.3f}; chance is {1 / len(LABELS)}.")


def main() -> None:
    """Read the options, and leave nothing behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=80)
    parser.add_argument("--per-label", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", default=str(WEIGHTS), help="of resnet18: a safetensors file, or random")
    parser.add_argument("--keep", type=Path, help="a folder for clips and embeddings, which the next run finds there")
    parser.add_argument("--quick", action="store_true", help="80 clips, 20 held out, one seed: too few to be accurate")
    options = parser.parse_args()
    if options.quick:
        options.clips, options.held_out, options.seeds = 80, 20, [0]
    weights = weights_or_random(options.weights)
    scratch = Path(tempfile.mkdtemp(prefix="raypipe-benchmark-"))
    try:
        measure(options, scratch, weights)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
