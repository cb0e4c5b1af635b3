"""Routes for videos outside the catalogue: an upload, or a URI below an allowed prefix."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request
from pydantic import ValidationError

from raypipe.endpoint import schemas
from raypipe.endpoint.http import HttpError
from raypipe.endpoint.index_watcher import LoadedIndex
from raypipe.endpoint.routes.responses import add_route, answer_each
from raypipe.endpoint.service import Service
from raypipe.endpoint.uploads import ClassifiedUpload, EmbeddedUpload, Upload
from raypipe.search.query import Query as IndexQuery

T = TypeVar("T")
_DIGITS = 6
Neighbors = Annotated[int, Query(ge=0, le=schemas.MAX_TOP_K)]
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/VideoUri"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "video/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def add_inference_routes(application: FastAPI, service: Service) -> None:
    add_route(application, service, "POST /v1/embed", embed, openapi_extra=_BODY)
    add_route(application, service, "POST /v1/embed/batch", embed_batch)
    add_route(application, service, "POST /v1/classify", classify, openapi_extra=_BODY)
    add_route(application, service, "POST /v1/classify/batch", classify_batch)


async def embed(service: Service, request: Request, top_k: Neighbors = 0) -> schemas.EmbedAnswer:
    """Embed a video, say how unlike the catalogue it is, and find the ``top_k`` videos nearest to it."""
    live = service.live
    service.embedder_of(live)
    return await _embed(service, live, await _upload(service, request), top_k)


async def embed_batch(service: Service, batch: schemas.EmbedBatch) -> schemas.EmbedBatchAnswer:
    """Embed several videos by URI."""
    live = service.live
    service.embedder_of(live)
    answer = partial(_embed, service, live, top_k=batch.top_k)
    return {"answers": await _each(service, "embed", batch.uris, answer)}


async def classify(
    service: Service,
    request: Request,
    top_k: Annotated[int, Query(ge=1, le=schemas.MAX_LABELS)] = 5,
    neighbors: Neighbors = 0,
    *,
    frame_scores: bool = False,
) -> schemas.ClassifyAnswer:
    """Return a video's best labels, and find the videos of the catalogue that are nearest to it.

    With ``frame_scores``, also return what each frame adds to the best label. GPT-2 then runs up to 64 more times.
    """
    live = service.live
    service.classifier_of(live)
    upload = await _upload(service, request)
    return await _classify(service, live, upload, top_k=top_k, neighbors=neighbors, frame_scores=frame_scores)


async def classify_batch(service: Service, batch: schemas.ClassifyBatch) -> schemas.ClassifyBatchAnswer:
    """Classify several videos by URI."""
    live = service.live
    service.classifier_of(live)
    answer = partial(_classify, service, live, top_k=batch.top_k, neighbors=0, frame_scores=False)
    return {"answers": await _each(service, "classify", batch.uris, answer)}


async def _upload(service: Service, request: Request) -> Upload:
    """Return the video in the request body, or the allowed URI of the video that the body names."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            named = schemas.VideoUri.model_validate_json(await request.body())
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise HttpError(422, f'The body is not {{"uri": "…"}}: {reason}.') from None
        return service.prefixes.allow(named.uri)
    if kind.startswith("video/") or kind == "application/octet-stream":
        if not (body := await request.body()):
            raise HttpError(422, "The body is empty. Send the bytes of a video.")
        return body
    message = f"Content-Type is {kind!r}. Send video/*, application/octet-stream, or application/json with a uri."
    raise HttpError(415, message)


async def _each(
    service: Service, name: str, uris: list[str], answer: Callable[[Upload], Awaitable[T]]
) -> list[T | schemas.FailedAnswer]:
    """Call ``answer`` for all videos concurrently. A video that fails gets an error instead of an answer."""
    service.metrics.batched(name, len(uris))

    async def one(uri: str) -> T:
        return await answer(service.prefixes.allow(uri))

    tasks = [asyncio.ensure_future(one(uri)) for uri in uris]
    try:
        return await answer_each(tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _embed(service: Service, live: LoadedIndex, upload: Upload, top_k: int) -> schemas.EmbedAnswer:
    video = await service.embedder_of(live)(upload)
    return {
        "embedding": video.embedding.astype(np.float64).tolist(),
        "num_frames": len(video.frame_embeddings),
        "status": video.status,
        "duration_seconds": video.duration_seconds,
        "neighbors": await _neighbors(service, live, video, top_k),
        "anomaly": await service.scheduler.run("anomaly", live.anomaly, video.embedding),
    }


async def _classify(
    service: Service, live: LoadedIndex, upload: Upload, *, top_k: int, neighbors: int, frame_scores: bool
) -> schemas.ClassifyAnswer:
    video = await service.embedder_of(live)(upload, pictures=frame_scores)
    found = await service.classifier_of(live)(video.frame_embeddings, frame_scores=frame_scores)
    top = [schemas.LabelScore(label=label, score=round(score, _DIGITS)) for label, score in found.labels[:top_k]]
    return {
        **top[0],
        "top": top,
        "num_frames": len(video.frame_embeddings),
        "frame_scores": _frame_scores(video, found) if frame_scores else None,
        "neighbors": await _neighbors(service, live, video, neighbors),
    }


def _frame_scores(video: EmbeddedUpload, found: ClassifiedUpload) -> schemas.FrameScores:
    if found.scored_frames is None:
        return {"frames": [], "reason": "The scores of this model are no better than random ones."}
    numbers = np.stack([video.pts_seconds, *found.scored_frames], axis=1, dtype=np.float64).round(_DIGITS).tolist()
    pictures: list[str | None] = [base64.b64encode(jpeg).decode() for jpeg in video.pictures]
    frames = [
        schemas.FrameScore(pts_seconds=pts_seconds, probe=probe, order=order, picture=picture)
        for (pts_seconds, probe, order), picture in zip(numbers, pictures or [None] * len(numbers), strict=True)
    ]
    return {"frames": frames, "reason": None}


async def _neighbors(
    service: Service, live: LoadedIndex, video: EmbeddedUpload, top_k: int
) -> schemas.Recommended | None:
    if not top_k:
        return None
    return await service.recommend(live, IndexQuery(embeddings=video.embedding[None], top_k=top_k, strategy="content"))
