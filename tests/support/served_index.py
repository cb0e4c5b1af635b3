"""A handmade index to serve: videos in clusters, with catalogue columns."""

import datetime as dt
import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from raypipe.config import IndexSettings
from raypipe.search.build import build_version
from raypipe.search.versions import Versions
from raypipe.storage import Folder

Vectors = npt.NDArray[np.float32]
CATEGORIES = ("music", "news", "sport", "cooking")
DIM = 32
EMBEDDINGS = {"uri": "embeddings", "fingerprint": "f" * 16, "settings": {"backbone": "resnet18"}}


def jpeg(shade: int) -> bytes:
    """Return a small JPEG."""
    data = io.BytesIO()
    Image.new("RGB", (16, 16), (shade % 256, 100, 50)).save(data, "JPEG")
    return data.getvalue()


def make_items(num_videos: int, *, seed: int = 0) -> tuple[pa.Table, Vectors]:
    """Return rows and embeddings [N, DIM]; some columns hold nulls, NaN, and text in several scripts."""
    chance = np.random.default_rng(seed)
    cluster = chance.integers(0, len(CATEGORIES), num_videos)
    centres = np.random.default_rng(1).standard_normal((len(CATEGORIES), DIM))
    embeddings = (centres[cluster] + 0.6 * chance.standard_normal((num_videos, DIM))).astype(np.float32)
    rows = range(num_videos)
    started = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    names = [CATEGORIES[number] for number in cluster]
    columns = {
        "video_id": [f"{names[row]}/vidéo {row}.mp4" for row in rows],
        "video_uri": [f"s3://videos/{names[row]}/vidéo {row}.mp4" for row in rows],
        "etag": ["e"] * num_videos,
        "generation": pa.array([0] * num_videos, pa.int32()),
        "duration_seconds": [2.0 + row % 60 for row in rows],
        "label": [None if row % 11 == 0 else names[row] for row in rows],
        "score": pa.array([None if row % 11 == 0 else 0.75 for row in rows], pa.float32()),
        "title": [f"{names[row].title()} no. {row} 日本" for row in rows],
        "category": [None if row % 13 == 0 else names[row] for row in rows],
        "published_at": [None if row % 17 == 0 else started + dt.timedelta(hours=row) for row in rows],
        "popularity": [
            None if row % 7 == 0 else int(number) for row, number in enumerate(chance.integers(0, 99, num_videos))
        ],
        "rating": [float("nan") if row % 5 == 0 else row / 10 for row in rows],
    }
    return pa.table(columns), embeddings


def put_version(
    output: Folder,
    items: pa.Table,
    embeddings: Vectors,
    *,
    thumbnails: list[bytes | None] | None = None,
    about: Mapping[str, Any] = EMBEDDINGS,
    live: bool = True,
) -> str:
    """Build a version, put it and return its id; ``about`` is the manifest's entry about the embeddings."""
    work = Path(tempfile.mkdtemp())
    pictures = thumbnails or [None if row % 5 == 0 else jpeg(row) for row in range(len(embeddings))]

    def batches() -> Iterator[tuple[Vectors, list[bytes | None]]]:
        yield embeddings, pictures

    settings = IndexSettings(dim=16, whitening=0)
    manifest = build_version(work, items=items, batches=batches, settings=settings, base=None)
    versions = Versions(output)
    versions.put(manifest["id"], work, {**manifest, "embeddings": dict(about)})
    shutil.rmtree(work)
    if live:
        versions.set_current(manifest["id"])
    return str(manifest["id"])


def put_index(output: Folder, *, num_videos: int = 200, seed: int = 0, live: bool = True) -> str:
    """Put a version with this many videos, and return its id."""
    return put_version(output, *make_items(num_videos, seed=seed), live=live)


def damage(output: Folder, version: str, name: str = "index.faiss") -> None:
    """Invert one byte of a file."""
    key = f"versions/{version}/{name}"
    data = bytearray(output.read(key))
    data[len(data) // 2] ^= 255
    output.put(key, bytes(data))
