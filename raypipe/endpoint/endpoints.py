"""The names of the endpoints, as limits, metrics and logs have them: few, whatever a caller asks for."""

from collections.abc import Mapping
from typing import Any

OTHER = "other"
PAGE = "page"
UNLIMITED = frozenset({"healthz", "readyz", "metrics"})  # a probe must be answered when nothing else is
LOADING = frozenset({"reload", "rollback"})  # of an index
_BATCHED = frozenset({"similar", "recommend", "embed", "classify"})
_SINGLE = frozenset({"index", "videos", *_BATCHED})
_THUMBNAIL = "/thumbnail"
NAMES = (
    *sorted(_SINGLE),
    *(f"{name}_batch" for name in sorted(_BATCHED)),
    "video",
    "thumbnail",
    *sorted(LOADING),
    *sorted(UNLIMITED),
    PAGE,
    OTHER,
)


def path_of(scope: Mapping[str, Any]) -> str:
    """The path below the place where the application is mounted, as its router sees it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if not root or not path.startswith(root):
        return path
    inner = path[len(root) :]
    return inner if inner.startswith("/") or not inner else path


def endpoint_of(method: str, path: str) -> str:
    """The name of the endpoint that a request is for."""
    if not path.startswith("/v1/"):
        name = path[1:]
        if name in UNLIMITED:
            return name
        return PAGE if path == "/" or path.startswith("/page/") else OTHER
    name, _, rest = path[4:].partition("/")
    if name == "videos" and rest:
        return "thumbnail" if rest.endswith(_THUMBNAIL) else "video"
    if name in _BATCHED and rest == "batch" and method == "POST":
        return f"{name}_batch"
    if name == "admin" and rest in LOADING:
        return rest
    return name if name in _SINGLE else OTHER


def is_video(endpoint: str) -> bool:
    """Whether a video is decoded for it."""
    return endpoint.startswith(("embed", "classify"))
