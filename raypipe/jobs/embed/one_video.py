"""Embed one video in this process, without Ray. The result is the row that the embed job would write."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe import schema
from raypipe.config import EmbedConfig
from raypipe.config.embed import BackboneConfig
from raypipe.dataset.plan import PlannedVideo
from raypipe.dataset.read import frame_embeddings
from raypipe.errors import ConfigError, ObjectMissingError
from raypipe.jobs.embed.setup import EmbedSetup, find_network, unstored_shard
from raypipe.jobs.embed.shard import decode_shard, embed_shard
from raypipe.models.backbones import Dtype, resolve_dtype, resolve_engine
from raypipe.models.engines import FrameEmbedder, load_embedder
from raypipe.results import Shown
from raypipe.storage.folder import Folder, place_of
from raypipe.video.sandbox.parent import DecodeSandbox

if TYPE_CHECKING:
    from raypipe.models.weights import Weights


@dataclass(frozen=True, repr=False)
class EmbeddedVideo(Shown):
    """An embedded video, with the values of its row in an output of ``raypipe embed``.

    Attributes:
        video_uri: Where the video is.
        status: The outcome: ``ok``, ``partial``, or the kind of failure if there are no frames.
        error: The reason for a status other than ``ok``, as a sentence. Empty if there is none.
        embedding: The L2-normalised mean of the frame embeddings, float32 [D]. None if there are no frames.
        frame_embeddings: The embedding of each frame, float16 [T, D].
        pts_seconds: The time of each frame from the start of the video, float32 [T].
        row: The whole row, as a mapping from column names to values.
    """

    video_uri: str
    status: str
    error: str
    embedding: npt.NDArray[np.float32] | None
    frame_embeddings: npt.NDArray[np.float16]
    pts_seconds: npt.NDArray[np.float32]
    row: Mapping[str, Any]

    def shown(self) -> Mapping[str, object]:
        """Return the URI, the status, and either the duration and the shape of the vectors or the error."""
        outcome = {"video_uri": self.video_uri, "status": self.status}
        if self.embedding is None:
            return {**outcome, "error": self.error}
        seconds = self.row[schema.DURATION_SECONDS]
        return {**outcome, "duration_seconds": seconds, "frame_embeddings": list(self.frame_embeddings.shape)}


def embed_video(config: EmbedConfig) -> EmbeddedVideo:
    """Embed the video at ``config.input``. If it cannot be decoded, ``status`` and ``error`` of the result say why.

    ``config.output`` is not used. The network stays in memory for the next call with the same backbone.

    Raises:
        ObjectMissingError: there is no such video.
        SetupError: the backbone or its weights cannot be read, or the decoder is not installed.
        StorageError: the storage cannot be read.
    """
    folder, name = place_of(Folder(config.input).uri)
    stored = folder.stat(name)
    if stored is None:
        uri = folder.child(name)
        msg = f"There is no video {uri}."
        raise ObjectMissingError(msg, key=uri)
    if config.backbone.dtype == "int8":
        msg = "One video is not enough to quantize a network with."
        raise ConfigError(msg, key="backbone.dtype", value="int8", remedy="Set backbone.dtype=auto.")
    weights, preprocessing = find_network(config.backbone)
    dtype = resolve_dtype(config.backbone.dtype, device := _device())
    setup = EmbedSetup(config, folder, preprocessing, weights, dtype)
    rows = unstored_shard([PlannedVideo.of(stored)])
    with DecodeSandbox.start(setup.decode_request, config.decode) as sandbox:
        decoded = decode_shard(rows, sandbox, max_size_bytes=config.decode.max_size_bytes)
    embedder = _embedder(config.backbone, weights, dtype, device)
    size, dim = preprocessing.crop_size, setup.embedding_dim
    return _result(embed_shard(decoded, embedder.embed, embedding_dim=dim, crop_size=size))


def _result(embedded: pa.Table) -> EmbeddedVideo:
    row = embedded.to_pylist()[0]
    mean = row[schema.EMBEDDING]
    return EmbeddedVideo(
        video_uri=row[schema.VIDEO_URI],
        status=row[schema.STATUS],
        error=row[schema.ERROR] or "",
        embedding=None if mean is None else np.array(mean, np.float32),
        frame_embeddings=frame_embeddings(embedded)[0],
        pts_seconds=np.array(row[schema.FRAME_PTS_SECONDS], np.float32),
        row={name: value for name, value in row.items() if name in schema.embeddings_schema(1).names},
    )


def _device() -> Literal["cpu", "cuda"]:
    import torch  # noqa: PLC0415 - takes seconds

    return "cuda" if torch.cuda.is_available() else "cpu"


_kept: dict[tuple[str, ...], FrameEmbedder] = {}  # only the last, because building takes longer than a video


def _embedder(backbone: BackboneConfig, weights: "Weights", dtype: Dtype, device: str) -> FrameEmbedder:
    name, engine = backbone.name, resolve_engine(backbone.wanted_engine, device, dtype)
    key = (name, weights.digest, dtype, device, engine)
    if key not in _kept:
        _kept.clear()
        _kept[key] = load_embedder(name, lambda: weights.state_dict, engine=engine, device=device, dtype=dtype)
    return _kept[key]
