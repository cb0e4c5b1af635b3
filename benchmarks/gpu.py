"""Compare the model on a GPU with the best of torch.compile, and ``raypipe embed`` on a GPU with its floor.

    python benchmarks/gpu.py [--videos 4000] [--repeats 3] [--backbones resnet50] [--quick]

The model alone: ``Backbone.embed`` runs in bfloat16 on random uint8 frames in host memory, including the copies of
frames to the device and of vectors back. It is compared with torchvision's network under
``torch.compile(mode="max-autotune")`` on random bfloat16 images that are already on the device.

Embed: the catalogue is that of ``embed.py``. The floor of decoding is measured with plain processes, one per CPU; the
floor of the model is the rate of ``Backbone.embed``. raypipe's steady state is the time from each decode actor's first
shard to the last commit of all actors. It is compared with the larger of both floors for the shards decoded in that
time. All CPUs count, including those that no decode actor uses.
"""

import contextlib
import importlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from raypipe.models.weights import prepare_torchvision, preprocessing
from support import NUM_CPUS, describe_machine, embedding, print_table, scratch_folder, spread, verdict
from support.clips import make_catalogue

MODEL_TARGET, TARGET = 0.9, 0.85
_BATCH_SIZE = 256
_BATCHES = 16
_ROUNDS = 5


def backbone_rates(name: str) -> list[float]:
    """Return the frames/s of the backbone in each round, from uint8 in host memory to float32 in host memory."""
    model, make_frames = embedding.random_model(name, device="cuda", dtype="bfloat16", batch_size=_BATCH_SIZE)
    frames = make_frames(_BATCHES * _BATCH_SIZE)
    return rates(lambda: model.embed(frames))


def torch_rates(name: str) -> list[float]:
    """Return the frames/s of torchvision's network alone in each round, compiled with the best mode of torch."""
    prepare_torchvision()
    network = importlib.import_module("torchvision.models").get_model(name, weights=None).eval().to("cuda")
    network = network.to(torch.bfloat16).to(memory_format=torch.channels_last)
    side = preprocessing(name).crop_size
    images = torch.rand(_BATCH_SIZE, 3, side, side, device="cuda").to(torch.bfloat16)
    images = images.to(memory_format=torch.channels_last)
    compiled = torch.compile(network, mode="max-autotune")

    def embed() -> None:
        for _ in range(_BATCHES):
            compiled(images)
        torch.cuda.synchronize()

    with torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()):  # it reports every kernel that it tries
        return rates(embed)


def rates(work: Callable[[], Any]) -> list[float]:
    """Return the frames/s of each round, after two rounds that compile and warm the device."""
    seconds = []
    for _ in range(2 + _ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return [_BATCHES * _BATCH_SIZE / each for each in seconds[2:]]


def of_floor(run: embedding.Run, decode_seconds: dict[str, float], model_per_frame: float) -> float:
    """Return the larger floor divided by the time of the steady state; 1 is a pipeline without overhead."""
    actors, videos_of = run.by_actor("decoded"), run.videos_of
    end = max(event.at for event in run.events if event.name == "put")
    steady = sum(end - shards[0].at for shards in actors) / len(actors)
    videos = [name for _, *rest in actors for one in rest for name in videos_of[one.shard]]
    decode = sum(decode_seconds[name] for name in videos) / NUM_CPUS
    model = len(videos) * embedding.EXACT.num_frames * model_per_frame  # every clip has all 16 frames
    return max(decode, model) / steady


def embed_rows(backbone: str, paths: list[Path], *, repeats: int, model_per_frame: float) -> list[tuple[str, ...]]:
    overrides = (f"backbone.name={backbone}", "backbone.dtype=bfloat16")
    decodes, ratios, wholes = [], [], []
    with scratch_folder() as scratch:
        config = embedding.embed_config(paths[0].parent, scratch / "none", embedding.RANDOM, *overrides)
        for repeat in range(repeats):
            seconds = {name: spent.wall for name, (_, spent) in embedding.decode_all(paths, config).items()}
            run = embedding.run_raypipe(paths[0].parent, scratch / f"out-{repeat}", *overrides)
            decodes.append(sum(seconds.values()) / NUM_CPUS)
            ratios.append(of_floor(run, seconds, model_per_frame))
            wholes.append(run.seconds)
    return [
        ("decode alone, all CPUs", f"{spread(decodes, 1)} s", ""),
        ("model alone", f"{len(paths) * embedding.EXACT.num_frames * model_per_frame:.1f} s", ""),
        ("larger floor / steady state", spread(ratios), f"{TARGET}: {verdict(met=median(ratios) >= TARGET)}"),
        ("raypipe, whole process", f"{spread(wholes, 1)} s", ""),
    ]


def main() -> None:
    options = embedding.parse_options(__doc__, videos=4000, repeats=3, backbones=("resnet50",), quick_videos=1000)
    if not torch.cuda.is_available():
        print("No GPU here: nothing was measured.")
        return
    print(f"{describe_machine()}; {torch.cuda.get_device_name()}")
    paths = make_catalogue(options.videos_folder, options.videos, clips=options.clips)
    for backbone in options.backbones:
        best, own = torch_rates(backbone), backbone_rates(backbone)
        ratio = median(own) / median(best)
        print(f"\n{backbone} bfloat16 alone, {_BATCH_SIZE} frames a batch; medians of {_ROUNDS}\n")
        target = f"{ratio:.2f}; {MODEL_TARGET}: {verdict(met=ratio >= MODEL_TARGET)}"
        rows = [
            ("torch.compile, max-autotune, on the device", spread(best, 0), ""),
            ("Backbone.embed, from and to the host", spread(own, 0), target),
        ]
        print_table(("way", "frames a second", "of it; target"), rows)
        print(f"\n{len(paths)} videos of {len(options.clips)} kinds, 16 uniform frames; medians of {options.repeats}\n")
        rows = embed_rows(backbone, paths, repeats=options.repeats, model_per_frame=1 / median(own))
        print_table(("what", "", "target"), rows)


if __name__ == "__main__":
    main()
