"""Compress trained models with `raypipe compress`, and test the candidates on clips that it never saw.

    python benchmarks/compress.py [--drawn] [--task count] [--sizes gpt2 small] [--keep FOLDER] [--quick]
    python benchmarks/compress.py --interactions ../shared/assets/interactions [--quick]

The first command generates clips of a task of ``support/order_clips.py``: 400 with labels, 400 without, and 400 to test
on. A classifier with a GPT-2 of 12 blocks of width 768 with 12 heads (``gpt2``) or of the default size (``small``) is
trained on the labelled clips, a fifth of them for validation. Then it is compressed, which also learns from the
unlabelled clips. The table has the metrics on the validation clips, by which compress chooses, and the accuracy on the
test clips, with the loss against the original model and a paired 95 % interval.

With ``--drawn``, the frames are vectors that are drawn instead of embedded: counting, without videos or a ResNet.

Targets for ``gpt2``: a loss of at most 1 point, 4 times the speed on one core, 0.3 of the bytes.

With ``--interactions``, a ranker with two blocks is trained on Toys, as in ``ranker.py``, and compressed.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from rich.console import Console

import raypipe
from ranker import put_inputs, toys
from raypipe import schema
from raypipe.config import CompressConfig, load_config
from raypipe.evaluation.ranking_metrics import intervals
from raypipe.jobs.compress.candidates import Candidate, Limits, choose, measure
from raypipe.jobs.compress.classifier_students import ClassifierStudents, DistillData
from raypipe.jobs.compress.compressing import verdict_of
from raypipe.jobs.train.checkpoints import saved_files
from raypipe.jobs.train.classifier.probing import LabelSpace, fit_probe
from raypipe.jobs.train.inputs import INDEX, TARGETS
from raypipe.models.classifier import VideoClassifier
from raypipe.models.classifier_files import build_classifier
from raypipe.models.model_files import ModelFiles
from raypipe.records import CandidateMetrics
from support import describe_machine, learning, order_clips, print_table, scratch_folder, verdict
from support.learning import Split

SIZES: Mapping[str, Mapping[str, int]] = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "small": {"n_layer": 2, "n_head": 4, "n_embd": 128},
}
_SEEDS = {"train": 1, "test": 2, "more": 3}
_VALIDATION_FRACTION = 0.2
_DIM, _NUM_FRAMES = 512, 16
_MAX_LOSS, _SPEEDUP, _BYTES = 0.01, 4.0, 0.3
HEADINGS = (
    *("candidate", "blocks", "heads", "weights", "MB", "videos/s", "speed", "accuracy", "loss", "agreement"),
    *("test accuracy", "test loss"),
)


class Clips(NamedTuple):
    """Clips with their labels and their split. The labels of the clips in ``more`` are not used."""

    frames: learning.Frames
    truth: learning.Labels
    split: Split
    more: list[str]


def read_task(options: argparse.Namespace, folder: Path) -> Clips:
    """Generate and embed the clips."""
    truth: dict[str, str] = {}
    frames: dict[str, npt.NDArray[np.float32]] = {}
    counts = {"train": options.clips, "test": options.held_out, "more": options.unlabelled}
    ids = {}
    for name, count in counts.items():
        labels = order_clips.write_clips(folder / name, options.task, count, seed=_SEEDS[name])
        learning.embed(folder / name, folder / f"emb-{name}")
        frames |= learning.read_frames(folder / f"emb-{name}")
        truth |= labels
        ids[name] = sorted(labels)
    known = np.random.default_rng(0).permutation(ids["train"]).tolist()
    held_out = round(_VALIDATION_FRACTION * len(known))
    split = Split(sorted(known[held_out:]), sorted(known[:held_out]), ids["test"])
    return Clips(frames, truth, split, ids["more"])


def draw_task(options: argparse.Namespace) -> Clips:
    """Draw the frame vectors of clips that count: one direction is added 1 to 4 times, for the same total time."""
    random = np.random.default_rng(0)
    direction = random.normal(size=_DIM)
    counts = (options.clips, options.held_out, options.unlabelled)
    truth = {f"{number:05d}": str(1 + number % 4) for number in range(sum(counts))}
    frames = {video_id: _drawn(int(label), direction, random) for video_id, label in truth.items()}
    ids = sorted(truth)
    known, held_out = ids[: options.clips], round(_VALIDATION_FRACTION * options.clips)
    last = options.clips + options.held_out
    split = Split(known[:-held_out], known[-held_out:], ids[options.clips : last])
    return Clips(frames, truth, split, ids[last:])


def _drawn(count: int, direction: npt.NDArray[np.float64], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return frames ``[16, D]``: a random background and noise, and the direction in ``count`` separate events."""
    shift = direction * random.uniform(0.5, 1.5)
    vectors = np.tile(random.normal(size=_DIM), (_NUM_FRAMES, 1))
    total = int(random.integers(4, 9))
    lengths = 1 + random.multinomial(total - count, np.full(count, 1 / count))
    gaps = random.multinomial(_NUM_FRAMES - total - (count - 1), random.dirichlet(np.ones(count + 1)))
    at = 0
    for number, (gap, length) in enumerate(zip(gaps.tolist(), lengths.tolist(), strict=False)):
        at += gap + (number > 0)
        vectors[at : at + length] += shift
        at += length
    return (vectors + 0.3 * random.normal(size=vectors.shape)).astype(np.float32)


