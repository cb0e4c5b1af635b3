"""Embed against its floor and against Ray Data's documented pipeline, in one run on one machine, on processors.

    python benchmarks/embed.py [--videos 24] [--repeats 3] [--backbone resnet18]

The floor is decoding alone plus the model alone, each with every processor busy and nothing else: the same frames, in
plain processes. raypipe is timed in steady state, from its first committed shard to its last, and as a whole with its
start. ``documented`` is Ray Data's own recipe, ``read_videos(fps, resize) → map_batches → write_parquet``. All take
one frame a second, the sampling that they have in common.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from _common import describe_machine, make_videos, median

SLOTS = len(os.sched_getaffinity(0))
FPS = 1


def config_for(videos: Path, output: Path, backbone: str):  # noqa: ANN201
    """Embed at one frame a second, so that every way takes the same frames."""
    from raypipe.config import EmbedConfig, load_config  # noqa: PLC0415

    return load_config(
        EmbedConfig,
        values={"input": str(videos), "output": str(output)},
        overrides=(
            f"backbone.name={backbone}",
            "backbone.weights=random",
            "backbone.dtype=float32",
            "sampling.mode=fps",
            f"sampling.fps={FPS}",
            "sampling.max_frames=64",
            "shard.max_videos=1",
        ),
    )


def decode_some(paths: list[Path], config) -> tuple[int, float]:  # noqa: ANN001
    """The floor of decoding: the decoder itself in this process, no sandbox, no Ray."""
    import numpy as np  # noqa: PLC0415

    from raypipe.embed.pipeline import prepare  # noqa: PLC0415
    from raypipe.video.decoders import FrameWriter, choose_frames, decode_pyav  # noqa: PLC0415
    from raypipe.video.probe import VideoFile  # noqa: PLC0415

    request = prepare(config, dtype="float32").decode_request
    frames = np.zeros((request.max_frames, request.crop_size, request.crop_size, 3), np.uint8)
    count = 0
    decoded_seconds = time.perf_counter()
    for path in paths:
        with path.open("rb") as file:
            video = VideoFile(file, limits=request.limits)
            wanted = choose_frames(video.index, request)
            decode_pyav(video, wanted, FrameWriter(wanted, frames, request))
            count += len(wanted.packets)
            video.close()
    return count, time.perf_counter() - decoded_seconds


def embed_some(count: int, backbone: str) -> float:
    """The floor of the model: one thread, nothing but batches."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from raypipe.models.backbone import Backbone  # noqa: PLC0415
    from raypipe.models.weights import resolve_weights  # noqa: PLC0415

    torch.set_num_threads(1)
    model = Backbone(resolve_weights(backbone, "random", read_bytes=lambda _: b"").state_dict, name=backbone)
    frames = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)
    model.embed(frames[:8])
    start = time.perf_counter()
    model.embed(frames)
    return time.perf_counter() - start


