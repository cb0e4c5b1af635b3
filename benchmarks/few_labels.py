"""Compare self-training with supervised training and label spreading, with 5 labels per class, as accuracy.

    python benchmarks/few_labels.py [--draws 5] [--per-label 5] [--keep FOLDER] [--quick]
    python benchmarks/few_labels.py --drone ../shared/assets/labelled/drone [--keep FOLDER]

The first command generates 400 clips of four classes that differ only in the order of their frames, of which each draw
labels others, and 400 held-out clips. With ``--drone``, the clips are tested in 5 folds of consecutive clips of each
class, and the labelled clips are drawn from the other folds.

"supervised" is the probe of ``raypipe train`` at its defaults, "self-trained" that of ``objective=self_train``: GPT-2
is not trained, because so few labels leave no videos to choose it by. Label spreading and the teacher, which is label
spreading or a linear model on the statistics that suit the labels best, also know the frames of the test clips. The
interval is that of self-trained minus the other, paired by clip.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from raypipe.config.train import SelfTrainConfig
from raypipe.evaluation.ranking_metrics import intervals
from raypipe.jobs.train.classifier.peers import spread_probabilities
from raypipe.jobs.train.classifier.probing import LabelSpace, PooledVideos, fit_probe
from raypipe.jobs.train.classifier.self_training import teach
from support import describe_machine, learning, print_table, scratch_folder
from support.learning import Frames, Labels, Split
from temporal import blocks_of, folds

SELF_TRAINED = "self-trained"
Rights = dict[str, list[npt.NDArray[np.float64]]]


def compare(frames: Frames, truth: Labels, splits: Sequence[Split], options: argparse.Namespace) -> list[Sequence[str]]:
    """Return a row per model, with its accuracy on the test clips of all splits."""
    rights: Rights = {}
    for draw in range(options.draws):
        of_draw: Rights = {}
        for split in splits:
            for name, right in run(frames, truth, split, per_label=options.per_label, seed=draw).items():
                of_draw.setdefault(name, []).append(right)
        for name, parts in of_draw.items():
            rights.setdefault(name, []).append(np.concatenate(parts))
    means = {name: np.mean(each, axis=0) for name, each in rights.items()}
    found = intervals({name: means[SELF_TRAINED] - mean for name, mean in means.items() if name != SELF_TRAINED})
    rows = []
    for name, each in rights.items():
        draws = [right.mean() for right in each]
        spread = f"{np.mean(draws):.3f} ({min(draws):.3f} to {max(draws):.3f})"
        gain = f"{found[name].value:+.3f} [{found[name].low:+.3f}, {found[name].high:+.3f}]" if name in found else ""
        rows.append((name, spread, gain))
    return rows


def run(
    frames: Frames, truth: Labels, split: Split, *, per_label: int, seed: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Label some clips of the training split, and return for each model which test clips it classifies right."""
    names = sorted(set(truth.values()))
    space = LabelSpace(len(names), multi_label=False)
    may_be_labelled = {video_id: truth[video_id] for video_id in split.train}
    drawn = learning.choose(may_be_labelled, names, per_label=per_label, seed=seed)
    chosen = sorted(video_id for video_id, _ in drawn)
    known, others, test = (
        learning.pool(frames, truth, ids, names) for ids in (chosen, sorted(set(split.train) - set(chosen)), split.test)
    )
    hidden = torch.full((len(others.labels),), -1)
    unlabelled, reached = PooledVideos(others.statistics, hidden), joined(others, test)
    teaching, of_test = teach(known, unlabelled, space), teach(known, reached, space).probabilities[-len(test.labels) :]
    is_sure = torch.from_numpy(teaching.probabilities.max(axis=1) >= SelfTrainConfig().min_probability)
    given = torch.from_numpy(teaching.probabilities.argmax(axis=1))
    more = PooledVideos(
        torch.cat([known.statistics, unlabelled.statistics[is_sure]]), torch.cat([known.labels, given[is_sure]])
    )
    answers = {
        "label spreading on mean": torch.from_numpy(spread_probabilities(known, test, unlabelled, space)),
        "the teacher": torch.from_numpy(of_test),
        "supervised": fit_probe(known, space).logits(test),
        SELF_TRAINED: fit_probe(more, space).logits(test),
    }
    return {name: (each.argmax(dim=1) == test.labels).double().numpy() for name, each in answers.items()}


def joined(first: PooledVideos, second: PooledVideos) -> PooledVideos:
    """Return both groups of clips, without their labels."""
    statistics = torch.cat([first.statistics, second.statistics])
    return PooledVideos(statistics, torch.full((len(statistics),), -1))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--per-label", type=int, default=5)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--drone", type=Path, help="a folder with CLASS/CLIP.mp4")
    parser.set_defaults(held_out=400)


def main() -> None:
    options = learning.parse_options(__doc__, add_options)
    with scratch_folder() as scratch:
        kept = options.keep or scratch
        if options.drone:
            learning.embed(options.drone, kept / "emb-drone")
            frames = learning.read_frames(kept / "emb-drone")
            truth = {video_id: video_id.partition("/")[0] for video_id in frames}
            splits = [Split([*each.train, *each.validation], [], each.test) for each in folds(blocks_of(truth))]
        else:
            train, held_out = learning.embed_motion_clips(kept, options)
            frames = {**learning.read_frames(kept / "emb-train"), **learning.read_frames(kept / "emb-held")}
            truth, splits = train | held_out, [Split(sorted(train), [], sorted(held_out))]
        rows = compare(frames, truth, splits, options)
        print(describe_machine())
        num_tested = sum(len(split.test) for split in splits)
        print(f"{options.per_label} labels a class, {options.draws} draws, {num_tested} test clips\n")
        print_table(("", "accuracy, mean (draws)", "self-trained minus this"), rows)


if __name__ == "__main__":
    main()