def train_teacher(size: str, clips: Clips, folder: Path, *, epochs: int) -> VideoClassifier:
    """Train a classifier of a size, or read it from an earlier run."""
    if (folder / "config.json").exists():
        return VideoClassifier.from_pretrained(folder)
    sizes = ", ".join(f'"{name}": {value}' for name, value in SIZES[size].items())
    with scratch_folder() as scratch:
        overrides = (f"model.gpt2={{{sizes}}}", f"optimizer.epochs={epochs}", "checkpoint.keep=1")
        model = learning.fit(clips.frames, clips.truth, clips.split, scratch, *overrides)
    model.save_pretrained(folder)
    return model


def candidates_of(model: VideoClassifier, clips: Clips, config: CompressConfig) -> list[Candidate]:
    """Return the candidates that compress makes of a model, by the same code, without Ray."""
    names = model.config.label_names
    tables = [samples(ids, clips, names) for ids in ([*clips.split.train, *clips.more], clips.split.validation)]
    read = [partial(learning.blocks_of, clips.frames, table) for table in tables]
    data = DistillData(tables[0], tables[1], read[0], read[1], has_labels=True, probe=unseen_probe(clips, names))
    files = ModelFiles(saved_files(model, metrics={}), "", "original")

    def notify(kind: str, about: Mapping[str, object]) -> None:
        if kind == "note":
            print(about["line"], flush=True)

    return ClassifierStudents(files, data, config, device=torch.device("cpu"), notify=notify).make()


def unseen_probe(clips: Clips, names: Sequence[str]) -> Mapping[str, torch.Tensor]:
    """Return the weights of the probe as they were before it was fitted to the validation clips, too."""
    train, validation = (
        learning.pool(clips.frames, clips.truth, ids, names) for ids in (clips.split.train, clips.split.validation)
    )
    return fit_probe(train, LabelSpace(len(names), multi_label=False), validation=validation).weights


def samples(ids: Sequence[str], clips: Clips, names: Sequence[str]) -> pa.Table:
    """Return the table of some clips."""
    unlabelled = set(clips.more)
    targets = [[] if video_id in unlabelled else [names.index(clips.truth[video_id])] for video_id in ids]
    columns = {schema.VIDEO_ID: list(ids), TARGETS: pa.array(targets, pa.list_(pa.int32())), INDEX: np.arange(len(ids))}
    return pa.table(columns)


def test_rights(one: Candidate, clips: Clips) -> npt.NDArray[np.float64]:
    """Return 1 for each test clip that a candidate classifies right, otherwise 0."""
    model = build_classifier(ModelFiles(one.files, "", one.name))
    videos = [clips.frames[video_id].astype(np.float16) for video_id in clips.split.test]
    best = model.classify(videos).probabilities.argmax(axis=1).tolist()
    names = model.config.label_names
    return np.array([names[at] == clips.truth[id_] for at, id_ in zip(best, clips.split.test, strict=True)], np.float64)


