"""Endpoints that the index alone answers: the catalogue, similar videos, recommendations."""

import hashlib
from collections.abc import Awaitable, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import JSONResponse, Response

from raypipe import schema
from raypipe.endpoint import api, responses
from raypipe.endpoint.answers import Live, as_json
from raypipe.endpoint.http_errors import HttpError, as_http_error
from raypipe.endpoint.service import Service
from raypipe.errors import RaypipeError
from raypipe.search.query import Query as IndexQuery

_CATEGORY = "category"
_THUMBNAIL = "thumbnail"
_MAX_AGE = "private, max-age=3600"
_MAX_OFFSET = 100_000_000

Answers = dict[int | str, dict[str, Any]]
VideoId = Annotated[str, Path(min_length=1, max_length=api.MAX_ID)]
Value = Annotated[str | None, Query(max_length=1024)]
TopK = Annotated[int, Query(ge=1, le=api.MAX_TOP_K)]


class CatalogueRoutes:
    """Routes over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.router = router = APIRouter(default_response_class=JsonResponse)
        get, post = ["GET"], ["POST"]
        for path, endpoint, methods, model in (
            ("/index", self.index, get, responses.IndexAnswer),
            ("/videos", self.videos, get, responses.VideoList),
            ("/videos/{video_id:path}", self.video, get, responses.Video),
            ("/similar/batch", self.similar_batch, post, responses.RecommendedBatch),
            ("/similar/{video_id:path}", self.similar, get, responses.Recommended),
            ("/recommend", self.recommend, post, responses.Recommended),
            ("/recommend/batch", self.recommend_batch, post, responses.RecommendedBatch),
        ):
            if path == "/videos/{video_id:path}":  # the longer path first: an id may hold "/"
                router.add_api_route(
                    f"{path}/{_THUMBNAIL}", self.thumbnail, methods=get, response_model=None, responses=_JPEG
                )
            answers: Answers = {200: {"model": model, "description": model.__doc__}}
            router.add_api_route(path, endpoint, methods=methods, response_model=None, responses=answers)

    async def index(self) -> Response:
        """Say which version is served, what it holds, and what this server can do."""
        live = self._service.live
        abilities = {"can_embed": self._service.can_embed(live), "can_classify": self._service.can_classify(live)}
        return JsonResponse(as_json(live.facts | abilities))

    async def videos(
        self,
        text: Value = None,
        category: Value = None,
        label: Value = None,
        offset: Annotated[int, Query(ge=0, le=_MAX_OFFSET)] = 0,
        limit: Annotated[int, Query(ge=1, le=api.MAX_LISTED)] = 48,
    ) -> Response:
        """List the catalogue, or what of it holds a text in its title or id."""
        live = self._service.live
        named = {_CATEGORY: category, schema.LABEL: label}
        filters = {name: value for name, value in named.items() if value}

        def find() -> bytes:
            positions, total = live.index.find(text or None, filters, offset=offset, limit=limit)
            return live.videos(positions, total)

        return JsonResponse(await self._service.lane.run("find" if text or filters else "list", find))

    async def video(self, video_id: VideoId) -> Response:
        """Give one video of the catalogue."""
        live = self._service.live
        return JsonResponse(live.video(_position(live, video_id)))

    async def thumbnail(self, video_id: VideoId, request: Request) -> Response:
        """Give a small JPEG of a video."""
        live = self._service.live
        items = live.index.items
        if items.position(video_id) is None and items.position(f"{video_id}/{_THUMBNAIL}") is not None:
            return await self.video(f"{video_id}/{_THUMBNAIL}")  # an id that ends like this path
        data = items.thumbnail(_position(live, video_id))
        if data is None:
            raise HttpError(404, f"{video_id!r} has no thumbnail.")
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": _MAX_AGE}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type="image/jpeg")

    async def similar(
        self,
        video_id: VideoId,
        top_k: TopK = api.DEFAULT_TOP_K,
        diversity: Annotated[float, Query(ge=0, le=1, allow_inf_nan=False)] = 0.0,
        category: Value = None,
    ) -> Response:
        """Find videos like one of the catalogue."""
        filters = {_CATEGORY: category} if category else {}
        query = IndexQuery(history=(video_id,), top_k=top_k, diversity=diversity, filters=filters)
        return JsonResponse(await self._service.similar(self._service.live, query))

    async def similar_batch(self, batch: api.SimilarBatch) -> Response:
        """Find videos like each of several; an unknown id is an error of its own."""
        service, live = self._service, self._service.live
        service.check_length("video_ids", batch.video_ids, service.limits.max_batch)
        service.metrics.batched("similar", len(batch.video_ids))

        async def one(video_id: str) -> bytes:
            return await service.similar(live, IndexQuery(history=(video_id,), top_k=batch.top_k))

        return await answers_of(map(one, batch.video_ids))

    async def recommend(self, request: api.RecommendRequest) -> Response:
        """Recommend videos to somebody who watched some; recent and popular ones where nothing of that is known."""
        service, live = self._service, self._service.live
        return JsonResponse(await service.recommend(live, service.query(request)))

    async def recommend_batch(self, batch: api.RecommendBatch) -> Response:
        """Recommend to several."""
        service, live = self._service, self._service.live
        service.check_length("requests", batch.requests, service.limits.max_batch)
        service.metrics.batched("recommend", len(batch.requests))

        async def one(request: api.RecommendRequest) -> bytes:
            return await service.recommend(live, service.query(request))

        return await answers_of(map(one, batch.requests))


class JsonResponse(JSONResponse):
    """Bytes that are JSON already; of the class whose answers OpenAPI describes by their models."""

    def render(self, content: bytes) -> bytes:
        """Leave them as they are."""
        return content


_JPEG: Answers = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}, "description": "The JPEG."},
    304: {"description": "The caller has it."},
}


async def answers_of(answers: Iterable[Awaitable[bytes]]) -> Response:
    """The answers of a batch, one after the other; one that fails says why, and fails no other."""
    parts = []
    for answer in answers:
        try:
            parts.append(await answer)
        except (RaypipeError, HttpError) as error:
            problem = as_http_error(error)
            parts.append(as_json({"error": {"code": problem.code, "message": problem.message}}))
    return JsonResponse(b'{"answers":[%b]}' % b",".join(parts))


def _position(live: Live, video_id: str) -> int:
    position = live.index.items.position(video_id)
    if position is None:
        raise HttpError(404, f"The index has no video {video_id!r}.")
    return position
