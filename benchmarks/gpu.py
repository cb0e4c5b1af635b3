"""The model on a GPU against torch.compile's best, and embed with a GPU against the floor, in one run on one machine.

    python benchmarks/gpu.py [--videos 4000] [--repeats 3] [--backbones resnet50] [--quick]

The model alone: ``Backbone.embed`` on random uint8 frames in the host's memory, their way to the device and the
vectors' way back included, in bfloat16; beside it torchvision's network under ``torch.compile(mode="max-autotune")`` on
random bfloat16 pictures that lie on the device already.

Embed: the catalogue of ``embed.py``. The floor of decoding is that of plain processes, one on every processor; the
floor of the model is the rate of ``Backbone.embed``. raypipe's steady state is the time from each decode actor's first
shard to the last commit of all; the larger of both floors for the shards decoded in that time is what it is held
against. All processors count, also those that no decode actor has.
"""

import contextlib
import importlib
import io
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import describe_machine, median, print_table, spread
from _floor import SLOTS, decode_all
from _mixed import mixed_catalogue, parse_options
from _steady import Run, embed_config, run_raypipe

from raypipe.models.backbone import Backbone
from raypipe.models.networks import prepare_torchvision, preprocessing
from raypipe.models.weights import resolve_weights

MODEL_TARGET, TARGET = 0.9, 0.85
_BATCH_SIZE = 256
_ROUNDS = 5


def ours(name: str) -> list[float]:
    """Frames a second of the backbone, from uint8 in the host's memory to float32 there, in each of some rounds."""
    weights = resolve_weights(name, "random", read_bytes=lambda _: b"")
    model = Backbone(weights.state_dict, name=name, device="cuda", dtype="bfloat16", batch_size=_BATCH_SIZE)
    side = preprocessing(name).crop_size
    frames = np.random.default_rng(0).integers(0, 256, (16 * _BATCH_SIZE, side, side, 3), dtype=np.uint8)
    return rates(lambda: model.embed(frames), len(frames))


def best_of_torch(name: str) -> list[float]:
    """Frames a second of torchvision's network alone, compiled as well as torch can."""
    prepare_torchvision()
    network = importlib.import_module("torchvision.models").get_model(name, weights=None).eval().to("cuda")
    network = network.to(torch.bfloat16).to(memory_format=torch.channels_last)
    side = preprocessing(name).crop_size
    pictures = torch.rand(_BATCH_SIZE, 3, side, side, device="cuda").to(torch.bfloat16)
    pictures = pictures.to(memory_format=torch.channels_last)
    compiled = torch.compile(network, mode="max-autotune")
    with torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()):  # it tells of every kernel that it tries

        def some() -> None:
            for _ in range(16):
                compiled(pictures)
            torch.cuda.synchronize()

        return rates(some, 16 * _BATCH_SIZE)


def rates(work: Callable[[], Any], num_frames: int) -> list[float]:
    """Frames a second of each round; two before them are not counted, which compile and warm the device."""
    seconds = []
    for _ in range(2 + _ROUNDS):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return [num_frames / each for each in seconds[2:]]


def of_floor(run: Run, decode_seconds: dict[str, float], per_frame: float) -> float:
    """The larger of the floors over what the machine took for it: 1 is a pipeline that costs nothing."""
    end = max(commit.at for commit in run.commits)
    actors = {commit.pid for commit in run.decoded}
    waited = decoding = 0.0
    num_videos = 0
    for pid in actors:
        first, *rest = sorted((one for one in run.decoded if one.pid == pid), key=lambda one: one.at)
        waited += end - first.at
        names = [name for one in rest for name in run.videos_of[one.shard]]
        decoding += sum(decode_seconds[name] for name in names)
        num_videos += len(names)
    model = num_videos * 16 * per_frame  # every clip gives all 16
    return max(decoding / SLOTS, model) / (waited / len(actors))


def embed_rows(backbone: str, paths: list[Path], *, repeats: int, per_frame: float) -> list[tuple[str, ...]]:
    """Floors and raypipe."""
    scratch = Path(tempfile.mkdtemp(prefix="raypipe-benchmark-"))
    overrides = (f"backbone.name={backbone}", "backbone.dtype=bfloat16")
    config = embed_config(paths[0].parent, scratch / "none", *overrides)
    floors, shares, wholes = [], [], []
    try:
        for repeat in range(repeats):
            decoded = decode_all(paths, config)
            seconds = {name: one.wall for name, (_, one) in decoded.items()}
            run = run_raypipe(paths[0].parent, scratch / f"out-{repeat}", *overrides)
            floors.append(sum(seconds.values()) / SLOTS)
            shares.append(of_floor(run, seconds, per_frame))
            wholes.append(run.seconds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    model = len(paths) * 16 * per_frame
    met = "met" if median(shares) >= TARGET else "MISSED"
    return [
        ("decode alone, all processors", f"{spread(floors, 1)} s", ""),
        ("model alone", f"{model:.1f} s", ""),
        ("raypipe, steady state, of the larger floor", spread(shares), f"{TARGET}: {met}"),
        ("raypipe, whole process", f"{spread(wholes, 1)} s", ""),
    ]


def main() -> None:
    """Print both tables."""
    options = parse_options(__doc__, videos=4000, repeats=3, backbones=("resnet50",), quick_videos=1000)
    if not torch.cuda.is_available():
        print("No GPU here: nothing was measured.")
        return
    print(f"{describe_machine()}; {torch.cuda.get_device_name()}")
    paths = mixed_catalogue(options)
    for backbone in options.backbones:
        best, own = best_of_torch(backbone), ours(backbone)
        ratio = median(own) / median(best)
        print(f"\n{backbone} bfloat16 alone, {_BATCH_SIZE} frames a batch; medians of {_ROUNDS}\n")
        met = "met" if ratio >= MODEL_TARGET else "MISSED"
        rows = [
            ("torch.compile, max-autotune, on the device", spread(best, 0), ""),
            ("Backbone.embed, from and to the host", spread(own, 0), f"{ratio:.2f}; {MODEL_TARGET}: {met}"),
        ]
        print_table(("way", "frames a second", "of it; target"), rows)
        print(f"\n{len(paths)} videos of {len(options.clips)} kinds, 16 uniform frames; medians of {options.repeats}\n")
        print_table(
            ("what", "", "target"), embed_rows(backbone, paths, repeats=options.repeats, per_frame=1 / median(own))
        )


if __name__ == "__main__":
    main()
