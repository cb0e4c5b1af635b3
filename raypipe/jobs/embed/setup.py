"""Everything that is decided before any video is read: weights, dtype, the format of rows and the decode request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raypipe import schema
from raypipe.config import EmbedConfig
from raypipe.config.embed import BackboneConfig
from raypipe.dataset.plan import PlannedVideo, plan_numbers, plan_table, read_plan
from raypipe.models.backbones import Dtype, Preprocessing, embedding_dim
from raypipe.models.int8_files import Int8Network
from raypipe.storage import Folder
from raypipe.storage.folder import read_uri
from raypipe.video.decode_request import DecodeRequest, request_of_settings

if TYPE_CHECKING:
    from raypipe.models.weights import Weights


@dataclass(frozen=True, slots=True)
class EmbedSetup:
    """Everything that is decided before any video is read."""

    config: EmbedConfig
    output: Folder
    preprocessing: Preprocessing
    weights: "Weights"
    dtype: Dtype
    row_format: int = schema.ROW_FORMAT  # that of the existing rows, if there are any
    vectors: schema.FloatType = "float32"  # the stored type of frame embeddings
    int8: Int8Network | None = None  # with dtype int8

    @property
    def embedding_dim(self) -> int:
        """Return D, the dimension of every vector."""
        return embedding_dim(self.config.backbone.name)

    @property
    def settings(self) -> dict[str, Any]:
        """Return all settings that affect the vectors."""
        sampling = self.config.sampling
        keys = {
            "uniform": ("num_frames", "nearest_keyframe"),
            "fps": ("fps", "max_frames", "nearest_keyframe"),
            "keyframes": ("max_frames",),
            "all": ("max_frames",),
        }[sampling.mode]
        unfiltered = {} if sampling.loop_filter else {"loop_filter": False}
        return {
            "format": self.row_format,
            "sampling": {"mode": sampling.mode, **{key: getattr(sampling, key) for key in keys}, **unfiltered},
            "resize_size": self.preprocessing.resize_size,
            "crop_size": self.preprocessing.crop_size,
            "backbone": self.config.backbone.name,
            "weights": self.weights.digest,
            "dtype": self.dtype,
            **({"int8": self.int8.digest} if self.int8 is not None else {}),
            **({"vectors": self.vectors} if self.vectors != "float16" else {}),  # older outputs do not name it
        }

    @property
    def decode_request(self) -> DecodeRequest:
        """Return the request that every decoder gets: the sampling, the frame size and the limits."""
        return request_of_settings(self.settings, self.config.decode)


def prepare(config: EmbedConfig, *, dtype: Dtype) -> EmbedSetup:
    """Find the weights, and decide the dtype and the row format.

    If the output already has plans, its row format is kept, and so are dtype and type of vectors if they are ``auto``.

    Raises:
        SetupError: the backbone, its weights or the output folder cannot be read.
    """
    return settle(config, *find_network(config.backbone), dtype=dtype)


def find_network(backbone: BackboneConfig) -> "tuple[Weights, Preprocessing]":
    """Return the weights of a backbone, and the preprocessing of the frames that it expects.

    Raises:
        WeightsError: the weights cannot be found or read, or do not fit the backbone.
    """
    from raypipe.models.weights import preprocessing, resolve_weights  # noqa: PLC0415 - torch takes seconds, in which Ray can start

    return resolve_weights(backbone.name, backbone.weights, read_bytes=read_uri), preprocessing(backbone.name)


def settle(config: EmbedConfig, weights: "Weights", preprocessing: Preprocessing, *, dtype: Dtype) -> EmbedSetup:
    output = Folder(config.output)
    row_format = schema.ROW_FORMAT
    vectors: schema.FloatType = "float32" if config.vectors == "auto" else config.vectors
    if numbers := plan_numbers(output):
        settings = read_plan(output, numbers[0]).settings
        row_format = schema.row_format_of(settings)
        if config.backbone.dtype == "auto":
            dtype = settings.get("dtype", dtype)
        if config.vectors == "auto":
            vectors = schema.vectors_of(settings)
    return EmbedSetup(config, output, preprocessing, weights, dtype, row_format, vectors)


def unstored_shard(videos: Sequence[PlannedVideo]) -> pa.Table:
    """Return the planned rows of one shard with these videos. The plan is not stored."""
    shards = [0] * len(videos)
    return plan_table(videos, shards).append_column(schema.GENERATION, pa.array(shards, pa.int32()))
