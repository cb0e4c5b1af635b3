"""A synthetic catalogue with clustered vectors, and versions of its index."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.config import IndexSettings
from raypipe.search.build import build_version
from raypipe.search.versions import Versions
from raypipe.storage import Folder

CATEGORIES = ("music", "news", "sport", "cooking", "travel")
LANGUAGES = ("en", "de", "pt")
EMBEDDING_DIM = 32


@dataclass
class Catalogue:
    """Videos in clusters, one per category; every twentieth is a near-duplicate of the previous video."""

    items: pa.Table
    embeddings: npt.NDArray[np.float32]
    thumbnails: list[bytes | None]
    batch_rows: int = 64

    def batches(self) -> Iterator[tuple[npt.NDArray[np.float32], list[bytes | None]]]:
        """Yield the batches that a build reads."""
        for at in range(0, len(self.embeddings), self.batch_rows):
            rows = slice(at, at + self.batch_rows)
            yield self.embeddings[rows], self.thumbnails[rows]

    def select(self, rows: list[int]) -> "Catalogue":
        """Return a catalogue of some of the videos."""
        thumbnails = [self.thumbnails[row] for row in rows]
        return Catalogue(self.items.take(rows), self.embeddings[rows], thumbnails, self.batch_rows)

    def build(self, output: Folder, work: Path, *, settings: IndexSettings) -> Path:
        """Build and put a version of a local index, make it the live one, and return its folder."""
        manifest = build_version(work, items=self.items, batches=self.batches, settings=settings, base=None)
        versions = Versions(output)
        versions.put(manifest["id"], work, manifest)
        versions.set_current(manifest["id"])
        return versions.fetch(manifest["id"], work / "cache")


def make_catalogue(num_videos: int, *, seed: int = 0, dim: int = EMBEDDING_DIM) -> Catalogue:
    """Make a catalogue whose columns hold nulls and text in several scripts."""
    chance = np.random.default_rng(seed)
    cluster = chance.integers(0, len(CATEGORIES), num_videos)
    centres = chance.standard_normal((len(CATEGORIES), dim))
    embeddings = (centres[cluster] + 0.6 * chance.standard_normal((num_videos, dim)) + 0.5).astype(np.float32)
    for row in range(19, num_videos, 20):
        embeddings[row] = embeddings[row - 1] * 1.5 + 0.001 * chance.standard_normal(dim)
        cluster[row] = cluster[row - 1]
    rows = range(num_videos)
    started = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    columns = {
        "video_id": [f"{CATEGORIES[cluster[row]]}/vidéo-{row:05d}.mp4" for row in rows],
        "video_uri": [f"s3://videos/{CATEGORIES[cluster[row]]}/vidéo-{row:05d}.mp4" for row in rows],
        "etag": [f"{row:032x}" for row in rows],
        "generation": pa.array([0] * num_videos, pa.int32()),
        "duration_seconds": [2.0 + row % 60 for row in rows],
        "label": [None if row % 11 == 0 else CATEGORIES[cluster[row]] for row in rows],
        "score": pa.array([None if row % 11 == 0 else 0.5 + row % 50 / 100 for row in rows], pa.float32()),
        "title": [f"{CATEGORIES[cluster[row]].title()} no. {row} 日本" for row in rows],
        "category": [None if row % 13 == 0 else CATEGORIES[cluster[row]] for row in rows],
        "language": [LANGUAGES[row % len(LANGUAGES)] for row in rows],
        "published_at": [None if row % 17 == 0 else started + dt.timedelta(hours=row) for row in rows],
        "popularity": [
            None if row % 7 == 0 else int(value) for row, value in enumerate(chance.integers(0, 999, num_videos))
        ],
    }
    thumbnails = [None if row % 5 == 0 else b"\xff\xd8 thumbnail %d" % row for row in rows]
    return Catalogue(pa.table(columns), embeddings, thumbnails)
