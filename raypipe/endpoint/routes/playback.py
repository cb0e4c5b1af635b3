"""Routes that play a video of the catalogue: a signed link to it, and its bytes behind that link."""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import FastAPI, Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from raypipe import schema
from raypipe.endpoint import schemas
from raypipe.endpoint.byte_ranges import Part, part_of
from raypipe.endpoint.http import SECURITY_HEADERS, HttpError
from raypipe.endpoint.play_links import LINK_SECONDS
from raypipe.endpoint.routes.catalogue import VideoId, known_position
from raypipe.endpoint.routes.responses import add_route
from raypipe.endpoint.service import Service
from raypipe.endpoint.stored_videos import MEDIA_TYPES, PlayFormat, StoredVideo
from raypipe.errors import ObjectChangedError, RaypipeError

_CHUNK_BYTES = 1_048_576
_MAX_AGE = f"private, max-age={LINK_SECONDS}"
_BYTES: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES}
_STREAMS: dict[int | str, dict[str, Any]] = {
    200: {"content": _BYTES, "description": "The whole video, if it is small."},
    206: {"content": _BYTES, "description": "The requested range, or the beginning of a long range."},
}
Signed = Annotated[str, Query(max_length=128)]
_logger = logging.getLogger(__name__)


def add_playback_routes(application: FastAPI, service: Service) -> None:
    add_route(application, service, "POST /v1/videos/{video_id:any_text}/play", link)
    add_route(application, service, "GET /v1/play", play, responses=_STREAMS)
    add_route(application, service, "HEAD /v1/play", play, include_in_schema=False)


async def link(service: Service, video_id: VideoId) -> schemas.PlayAnswer:
    """Return a link to the bytes of a video. It needs no token and is valid for ten minutes, for this video only."""
    uri = _row(service, video_id).get(schema.VIDEO_URI)
    if not uri:
        raise HttpError(404, f"{video_id!r} has no video_uri.")
    video = await _open(service, uri)
    service.scheduler.read_later(video.close)
    expires_at = int(time.time()) + LINK_SECONDS
    expires = str(expires_at)
    signature = service.play_links.sign(video_id, uri=uri, tag=video.tag, expires=expires)
    query = urlencode({"id": video_id, "expires": expires, "tag": video.tag, "signature": signature})
    media_type, reason = PlayFormat.of(uri)
    return {
        "url": f"/v1/play?{query}",
        "expires_at": expires_at,
        "media_type": media_type,
        "playable": reason is None,
        "reason": reason,
    }


async def play(  # noqa: PLR0917 - the query parameters
    service: Service,
    request: Request,
    video_id: Annotated[str, Query(alias="id", max_length=schemas.MAX_ID)] = "",
    expires: Signed = "",
    tag: Signed = "",
    signature: Signed = "",
) -> Response:
    """Return bytes of a video behind a link from /v1/videos/ID/play. Requests should have the header Range."""
    position = service.live.index.items.position(video_id)
    uri = "" if position is None else service.live.index.items.row(position).get(schema.VIDEO_URI) or ""
    service.play_links.check(video_id, uri=uri, tag=tag, expires=expires, signature=signature)
    video = await _open(service, uri)
    try:
        part = _part(request, video, tag)
    except HttpError:
        service.scheduler.read_later(video.close)
        raise
    return PartResponse(service, video, part, media_type=PlayFormat.of(uri).media_type)


def _part(request: Request, video: StoredVideo, tag: str) -> Part:
    if video.tag != tag:
        message = "The video has changed since this link was made. Request another link."
        raise HttpError(409, message, "video_changed")
    if request.method != "GET":
        return Part(0, video.size_bytes, is_whole=True)
    is_same = request.headers.get("if-range", f'"{tag}"') == f'"{tag}"'
    return part_of(video.size_bytes, request.headers.get("range") if is_same else None)


def _row(service: Service, video_id: str) -> dict[str, Any]:
    live = service.live
    return live.index.items.row(known_position(live, video_id))


async def _open(service: Service, uri: str) -> StoredVideo:
    opening = asyncio.ensure_future(service.scheduler.read(service.prefixes.open_stored, uri))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:  # the thread may still open the file
        opening.add_done_callback(lambda done: None if done.cancelled() or done.exception() else done.result().close())
        raise


class PartResponse(Response):
    """Streams a part of a video, and closes the video.

    It reads a chunk when the connection has accepted the chunk before, and stops if the client disconnects.
    """

    def __init__(self, service: Service, video: StoredVideo, part: Part, *, media_type: str) -> None:
        headers = {
            **SECURITY_HEADERS,
            "Accept-Ranges": "bytes",
            "Cache-Control": _MAX_AGE,
            "Content-Disposition": "inline",
            "Content-Length": str(part.stop - part.start),
            "ETag": f'"{video.tag}"',
        }
        if not part.is_whole:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{video.size_bytes}"
        super().__init__(status_code=200 if part.is_whole else 206, headers=headers, media_type=media_type)
        self._scheduler = service.scheduler
        self._video = video
        self._part = part

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = asyncio.ensure_future(_client_left(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            start = self._part.start if scope["method"] == "GET" else self._part.stop
            while start < self._part.stop and not left.done():
                stop = min(start + _CHUNK_BYTES, self._part.stop)
                chunk = await self._scheduler.read(self._video.read, start, stop)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                start = stop
            if start == self._part.stop:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except RaypipeError as error:
            # The status is sent. The response stays incomplete, so the client notices the error.
            kind = "changed" if isinstance(error, ObjectChangedError) else "cannot be read"
            _logger.warning("A video %s while it is streamed: %s", kind, error)
            raise
        finally:
            left.cancel()
            self._scheduler.read_later(self._video.close)


async def _client_left(receive: Receive) -> None:
    """Wait until the client disconnects, or sends a body that is too large."""
    with suppress(HttpError):
        while (await receive())["type"] != "http.disconnect":
            pass
