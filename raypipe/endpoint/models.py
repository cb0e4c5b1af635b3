"""The two model deployments: one embeds videos, the other classifies their embeddings."""

import asyncio
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from ray import serve

from raypipe.config import ServeConfig
from raypipe.endpoint.http import HttpError, as_http_error
from raypipe.endpoint.schemas import MAX_LABELS
from raypipe.endpoint.uploads import (
    ClassifiedUpload,
    EmbeddedUpload,
    EmbeddingSettings,
    Half,
    Prefixes,
    Upload,
    embed_videos,
    frame_pictures,
)
from raypipe.errors import RaypipeError
from raypipe.models.backbones import Vectors
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from raypipe.video.decode_request import Pixels
from raypipe.video.sandbox.parent import DecodedVideo, DecodeSandbox

if TYPE_CHECKING:
    from raypipe.models.classifier import VideoClassifier

EMBED_BATCH, CLASSIFY_BATCH, SCORE_BATCH = 8, 32, 4  # videos
_BATCH_WAIT_SECONDS = 0.005


class Embedder:
    """Decodes videos in sandboxes, one per CPU of the replica, and embeds the frames of several videos in one batch."""

    def __init__(self, config: ServeConfig, settings: EmbeddingSettings) -> None:
        device, num_threads = _place(config)
        self._crop_size = settings.settings["crop_size"]
        versions, weights = Versions(Folder(config.index)), config.embedder.weights
        self._embedder = settings.load_embedder(versions, weights, device=device, num_threads=num_threads)
        decode = config.embedder.decode
        seconds = min(decode.timeout_seconds, config.limits.video_deadline_seconds)
        decode = decode.model_copy(update={"timeout_seconds": seconds})
        self._max_size_bytes = decode.max_size_bytes
        self._prefixes = Prefixes(config.embedder.allowed_prefixes)
        self._sandboxes: queue.SimpleQueue[DecodeSandbox] = queue.SimpleQueue()
        for _ in range(num_threads):
            self._sandboxes.put(settings.sandbox(decode))
        self._decoding = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    async def embed(self, upload: Upload, *, pictures: bool = False) -> tuple[EmbeddedUpload, int] | HttpError:
        """Return the embedding of a video and the size of its batch, or the error to send to the caller.

        With ``pictures``, also return the frames as small JPEGs, if there are not too many.
        """
        loop = asyncio.get_running_loop()
        try:
            video = await loop.run_in_executor(self._decoding, self._decode, upload)
            (embedding, frame_embeddings), batch_size = await self._embed_one(video.frames)
            jpegs = await loop.run_in_executor(self._decoding, frame_pictures, video.frames) if pictures else []
        except (RaypipeError, HttpError) as error:
            return as_http_error(error)
        status = cast("Literal['ok', 'partial']", str(video.status))  # videos of any other status have no frames
        embedded = EmbeddedUpload(
            status, video.duration_seconds or None, embedding, frame_embeddings, video.pts_seconds, jpegs
        )
        return embedded, batch_size

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
        embedded = await asyncio.to_thread(embed_videos, videos, self._embedder)
        return [(one, len(videos)) for one in embedded]

    async def check_health(self) -> None:
        await self._embed_one(np.zeros((1, self._crop_size, self._crop_size, 3), np.uint8))


class Classifier:
    """Classifies videos by the embeddings of their frames, several videos in one batch.

    Videos whose frames are scored have batches of their own, which do not delay the others: GPT-2 runs up to 64 times.
    """

    def __init__(self, config: ServeConfig) -> None:
        from torch import nn  # noqa: PLC0415 - takes seconds, which the other deployments need not spend

        from raypipe.models.classifier_files import build_classifier, read_model  # noqa: PLC0415

        device, _ = _place(config)
        self._model = build_classifier(read_model(Folder(config.model or "")))
        nn.Module.to(self._model, device)

    async def classify(
        self, frame_embeddings: Half, *, frame_scores: bool = False
    ) -> tuple[ClassifiedUpload, int] | HttpError:
        """Return the best labels of a video and the size of its batch, or the error to send to the caller.

        With ``frame_scores``, also score its frames, unless the model's scores are known not to help.
        """
        scores_help = self._model.config.frame_scores_help is not False
        classify = self._classify_and_score if frame_scores and scores_help else self._classify
        found, batch_size = await classify(frame_embeddings)
        numbers = [[score for _, score in found.labels], *(found.scored_frames or ())]
        if not all(np.isfinite(each).all() for each in numbers):
            return HttpError(500, "The model returned NaN or infinite scores. Train it again.")
        return found, batch_size

    @serve.batch(max_batch_size=CLASSIFY_BATCH, batch_wait_timeout_s=_BATCH_WAIT_SECONDS)
    async def _classify(self, videos: list[Half]) -> list[Any]:
        return await asyncio.to_thread(classify_videos, videos, self._model, frame_scores=False)

    @serve.batch(max_batch_size=SCORE_BATCH, batch_wait_timeout_s=_BATCH_WAIT_SECONDS)
    async def _classify_and_score(self, videos: list[Half]) -> list[Any]:
        return await asyncio.to_thread(classify_videos, videos, self._model, frame_scores=True)

    async def check_health(self) -> None:
        await self._classify(np.zeros((1, self._model.config.embedding_dim), np.float16))


def classify_videos(
    videos: Sequence[Half], model: "VideoClassifier", *, frame_scores: bool
) -> list[tuple[ClassifiedUpload, int]]:
    """Classify several videos in one batch. Return the result for each and the size of the batch."""
    names = model.config.label_names
    found = model.classify(videos, frame_scores=frame_scores, batch_size=CLASSIFY_BATCH)
    best = np.argsort(-found.probabilities, axis=1, kind="stable")[:, :MAX_LABELS]
    labels = [
        [(names[number], float(row[number])) for number in numbers]
        for numbers, row in zip(best, found.probabilities, strict=True)
    ]
    scored = zip(found.frame_scores or (), found.order_scores or (), strict=True) if frame_scores else repeat(None)
    return [(ClassifiedUpload(*each), len(videos)) for each in zip(labels, scored, strict=False)]


def _place(config: ServeConfig) -> tuple[str, int]:
    """Set the number of torch's CPU threads. Return the device of a model and this number."""
    import torch  # noqa: PLC0415 - takes seconds, which the other deployments need not spend

    num_threads = max(1, int(config.model_replicas.num_cpus))
    torch.set_num_threads(num_threads)
    return "cuda" if config.model_replicas.num_gpus else "cpu", num_threads
