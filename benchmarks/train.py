"""The speed of ``raypipe train`` against a plain PyTorch loop over the same tensors, in one run on one machine.

    python benchmarks/train.py [--rounds 3] [--epochs 5] [--quick]

Both learn the labels of synthetic embeddings, 16 frames of 512 numbers a video, with one model, batch size, optimizer,
clipping, schedule, frame dropout and number of threads. The plain loop has every video padded in memory before it
starts, takes a batch by indexing with a permutation, and does nothing besides: no validation, no checkpoint, no count
of what it saw. A round is plain, raypipe, plain, each a process of its own, so that the plain ones show what the
machine's own noise is.

``steps`` are the samples a second of raypipe's steps, the median epoch of ``metrics.jsonl`` without the first;
``epochs`` come from when its checkpoints were stored, and hold validation, checkpoint and metrics too.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch
from _common import describe_machine, median, print_table
from _learning import train, train_config, write_labels

from raypipe import schema
from raypipe.dataset.plan import Video, fingerprint
from raypipe.dataset.planner import Planner
from raypipe.dataset.seal import missing_shards, seal
from raypipe.dataset.sink import describe_shard, put_shard
from raypipe.jobs.embed.packing import pack
from raypipe.jobs.embed.shard import decoded_table, embed_shard, output_rows
from raypipe.jobs.train import trainer
from raypipe.jobs.train.data import read_frames
from raypipe.jobs.train.network import build
from raypipe.jobs.train.optim import make_optimizer, rate_at, set_rate
from raypipe.jobs.train.samples import TARGETS, find_samples
from raypipe.jobs.train.setup import prepare
from raypipe.runs.actors import connect
from raypipe.status import Status
from raypipe.storage import Folder
from raypipe.video.sandbox import DecodedVideo

LABELS, NUM_FRAMES, DIM, PER_SHARD = 10, 16, 512, 64
TARGET = 0.95


@dataclass(frozen=True)
class Case:
    """A model, the videos that it learns from, and what else is set."""

    name: str
    n_layer: int
    n_head: int
    n_embd: int
    num_videos: int
    precision: str = "float32"

    def overrides(self, epochs: int) -> tuple[str, ...]:
        """Of ``raypipe train``; an epoch more than asked for, the first of which does not count."""
        return (
            f"model.gpt2.n_layer={self.n_layer}",
            f"model.gpt2.n_head={self.n_head}",
            f"model.gpt2.n_embd={self.n_embd}",
            f"optimizer.precision={self.precision}",
            f"optimizer.epochs={epochs + 1}",
            "optimizer.early_stop_epochs=0",
            f"checkpoint.keep={epochs + 1}",
        )


CASES = (Case("2 x 128, the default", 2, 4, 128, 2000), Case("4 x 384", 4, 6, 384, 400))
GPU_CASE = Case("12 x 768, bfloat16", 12, 12, 768, 2000, "bfloat16")


def write_embeddings(folder: Path, count: int) -> dict[str, str]:
    """Seal the embeddings of videos that are nowhere, and give each its label."""
    random = np.random.default_rng(0)
    output = Folder(str(folder))
    settings = {"format": 1, "backbone": "random", "sampling": {"mode": "uniform", "num_frames": NUM_FRAMES}}
    videos = [Video(f"{number:06d}.mp4", f"nowhere/{number:06d}.mp4", "e", 1) for number in range(count)]
    planner = Planner(output, settings, "nowhere")
    planner.load()
    limits = {"max_frames": PER_SHARD * NUM_FRAMES, "frames_per_video": NUM_FRAMES}
    planner.store(iter(videos), pack=lambda new: pack(new, max_videos=PER_SHARD, slots=1, **limits))
    pixels = np.zeros((NUM_FRAMES, 4, 4, 3), np.uint8)
    grey = DecodedVideo(Status.OK, "", "none", np.arange(NUM_FRAMES), pixels, "mov", "h264", 4, 4, 1.0, 16.0)
    for rows in missing_shards(output, [0]):
        zeros = [0.0] * rows.num_rows
        table = decoded_table(rows, [grey] * rows.num_rows, fetch_seconds=zeros, decode_seconds=zeros)
        table = embed_shard(
            table,
            lambda frames: random.standard_normal((len(frames), DIM), dtype=np.float32),
            embedding_dim=DIM,
            crop_size=4,
        )
        shard = rows[schema.SHARD][0].as_py()
        about = describe_shard(table, plan=0, shard=shard, fingerprint=fingerprint(settings))
        put_shard(output, output_rows(table, embedding_dim=DIM), about)
    seal(output, 0, versions={})
    return {video.video_id: f"label-{number % LABELS}" for number, video in enumerate(videos)}


def plain(embeddings: str, labels: str, case: str, epochs: str, threads: str) -> None:
    """The plain loop: prints the samples a second of every epoch but the first, as a JSON list."""
    torch.set_num_threads(int(threads))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = train_config(
        Path(embeddings), Path(labels), Path("unused"), *Case(**json.loads(case)).overrides(int(epochs))
    )
    settings = config.optimizer
    samples = find_samples(config)
    setup = prepare(config, samples)
    rows = read_frames(samples.train, embeddings_uri=embeddings)
    flat = rows[schema.FRAME_EMBEDDINGS].combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
    frames = torch.from_numpy(flat.reshape(-1, NUM_FRAMES, DIM).copy()).to(
        device
    )  # float16: the model makes it float32
    targets = torch.from_numpy(rows[TARGETS].combine_chunks().flatten().to_numpy().astype(np.int64)).to(device)
    mask = torch.ones((settings.batch_size, NUM_FRAMES), dtype=torch.long, device=device)
    model = build(setup.start, seed=config.seed).to(device).train()
    optimizer = make_optimizer(model, weight_decay=settings.weight_decay)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    bfloat16 = settings.precision == "bfloat16"
    count, done, speeds = len(frames), 0, []
    for _ in range(settings.epochs):
        start = time.perf_counter()
        for batch in torch.randperm(count, device=device).split(settings.batch_size):
            share = rate_at(done / (settings.epochs * count), warmup_fraction=settings.warmup_fraction)
            set_rate(optimizer, setup.learning_rate * share)
            optimizer.zero_grad(set_to_none=True)
            shown = mask[: len(batch)] * (torch.rand((len(batch), NUM_FRAMES), device=device) >= settings.frame_dropout)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
                logits = model(frames[batch], shown).logits
            torch.nn.functional.cross_entropy(logits.float(), targets[batch]).backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()
            done += len(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        speeds.append(count / (time.perf_counter() - start))
    print(json.dumps(speeds[1:]))


def raypipe(embeddings: str, labels: str, case: str, epochs: str, output: str) -> None:
    """``raypipe train``: prints the samples a second of its steps and of its whole epochs, but the first's."""
    config = train_config(
        Path(embeddings), Path(labels), Path(output), *Case(**json.loads(case)).overrides(int(epochs))
    )
    record = train(config)
    stored = sorted(path.stat().st_mtime for path in Path(output).glob("checkpoints/*/state.json"))
    steps = [epoch.samples_per_second for epoch in record.epochs[1:]]
    print(json.dumps([steps, [record.num_train_videos / seconds for seconds in np.diff(stored).tolist()]]))


