"""An index of a few made-up videos that is comparable with the embeddings of ``embed_outputs``."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raypipe.config import AnomaliesConfig
from raypipe.models.classifier import VideoClassifierConfig
from raypipe.models.pretraining import MaskedFrameModel
from raypipe.storage import Folder
from support.embed_outputs import DIM, MARK, SETTINGS
from support.served_index import put_version

ABOUT = {"uri": "embeddings", "fingerprint": MARK, "settings": dict(SETTINGS)}


def put_catalogue(
    folder: Folder,
    *,
    num_videos: int = 30,
    known: tuple[str, ...] = (),
    dim: int = DIM,
    **about: Any,  # noqa: ANN401
) -> str:
    """Put an index of random embeddings, some with the ids ``known``, and return its version."""
    embeddings = np.random.default_rng(5).standard_normal((num_videos, dim)).astype(np.float32)
    ids = [*known, *(f"catalogue/{number}.mp4" for number in range(num_videos - len(known)))]
    items = pa.table({
        "video_id": ids,
        "video_uri": [f"s3://videos/{video_id}" for video_id in ids],
        "etag": ["e"] * num_videos,
        "generation": pa.array([0] * num_videos, pa.int32()),
        "duration_seconds": [2.0] * num_videos,
    })  # fmt: skip
    return put_version(folder, items, embeddings, about=ABOUT | about)


def configured(embeddings: Folder, **keys: Any) -> AnomaliesConfig:  # noqa: ANN401 - of any type
    """Return a configuration with an index and an output next to the embeddings."""
    given = {"embeddings": embeddings.uri, "index": f"{embeddings.uri}-index", "output": f"{embeddings.uri}-anomalies"}
    return AnomaliesConfig(**given | keys)


def save_masked_frame_model(folder: Path, *, dim: int = DIM, mark: str | None = None) -> Path:
    """Save a tiny masked-frame model with random weights."""
    torch.manual_seed(0)
    gpt2 = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 8}
    config = VideoClassifierConfig(embedding_dim=dim, gpt2=gpt2, max_frames=8, embedding_fingerprint=mark)
    MaskedFrameModel(config).save_pretrained(folder)
    return folder
