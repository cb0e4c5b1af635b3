"""Compare `raypipe train` with simple models on videos whose label depends on time, as accuracy on held-out clips.

    python benchmarks/temporal.py [--tasks count periodic] [--seeds 0 1 2 3 4] [--keep FOLDER] [--quick]
    python benchmarks/temporal.py --drone ../shared/assets/labelled/drone [--seeds 0] [--keep FOLDER]
    python benchmarks/temporal.py --clips-of ../shared/assets/videos [--seeds 0] [--keep FOLDER]

The first command generates 400 clips to learn from and 400 to test on for each task of ``support/order_clips.py``, and
embeds them with ResNet-18. Each seed holds out other clips for validation. "auto" is the default, ``model.head=auto``,
and "GPT-2 alone" is ``model.head=gpt2``.

The other commands use real clips in 5 folds. A fold tests on one block of consecutive clips of each class, validates on
the next block, and trains on the others. With ``--drone``, the labels are the four classes; afterwards, and with
``--clips-of``, whether a clip is played forwards or backwards.

All models see the same clips: the simple ones also learn from the validation clips. The last columns are the accuracy
of auto minus that of the best other model, with a paired 95 % bootstrap interval, and how often auto kept GPT-2.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from raypipe.evaluation.calibration import calibration_error
from raypipe.evaluation.ranking_metrics import intervals
from raypipe.models.classifier import VideoClassifier
from raypipe.records import GPT2_ALONE
from support import describe_machine, learning, order_clips, print_table, scratch_folder
from support.learning import Split

BLOCKS = 5
_TRAIN_SEED, _TEST_SEED = 1, 2
_VALIDATION_FRACTION = 0.1
Probabilities = Mapping[str, npt.NDArray[np.float32]]


class Outcome:
    """The accuracies of all models on one set of test clips."""

    def __init__(self) -> None:
        self.rights: dict[str, list[npt.NDArray[np.float64]]] = {}
        self.confidences: list[npt.NDArray[np.float64]] = []
        self.is_right: list[npt.NDArray[np.bool_]] = []
        self.num_kept, self.num_trained = 0, 0

    def add(
        self, found: Probabilities, truth: npt.NDArray[np.int64], model: VideoClassifier, *, clips: Sequence[str]
    ) -> None:
        """Add what models predict for some videos. The trained model is named ``auto``.

        Videos with equal names in ``clips`` are one observation: their mean.
        """
        _, members = np.unique(clips, return_inverse=True)
        sizes = np.bincount(members)
        for name, each in found.items():
            right = (each.argmax(axis=1) == truth).astype(np.float64)
            self.rights.setdefault(name, []).append(np.bincount(members, weights=right) / sizes)
        self.is_right.append(found["auto"].argmax(axis=1) == truth)
        self.confidences.append(found["auto"].max(axis=1).astype(np.float64))
        self.num_kept += model.config.has_gpt2
        self.num_trained += 1

    def row(self, *, num_parts: int) -> tuple[str, ...]:
        """Return the accuracies, the interval and the calibration error. ``num_parts`` parts make one set of clips."""
        each = {
            name: np.mean(
                [np.concatenate(parts[at : at + num_parts]) for at in range(0, len(parts), num_parts)], axis=0
            )
            for name, parts in self.rights.items()
        }
        best = max((name for name in each if name != "auto"), key=lambda name: float(each[name].mean()))
        found = intervals({"difference": each["auto"] - each[best]})["difference"]
        error = calibration_error(np.concatenate(self.confidences), np.concatenate(self.is_right))
        parts = [f"{each[name].mean():.3f}" for name in COLUMNS]
        seeds = [
            np.concatenate(self.rights["auto"][at : at + num_parts]).mean()
            for at in range(0, self.num_trained, num_parts)
        ]
        spread = f" ({min(seeds):.3f} to {max(seeds):.3f})" if len(seeds) > 1 else ""
        difference = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        return (
            *parts,
            f"{each['auto'].mean():.3f}{spread}",
            difference,
            f"{error:.3f}",
            f"{self.num_kept}/{self.num_trained}",
        )


COLUMNS = (
    "majority",
    "1-NN on mean",
    "linear on mean",
    "linear on mean, slope, std",
    "linear on 16 frames",
    GPT2_ALONE,
)
HEADINGS = (
    "",
    "majority",
    "1-NN",
    "mean",
    "mean, slope, std",
    "16 frames",
    "GPT-2 alone",
    "auto",
    "auto - best other",
    "ECE",
    "GPT-2 kept",
)


def run_task(task: str, options: argparse.Namespace, scratch: Path) -> tuple[str, ...]:
    """Train on a generated task, and return its row."""
    kept = (options.keep or scratch) / task
    truth: dict[str, str] = {}
    for name, count, seed in (("train", options.clips, _TRAIN_SEED), ("test", options.held_out, _TEST_SEED)):
        truth |= order_clips.write_clips(kept / name, task, count, seed=seed)
        learning.embed(kept / name, kept / f"emb-{name}")
    frames = {**learning.read_frames(kept / "emb-train"), **learning.read_frames(kept / "emb-test")}
    names = sorted(set(truth.values()))
    outcome = Outcome()
    for seed in options.seeds:
        split = split_of(truth, seed=seed)
        expected = np.array([names.index(truth[video_id]) for video_id in split.test])
        models = {"auto": learning.fit(frames, truth, split, scratch / f"{task}-{seed}", f"seed={seed}")}
        folder = scratch / f"{task}-{seed}-gpt2"
        models[GPT2_ALONE] = learning.fit(frames, truth, split, folder, f"seed={seed}", "model.head=gpt2")
        outcome.add(learning.probabilities(frames, truth, split, models), expected, models["auto"], clips=split.test)
    return (task, *outcome.row(num_parts=1))


def split_of(truth: Mapping[str, str], *, seed: int) -> Split:
    """Return the clips of the training seed, with every tenth of each label for validation, and the test clips."""
    random = np.random.default_rng(seed)
    train, validation, test = [], [], []
    for _, members in groupby(
        sorted(truth, key=lambda video_id: truth[video_id]), key=lambda video_id: truth[video_id]
    ):
        clips = list(members)
        test += [video_id for video_id in clips if video_id.startswith(f"{_TEST_SEED:03d}-")]
        known = random.permutation(sorted(set(clips) - set(test))).tolist()
        held_out = round(_VALIDATION_FRACTION * len(known))
        validation += known[:held_out]
        train += known[held_out:]
    return Split(sorted(train), sorted(validation), sorted(test))


class RealClips(NamedTuple):
    """Clips with their labels, and the block of each."""

    name: str
    frames: learning.Frames
    truth: learning.Labels
    blocks: Mapping[str, int]


def run_folds(clips: RealClips, options: argparse.Namespace, scratch: Path) -> tuple[str, ...]:
    """Train on the folds of real clips, and return the row over all of them."""
    name, frames, truth, blocks = clips
    names, outcome = sorted(set(truth.values())), Outcome()
    for seed in options.seeds:
        for fold, split in enumerate(folds(blocks)):
            expected = np.array([names.index(truth[video_id]) for video_id in split.test])
            folder = scratch / f"{name}-{seed}-{fold}"
            models = {"auto": learning.fit(frames, truth, split, folder, f"seed={seed}")}
            models[GPT2_ALONE] = learning.fit(
                frames, truth, split, Path(f"{folder}-gpt2"), f"seed={seed}", "model.head=gpt2"
            )
            clips = [video_id.partition("|")[0] for video_id in split.test]  # both directions of a clip are one
            found = learning.probabilities(frames, truth, split, models)
            outcome.add(found, expected, models["auto"], clips=clips)
    return (name, *outcome.row(num_parts=BLOCKS))


def folds(blocks: Mapping[str, int]) -> Iterator[Split]:
    """Yield the splits: each block is tested once, after validation on the next one."""
    for fold in range(BLOCKS):
        parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for video_id, block in sorted(blocks.items()):
            part = {fold: "test", (fold + 1) % BLOCKS: "validation"}.get(block, "train")
            parts[part].append(video_id)
        yield Split(**parts)


def blocks_of(truth: learning.Labels) -> dict[str, int]:
    """Return the number of each video's block: each class is divided into 5 blocks of consecutive clips."""
    blocks: dict[str, int] = {}
    for _, members in groupby(
        sorted(truth, key=lambda video_id: (truth[video_id], video_id)), key=lambda video_id: truth[video_id]
    ):
        clips = list(members)
        blocks |= {video_id: BLOCKS * at // len(clips) for at, video_id in enumerate(clips)}
    return blocks


def both_directions(name: str, frames: learning.Frames, blocks: Mapping[str, int]) -> RealClips:
    """Return each clip forwards and backwards, with these labels and with the clip's block."""
    played, truth, its_blocks = {}, {}, {}
    for video_id, vectors in frames.items():
        for label, each in (("forwards", vectors), ("backwards", vectors[::-1])):
            played[f"{video_id}|{label}"], truth[f"{video_id}|{label}"] = each, label
            its_blocks[f"{video_id}|{label}"] = blocks[video_id]
    return RealClips(name, played, truth, its_blocks)


def run_real(options: argparse.Namespace, scratch: Path) -> list[tuple[str, ...]]:
    """Return the rows of real clips."""
    folder = options.drone or options.clips_of
    embeddings = (options.keep or scratch) / f"emb-{folder.name}"
    learning.embed(folder, embeddings)
    frames, rows = learning.read_frames(embeddings), []
    truth = {video_id: video_id.partition("/")[0] if options.drone else "" for video_id in frames}
    blocks = blocks_of(truth)
    if options.drone:
        rows.append(run_folds(RealClips("drone", frames, truth, blocks), options, scratch))
    rows.append(run_folds(both_directions(f"{folder.name}-direction", frames, blocks), options, scratch))
    return rows


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", choices=list(order_clips.LABELS), default=list(order_clips.LABELS))
    parser.add_argument("--drone", type=Path, help="a folder with CLASS/CLIP.mp4")
    parser.add_argument("--clips-of", type=Path, help="a folder with clips")
    parser.set_defaults(held_out=400, seeds=[0, 1, 2, 3, 4])


def main() -> None:
    options = learning.parse_options(__doc__, add_options)
    with scratch_folder() as scratch:
        real = options.drone or options.clips_of
        rows = run_real(options, scratch) if real else [run_task(task, options, scratch) for task in options.tasks]
        print(describe_machine())
        if not real:
            print(f"{options.clips} clips to learn from, {options.held_out} to test, resnet18, 16 frames")
        print(f"auto: mean of {len(options.seeds)} seeds\n")
        print_table(HEADINGS, rows)
        if options.quick:
            print("\nThis few clips show only that it runs, not what it learns.")


if __name__ == "__main__":
    main()
