"""What every fast path does to the embeddings: cosine with those of the exact frames in float32.

    python benchmarks/accuracy.py [--videos FOLDER ...] [--weights FILE] [--most 60] [--quick]

The base is 16 uniform frames decoded by PyAV, ResNet-18 in float32. Against it stand bfloat16 on the very same frames,
``nearest_keyframe``, ``loop_filter`` off, and the decoders decord and torchcodec, each through the sandbox. Cosines are
of frames (the first with the first) and of videos (the means); ``same neighbour`` is the share of videos whose nearest
other video is the one that it is without the fast path. ``another video`` says what cosines mean here: those of frames
with the same frame of the next video.

Videos are the mixed generated clips and, where the project's shared assets lie beside it, real ones. A video that a way
does not read is left out of that way, and counted.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from _clips import MIXED, encode
from _common import describe_machine, print_table, videos_folder
from _decoding import EXACT
from _learning import WEIGHTS, weights_or_random

from raypipe.models.backbone import Backbone
from raypipe.models.weights import resolve_weights
from raypipe.status import Status
from raypipe.storage.folder import read_uri
from raypipe.video.protocol import DecodeRequest, Pixels
from raypipe.video.sandbox import DecodeSandbox

ASSETS = WEIGHTS.parents[1]
REAL = {"Real clips of the sky": "labelled/drone", "Real clips of many kinds": "videos"}
Frames = Mapping[str, Pixels]
Vectors = npt.NDArray[np.float32]
Videos = Mapping[str, Vectors]  # [T, D] of each


def decode(paths: Sequence[Path], request: DecodeRequest, decoder: str = "pyav") -> Frames:
    """The frames of every video that gave all that were asked for."""
    found = {}
    with DecodeSandbox(request, decoder=decoder) as sandbox:
        for path in paths:
            with path.open("rb") as file:
                video = sandbox.decode(file)
            if video.status == Status.OK and len(video.frames):
                found[str(path)] = video.frames
    return found


def ways(paths: Sequence[Path], exact: Frames) -> dict[str, tuple[Frames, str]]:
    """The frames of each fast path, and the dtype that they are embedded in."""
    others = {
        f"decoder {name}": (decode(paths, EXACT, name), "float32")
        for name in ("decord", "torchcodec")
        if find_spec(name)
    }
    return {
        "bfloat16": (exact, "bfloat16"),
        "nearest_keyframe": (decode(paths, replace(EXACT, nearest_keyframe=True)), "float32"),
        "loop_filter off": (decode(paths, replace(EXACT, loop_filter=False)), "float32"),
        **others,
    }


def embed(frames: Frames, model: Backbone) -> Videos:
    """Unit vectors, so that a product is a cosine."""
    return {name: units(model.embed(pixels)) for name, pixels in frames.items()}


def units(vectors: Vectors) -> Vectors:
    """Each row of length one."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def row(name: str, fast: Videos, exact: Videos) -> list[str]:
    """One way against the exact one."""
    shared = [video for video in exact if video in fast and len(fast[video]) == len(exact[video])]
    if not shared:
        return [name, f"0 of {len(exact)}", *["-"] * 3]
    frames = np.concatenate([(fast[video] * exact[video]).sum(axis=1) for video in shared])
    ours, base = (np.stack([units(one[video].mean(axis=0)) for video in shared]) for one in (fast, exact))
    videos = (ours * base).sum(axis=1)
    kept = np.mean(_neighbours(ours) == _neighbours(base)) if len(shared) > 1 else 1.0
    return [name, f"{len(shared)} of {len(exact)}", _cosines(frames), _cosines(videos), f"{kept:.3f}"]


def _neighbours(videos: Vectors) -> npt.NDArray[np.int64]:
    """The nearest other row of each."""
    cosines = videos @ videos.T
    np.fill_diagonal(cosines, -2)
    nearest: npt.NDArray[np.int64] = cosines.argmax(axis=1)
    return nearest


def _cosines(values: npt.NDArray[np.floating]) -> str:
    return f"{np.median(values):.4f} / {np.quantile(values, 0.01):.4f} / {values.min():.4f}"


def compare(title: str, paths: Sequence[Path], weights: str) -> None:
    """Print the table of some videos."""
    state = resolve_weights("resnet18", weights, read_bytes=read_uri).state_dict
    models = {dtype: Backbone(state, name="resnet18", dtype=dtype) for dtype in ("float32", "bfloat16")}
    frames = decode(paths, EXACT)
    exact = embed(frames, models["float32"])
    if not exact:
        print(f"\n{title}: none of {len(paths)} videos could be read.")
        return
    rows = [row(name, embed(given, models[dtype]), exact) for name, (given, dtype) in ways(paths, frames).items()]
    shifted = dict(zip(exact, [*list(exact.values())[1:], next(iter(exact.values()))], strict=True))
    rows.append([*row("another video", shifted, exact)[:4], ""])
    print(
        f"\n{title}: {len(exact)} of {len(paths)} videos have all 16 frames; cosines: median / 1st percentile / least\n"
    )
    print_table(("way", "videos", "frames", "videos' means", "same neighbour"), rows)


def main() -> None:
    """Print a table for each set of videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="*", help="folders of videos of your own")
    parser.add_argument("--weights", default=str(WEIGHTS), help="of resnet18: a safetensors file, or random")
    parser.add_argument("--videos-folder", type=Path, default=videos_folder(), help="where the next run finds clips")
    parser.add_argument("--most", type=int, default=60, help="videos of a set, spread over it")
    parser.add_argument("--quick", action="store_true", help="8 of each set")
    options = parser.parse_args()
    most = 8 if options.quick else options.most
    weights = weights_or_random(options.weights)
    print(describe_machine())
    print(f"resnet18, {'random weights' if weights == 'random' else Path(weights).name}")
    folders = {str(folder): folder for folder in options.videos or ()}
    folders = folders or {title: ASSETS / name for title, name in REAL.items()}
    compare("Generated clips", [encode(options.videos_folder / "clips", clip) for clip in MIXED[:most]], weights)
    for title, folder in folders.items():
        paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.exists() else []
        if paths:
            compare(title, paths[:: -(-len(paths) // most)], weights)
        else:
            print(f"\n{title} was left out: {folder} is not there.")


if __name__ == "__main__":
    main()
