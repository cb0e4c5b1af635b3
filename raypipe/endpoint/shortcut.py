"""A short way for the two requests that are asked most: past FastAPI, which takes as long as the search does.

Only what is plainly right goes this way. Everything else, whatever is wrong with it included, goes the long way, and so
is answered alike.
"""

import re

from pydantic import ValidationError

from raypipe.endpoint.api import DEFAULT_TOP_K, MAX_ID, MAX_TOP_K, RecommendRequest
from raypipe.endpoint.catalogue_routes import CatalogueRoutes
from raypipe.endpoint.endpoints import path_of
from raypipe.endpoint.limits import Application, Message, Receive, Scope, Send

_SIMILAR, _RECOMMEND = "/v1/similar/", "/v1/recommend"
_TOP_K = re.compile(rb"top_k=([1-9][0-9]{0,2})")


class Shortcut:
    """ASGI: the endpoints of ``routes``, asked without the application that describes and validates them."""

    def __init__(self, application: Application, routes: CatalogueRoutes) -> None:
        self._application = application
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; raises what the endpoint raises."""
        path = path_of(scope) if scope["type"] == "http" else ""
        if path.startswith(_SIMILAR) and scope["method"] == "GET":
            video_id = path[len(_SIMILAR) :]
            top_k = _top_k(scope["query_string"])
            if top_k is not None and 0 < len(video_id) <= MAX_ID:
                response = await self._routes.similar(video_id, top_k)
                await response(scope, receive, send)
                return
        elif path == _RECOMMEND and scope["method"] == "POST" and _is_json(scope):
            body = await _whole_body(receive)
            receive = _again(body, receive)
            if (request := _parsed(body)) is not None:
                response = await self._routes.recommend(request)
                await response(scope, receive, send)
                return
        await self._application(scope, receive, send)


def _top_k(query: bytes) -> int | None:
    if not query:
        return DEFAULT_TOP_K
    found = _TOP_K.fullmatch(query)
    return int(found[1]) if found and int(found[1]) <= MAX_TOP_K else None


def _is_json(scope: Scope) -> bool:
    return (b"content-type", b"application/json") in scope["headers"]


def _parsed(body: bytes) -> RecommendRequest | None:
    try:
        return RecommendRequest.model_validate_json(body)
    except ValidationError:
        return None


async def _whole_body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)  # the caller left
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """The same body once more, then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
