"""Measure `raypipe suggest`: how many labels it saves, and how many of the labels that it doubts are wrong.

    python benchmarks/suggest.py [--tasks permutation] [--seeds 0 1 2 3 4] [--methods suggest margin] [--keep FOLDER]
    python benchmarks/suggest.py --drone ../shared/assets/labelled/drone [--seeds 0 1] [--keep FOLDER] [--quick]

The first command generates 400 clips to learn from and 400 to test on for each task of ``support/order_clips.py``. The
second uses real clips in 5 folds of consecutive clips: each fold is a test set, and the other clips can be labelled.

**Labels to save.** A round fits the probe of `raypipe train` to the labels so far, measures it on the test clips, and
labels a batch more: clips that a method chooses, or random ones. Every method starts with the same random batch. The
figure is the number of labels at which the mean accuracy of all draws reaches 90 % of the accuracy with all labels,
relative to random order, with a 95 % bootstrap interval over draws.

- ``suggest``: `raypipe suggest`. ``cold`` is the same, without a random batch to start with.
- ``margin``: the clips with the smallest difference between the two most probable labels.
- ``coverage``: clips that resemble many others, whatever the probe thinks.

**Labels to check.** One tenth of the labels is changed to random other ones. Precision is the fraction of the listed
labels that were changed, and recall the fraction of the changed labels that are listed.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from raypipe.evaluation.next_labels import uncertainty
from raypipe.jobs.suggest.advice import fit_labelled, label_doubts, next_labels
from raypipe.jobs.train.classifier.probing import LabelSpace, PooledVideos, TrainedProbe
from support import describe_machine, learning, order_clips, print_table, scratch_folder
from temporal import BLOCKS, blocks_of

METHODS = ("suggest", "cold", "margin", "coverage")
RANDOM, _SHARE, _FLIPPED, _NUM_DRAWS = "random", 0.9, 0.1, 1_000
_TRAIN_SEED, _TEST_SEED = 1, 2
Ints = npt.NDArray[np.int64]
Curve = Mapping[int, float]  # the accuracy by number of labels


class Clips(NamedTuple):
    """Clips that can be labelled, and clips to test on, with their true labels."""

    pool: PooledVideos
    test: PooledVideos
    space: LabelSpace


def pooled(frames: learning.Frames, truth: learning.Labels, ids: Sequence[str], test_ids: Sequence[str]) -> Clips:
    names = sorted(set(truth.values()))
    parts = [learning.pool(frames, truth, part, names) for part in (ids, test_ids)]
    return Clips(parts[0], parts[1], LabelSpace(len(names), multi_label=False))


def take(videos: PooledVideos, rows: Ints) -> PooledVideos:
    return PooledVideos(videos.statistics[rows], videos.labels[rows])


def accuracy(probe: TrainedProbe, clips: Clips) -> float:
    found = probe.logits(clips.test).argmax(dim=1).numpy()
    return float((found == clips.test.labels.numpy()).mean())


def accuracy_with_all(clips: Clips) -> float:
    probe = fit_labelled(clips.pool, clips.space)
    return 0.0 if probe is None else accuracy(probe, clips)


def next_batch(
    method: str, probe: TrainedProbe | None, clips: Clips, known: Ints, free: Ints, *, count: int, seed: int
) -> Ints:
    """Return the positions in ``free`` of the clips to label next."""
    random = np.random.default_rng([seed, len(known)])
    unlabelled = take(clips.pool, free)
    if method == RANDOM:
        return random.permutation(len(free))[:count]
    if method == "margin":
        if probe is None:
            return random.permutation(len(free))[:count]
        probabilities = clips.space.probabilities(probe.logits(unlabelled)).numpy()
        return np.argsort(-uncertainty(probabilities, multi_label=False))[:count]
    asked = None if method == "coverage" else probe
    labelled = take(clips.pool, known) if len(known) else None
    return next_labels(asked, labelled, unlabelled, clips.space, count=count, seed=seed).rows


def simulate(method: str, clips: Clips, *, batch: int, max_labels: int, seed: int) -> Curve:
    """Label one batch after the other, and return the test accuracy after each."""
    every = np.arange(len(clips.pool.labels))
    known = every[:0] if method == "cold" else np.random.default_rng(seed).permutation(every)[:batch]
    curve = {}
    while True:
        probe = fit_labelled(take(clips.pool, known), clips.space) if len(known) else None
        if len(known):
            chance = float((clips.test.labels == clips.pool.labels[known[0]]).float().mean())  # of a single label
            curve[len(known)] = chance if probe is None else accuracy(probe, clips)
        if len(known) >= min(max_labels, len(every)):
            return curve
        free = np.setdiff1d(every, known)
        rows = next_batch(method, probe, clips, known, free, count=batch, seed=seed)
        known = np.concatenate([known, free[rows]])


def labels_needed(curves: Sequence[Curve], target: float, *, unreached: float) -> float:
    """Return at how many labels the mean of the curves first reaches the target, by linear interpolation.

    If it never does, return ``unreached``.
    """
    sizes = sorted(curves[0])
    means = [float(np.mean([curve[size] for curve in curves])) for size in sizes]
    for at, mean in enumerate(means):
        if mean >= target:
            if at == 0:
                return float(sizes[0])
            part = (target - means[at - 1]) / (mean - means[at - 1])
            return sizes[at - 1] + part * (sizes[at] - sizes[at - 1])
    return unreached


def saving_rows(name: str, draws: Sequence[tuple[Clips, int]], options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Return a row per method: the labels it needs, and their ratio to those of random order."""
    by_clips = {id(clips): accuracy_with_all(clips) for clips in {id(clips): clips for clips, _ in draws}.values()}
    full = np.array([by_clips[id(clips)] for clips, _ in draws])
    needed = partial(_needed, full=full)
    everything = np.arange(len(draws))
    resampled = np.random.default_rng(0).integers(0, len(draws), (_NUM_DRAWS, len(draws)))
    rows: list[tuple[str, ...]] = []
    curves: dict[str, list[Curve]] = {}
    for method in (RANDOM, *options.methods):
        found = curves[method] = [
            simulate(method, clips, batch=options.batch, max_labels=options.max_labels, seed=seed)
            for clips, seed in draws
        ]
        ratios = [needed(curves, method, rows=some) / needed(curves, RANDOM, rows=some) for some in resampled]
        low, high = np.nanquantile(ratios, [0.025, 0.975], method="nearest")
        count = needed(curves, method, rows=everything)
        ratio = f"{count / needed(curves, RANDOM, rows=everything):.2f} [{low:.2f}, {high:.2f}]"
        areas = f"{np.mean([list(curve.values()) for curve in found]):.3f}"
        rows.append((name, f"{full.mean():.3f}", method, f"{count:.0f}", "" if method == RANDOM else ratio, areas))
        print(rows[-1], flush=True)
    return rows


