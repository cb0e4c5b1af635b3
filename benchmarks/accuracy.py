"""Measure what every fast path does to the embeddings: cosines with the embeddings of the exact frames in float32.

    python benchmarks/accuracy.py [--most 60] [--quick]

The baseline is 16 uniform frames decoded by PyAV, ResNet-18 in float32. It is compared with bfloat16 on the same
frames, ``nearest_keyframe``, ``loop_filter`` off, and the decoders decord and torchcodec, each through the sandbox.
Cosines are between frames at the same position and between videos (the means). ``same neighbour`` is the fraction of
videos whose nearest other video stays the same. ``another video`` is for comparison: the cosines between frames at the
same position in different videos.

The videos are the mixed generated clips and, if the project's shared assets are next to the repository, real ones. If
a way cannot read a video, the video is excluded from the results of that way, and counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raypipe.models.backbone import Backbone
from raypipe.models.weights import resolve_weights
from raypipe.status import Status
from raypipe.storage.folder import read_uri
from raypipe.video.decode_request import DecodeRequest, Pixels
from raypipe.video.sandbox.parent import DecodeSandbox
from support import describe_machine, make_parser, print_table, unit_rows
from support.clips import MIXED, encode_all
from support.embedding import EXACT
from support.learning import WEIGHTS, resnet18_weights

_ASSETS = WEIGHTS.parents[1]
REAL = {"Real clips of the sky": _ASSETS / "labelled/drone", "Real clips of many kinds": _ASSETS / "videos"}
Frames = Mapping[str, Pixels]
Vectors = npt.NDArray[np.float32]
Videos = Mapping[str, Vectors]  # [T, D] of each


def decode(paths: Sequence[Path], request: DecodeRequest, decoder: str = "pyav") -> Frames:
    """Return the frames of every video that has all frames that were asked for."""
    found = {}
    with DecodeSandbox(request, decoder=decoder) as sandbox:
        for path in paths:
            with path.open("rb") as file:
                video = sandbox.decode(file)
            if video.status == Status.OK and len(video.frames):
                found[str(path)] = video.frames
    return found


def ways(paths: Sequence[Path], exact: Frames) -> dict[str, tuple[Frames, str]]:
    """Return the frames of each fast path, and the dtype to embed them in."""
    installed = [name for name in ("decord", "torchcodec") if find_spec(name)]
    return {
        "bfloat16": (exact, "bfloat16"),
        "nearest_keyframe": (decode(paths, replace(EXACT, nearest_keyframe=True)), "float32"),
        "loop_filter off": (decode(paths, replace(EXACT, loop_filter=False)), "float32"),
        **{f"decoder {name}": (decode(paths, EXACT, name), "float32") for name in installed},
    }


def embed(frames: Frames, model: Backbone) -> Videos:
    """Return the vectors scaled to length one, so that products are cosines."""
    return {name: unit_rows(model.embed(pixels)) for name, pixels in frames.items()}


def row(name: str, fast: Videos, exact: Videos) -> list[str]:
    """Return the table row that compares one way with the exact one."""
    shared = [video for video in exact if video in fast and len(fast[video]) == len(exact[video])]
    if not shared:
        return [name, f"0 of {len(exact)}", *["-"] * 3]
    frames = np.concatenate([(fast[video] * exact[video]).sum(axis=1) for video in shared])
    means, base = (unit_rows(np.stack([one[video].mean(axis=0) for video in shared])) for one in (fast, exact))
    videos = (means * base).sum(axis=1)
    kept = np.mean(_neighbours(means) == _neighbours(base)) if len(shared) > 1 else 1.0
    return [name, f"{len(shared)} of {len(exact)}", _cosines(frames), _cosines(videos), f"{kept:.3f}"]


def _neighbours(videos: Vectors) -> npt.NDArray[np.int64]:
    """Return the index of the nearest other row of each row."""
    cosines = videos @ videos.T
    np.fill_diagonal(cosines, -2)
    nearest: npt.NDArray[np.int64] = cosines.argmax(axis=1)
    return nearest


def _cosines(values: npt.NDArray[np.floating]) -> str:
    return f"{np.median(values):.4f} / {np.quantile(values, 0.01):.4f} / {values.min():.4f}"


def compare(title: str, paths: Sequence[Path], weights: str) -> None:
    state = resolve_weights("resnet18", weights, read_bytes=read_uri).state_dict
    models = {dtype: Backbone(state, name="resnet18", dtype=dtype) for dtype in ("float32", "bfloat16")}
    frames = decode(paths, EXACT)
    exact = embed(frames, models["float32"])
    if not exact:
        print(f"\n{title}: none of {len(paths)} videos could be read.")
        return
    rows = [row(name, embed(given, models[dtype]), exact) for name, (given, dtype) in ways(paths, frames).items()]
    vectors = list(exact.values())
    shifted = dict(zip(exact, [*vectors[1:], vectors[0]], strict=True))
    rows.append([*row("another video", shifted, exact)[:4], ""])
    counts = f"{len(exact)} of {len(paths)} videos have all 16 frames"
    print(f"\n{title}: {counts}; cosines: median / 1st percentile / minimum\n")
    print_table(("way", "videos", "frames", "videos' means", "same neighbour"), rows)


def main() -> None:
    parser = make_parser(__doc__, quick="8 videos of each set", videos=True)
    parser.add_argument("--most", type=int, default=60, help="the maximum number of videos per set, spread over it")
    options = parser.parse_args()
    most = 8 if options.quick else options.most
    weights = resnet18_weights()
    print(describe_machine())
    print(f"resnet18, {'random weights' if weights == 'random' else Path(weights).name}")
    compare("Generated clips", encode_all(options.videos_folder, MIXED[:most]), weights)
    for title, folder in REAL.items():
        paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.exists() else []
        if paths:
            compare(title, paths[:: -(-len(paths) // most)], weights)
        else:
            print(f"\n{title} skipped: {folder} does not exist or is empty.")


if __name__ == "__main__":
    main()
