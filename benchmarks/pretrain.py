"""Measure the gain from pre-training without labels when labels are few, as accuracy on held-out clips.

    python benchmarks/pretrain.py [--per-label 5] [--seeds 0 1 2] [--keep FOLDER] [--quick]

The data are 400 generated clips of four classes that differ only in the order of their frames, and 80 held-out clips of
another seed. One GPT-2 learns to predict hidden frames of all 400 without labels (``objective=masked_frame``), another
one their order (``frame_order``), once, at the defaults. A training starts from each of them with 5 labels per class;
another starts from random weights with the same labels, and the last is ``raypipe train`` at its defaults. A seed also
chooses which clips are labelled. With so few labels, none is held out for validation: GPT-2 is trained for the same
number of epochs, and the last is kept.
"""

import argparse
from pathlib import Path
from statistics import fmean

from support import describe_machine, learning, print_table, scratch_folder

FINE_TUNING = ("model.head=gpt2", "data.validation_fraction=0", "optimizer.epochs=60")


def compare(options: argparse.Namespace, scratch: Path) -> None:
    kept = options.keep or scratch
    truth, held_out = learning.embed_motion_clips(kept, options)
    frames = learning.read_frames(kept / "emb-held")
    objectives = {"masked frames": "masked_frame", "the order of frames": "frame_order"}
    records = {
        name: learning.train(learning.train_config(kept / "emb-train", None, scratch / name, f"objective={objective}"))
        for name, objective in objectives.items()
    }
    ways: dict[str, tuple[str, ...]] = {
        "random weights": (),
        **{name: (f"init_from={scratch / name}",) for name in objectives},
        "the default, a linear probe": ("model.head=auto",),
    }
    results: dict[str, list[float]] = {way: [] for way in ways}
    for seed in options.seeds:
        chosen = learning.choose(truth, learning.MOTIONS, per_label=options.per_label, seed=seed)
        labels = learning.write_labels(scratch / f"{seed}.csv", chosen)
        for number, (way, overrides) in enumerate(ways.items()):
            model, settings = scratch / f"{number}-{seed}", (f"seed={seed}", *FINE_TUNING, *overrides)
            learning.train(learning.train_config(kept / "emb-train", labels, model, *settings))
            results[way].append(learning.accuracy(learning.classify(frames, held_out, model), held_out))
    print(describe_machine())
    print(f"{options.per_label} labels a class of {options.clips} clips; accuracy on {options.held_out} held-out ones")
    for name, record in records.items():
        if best := record.kept:
            print(f"{name}: kept epoch {best.epoch} of {len(record.epochs)}, with loss {best.validation_loss:.3f}")
    rows = [(way, *(f"{value:.3f}" for value in values), f"{fmean(values):.3f}") for way, values in results.items()]
    print()
    print_table(("GPT-2 starts from", *(f"seed {seed}" for seed in options.seeds), "mean"), rows)
    print(f"\nChance is {1 / len(learning.MOTIONS)}.")


def main() -> None:
    options = learning.parse_options(__doc__, lambda it: it.add_argument("--per-label", type=int, default=5))
    with scratch_folder() as scratch:
        compare(options, scratch)


if __name__ == "__main__":
    main()