def _needed(curves: Mapping[str, Sequence[Curve]], method: str, *, rows: Ints, full: npt.NDArray[np.float64]) -> float:
    found = [curves[method][row] for row in rows]
    unreached = max(found[0]) if method == RANDOM else float("inf")  # so no ratio looks better than it is
    return labels_needed(found, _SHARE * float(full[rows].mean()), unreached=unreached)


def check_row(name: str, pool: PooledVideos, space: LabelSpace, seeds: Sequence[int]) -> tuple[str, ...]:
    """Return a row with the precision and the recall of the labels to check, as means over the seeds."""
    found = np.array([_check(pool, space, seed) for seed in seeds])
    means, (low, high) = found.mean(axis=0), np.quantile(found[:, 1], [0, 1])
    precision = f"{means[1]:.2f} ({low:.2f} to {high:.2f})"
    return (name, f"{len(pool.labels)}", f"{means[3]:.0f}", f"{means[0]:.0f}", precision, f"{means[2]:.2f}")


def _check(pool: PooledVideos, space: LabelSpace, seed: int) -> tuple[float, float, float, float]:
    random, num_videos = np.random.default_rng(seed), len(pool.labels)
    rows = random.choice(num_videos, round(_FLIPPED * num_videos), replace=False)
    labels = pool.labels.clone()
    labels[rows] = (labels[rows] + torch.from_numpy(random.integers(1, space.num_labels, len(rows)))) % space.num_labels
    given = replace(pool, labels=labels)
    probe = fit_labelled(given, space)
    doubted = {doubt.row for doubt in label_doubts(probe, given, space)} if probe is not None else set()
    num_right = len(doubted & {*rows.tolist()})
    return len(doubted), num_right / max(1, len(doubted)), num_right / len(rows), len(rows)


