"""Endpoints for people, probes and operators: the page, health, metrics, and which version is served."""

import asyncio
import hashlib
import mimetypes
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from raypipe.endpoint import responses
from raypipe.endpoint.answers import as_json
from raypipe.endpoint.catalogue_routes import JsonResponse
from raypipe.endpoint.http_errors import HttpError
from raypipe.endpoint.service import Service

PAGE = Path(__file__).with_name("page")
_INDEX = "index.html"
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class PageRoutes:
    """Routes over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._files = _read_page(PAGE)
        self.router = APIRouter(default_response_class=JsonResponse)
        hidden: dict[str, Any] = {"methods": ["GET"], "response_model": None, "include_in_schema": False}
        self.router.add_api_route("/", self.page, **hidden)
        self.router.add_api_route("/page/{name:path}", self.page_file, **hidden)
        self.router.add_api_route("/metrics", self.metrics, **hidden)
        for path, endpoint, method, model in (
            ("/healthz", self.health, "GET", responses.HealthAnswer),
            ("/readyz", self.ready, "GET", responses.ReadyAnswer),
            ("/v1/admin/reload", self.reload, "POST", responses.ReloadAnswer),
            ("/v1/admin/rollback", self.rollback, "POST", responses.RollbackAnswer),
        ):
            answers: dict[int | str, dict[str, Any]] = {200: {"model": model, "description": model.__doc__}}
            if endpoint == self.ready:
                answers[503] = {"model": model, "description": "There is no index to serve."}
            self.router.add_api_route(path, endpoint, methods=[method], response_model=None, responses=answers)

    async def page(self, request: Request) -> Response:
        """Give the page."""
        return self._file(request, _INDEX)

    async def page_file(self, name: str, request: Request) -> Response:
        """Give a file of the page."""
        return self._file(request, name)

    def _file(self, request: Request, name: str) -> Response:
        if name not in self._files:
            raise HttpError(404, f"The page has no file {name!r}.")
        data, kind, tag = self._files[name]
        headers = _PAGE_HEADERS | {"ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=kind)

    async def health(self) -> Response:
        """Say that the replica lives."""
        return JsonResponse(b'{"ok":true}')

    async def ready(self) -> Response:
        """Say whether requests can be answered, and whether CURRENT names a version that cannot be served."""
        live, broken = self._service.index.live, self._service.index.broken
        answer = {
            "ready": live is not None,
            "version": live.version if live else None,
            "broken": {"version": broken.version, "error": broken.error} if broken else None,
        }
        return JsonResponse(as_json(answer), 200 if live else 503)

    async def metrics(self) -> Response:
        """Give what Prometheus reads."""
        return Response(self._service.metrics.text(), headers={"Content-Type": _METRICS_TYPE})

    async def reload(self) -> Response:
        """Serve what CURRENT names now; of several replicas the others follow within ``reload_seconds``."""
        live, changed = await asyncio.to_thread(self._service.index.reload)
        return JsonResponse(as_json({"version": live.version, "changed": changed}))

    async def rollback(self) -> Response:
        """Go back to the version before, and let CURRENT name it."""
        live = await asyncio.to_thread(self._service.index.rollback)
        return JsonResponse(as_json({"version": live.version}))


def _read_page(folder: Path) -> dict[str, tuple[bytes, str, str]]:
    """The content, type and tag of every file of the page, by its name: a few small ones, read once."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            files[path.relative_to(folder).as_posix()] = data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    return files
