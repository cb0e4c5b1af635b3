"""A client for the endpoint of ``raypipe serve``. It uses only the standard library.

Example: ``Client("http://127.0.0.1:8000").similar("a.mp4")``.
"""

import ipaddress
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from raypipe.errors import ConfigError, RaypipeError
from raypipe.text import one_line

_JSON, _BYTES = "application/json", "application/octet-stream"
_quoted = partial(quote, safe="")
Answer = dict[str, Any]


class ClientError(RaypipeError):
    """The server cannot be reached, or its answer cannot be understood."""


class AnswerError(ClientError):
    """The server answered a request with an error.

    ``status`` is the HTTP status, ``code`` is a stable name of the error for programs, and the exception's text is the
    server's message. ``retry_after_seconds`` is set if the same request may succeed later.
    """

    def __init__(
        self, message: str, *, status: int, code: str, request_id: str, retry_after_seconds: float | None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A handler that follows no redirects, because a redirect could send the token to another host."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


class Client:
    """A client of one server. It may be used from several threads.

    Methods return the server's JSON answers as dicts. The server's OpenAPI document describes their fields. Every
    method raises AnswerError if the server answers with an error, and ClientError if it cannot be reached.

    Raises:
        ConfigError: ``base_url`` is not an http or https address.
    """

    def __init__(self, base_url: str, token: str | None = None, *, timeout_seconds: float = 30.0) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            msg = f"{base_url!r} is not the address of a server."
            raise ConfigError(msg, key="base_url", value=base_url, remedy="Write http://HOST:PORT.")
        self.base_url = base_url.rstrip("/")
        self._token = token
        self._timeout_seconds = timeout_seconds
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if _is_loopback(parts.hostname):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def index(self) -> Answer:
        """Return the version of the index that is served, and the features of the server."""
        return self._ask("GET", "/v1/index")

    def videos(
        self,
        text: str | None = None,
        *,
        category: str | None = None,
        label: str | None = None,
        offset: int = 0,
        limit: int = 48,
    ) -> Answer:
        """Return a page of the videos in the catalogue.

        With ``text``, return only videos that have this text in their title or id.
        """
        query = {"text": text, "category": category, "label": label, "offset": offset, "limit": limit}
        return self._ask("GET", "/v1/videos", query)

    def video(self, video_id: str) -> Answer:
        """Return the data of one video in the catalogue."""
        return self._ask("GET", f"/v1/videos/{_quoted(video_id)}")

    def thumbnail(self, video_id: str) -> bytes:
        """Return the thumbnail of a video, as a JPEG."""
        return self._send("GET", f"/v1/videos/{_quoted(video_id)}/thumbnail")

    def play(self, video_id: str) -> Answer:
        """Return a link to the bytes of a video, as a path on this server. The link needs no token."""
        return self._post(f"/v1/videos/{_quoted(video_id)}/play", None)

    def similar(self, video_id: str, *, top_k: int = 20, diversity: float = 0.0, category: str | None = None) -> Answer:
        """Return the videos that are most similar to a video of the catalogue."""
        query = {"top_k": top_k, "diversity": diversity, "category": category}
        return self._ask("GET", f"/v1/similar/{_quoted(video_id)}", query)

    def recommend(self, history: Sequence[str] = (), *, top_k: int = 20, **options: object) -> Answer:
        """Return recommendations for a user who watched the videos in ``history``, newest last.

        ``options`` are further options of /v1/recommend, such as ``dislikes=["a.mp4"]`` or ``strategy="content"``.
        """
        return self._post("/v1/recommend", {"history": list(history), "top_k": top_k, **options})

    def recommend_batch(self, requests: Sequence[Mapping[str, object]]) -> list[Answer]:
        """Return recommendations for several users. Each request is a mapping with the arguments of ``recommend``."""
        answers: list[Answer] = self._post("/v1/recommend/batch", {"requests": list(requests)})["answers"]
        return answers

    def embed(self, video: Path | str, *, top_k: int = 0) -> Answer:
        """Embed a video that is not in the catalogue, and return the vector and the ``top_k`` most similar videos.

        A file given as a ``Path`` is uploaded. A URI given as a ``str`` is read by the server.
        """
        return self._post_video("/v1/embed", video, {"top_k": top_k})

    def classify(self, video: Path | str, *, top_k: int = 5, neighbors: int = 0, frame_scores: bool = False) -> Answer:
        """Return the labels of a video, and as many similar videos as ``neighbors`` says.

        A file given as a ``Path`` is uploaded. A URI given as a ``str`` is read by the server. With ``frame_scores``,
        the answer also says what each frame adds to the best label.
        """
        query = {"top_k": top_k, "neighbors": neighbors, "frame_scores": "true" if frame_scores else None}
        return self._post_video("/v1/classify", video, query)

    def reload(self) -> Answer:
        """Make the server load the current version of its index now instead of at the next check."""
        return self._post("/v1/admin/reload", None)

    def rollback(self) -> Answer:
        """Make the server return to the previous version of its index."""
        return self._post("/v1/admin/rollback", None)

    def _post(self, path: str, body: object, query: Mapping[str, object] = {}) -> Answer:
        return self._ask("POST", path, query, json.dumps(body).encode(), _JSON)

    def _post_video(self, path: str, video: Path | str, query: Mapping[str, object]) -> Answer:
        if isinstance(video, str):
            return self._post(path, {"uri": video}, query)
        try:
            data = video.read_bytes()
        except OSError as error:
            msg = f"Cannot read {str(video)!r}: {error.strerror}."
            remedy = "Pass a URI that the server should read as a str."
            raise ConfigError(msg, key=str(video), remedy=remedy) from None
        return self._ask("POST", path, query, data, _BYTES)

    def _ask(self, method: str, path: str, query: Mapping[str, object] = {}, *sent: Any) -> Answer:  # noqa: ANN401
        body = self._send(method, path, query, *sent)
        with suppress(ValueError):
            if isinstance(answer := json.loads(body), dict):
                return answer
        msg = f"{self.base_url} does not answer like raypipe serve: {body[:100]!r}."
        raise ClientError(msg, key=self.base_url, value=body)

    def _send(
        self, method: str, path: str, query: Mapping[str, object] = {}, data: bytes | None = None, kind: str = ""
    ) -> bytes:
        given = {name: value for name, value in query.items() if value is not None}
        url = f"{self.base_url}{path}" + (f"?{urlencode(given)}" if given else "")
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        if kind:
            headers["Content-Type"] = kind
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - http or https, checked
        try:
            answer: HTTPResponse
            with self._opener.open(request, timeout=self._timeout_seconds) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise _refused(error) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            msg = f"Cannot ask {self.base_url}: {reason}."
            raise ClientError(msg, key=self.base_url) from error


def _refused(error: urllib.error.HTTPError) -> AnswerError:
    body = error.read()
    try:
        answer = json.loads(body)
        code, message = str(answer["error"]["code"]), str(answer["error"]["message"])
        request_id = str(answer["request_id"])
    except (ValueError, KeyError, TypeError):  # the answer came from a proxy in front of the server
        code, message = "", one_line(body[:200].decode(errors="replace")) or str(error.reason)
        request_id = str(error.headers.get("X-Request-Id", ""))
    after = error.headers.get("Retry-After", "")
    seconds = float(after) if after.isdigit() else None
    return AnswerError(message, status=error.code, code=code, request_id=request_id, retry_after_seconds=seconds)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
