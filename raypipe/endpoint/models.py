"""The two model deployments: one embeds videos, the other classifies their embeddings."""

import asyncio
import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import numpy as np
from ray import serve

from raypipe.config import ServeConfig
from raypipe.endpoint.http import HttpError, as_http_error
from raypipe.endpoint.schemas import MAX_LABELS
from raypipe.endpoint.uploads import EmbeddedUpload, EmbeddingSettings, Half, Prefixes, Upload, embed_videos
from raypipe.errors import RaypipeError
from raypipe.models.backbones import Vectors
from raypipe.storage import Folder
from raypipe.video.decode_request import Pixels
from raypipe.video.sandbox.parent import DecodedVideo, DecodeSandbox

EMBED_BATCH, CLASSIFY_BATCH = 8, 32  # videos
_BATCH_WAIT_SECONDS = 0.005


class Embedder:
    """Decodes videos in sandboxes, one per CPU of the replica, and embeds the frames of several videos in one batch."""

    def __init__(self, config: ServeConfig, settings: EmbeddingSettings) -> None:
        from raypipe.models.backbone import Backbone  # noqa: PLC0415 - takes seconds, which the other deployments need not spend

        device, num_threads = _place(config)
        weights = settings.resolve_weights(config.embedder.weights)
        self._crop_size = settings.settings["crop_size"]
        dtype, decode = settings.settings["dtype"], config.embedder.decode
        self._backbone = Backbone(weights.state_dict, name=settings.backbone, device=device, dtype=dtype)
        seconds = min(decode.timeout_seconds, config.limits.video_deadline_seconds)
        decode = decode.model_copy(update={"timeout_seconds": seconds})
        self._max_size_bytes = decode.max_size_bytes
        self._prefixes = Prefixes(config.embedder.allowed_prefixes)
        self._sandboxes: queue.SimpleQueue[DecodeSandbox] = queue.SimpleQueue()
        for _ in range(num_threads):
            self._sandboxes.put(settings.sandbox(decode))
        self._decoding = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    async def embed(self, upload: Upload) -> tuple[EmbeddedUpload, int] | HttpError:
        """Return the embedding of a video and the size of its batch, or the error to send to the caller."""
        loop = asyncio.get_running_loop()
        try:
            video = await loop.run_in_executor(self._decoding, self._decode, upload)
            (embedding, frame_embeddings), batch_size = await self._embed_one(video.frames)
        except (RaypipeError, HttpError) as error:
            return as_http_error(error)
        status = cast("Literal['ok', 'partial']", str(video.status))  # videos of any other status have no frames
        return EmbeddedUpload(status, video.duration_seconds or None, embedding, frame_embeddings), batch_size

    def _decode(self, upload: Upload) -> DecodedVideo:
        sandbox = self._sandboxes.get()
        try:
            return self._prefixes.decode(upload, sandbox, max_size_bytes=self._max_size_bytes)
        finally:
            self._sandboxes.put(sandbox)

    async def _embed_one(self, frames: Pixels) -> tuple[tuple[Vectors, Half], int]:
        embedded, batch_size = await self._embed_frames(frames)
        if isinstance(embedded, HttpError):
            raise embedded
        return embedded, batch_size

    @serve.batch(max_batch_size=EMBED_BATCH, batch_wait_timeout_s=_BATCH_WAIT_SECONDS)
    async def _embed_frames(self, videos: list[Pixels]) -> list[Any]:
        embedded = await asyncio.to_thread(embed_videos, videos, self._backbone)
        return [(one, len(videos)) for one in embedded]

    async def check_health(self) -> None:
        await self._embed_one(np.zeros((1, self._crop_size, self._crop_size, 3), np.uint8))


class Classifier:
    """Classifies videos by the embeddings of their frames, several videos in one batch."""

    def __init__(self, config: ServeConfig) -> None:
        from torch import nn  # noqa: PLC0415 - takes seconds, which the other deployments need not spend

        from raypipe.models.classifier_files import build_classifier, read_model  # noqa: PLC0415

        device, _ = _place(config)
        self._model = build_classifier(read_model(Folder(config.model or "")))
        nn.Module.to(self._model, device)

    async def classify(self, frame_embeddings: Half) -> tuple[list[tuple[str, float]], int] | HttpError:
        """Return the best labels of a video with their probabilities and the size of its batch, or an error."""
        labels, batch_size = await self._classify(frame_embeddings)
        if not np.isfinite([score for _, score in labels]).all():
            return HttpError(500, "The model returned NaN or infinite scores. Train it again.")
        return labels, batch_size

    @serve.batch(max_batch_size=CLASSIFY_BATCH, batch_wait_timeout_s=_BATCH_WAIT_SECONDS)
    async def _classify(self, videos: list[Half]) -> list[Any]:
        predictions = await asyncio.to_thread(self._model.classify, videos, batch_size=CLASSIFY_BATCH)
        names = self._model.config.label_names
        best = np.argsort(-predictions.probabilities, axis=1, kind="stable")[:, :MAX_LABELS]
        return [
            ([(names[number], float(row[number])) for number in numbers], len(videos))
            for numbers, row in zip(best, predictions.probabilities, strict=True)
        ]

    async def check_health(self) -> None:
        await self._classify(np.zeros((1, self._model.config.embedding_dim), np.float16))


def _place(config: ServeConfig) -> tuple[str, int]:
    """Set the number of torch's CPU threads. Return the device of a model and this number."""
    import torch  # noqa: PLC0415 - takes seconds, which the other deployments need not spend

    num_threads = max(1, int(config.model_replicas.num_cpus))
    torch.set_num_threads(num_threads)
    return "cuda" if config.model_replicas.num_gpus else "cpu", num_threads
