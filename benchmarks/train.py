"""Compare the speed of ``raypipe train`` with a plain PyTorch loop over the same tensors.

    python benchmarks/train.py [--rounds 3] [--epochs 5] [--quick]

Both learn the labels of synthetic embeddings, 16 frames of 512 numbers per video, with the same model, batch size,
optimizer, clipping, schedule, frame dropout and number of threads. The plain loop has every video padded in memory
before it starts, takes a batch by indexing with a permutation, and does nothing else: no validation, no checkpoint, no
progress. A round is plain, raypipe, plain, each in its own process; the two plain runs show the noise of the machine.

``steps`` is the samples per second of raypipe's steps, from the median epoch of ``metrics.jsonl`` without the first.
``epochs`` is computed from the times when checkpoints were stored, and includes validation, checkpoint and metrics.
"""

import argparse
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import ray
import torch

from raypipe.jobs.train.inputs import find_samples
from raypipe.jobs.train.job import threads_per_worker
from raypipe.jobs.train.loop import make_optimizer, rate_at, set_rate
from raypipe.jobs.train.run_spec import build, prepare
from support import describe_machine, make_parser, print_table, scratch_folder
from support.embedding import made_up_videos, run_without_videos
from support.learning import read_frames, split_of, train, train_config, write_labels
from support.processes import in_process

NUM_LABELS, NUM_FRAMES, DIM = 10, 16, 512
TARGET = 0.95


@dataclass(frozen=True)
class Case:
    """A model, and the number of videos that it learns from."""

    name: str
    n_layer: int
    n_head: int
    n_embd: int
    num_videos: int
    precision: str = "float32"

    def overrides(self, epochs: int) -> tuple[str, ...]:
        """Return settings of ``raypipe train``; one more epoch than asked for, because the first does not count."""
        sizes = [f"model.gpt2.{name}={getattr(self, name)}" for name in ("n_layer", "n_head", "n_embd")]
        optimizer = (f"optimizer.precision={self.precision}", "optimizer.early_stop_epochs=0")
        return (*sizes, *optimizer, f"optimizer.epochs={epochs + 1}", f"checkpoint.keep={epochs + 1}")


CASES = (Case("2 x 128, the default", 2, 4, 128, 2000), Case("4 x 384", 4, 6, 384, 400))
GPU_CASE = Case("12 x 768, bfloat16", 12, 12, 768, 2000, "bfloat16")


def run_plain(case: Case, embeddings: Path, labels: Path, *, epochs: int, threads: int) -> float:
    """Run the plain loop; return the samples per second of its median epoch without the first."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = train_config(embeddings, labels, Path("unused"), *case.overrides(epochs))
    settings = config.optimizer
    spec = prepare(config, find_samples(config))
    ids, vectors = split_of(config)[0], read_frames(embeddings)
    # float16, as stored: the model converts it to float32
    frames = torch.from_numpy(np.stack([vectors[video_id] for video_id in ids]).astype(np.float16)).to(device)
    targets = torch.tensor([label_of(video_id) for video_id in ids], device=device)
    mask = torch.ones((settings.batch_size, NUM_FRAMES), dtype=torch.long, device=device)
    model = build(spec.network, seed=config.seed).to(device).train()
    optimizer = make_optimizer(model, weight_decay=settings.weight_decay)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    bfloat16 = settings.precision == "bfloat16"
    count, done, speeds = len(frames), 0, []
    for _ in range(settings.epochs):
        start = time.perf_counter()
        for batch in torch.randperm(count, device=device).split(settings.batch_size):
            share = rate_at(done / (settings.epochs * count), warmup_fraction=settings.warmup_fraction)
            set_rate(optimizer, spec.learning_rate * share)
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
    return median(speeds[1:])


def run_raypipe(case: Case, embeddings: Path, labels: Path, output: Path, *, epochs: int) -> tuple[float, float]:
    """Run ``raypipe train``; return the samples per second of the median epoch's steps, and of the median epoch."""
    record = train(train_config(embeddings, labels, output, *case.overrides(epochs)))
    ray.shutdown()
    stored = sorted(path.stat().st_mtime for path in output.glob("checkpoints/*/state.json"))
    steps = median([epoch.samples_per_second for epoch in record.epochs[1:]])
    return steps, record.num_train_videos / median(np.diff(stored).tolist())


def label_of(video_id: str) -> int:
    return zlib.crc32(video_id.encode()) % NUM_LABELS


def measure(case: Case, embeddings: Path, threads: int, options: argparse.Namespace) -> list[str]:
    scratch = embeddings.parent
    ids = [video.video_id for video in made_up_videos(case.num_videos)]
    labels = write_labels(scratch / f"{case.n_embd}.csv", [(video_id, str(label_of(video_id))) for video_id in ids])
    plains, steps, epochs = [], [], []
    for output in (scratch / f"{case.n_embd}-{number}" for number in range(options.rounds)):
        before = in_process(run_plain, case, embeddings, labels, epochs=options.epochs, threads=threads)
        of_steps, of_epochs = in_process(run_raypipe, case, embeddings, labels, output, epochs=options.epochs)
        after = in_process(run_plain, case, embeddings, labels, epochs=options.epochs, threads=threads)
        plains.append((before, after))
        steps.append(of_steps)
        epochs.append(of_epochs)
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
    parser = make_parser(__doc__, quick="one round of two epochs, the default model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    cases = (*CASES, GPU_CASE) if has_gpu else CASES
    if options.quick:
        options.rounds, options.epochs, cases = 1, 2, CASES[:1]
    with scratch_folder() as scratch:
        embeddings = scratch / "embeddings"
        run_without_videos(max(case.num_videos for case in cases), embeddings)
        threads = [threads_per_worker(1, n_embd=case.n_embd) for case in cases]
        ray.shutdown()
        rows = [measure(case, embeddings, number, options) for case, number in zip(cases, threads, strict=True)]
    print(describe_machine())
    print(f"Samples/s of training, {NUM_FRAMES} frames of {DIM} numbers each, batches of 16, one worker;")
    print(f"medians of {options.epochs} epochs, of each of {options.rounds} rounds\n")
    head = ("model", "threads", "plain before, after", "raypipe's steps", "steps / plain", "epochs / plain")
    print_table(head, rows)
    gpu = "" if has_gpu else f" {GPU_CASE.name} was not measured: this machine has no GPU."
    print(f"\nThe target is {TARGET} for the steps.{gpu}")


if __name__ == "__main__":
    main()
