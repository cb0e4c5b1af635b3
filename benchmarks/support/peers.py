"""Other ways to embed a folder of videos. Each is a program that ``peers.py`` runs in its own process.

    python benchmarks/support/peers.py WAY JOB

All except ``ray-data-documented`` run raypipe's own ``Backbone``, the fastest known form of the model, in the same
dtype and batches. All write Parquet with one row per frame. Each logs the frames of every finished batch. Modules are
imported where they are used, so that each way pays only for its own imports.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Embed = Callable[[np.ndarray], np.ndarray]  # uint8 frames [N, 224, 224, 3] to vectors [N, D]
Settings = dict[str, Any]  # actors, threads, …: the tuning options of a way
SIZE = 224
UNIFORM = 16


@dataclass(frozen=True)
class Job:
    """The videos that a way embeds, and how it embeds them."""

    videos: str
    output: str
    marks: str  # a file of (Unix time, frames) lines
    backbone: str
    dtype: str
    settings: Settings

    def embedder(self, num_threads: int) -> Embed:
        """Return raypipe's network as a function that also logs finished frames."""
        from raypipe.models.backbone import Backbone  # noqa: PLC0415
        from raypipe.models.weights import resolve_weights  # noqa: PLC0415

        weights = resolve_weights(self.backbone, "random", read_bytes=lambda _: b"")
        return self._marked(Backbone(weights.state_dict, name=self.backbone, dtype=self.dtype).embed, num_threads)

    def plain_embedder(self, num_threads: int) -> Embed:
        """Return torchvision's network and transforms as documented: float32, batch norm not folded."""
        import torch  # noqa: PLC0415

        from raypipe.models.backbones import head_name  # noqa: PLC0415
        from raypipe.models.weights import prepare_torchvision  # noqa: PLC0415

        prepare_torchvision()
        from torchvision import models  # noqa: PLC0415

        transform = models.get_model_weights(self.backbone).DEFAULT.transforms(resize_size=SIZE, crop_size=SIZE)
        network = models.get_model(self.backbone, weights=None)
        network.set_submodule(head_name(self.backbone), torch.nn.Identity())
        network.eval()

        def embed(frames: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return network(transform(torch.from_numpy(frames).permute(0, 3, 1, 2))).numpy()

        return self._marked(embed, num_threads)

    def _marked(self, embed: Embed, num_threads: int) -> Embed:
        import torch  # noqa: PLC0415

        torch.set_num_threads(num_threads)

        def embed_and_mark(frames: np.ndarray) -> np.ndarray:
            vectors = embed(frames)
            with Path(self.marks).open("a") as file:
                file.write(f"{time.time()} {len(frames)}\n")
            return vectors

        return embed_and_mark


def uniform_frames(path: str) -> np.ndarray:
    """Decode 16 uniform frames with decord, which resizes them."""
    import decord  # noqa: PLC0415

    reader = decord.VideoReader(path, width=SIZE, height=SIZE, num_threads=1)
    wanted = ((np.arange(UNIFORM) + 0.5) * len(reader) / UNIFORM).astype(int)
    return reader.get_batch(wanted).asnumpy()


def ray_data(job: Job, *, documented: bool = False) -> None:
    """Run ``read_videos → map_batches → write_parquet``; if ``documented``, with torchvision's network."""
    import ray  # noqa: PLC0415

    class Embedder:
        def __init__(self) -> None:
            make = job.plain_embedder if documented else job.embedder
            self.embed = make(job.settings["threads"])

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"path": batch["path"], "embedding": self.embed(np.stack(batch["frame"]))}

    ray.init(num_cpus=job.settings["processors"], include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    frames = ray.data.read_videos(job.videos, fps=1, resize=(SIZE, SIZE), include_paths=True)
    actors = {"concurrency": job.settings["actors"], "num_cpus": job.settings["cpus"], "batch_size": 32}
    frames.map_batches(Embedder, **actors).write_parquet(job.output)
    ray.shutdown()


def data_loader(job: Job) -> None:
    """Run a PyTorch ``DataLoader`` whose workers decode with decord; the model runs in the main process."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415
    from torch.utils.data import DataLoader, Dataset  # noqa: PLC0415

    paths = sorted(str(path) for path in Path(job.videos).iterdir())

    class Videos(Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, at: int) -> tuple[str, np.ndarray]:
            return paths[at], uniform_frames(paths[at])

    embed = job.embedder(job.settings["threads"])
    workers = {"num_workers": job.settings["workers"], "prefetch_factor": 4, "batch_size": None}
    Path(job.output).mkdir()
    writer = None
    for path, frames in DataLoader(Videos(), **workers):
        vectors = embed(np.asarray(frames))
        table = pa.table({"path": [path] * len(vectors), "embedding": list(vectors)})
        writer = writer or pq.ParquetWriter(f"{job.output}/embeddings.parquet", table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def daft_frames(job: Job) -> None:
    """Run Daft's ``read_video_frames`` at one frame per second, then the model in a class."""
    import daft  # noqa: PLC0415

    def embed_batch(embed: Embed, frames: list[np.ndarray]) -> list[list[float]]:
        return embed(np.stack([np.asarray(frame) for frame in frames])).tolist()

    vector = daft.DataType.list(daft.DataType.float32())
    embedder = _daft_class(job, embed_batch, return_dtype=vector, batch_size=32)
    # With several files at once, Daft 0.7.26 hangs on two CPUs: all its threads wait for its event loop.
    daft.context.set_execution_config(scantask_max_parallel=1)
    frames = daft.read_video_frames(f"{job.videos}/*", image_height=SIZE, image_width=SIZE, sample_interval_seconds=1.0)
    frames.select("path", embedder(frames["data"]).alias("embedding")).write_parquet(job.output)


def daft_udf(job: Job) -> None:
    """Run Daft over the paths: a class decodes 16 frames of each video with decord and embeds them."""
    import daft  # noqa: PLC0415

    def embed_batch(embed: Embed, paths: list[str]) -> list[list[list[float]]]:
        return [embed(uniform_frames(path.removeprefix("file://"))).tolist() for path in paths]

    vectors = daft.DataType.list(daft.DataType.list(daft.DataType.float32()))
    embedder = _daft_class(job, embed_batch, return_dtype=vectors, batch_size=1)
    rows = daft.from_glob_path(f"{job.videos}/*")
    rows.select("path", embedder(rows["path"]).alias("embedding")).explode("embedding").write_parquet(job.output)


def _daft_class(job: Job, embed_batch: Callable[[Embed, list], list], **batch: Any):  # noqa: ANN202, ANN401
    import daft  # noqa: PLC0415

    from raypipe.models.weights import prepare_torchvision  # noqa: PLC0415

    prepare_torchvision()  # Daft makes instances in several threads at once, which would race to do this

    @daft.cls(max_concurrency=job.settings["actors"], use_process=job.settings["processes"])
    class Embedder:
        def __init__(self) -> None:
            self.embed = job.embedder(job.settings["threads"])

        @daft.method.batch(**batch)
        def __call__(self, column):  # noqa: ANN001, ANN204
            return embed_batch(self.embed, column.to_pylist())

    return Embedder()


WAYS = {
    "ray-data-documented": partial(ray_data, documented=True),
    "ray-data": ray_data,
    "data-loader": data_loader,
    "daft-frames": daft_frames,
    "daft-udf": daft_udf,
}


def read_marks(path: Path) -> tuple[int, float]:
    """Return the number of frames, and the seconds for all of them at the speed of the last three quarters."""
    times, counts = np.loadtxt(path, ndmin=2, unpack=True)
    order = np.argsort(times)
    times, done = times[order], np.cumsum(counts[order])
    first = min(int(np.searchsorted(done, done[-1] / 4)), len(times) - 2)
    return int(done[-1]), float((times[-1] - times[first]) * done[-1] / (done[-1] - done[first]))


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    WAYS[sys.argv[1]](Job(**json.loads(sys.argv[2])))
