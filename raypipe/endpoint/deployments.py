"""The two models behind the ingress, each a deployment of its own: videos to embeddings, embeddings to labels."""

import asyncio
import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from ray import serve

from raypipe.config import ServeConfig
from raypipe.endpoint.api import MAX_LABELS
from raypipe.endpoint.http_errors import HttpError, as_http_error
from raypipe.endpoint.service import EmbeddedVideo
from raypipe.endpoint.sources import Prefixes, Source
from raypipe.endpoint.videos import Embedded, EmbeddingSettings, VideoDecoder, embed_videos
from raypipe.errors import RaypipeError
from raypipe.storage import Folder
from raypipe.video.decode_request import Pixels
from raypipe.video.sandbox.parent import DecodedVideo

EMBED_BATCH, CLASSIFY_BATCH = 8, 32  # videos
_BATCH_WAIT_SECONDS = 0.005
Half = npt.NDArray[np.float16]


class Embedder:
    """Decodes videos in sandboxes, one a processor, and embeds the frames of several together."""

    def __init__(self, config: ServeConfig, settings: EmbeddingSettings) -> None:
        from raypipe.models.backbone import Backbone  # noqa: PLC0415 - seconds that the other deployments do without

        device, num_threads = _place(config)
        weights = settings.resolve_weights(config.embedder.weights)
        self._crop_size = settings.settings["crop_size"]
        self._backbone = Backbone(
            weights.state_dict, name=settings.backbone, device=device, dtype=settings.settings["dtype"]
        )
        decode = config.embedder.decode
        seconds = min(decode.timeout_seconds, config.limits.video_deadline_seconds)
        decode = decode.model_copy(update={"timeout_seconds": seconds})
        prefixes = Prefixes(config.embedder.allowed_prefixes)
        self._decoders: queue.SimpleQueue[VideoDecoder] = queue.SimpleQueue()
        for _ in range(num_threads):
            self._decoders.put(VideoDecoder(settings, prefixes=prefixes, decode=decode))
        self._decoding = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    async def embed(self, source: Source) -> tuple[EmbeddedVideo, int] | HttpError:
        """Embed one video, and say with how many others; what is wrong with it is an answer too."""
        loop = asyncio.get_running_loop()
        try:
            video = await loop.run_in_executor(self._decoding, self._decode, source)
            (embedding, frame_embeddings), batch_size = await self._embed_one(video.frames)
        except (RaypipeError, HttpError) as error:
            return as_http_error(error)
        duration = video.duration_seconds or None
        return EmbeddedVideo(str(video.status), duration, embedding, frame_embeddings), batch_size

    def _decode(self, source: Source) -> DecodedVideo:
        decoder = self._decoders.get()
        try:
            return decoder.decode(source)
        finally:
            self._decoders.put(decoder)

    async def _embed_one(self, frames: Pixels) -> tuple[Embedded, int]:
        embedded, batch_size = await self._embed_frames(frames)
        if isinstance(embedded, HttpError):
            raise embedded
        return embedded, batch_size

    @serve.batch(max_batch_size=EMBED_BATCH, batch_wait_timeout_s=_BATCH_WAIT_SECONDS)
    async def _embed_frames(self, videos: list[Pixels]) -> list[Any]:
        embedded = await asyncio.to_thread(embed_videos, videos, self._backbone)
        return [(one, len(videos)) for one in embedded]

    async def check_health(self) -> None:
        """Embed one frame."""
        await self._embed_one(np.zeros((1, self._crop_size, self._crop_size, 3), np.uint8))


class Classifier:
    """Labels videos by the embeddings of their frames, several together."""

    def __init__(self, config: ServeConfig) -> None:
        from torch import nn  # noqa: PLC0415 - seconds that the other deployments do without

        from raypipe.models.classifier_files import build_classifier, read_model  # noqa: PLC0415

        device, _ = _place(config)
        self._model = build_classifier(read_model(Folder(config.model or "")))
        nn.Module.to(self._model, device)

    async def classify(self, frame_embeddings: Half) -> tuple[list[tuple[str, float]], int] | HttpError:
        """Say the best labels of one video with their probabilities, and with how many others it was asked."""
        labels, batch_size = await self._classify(frame_embeddings)
        if not np.isfinite([score for _, score in labels]).all():
            return HttpError(500, "The model gave scores that are not numbers. Train it again.")
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
        """Classify a video of one frame."""
        await self._classify(np.zeros((1, self._model.config.embedding_dim), np.float16))


def _place(config: ServeConfig) -> tuple[str, int]:
    """The device of a model, and how many threads it has where that is the processor."""
    import torch  # noqa: PLC0415 - seconds that the other deployments do without

    num_threads = max(1, int(config.model_replicas.num_cpus))
    torch.set_num_threads(num_threads)
    return "cuda" if config.model_replicas.num_gpus else "cpu", num_threads