def generated(task: str, options: argparse.Namespace, scratch: Path) -> Clips:
    kept, truth = (options.keep or scratch) / task, {}
    for name, count, seed in (("train", options.clips, _TRAIN_SEED), ("test", options.held_out, _TEST_SEED)):
        truth |= order_clips.write_clips(kept / name, task, count, seed=seed)
        learning.embed(kept / name, kept / f"emb-{name}")
    frames = {**learning.read_frames(kept / "emb-train"), **learning.read_frames(kept / "emb-test")}
    ids = [[name for name in sorted(truth) if name.startswith(f"{seed:03d}-")] for seed in (_TRAIN_SEED, _TEST_SEED)]
    return pooled(frames, truth, *ids)


def folds_of_drone(options: argparse.Namespace, scratch: Path) -> tuple[list[Clips], Clips]:
    """Return the folds, and all clips as if they were all labelled."""
    embeddings = (options.keep or scratch) / f"emb-{options.drone.name}"
    learning.embed(options.drone, embeddings)
    frames = learning.read_frames(embeddings)
    truth = {video_id: video_id.partition("/")[0] for video_id in frames}
    blocks, ids = blocks_of(truth), sorted(frames)
    folds = [
        pooled(frames, truth, [one for one in ids if blocks[one] != fold], [one for one in ids if blocks[one] == fold])
        for fold in range(BLOCKS)
    ]
    return folds, pooled(frames, truth, ids, ids)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", choices=list(order_clips.LABELS), default=["permutation"])
    parser.add_argument("--drone", type=Path, help="a folder with CLASS/CLIP.mp4")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, help="labels per round; by default 8 for --drone, else 20")
    parser.add_argument("--max-labels", type=int, help="by default 96 for --drone, else 260")
    parser.add_argument("--only", choices=("save", "check"), help="measure one of the two")
    parser.set_defaults(held_out=400, seeds=[0, 1, 2, 3, 4])


def main() -> None:
    options = learning.parse_options(__doc__, add_options)
    options.batch = options.batch or (8 if options.drone else 20)
    options.max_labels = options.max_labels or (96 if options.drone else 260)
    saving, checking = [], []
    with scratch_folder() as scratch:
        sets: list[tuple[str, list[Clips], Clips]] = []
        if options.drone:
            sets.append(("drone", *folds_of_drone(options, scratch)))
        else:
            for task in options.tasks:
                clips = generated(task, options, scratch)
                sets.append((task, [clips], clips))
        for name, parts, whole in sets:
            if options.only != "check":
                draws = [(clips, seed) for seed in options.seeds for clips in parts]
                saving += saving_rows(name, draws, options)
            if options.only != "save":
                checking.append(check_row(name, whole.pool, whole.space, options.seeds))
    print(describe_machine())
    print(f"{len(options.seeds)} seeds, batches of {options.batch} labels, resnet18, 16 frames\n")
    if saving:
        headings = ("", "accuracy with all", "method", f"labels for {_SHARE:.0%} of it", "of random", "mean accuracy")
        print_table(headings, saving)
    if checking:
        print_table(("", "labels", "changed", "listed", "precision", "recall"), checking)


if __name__ == "__main__":
    main()
