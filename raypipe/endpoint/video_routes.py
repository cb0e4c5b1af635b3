"""Endpoints for videos that the catalogue does not hold: an upload, or a URI below an allowed prefix."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.responses import Response

from raypipe.endpoint import api, responses
from raypipe.endpoint.answers import Live, as_json
from raypipe.endpoint.catalogue_routes import Answers, JsonResponse, answers_of
from raypipe.endpoint.http_errors import HttpError, not_available
from raypipe.endpoint.service import EmbeddedVideo, Service
from raypipe.endpoint.sources import Source
from raypipe.search.query import Query as IndexQuery

_DIGITS = 6
Neighbors = Annotated[int, Query(ge=0, le=api.MAX_TOP_K)]
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


class VideoRoutes:
    """Routes over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.router = APIRouter(default_response_class=JsonResponse)
        for path, endpoint, model, extra in (
            ("/embed", self.embed, responses.EmbedAnswer, _BODY),
            ("/embed/batch", self.embed_batch, responses.EmbedBatchAnswer, None),
            ("/classify", self.classify, responses.ClassifyAnswer, _BODY),
            ("/classify/batch", self.classify_batch, responses.ClassifyBatchAnswer, None),
        ):
            answers: Answers = {200: {"model": model, "description": model.__doc__}}
            self.router.add_api_route(
                path, endpoint, methods=["POST"], response_model=None, responses=answers, openapi_extra=extra
            )

    async def embed(self, request: Request, top_k: Neighbors = 0) -> Response:
        """Embed a video, and find the ``top_k`` videos of the catalogue that are nearest to it."""
        live = self._service.live
        self._service.embedder_of(live)
        return JsonResponse(await self._embed(live, await self._source(request), top_k))

    async def embed_batch(self, batch: api.EmbedBatch) -> Response:
        """Embed several videos by URI."""
        live = self._service.live
        self._service.embedder_of(live)
        return await self._together(batch.uris, lambda source: self._embed(live, source, batch.top_k), "embed")

    async def classify(
        self,
        request: Request,
        top_k: Annotated[int, Query(ge=1, le=api.MAX_LABELS)] = 5,
        neighbors: Neighbors = 0,
    ) -> Response:
        """Say a video's best labels, and find the videos of the catalogue that are nearest to it."""
        live = self._service.live
        self._check_classifier(live)
        return JsonResponse(await self._classify(live, await self._source(request), top_k, neighbors))

    async def classify_batch(self, batch: api.ClassifyBatch) -> Response:
        """Classify several videos by URI."""
        live = self._service.live
        self._check_classifier(live)
        return await self._together(batch.uris, lambda source: self._classify(live, source, batch.top_k, 0), "classify")

    def _check_classifier(self, live: Live) -> None:
        if self._service.classifier is None:
            message = "This server has no classifier. Start it with --model."
            raise not_available(message)
        self._service.embedder_of(live)

    async def _source(self, request: Request) -> Source:
        """The video that a body is or names."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            try:
                named = api.VideoUri.model_validate_json(await request.body())
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise HttpError(422, f'The body is not {{"uri": "…"}}: {reason}.') from None
            return self._service.prefixes.allow(named.uri)
        if kind.startswith("video/") or kind == "application/octet-stream":
            if not (body := await request.body()):
                raise HttpError(422, "The body is empty. Send the bytes of a video.")
            return body
        message = f"Content-Type is {kind!r}. Send video/*, application/octet-stream, or application/json with a uri."
        raise HttpError(415, message)

    async def _together(self, uris: list[str], work: Callable[[Source], Awaitable[bytes]], name: str) -> Response:
        self._service.metrics.batched(name, len(uris))

        async def one(uri: str) -> bytes:
            return await work(self._service.prefixes.allow(uri))

        tasks = [asyncio.ensure_future(one(uri)) for uri in uris]
        try:
            return await answers_of(tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _embed(self, live: Live, source: Source, top_k: int) -> bytes:
        video = await self._service.embedder_of(live).embed(source)
        return b'{"embedding":%b,"num_frames":%d,"status":%b,"duration_seconds":%b,"neighbors":%b}' % (
            as_json(video.embedding.astype(np.float64).tolist()),
            video.num_frames,
            as_json(video.status),
            as_json(video.duration_seconds),
            await self._neighbors(live, video, top_k),
        )

    async def _classify(self, live: Live, source: Source, top_k: int, neighbors: int) -> bytes:
        assert self._service.classifier is not None  # noqa: S101 - its callers asked
        video = await self._service.embedder_of(live).embed(source)
        labels = await self._service.classifier.classify(video.frame_embeddings)
        top = [{"label": label, "score": round(score, _DIGITS)} for label, score in labels[:top_k]]
        return b'{"label":%b,"score":%b,"top":%b,"num_frames":%d,"neighbors":%b}' % (
            as_json(top[0]["label"]),
            as_json(top[0]["score"]),
            as_json(top),
            video.num_frames,
            await self._neighbors(live, video, neighbors),
        )

    async def _neighbors(self, live: Live, video: EmbeddedVideo, top_k: int) -> bytes:
        if not top_k:
            return b"null"
        return await self._service.recommend(live, IndexQuery(embeddings=video.embedding[None], top_k=top_k))