def run_size(size: str, options: argparse.Namespace, folder: Path) -> None:
    """Train, compress and test a classifier, and print its table."""
    clips = draw_task(options) if options.drawn else read_task(options, folder)
    model = train_teacher(size, clips, folder / f"model-{size}", epochs=options.teacher_epochs)
    values = {"model": "original", "output": "none", "embeddings": "none"}
    config = load_config(CompressConfig, values=values, overrides=(f"distill.epochs={options.epochs}",))
    report(size, candidates_of(model, clips, config), config, clips)


def report(size: str, candidates: list[Candidate], config: CompressConfig, clips: Clips) -> None:
    """Print the table of the candidates, the verdict, and the targets."""
    measured = measure(candidates)
    limits = Limits(config.max_accuracy_loss, config.min_speedup)
    chosen = choose(measured, limits)
    rights = {one.name: test_rights(one, clips) for one in candidates}
    original = rights[measured[0].name]
    lost = intervals({name: original - right for name, right in rights.items()})
    print(f"\n{size}: {len(clips.split.validation)} clips for validation, {len(clips.split.test)} to test\n")
    rows = []
    for one in measured:
        test = lost[one.name]
        between = f"{test.value:+.3f} [{test.low:+.3f}, {test.high:+.3f}]"
        rows.append([*_cells(one), f"{rights[one.name].mean():.3f}", between])
    print_table(HEADINGS, rows)
    print(f"\n{verdict_of(measured, chosen, limits, score_name='accuracy')}")
    if size == "gpt2":
        test, share = lost[chosen.name].value, chosen.size_bytes / measured[0].size_bytes
        print(f"test loss {test:+.3f}, target at most {_MAX_LOSS}: {verdict(met=test <= _MAX_LOSS)}")
        print(f"speed {chosen.speedup:.2f}, target {_SPEEDUP:g}: {verdict(met=chosen.speedup >= _SPEEDUP)}")
        print(f"bytes {share:.3f}, target {_BYTES}: {verdict(met=share <= _BYTES)}")


def _cells(one: CandidateMetrics) -> list[str]:
    sizes = [one.name, str(one.num_blocks), str(one.num_heads), f"{one.num_parameters / 1e6:.2f}M"]
    speeds = [f"{one.size_bytes / 1e6:.1f}", f"{one.samples_per_second:.1f}", f"{one.speedup:.2f}"]
    score = "" if one.score is None else f"{one.score:.4f}"
    loss = f"{one.loss:+.4f} [{one.loss_low:+.4f}, {one.loss_high:+.4f}]"
    return [*sizes, *speeds, score, loss, f"{one.agreement:.3f}"]


def run_ranker(options: argparse.Namespace, folder: Path) -> None:
    """Train a ranker with two blocks on Toys, compress it, and print the table."""
    data, quiet = toys(options.interactions), Console(quiet=True)
    places = put_inputs(data, folder)
    inputs = {"index": str(places["index"]), "history": str(places["history.parquet"])}
    raypipe.index(places["v.parquet"], places["index"], console=quiet)
    raypipe.train(
        output=places["ranker"],
        objective="next_video",
        **inputs,
        ranker={"n_layer": 2},
        optimizer={"epochs": 3 if options.quick else 30},
        console=quiet,
    )
    record = raypipe.compress(places["ranker"], places["out"], **inputs).record
    print(f"\nToys: {record.num_validation:,} users for validation\n")
    print_table([*HEADINGS[:7], "NDCG@10", *HEADINGS[8:10]], [_cells(one) for one in record.candidates])
    print(f"\n{record.verdict}")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=list(order_clips.LABELS), default="count")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=8, help="of distillation, at most")
    parser.add_argument("--unlabelled", type=int, default=400)
    parser.add_argument("--drawn", action="store_true", help="draw frame vectors that count, without clips")
    parser.add_argument("--interactions", type=Path, help="compress a ranker instead: the folder with Toys")
    parser.set_defaults(held_out=400)


def main() -> None:
    options = learning.parse_options(__doc__, add_options)
    if options.quick:
        options.unlabelled, options.sizes, options.teacher_epochs, options.epochs = 40, ["small"], 3, 2
    torch.set_num_threads(1)
    print(describe_machine())
    with scratch_folder() as scratch:
        if options.interactions is not None:
            run_ranker(options, scratch / "toys")
            return
        for size in options.sizes:
            run_size(size, options, (options.keep or scratch) / options.task)
        if options.quick:
            print("\nThis few clips show only that it runs, not what it learns.")


if __name__ == "__main__":
    main()
