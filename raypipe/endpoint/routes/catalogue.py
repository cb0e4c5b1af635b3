"""Routes that need only the index: the catalogue, similar videos, recommendations."""

import hashlib
from typing import Annotated, Any, cast

from fastapi import FastAPI, Path, Query, Request
from starlette.responses import Response

from raypipe import schema
from raypipe.endpoint import schemas
from raypipe.endpoint.http import HttpError
from raypipe.endpoint.index_watcher import CATEGORY, LoadedIndex
from raypipe.endpoint.routes.responses import JsonResponse, add_route, answer_each
from raypipe.endpoint.service import Service
from raypipe.search.query import Query as IndexQuery

_MAX_AGE = "private, max-age=3600"
_MAX_OFFSET = 100_000_000
_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}, "description": "The JPEG."},
    304: {"description": "The caller's copy is up to date."},
}
VideoId = Annotated[str, Path(min_length=1, max_length=schemas.MAX_ID)]
Value = Annotated[str | None, Query(max_length=1024)]
TopK = Annotated[int, Query(ge=1, le=schemas.MAX_TOP_K)]


def add_catalogue_routes(application: FastAPI, service: Service) -> None:
    """Add the routes, most used first, because the router tries them in this order."""
    add_route(application, service, "POST /v1/recommend", recommend)
    add_route(application, service, "GET /v1/similar/{video_id:any_text}", similar)
    add_route(application, service, "POST /v1/recommend/batch", recommend_batch)
    add_route(application, service, "POST /v1/similar/batch", similar_batch)
    add_route(application, service, "GET /v1/index", index)
    add_route(application, service, "GET /v1/videos", videos)
    # The longer path comes first, because an id may contain "/".
    add_route(application, service, "GET /v1/videos/{video_id:any_text}/thumbnail", thumbnail, responses=_JPEG)
    add_route(application, service, "GET /v1/videos/{video_id:any_text}", video)


async def index(service: Service) -> schemas.IndexAnswer:
    """Return the served version of the index, its contents, and what this server can do."""
    live = service.live
    abilities = {"can_embed": service.can_embed(live), "can_classify": service.can_classify(live)}
    return cast("schemas.IndexAnswer", live.facts | abilities | {"can_play": bool(service.prefixes)})


async def videos(
    service: Service,
    *,
    text: Value = None,
    category: Value = None,
    label: Value = None,
    offset: Annotated[int, Query(ge=0, le=_MAX_OFFSET)] = 0,
    limit: Annotated[int, Query(ge=1, le=schemas.MAX_LISTED)] = 48,
) -> schemas.VideoList:
    """List the videos of the catalogue. With ``text``, list only videos whose title or id contains it."""
    live = service.live
    filters = {name: value for name, value in ((CATEGORY, category), (schema.LABEL, label)) if value}

    def find() -> schemas.VideoList:
        positions, total = live.index.find(text or None, filters, offset=offset, limit=limit)
        return {"videos": [live.video(position) for position in positions], "total": total}

    return await service.scheduler.run("find" if text or filters else "list", find)


async def video(service: Service, video_id: VideoId) -> schemas.Video:
    """Return one video of the catalogue."""
    live = service.live
    return live.video(known_position(live, video_id))


async def thumbnail(service: Service, video_id: VideoId, request: Request) -> Response:
    """Return a small JPEG of a video."""
    live = service.live
    items = live.index.items
    whole = f"{video_id}/thumbnail"
    if items.position(video_id) is None and items.position(whole) is not None:
        return JsonResponse(await video(service, whole))  # the id itself ends with /thumbnail
    data = items.thumbnail(known_position(live, video_id))
    if data is None:
        raise HttpError(404, f"{video_id!r} has no thumbnail.")
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": _MAX_AGE}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type="image/jpeg")


def known_position(live: LoadedIndex, video_id: str) -> int:
    """Return the position of a video in the index. Raise HttpError 404 if the index does not have it."""
    position = live.index.items.position(video_id)
    if position is None:
        raise HttpError(404, f"The index has no video {video_id!r}.")
    return position


async def similar(
    service: Service,
    video_id: VideoId,
    top_k: TopK = schemas.DEFAULT_TOP_K,
    diversity: Annotated[float, Query(ge=0, le=1, allow_inf_nan=False)] = 0.0,
    category: Value = None,
) -> schemas.Recommended:
    """Find videos similar to a video of the catalogue."""
    filters = {CATEGORY: category} if category else {}
    query = IndexQuery(history=(video_id,), top_k=top_k, diversity=diversity, filters=filters, strategy="content")
    return await service.recommend(service.live, query, must_know=True)


async def similar_batch(service: Service, batch: schemas.SimilarBatch) -> schemas.RecommendedBatch:
    """Find similar videos for each of several videos. An unknown id is an error for that item only."""
    live = service.live
    service.check_length("video_ids", batch.video_ids, service.limits.max_batch)
    service.metrics.batched("similar", len(batch.video_ids))
    queries = [IndexQuery(history=(video_id,), top_k=batch.top_k, strategy="content") for video_id in batch.video_ids]
    return {"answers": await answer_each(service.recommend(live, query, must_know=True) for query in queries)}


async def recommend(service: Service, request: schemas.RecommendRequest) -> schemas.Recommended:
    """Recommend videos for a watch history. If no watched video is known, recommend popular and recent videos."""
    return await service.recommend(service.live, service.query(request))


async def recommend_batch(service: Service, batch: schemas.RecommendBatch) -> schemas.RecommendedBatch:
    """Recommend videos for several watch histories."""
    live = service.live
    service.check_length("requests", batch.requests, service.limits.max_batch)
    service.metrics.batched("recommend", len(batch.requests))

    async def one(request: schemas.RecommendRequest) -> schemas.Recommended:
        return await service.recommend(live, service.query(request))

    return {"answers": await answer_each(map(one, batch.requests))}