def child(way: str, *arguments: str) -> list:
    """Run one of the two in a process of its own, and read the last line that it prints."""
    command = [sys.executable, __file__, "--child", way, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(
    case: Case, threads: int, embeddings: Path, truth: dict[str, str], options: argparse.Namespace
) -> list[str]:
    """One row of the table."""
    labels = write_labels(embeddings.parent / f"{case.n_embd}.csv", list(truth.items())[: case.num_videos])
    asked = (str(embeddings), str(labels), json.dumps(vars(case)), str(options.epochs))
    plains, steps, epochs = [], [], []
    for number in range(options.rounds):
        before = median(child("plain", *asked, str(threads)))
        ours = child("raypipe", *asked, str(embeddings.parent / f"{case.n_embd}-{number}"))
        plains.append((before, median(child("plain", *asked, str(threads)))))
        steps.append(median(ours[0]))
        epochs.append(median(ours[1]))
    base = median([speed for pair in plains for speed in pair])
    return [
        case.name,
        str(threads),
        ", ".join(f"{before:.0f} {after:.0f}" for before, after in plains),
        ", ".join(f"{speed:.0f}" for speed in steps),
        f"{median(steps) / base:.2f}",
        f"{median(epochs) / base:.2f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of two epochs, the default model")
    options = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    cases = (*CASES, GPU_CASE) if has_gpu else CASES
    if options.quick:
        options.rounds, options.epochs, cases = 1, 2, CASES[:1]
    scratch = Path(tempfile.mkdtemp(prefix="raypipe-benchmark-"))
    try:
        truth = write_embeddings(scratch / "embeddings", max(case.num_videos for case in cases))
        connect()
        threads = [trainer._threads(1, n_embd=case.n_embd) for case in cases]  # noqa: SLF001 - what a worker is told
        ray.shutdown()
        rows = [
            measure(case, number, scratch / "embeddings", truth, options)
            for case, number in zip(cases, threads, strict=True)
        ]
        print(describe_machine())
        print(f"Samples a second of training, {NUM_FRAMES} frames of {DIM} numbers each, batches of 16, one worker;")
        print(f"medians of {options.epochs} epochs, of each of {options.rounds} rounds\n")
        head = ("model", "threads", "plain before, after", "raypipe's steps", "steps / plain", "epochs / plain")
        print_table(head, rows)
        print(f"\nThe target is {TARGET} for the steps.")
        if not has_gpu:
            print(f"{GPU_CASE.name} was not measured: there is no GPU here.")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        {"plain": plain, "raypipe": raypipe}[sys.argv[2]](*sys.argv[3:])
    else:
        main()