def floor(videos: Path, backbone: str, scratch: Path) -> tuple[float, float, int]:
    """Seconds of decoding alone and of the model alone with every processor busy, and the number of frames."""
    paths = sorted(videos.iterdir())
    config = config_for(videos, scratch / "floor", backbone)
    with ProcessPoolExecutor(SLOTS, mp_context=get_context("spawn")) as pool:
        decoded = list(pool.map(decode_some, [paths[slot::SLOTS] for slot in range(SLOTS)], [config] * SLOTS))
        count = sum(frames for frames, _ in decoded)
        share = -(-count // SLOTS)
        embedded = list(pool.map(embed_some, [share] * SLOTS, [backbone] * SLOTS))
    return max(seconds for _, seconds in decoded), max(embedded), count


def run_raypipe(videos: Path, output: Path, backbone: str) -> tuple[float, float]:
    """Seconds of the whole process, and of its steady state scaled to all videos."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--child", "raypipe", str(videos), str(output), backbone]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    whole = time.perf_counter() - start
    return whole, float(done.stdout.strip().splitlines()[-1])


def child(videos: str, output: str, backbone: str) -> None:
    """Embed, and print the steady seconds: shards between the first to finish on each slot and the last."""
    import ray  # noqa: PLC0415

    from raypipe.embed import cluster, pipeline  # noqa: PLC0415

    finished: list[tuple[float, int]] = []
    run_shards = cluster.run_shards

    def watched(*args, **kwargs):  # noqa: ANN002, ANN003, ANN202
        for summary in run_shards(*args, **kwargs):
            finished.append((time.perf_counter(), sum(summary.statuses.values())))
            yield summary

    pipeline.cluster.run_shards = watched
    pipeline.run_embed(config_for(Path(videos), Path(output), backbone))
    ray.shutdown()
    # The first shard of every slot carries the start of its actor; what comes after them is the steady state. A shard
    # is one video, so that those half done when it begins weigh little.
    begin, rest = finished[SLOTS - 1][0], finished[SLOTS:]
    total = sum(count for _, count in finished)
    steady = (rest[-1][0] - begin) / sum(count for _, count in rest) * total
    print(steady)


def documented(videos: Path, output: Path, backbone: str) -> float:
    """Ray Data's recipe, seconds of the whole process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--child", "documented", str(videos), str(output), backbone], check=True)
    return time.perf_counter() - start


def documented_child(videos: str, output: str, backbone: str) -> None:
    """``read_videos → map_batches → write_parquet``, as the documentation of Ray Data puts them together."""
    import numpy as np  # noqa: PLC0415
    import ray  # noqa: PLC0415

    from raypipe.models.backbone import prepare_torchvision  # noqa: PLC0415

    class Embedder:
        def __init__(self) -> None:
            import torch  # noqa: PLC0415

            prepare_torchvision()
            import torchvision  # noqa: PLC0415

            self.torch = torch
            self.model = getattr(torchvision.models, backbone)(weights=None).eval()
            self.model.fc = torch.nn.Identity()

        def __call__(self, batch):  # noqa: ANN001, ANN204
            frames = self.torch.from_numpy(np.stack(batch["frame"])).permute(0, 3, 1, 2).float() / 255
            with self.torch.inference_mode():
                return {"embedding": self.model(frames).numpy()}

    ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False)
    frames = ray.data.read_videos(videos, fps=FPS, resize=(224, 224))
    frames.map_batches(Embedder, concurrency=1, batch_size=32).write_parquet(output)
    ray.shutdown()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="resnet18")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="raypipe-benchmark-"))
    try:
        videos = scratch / "videos"
        make_videos(videos, options.videos, seconds=options.seconds)
        floors, wholes, steadies, others = [], [], [], []
        frames = 0
        for repeat in range(options.repeats):
            decode, model, frames = floor(videos, options.backbone, scratch)
            floors.append((decode, model))
            whole, steady = run_raypipe(videos, scratch / f"raypipe-{repeat}", options.backbone)
            wholes.append(whole)
            steadies.append(steady)
            others.append(documented(videos, scratch / f"documented-{repeat}", options.backbone))
        ratios = [steady / sum(pair) for steady, pair in zip(steadies, floors, strict=True)]
        print(describe_machine())
        what = f"{options.videos} videos of {options.seconds:g} s 360p H.264, {frames} frames"
        print(f"{what}, {options.backbone} float32,")
        print(f"{FPS} frame a second, medians of {options.repeats}\n")
        print(f"| {'way':37} | seconds | of the floor |\n|{'-' * 39}|{'-' * 9}|{'-' * 14}|")
        base = median([sum(pair) for pair in floors])
        rows = (
            ("decode alone, all processors", median([pair[0] for pair in floors])),
            ("model alone, all processors", median([pair[1] for pair in floors])),
            ("the floor: both", base),
            ("raypipe, steady state", median(steadies)),
            ("raypipe, whole process", median(wholes)),
            ("Ray Data as documented, whole process", median(others)),
        )
        for name, seconds in rows:
            print(f"| {name:37} | {seconds:7.1f} | {seconds / base:12.2f} |")
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"\nraypipe in steady state is {median(ratios):.2f} x its floor (each repeat: {each}).")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        {"raypipe": child, "documented": documented_child}[sys.argv[2]](*sys.argv[3:])
    else:
        main()
