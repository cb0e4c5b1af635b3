"""Decode and embed one video as ``raypipe embed`` did those of an index, and label it; plain Python, without Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raypipe.config.embed import DecodeConfig
from raypipe.endpoint.http_errors import HttpError
from raypipe.endpoint.sources import Prefixes, Source
from raypipe.errors import FingerprintError, IndexVersionError
from raypipe.models.backbones import mean_embedding
from raypipe.status import HAS_FRAMES
from raypipe.storage.folder import read_uri
from raypipe.video.decode_request import DecodeLimits, DecodeRequest, Pixels, request_of_settings
from raypipe.video.sandbox.parent import DecodedVideo, DecodeSandbox

if TYPE_CHECKING:
    from raypipe.models.weights import Weights

_FLOAT16_MAX = 65_504.0
_NEEDED = ("backbone", "weights", "sampling", "resize_size", "crop_size", "dtype")
Vectors = npt.NDArray[np.float32]
Embedded = tuple[Vectors, npt.NDArray[np.float16]]  # the embedding [D], and the vectors [T, D] of the frames


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """What made the embeddings of an index, from its manifest."""

    fingerprint: str
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "EmbeddingSettings":
        """Those that an index version's manifest tells.

        Raises:
            IndexVersionError: it does not tell all of them.
        """
        embeddings = manifest.get("embeddings") or {}
        settings = embeddings.get("settings") or {}
        if missing := [name for name in _NEEDED if name not in settings]:
            msg = f"The index does not say how its videos were embedded: it lacks {', '.join(missing)}."
            key = f"embeddings.settings.{missing[0]}"
            raise IndexVersionError(msg, key=key, remedy="Build it again with raypipe index.")
        return cls(str(embeddings.get("fingerprint", "")), settings)

    @property
    def backbone(self) -> str:
        """The network's name."""
        return str(self.settings["backbone"])

    def decode_request(self, decode: DecodeConfig) -> DecodeRequest:
        """What is asked of a video."""
        limits = DecodeLimits(max_pixels=decode.max_pixels, max_duration_seconds=decode.max_duration_seconds)
        return request_of_settings(self.settings, limits)

    def resolve_weights(self, weights: str) -> "Weights":
        """Find the weights, and hold them against those of the index.

        Raises:
            WeightsError: they cannot be found, read or fitted.
            FingerprintError: they are others than those that embedded the index.
        """
        from raypipe.models.weights import resolve_weights  # noqa: PLC0415 - seconds, for torch

        found = resolve_weights(self.backbone, weights, read_bytes=read_uri)
        if found.digest != self.settings["weights"]:
            made = str(self.settings["weights"])
            msg = (
                f"The weights {weights!r} are not those of the index: their digest is {found.digest[:16]}…, the index "
                f"was embedded with {made[:16]}…."
            )
            remedy = "Set embedder.weights to those of the index, or embedder.enabled to false."
            raise FingerprintError(msg, key="embedder.weights", value=found.digest, expected=made, remedy=remedy)
        return found


class VideoDecoder:
    """Fetches a video and decodes it in the sandbox, one at a time."""

    def __init__(self, settings: EmbeddingSettings, *, prefixes: Prefixes, decode: DecodeConfig) -> None:
        self._prefixes = prefixes
        self._max_size_bytes = decode.max_size_bytes
        self._sandbox = DecodeSandbox(
            settings.decode_request(decode),
            decoder=decode.decoder,
            timeout_seconds=decode.timeout_seconds,
            memory_bytes=decode.memory_bytes,
        )
        self._sandbox.isolation()  # starts the child now, not in the first video's time

    def decode(self, source: Source) -> DecodedVideo:
        """Give the frames of a video.

        Raises:
            HttpError: it may not be read, or has none; the message says why.
            ObjectError: it cannot be read.
            StorageError: the storage refuses or cannot be reached.
        """
        with self._prefixes.open(source, max_size_bytes=self._max_size_bytes) as file:
            video = self._sandbox.decode(file)
        if video.status not in HAS_FRAMES:
            raise HttpError(422, f"The video cannot be decoded ({video.status}): {video.error}", "undecodable")
        return video

    def close(self) -> None:
        """End the sandbox."""
        self._sandbox.close()


def embed_videos(videos: Sequence[Pixels], backbone: Any) -> list[Embedded | HttpError]:  # noqa: ANN401 - importing its type takes seconds
    """Embed the frames of several videos together: the embedding [D] and the vectors [T, D] of each.

    A video whose vectors are not numbers gets an error in their place, and the others do not suffer from it.
    """
    vectors = np.clip(backbone.embed(np.concatenate(videos)), -_FLOAT16_MAX, _FLOAT16_MAX)
    parts = np.split(vectors, np.cumsum([len(frames) for frames in videos])[:-1])
    return [_embedded(part) for part in parts]


def _embedded(vectors: Vectors) -> Embedded | HttpError:
    if np.isnan(vectors).any():
        return HttpError(500, "The backbone gave vectors that are not numbers.")
    return mean_embedding(vectors), vectors.astype(np.float16)
