"""The other ways to embed a folder of videos, each a whole program: started as a process of its own by ``peers.py``.

    python benchmarks/_peers.py WAY JOB

All but ``ray-data-documented`` run raypipe's own ``Backbone``, the fastest form of the model known here, in the same
dtype and batches; all write Parquet with a row for each frame. Each says after every batch how many frames are done.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Embed = Callable[[np.ndarray], np.ndarray]  # uint8 frames [N, 224, 224, 3] to vectors [N, D]
SIZE = 224
UNIFORM = 16


@dataclass(frozen=True)
class Job:
    """What a peer does, and how."""

    videos: str
    output: str
    marks: str  # a file of (Unix time, frames) lines
    backbone: str
    dtype: str
    settings: dict[str, Any]

    def embedder(self, num_threads: int) -> Embed:
        """By raypipe's network; frames are marked when they are done."""
        from raypipe.models.backbone import Backbone  # noqa: PLC0415
        from raypipe.models.weights import resolve_weights  # noqa: PLC0415

        weights = resolve_weights(self.backbone, "random", read_bytes=lambda _: b"")
        return self._marked(Backbone(weights.state_dict, name=self.backbone, dtype=self.dtype).embed, num_threads)

    def plain_embedder(self, num_threads: int) -> Embed:
        """The same by torchvision's network and transforms as documentation uses them: float32, nothing folded."""
        import torch  # noqa: PLC0415

        from raypipe.models.backbones import head_name  # noqa: PLC0415
        from raypipe.models.networks import prepare_torchvision  # noqa: PLC0415

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
    """16 uniform frames with decord, resized inside it."""
    import decord  # noqa: PLC0415

    reader = decord.VideoReader(path, width=SIZE, height=SIZE, num_threads=1)
    wanted = ((np.arange(UNIFORM) + 0.5) * len(reader) / UNIFORM).astype(int)
    return reader.get_batch(wanted).asnumpy()


def ray_data_documented(job: Job) -> None:
    """``read_videos → map_batches → write_parquet`` and torchvision's network, as documentation puts them together."""
    _ray_data(job, job.plain_embedder)


def ray_data(job: Job) -> None:
    """The same with raypipe's network."""
    _ray_data(job, job.embedder)


def _ray_data(job: Job, make_embedder: Callable[[int], Embed]) -> None:
    import ray  # noqa: PLC0415

    class Embedder:
        def __init__(self) -> None:
            self.embed = make_embedder(job.settings["threads"])

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"path": batch["path"], "embedding": self.embed(np.stack(batch["frame"]))}

    ray.init(num_cpus=job.settings["processors"], include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    frames = ray.data.read_videos(job.videos, fps=1, resize=(SIZE, SIZE), include_paths=True)
    actors = {"concurrency": job.settings["actors"], "num_cpus": job.settings["cpus"], "batch_size": 32}
    frames.map_batches(Embedder, **actors).write_parquet(job.output)
    ray.shutdown()


def data_loader(job: Job) -> None:
    """A PyTorch ``DataLoader`` whose workers decode with decord; the model is in the main process."""
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
    """Daft's ``read_video_frames`` at one frame a second, then the model in a class."""
    import daft  # noqa: PLC0415

    Embedder = _daft_embedder(job)  # noqa: N806
    # With several files at once Daft 0.7.26 stands still on two processors: all its threads wait for its event loop.
    daft.context.set_execution_config(scantask_max_parallel=1)
    frames = daft.read_video_frames(f"{job.videos}/*", image_height=SIZE, image_width=SIZE, sample_interval_seconds=1.0)
    frames.select("path", Embedder()(frames["data"]).alias("embedding")).write_parquet(job.output)


def daft_udf(job: Job) -> None:
    """Daft over the paths: one class decodes 16 frames of each with decord and embeds them."""
    import daft  # noqa: PLC0415

    embedding = daft.DataType.list(daft.DataType.list(daft.DataType.float32()))
    actors = {"max_concurrency": job.settings["actors"], "use_process": job.settings["processes"]}

    @daft.cls(**actors)
    class Embedder:
        def __init__(self) -> None:
            self.embed = job.embedder(job.settings["threads"])

        @daft.method.batch(return_dtype=embedding, batch_size=1)
        def __call__(self, paths):  # noqa: ANN001, ANN204
            return [self.embed(uniform_frames(path.removeprefix("file://"))).tolist() for path in paths.to_pylist()]

    rows = daft.from_glob_path(f"{job.videos}/*")
    rows.select("path", Embedder()(rows["path"]).alias("embedding")).explode("embedding").write_parquet(job.output)


def _daft_embedder(job: Job):  # noqa: ANN202
    import daft  # noqa: PLC0415

    actors = {"max_concurrency": job.settings["actors"], "use_process": job.settings["processes"]}

    @daft.cls(**actors)
    class Embedder:
        def __init__(self) -> None:
            self.embed = job.embedder(job.settings["threads"])

        @daft.method.batch(return_dtype=daft.DataType.list(daft.DataType.float32()), batch_size=32)
        def __call__(self, frames):  # noqa: ANN001, ANN204
            return self.embed(np.stack([np.asarray(frame) for frame in frames.to_pylist()])).tolist()

    return Embedder


WAYS = {
    "ray-data-documented": ray_data_documented,
    "ray-data": ray_data,
    "data-loader": data_loader,
    "daft-frames": daft_frames,
    "daft-udf": daft_udf,
}


def read_marks(path: Path) -> tuple[int, float]:
    """The number of frames, and the seconds of all at the pace of the last three quarters."""
    lines = sorted(_marks(path))
    done = np.cumsum([count for _, count in lines])
    total = int(done[-1])
    first = min(int(np.searchsorted(done, total / 4)), len(lines) - 2)
    return total, (lines[-1][0] - lines[first][0]) * total / (total - int(done[first]))


def _marks(path: Path) -> Iterator[tuple[float, int]]:
    for line in path.read_text().splitlines():
        at, count = line.split()
        yield float(at), int(count)


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    WAYS[sys.argv[1]](Job(**json.loads(sys.argv[2])))
