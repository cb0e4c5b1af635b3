"""Compare the engines and precisions of a backbone: frames per second of one core, and what they do to the vectors.

    python benchmarks/engines.py [--most 160] [--repeats 5] [--quick]

Speed: every way embeds the same random frames in one thread, in turns. int8 is measured with 1, 2 and 3
convolutions kept in float32, because ``raypipe embed`` uses the first of these that passes its limits.

Accuracy: ResNet-18 embeds 4 exact frames of each video. A third of the videos of each catalogue are used to quantize,
the others to compare with PyTorch in float32, as ``raypipe embed`` does. ``probe`` is the accuracy of a linear
classifier on the videos' means, for catalogues with classes: 5 folds of consecutive clips, and the standard deviation
over the folds.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch

from accuracy import REAL, Frames, decode
from raypipe.models.backbone import Backbone
from raypipe.models.backbones import Pixels, Vectors, resolve_dtype
from raypipe.models.int8_files import Agreement
from raypipe.models.openvino_backbone import ExportedNetwork, OpenVinoBackbone, export
from raypipe.models.quantization import FLOAT_LAYERS, quantize_layers, with_float_layers
from raypipe.models.weights import Arrays, resolve_weights
from raypipe.storage.folder import read_uri
from support import cpu_features, describe_machine, make_parser, print_table, spread, unit_rows, verdict
from support.clips import MIXED, encode_all
from support.embedding import EXACT
from support.learning import resnet18_weights

FRAMES = 4  # of each video
BATCH = 32
FOLDS = 5
HAS_BFLOAT16 = resolve_dtype("auto", "cpu") == "bfloat16"
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
# What int8 is compared with on a processor with VNNI, and the least ratios of their speeds.
TARGETS = {"torch bfloat16": 1.4, "torch float32": 2.5}
Embed = Callable[[Pixels], Vectors]


def ways(name: str, state_dict: Arrays, calibration: Pixels) -> dict[str, Embed]:
    """Return a function for each engine and precision that this processor has."""
    exported = export(name, state_dict)
    layers = quantize_layers(name, state_dict, calibration)
    load = partial(OpenVinoBackbone, name=name, num_threads=1)
    floats = ("float32", "bfloat16") if HAS_BFLOAT16 else ("float32",)
    int8: dict[str, ExportedNetwork] = {
        f"openvino int8, {count} in float32": with_float_layers(exported, layers, count) for count in FLOAT_LAYERS
    }
    return {
        **{f"torch {dtype}": Backbone(state_dict, name=name, dtype=dtype).embed for dtype in floats},
        **{f"openvino {dtype}": load(exported, dtype=dtype).embed for dtype in floats},
        **{way: load(network, dtype="int8").embed for way, network in int8.items()},
    }


def measure_speed(name: str, *, repeats: int) -> None:
    state_dict = resolve_weights(name, "random", read_bytes=read_uri).state_dict
    frames = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), np.uint8)
    embeds = ways(name, state_dict, frames[:8])
    speeds: dict[str, list[float]] = {way: [] for way in embeds}
    for repeat in range(repeats + 1):
        for way, embed in embeds.items():
            start = time.process_time()
            embed(frames)
            if repeat:  # the first round warms up
                speeds[way].append(BATCH / (time.process_time() - start))
    bases = [f"torch {dtype}" for dtype in ("float32", "bfloat16") if f"torch {dtype}" in speeds]
    rows = [
        [way, spread(found, 1), *(f"{median(found) / median(speeds[base]):.2f}" for base in bases)]
        for way, found in speeds.items()
    ]
    print(f"\n{name}, one core\n")
    print_table(("engine and precision", "frames/s", *(f"over {base}" for base in bases)), rows)
    if name == "resnet18" and cpu_features() & VNNI:
        slowest = f"openvino int8, {FLOAT_LAYERS[-1]} in float32"
        for base in bases:
            ratio, target = median(speeds[slowest]) / median(speeds[base]), TARGETS[base]
            print(f"{slowest} over {base}: {ratio:.2f} x; the target, {target}, is {verdict(met=ratio >= target)}.")


def measure_accuracy(title: str, frames: Frames, weights: str) -> None:
    state_dict = resolve_weights("resnet18", weights, read_bytes=read_uri).state_dict
    videos = list(frames)
    is_calibration = np.isin(
        np.arange(len(videos)), np.random.default_rng(0).permutation(len(videos))[: len(videos) // 3]
    )
    few = {video: frames[video][:: -(-len(frames[video]) // FRAMES)] for video in videos}
    held_out = [video for video, is_used in zip(videos, is_calibration, strict=True) if not is_used]
    calibration = np.concatenate([few[video] for video, is_used in zip(videos, is_calibration, strict=True) if is_used])
    pixels = np.concatenate([few[video] for video in held_out])
    stops = np.cumsum([0, *(len(few[video]) for video in held_out)])
    classes = np.array([Path(video).parent.name for video in held_out])
    found = {way: embed(pixels) for way, embed in ways("resnet18", state_dict, calibration).items()}
    rows = []
    for way, vectors in found.items():
        agreement = Agreement.of(vectors, found["torch float32"], stops)
        cosines = f"{agreement.cosine_median:.4f}", f"{agreement.cosine_p01:.4f}"
        means = unit_rows(np.add.reduceat(vectors, stops[:-1]))
        probe = probe_accuracy(means, classes) if len(set(classes)) > 1 else ""
        rows.append([way, *cosines, f"{agreement.same_neighbor:.3f}", "yes" if agreement.is_enough else "no", probe])
    print(f"\n{title}: {len(calibration)} frames to quantize, {len(held_out)} other videos to compare\n")
    head = ("engine and precision", "median cosine", "1st percentile", "same neighbour", "passes", "probe")
    print_table(head, rows)


def probe_accuracy(means: npt.NDArray[np.floating], classes: npt.NDArray[np.str_]) -> str:
    """Return the accuracy of a ridge classifier on folds of consecutive videos of each class, and its deviation."""
    names = np.unique(classes)
    ranks = np.array([np.sum(classes[:at] == name) / np.sum(classes == name) for at, name in enumerate(classes)])
    targets = (classes[:, None] == names) - 1 / len(names)
    correct = []
    for fold in range(FOLDS):
        is_tested = (ranks * FOLDS).astype(int) == fold
        known = means[~is_tested]
        solved = np.linalg.solve(known @ known.T + 0.1 * np.eye(len(known)), targets[~is_tested])
        scores = means[is_tested] @ known.T @ solved
        correct.append(np.mean(names[scores.argmax(axis=1)] == classes[is_tested]))
    return f"{np.mean(correct):.3f} ± {np.std(correct):.3f}"


def main() -> None:
    parser = make_parser(__doc__, quick="ResNet-18, 1 repeat, 12 videos of each catalogue", videos=True)
    parser.add_argument("--most", type=int, default=160, help="the maximum number of videos per catalogue")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine())
    for name in ("resnet18",) if options.quick else ("resnet18", "resnet50"):
        measure_speed(name, repeats=1 if options.quick else options.repeats)
    most, weights = 12 if options.quick else options.most, resnet18_weights()
    catalogues = {"Generated clips": encode_all(options.videos_folder, MIXED[:most])}
    catalogues |= {title: sorted(filter(Path.is_file, folder.rglob("*"))) for title, folder in REAL.items()}
    for title, paths in catalogues.items():
        if paths:
            measure_accuracy(title, decode(paths[:: -(-len(paths) // most)], EXACT), weights)
        else:
            print(f"\n{title} skipped: {REAL[title]} does not exist or is empty.")


if __name__ == "__main__":
    main()
