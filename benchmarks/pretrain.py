"""Measure the gain from pre-training without labels when labels are few, as accuracy on held-out clips.

    python benchmarks/pretrain.py [--per-label 5] [--seeds 0 1 2] [--keep FOLDER] [--quick]

The data are 400 generated clips of four classes that differ only in the order of their frames, and 80 held-out clips of
another seed. A GPT-2 learns to predict hidden frames of all 400 without labels (``objective=masked_frame``, once, at
the defaults). One training starts from it with 5 labels per class; another starts from random weights with the same
labels, and a third is ``raypipe train`` at its defaults. A seed also chooses which clips are labelled. With so few
labels, none is held out for validation: GPT-2 is trained for the same number of epochs, and the last is kept.
"""

import argparse
from pathlib import Path
from statistics import fmean

import numpy as np

from support import describe_machine, learning, print_table, scratch_folder

FINE_TUNING = ("model.head=gpt2", "data.validation_fraction=0", "optimizer.epochs=60")


def choose(truth: learning.Labels, *, per_label: int, seed: int) -> list[tuple[str, str]]:
    """Choose the clips that are labelled, and return them with their labels."""
    random = np.random.default_rng(seed)
    chosen = []
    for label in learning.MOTIONS:
        members = [video_id for video_id, its in truth.items() if its == label]
        chosen += [(members[at], label) for at in random.permutation(len(members))[:per_label]]
    return chosen


def compare(options: argparse.Namespace, scratch: Path) -> None:
    kept = options.keep or scratch
    truth, held_out = learning.embed_motion_clips(kept, options)
    frames = learning.read_frames(kept / "emb-held")
    pretrained = scratch / "pretrained"
    record = learning.train(learning.train_config(kept / "emb-train", None, pretrained, "objective=masked_frame"))
    ways = {
        "GPT-2 from random weights": (),
        "GPT-2 from masked frames": (f"init_from={pretrained}",),
        "the default, a linear probe": ("model.head=auto",),
    }
    results: dict[str, list[float]] = {way: [] for way in ways}
    for seed in options.seeds:
        chosen = choose(truth, per_label=options.per_label, seed=seed)
        labels = learning.write_labels(scratch / f"{seed}.csv", chosen)
        for number, (way, overrides) in enumerate(ways.items()):
            model, settings = scratch / f"{number}-{seed}", (f"seed={seed}", *FINE_TUNING, *overrides)
            learning.train(learning.train_config(kept / "emb-train", labels, model, *settings))
            results[way].append(learning.accuracy(learning.classify(frames, held_out, model), held_out))
    print(describe_machine())
    print(f"{options.per_label} labels a class of {options.clips} clips; accuracy on {options.held_out} held-out ones")
    if best := record.kept:
        print(f"pre-training kept epoch {best.epoch} of {len(record.epochs)}: loss {best.validation_loss:.3f}\n")
    rows = [(way, *(f"{value:.3f}" for value in values), f"{fmean(values):.3f}") for way, values in results.items()]
    print_table(("fine-tuned", *(f"seed {seed}" for seed in options.seeds), "mean"), rows)
    before, after, _ = map(fmean, results.values())
    print(f"\nPre-training gains {after - before:+.3f}; chance is {1 / len(learning.MOTIONS)}.")


def main() -> None:
    options = learning.parse_options(__doc__, lambda it: it.add_argument("--per-label", type=int, default=5))
    with scratch_folder() as scratch:
        compare(options, scratch)


if __name__ == "__main__":
    main()
