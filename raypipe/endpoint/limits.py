"""Checks and limits for every request: its token, its body size, the number of requests in flight, its deadline."""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raypipe.config.serve import LimitsConfig
from raypipe.endpoint.http import (
    LOAD_SECONDS,
    LOADING,
    PLAY,
    PLAY_PATH,
    UNLIMITED,
    HttpError,
    as_http_error,
    endpoint_of,
    is_video,
    overloaded,
    path_of,
)
from raypipe.endpoint.metrics import EndpointMetrics
from raypipe.errors import ConfigError

TOKEN_VARIABLE = "RAYPIPE_API_TOKEN"  # noqa: S105 - the name of the variable
_OPEN = frozenset({"/", "/healthz", "/readyz", "/metrics", "/openapi.json", PLAY_PATH})  # links to videos are signed
_OPEN_FOLDER = "/page/"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_BEARER = b"bearer "
REQUEST_ID = b"x-request-id"
CLIENT_LEFT, SERVER_FAILED = 499, 500
_MAX_ID = 200
_logger = logging.getLogger(__name__)


@lru_cache  # saves a few microseconds, since there are only a few names
def is_loopback(host: str) -> bool:
    """Return whether a host name or address can only be reached from this machine."""
    host = host.strip("[]")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(host: str, token: str | None, *, is_known: bool = False) -> None:
    """Raise ConfigError if other machines can reach ``host`` without a token, or if the token does not fit a header.

    ``is_known`` means that the replicas already require a token.
    """
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
        msg = f"{TOKEN_VARIABLE} is empty or cannot be sent in a header."
        raise ConfigError(msg, key=TOKEN_VARIABLE, remedy="Choose printable ASCII without leading or trailing spaces.")
    if token is None and not is_known and not is_loopback(host):
        msg = f"host={host!r} is open to other machines without a token."
        raise ConfigError(msg, key="host", value=host, remedy=f"Set {TOKEN_VARIABLE}, or set host to 127.0.0.1.")


def digest_of(token: str | None) -> bytes | None:
    """Return the SHA-256 of a token. Other processes receive this digest instead of the token."""
    return None if token is None else hashlib.sha256(token.encode()).digest()


class Access:
    """Checks whether a request is allowed, from its path and headers only, before its body is read."""

    def __init__(self, token_digest: bytes | None) -> None:
        self._token_digest = token_digest

    def check(self, scope: Mapping[str, Any], path: str, headers: Mapping[bytes, bytes]) -> None:
        """Raise HttpError: 401 for a missing or wrong token, 403 for a request from a page of another site."""
        if self._token_digest is None:
            _check_site(scope, headers)
        elif path not in _OPEN and not path.startswith(_OPEN_FOLDER):
            given = headers.get(b"authorization", b"")
            token = given[len(_BEARER) :] if given[: len(_BEARER)].lower() == _BEARER else b""
            if not hmac.compare_digest(hashlib.sha256(token.strip()).digest(), self._token_digest):
                said = "is missing" if not given else "is wrong"
                message = f"The token {said}. Send {TOKEN_VARIABLE} in the header Authorization: Bearer TOKEN."
                raise HttpError(401, message, headers={"WWW-Authenticate": "Bearer"})


def _check_site(scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> None:
    """Raise HttpError 403 for a request that a browser on this machine sends on behalf of another site's page."""
    host = headers.get(b"host", b"").decode("latin-1")
    name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
    if host and not is_loopback(name):  # DNS rebinding: a foreign name may point to this machine
        message = f"Host {host!r} is not a loopback name. Without a token, only loopback names are allowed."
        raise HttpError(403, message, "forbidden_host")
    if scope["method"] in _SAFE_METHODS:
        return
    origin = headers.get(b"origin", b"").decode("latin-1")
    is_foreign = origin and origin.partition("://")[2] != host
    if is_foreign or headers.get(b"sec-fetch-site", b"none") not in {b"none", b"same-origin"}:
        message = "A page of another site must not change anything on this server."
        raise HttpError(403, message, "forbidden_origin")


class RequestLimits:
    """ASGI middleware that rejects a request at once if it exceeds a limit, without reading its body.

    ``log`` is called with one flat record per request. The record never contains the token, the query or the body.
    ``echo_request_id`` adds the request id to responses. It is off if Ray Serve adds the id itself.
    """

    def __init__(
        self,
        application: ASGIApp,
        *,
        config: LimitsConfig,
        access: Access,
        metrics: EndpointMetrics,
        log: Callable[[Mapping[str, object]], None],
        echo_request_id: bool = True,
    ) -> None:
        self._application = application
        self._config = config
        self._access = access
        self._metrics = metrics
        self._log = log
        self._echo_request_id = echo_request_id
        self._in_flight = 0
        self._videos_in_flight = 0
        self._streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        start = time.perf_counter()
        endpoint = endpoint_of(scope["method"], path_of(scope))
        exchange = _Exchange(scope, receive, send, echo_request_id=self._echo_request_id)
        try:
            await self._answer(endpoint, exchange)
        except asyncio.CancelledError:
            exchange.status = exchange.status or CLIENT_LEFT
            raise
        except Exception as error:
            problem = as_http_error(error)
            if problem is not error and problem.status == SERVER_FAILED:
                _logger.exception("Request %s failed", exchange.request_id)
            await exchange.fail(problem)
        finally:
            seconds = time.perf_counter() - start
            self._metrics.answered(endpoint, exchange.status, seconds)
            about = {"request_id": exchange.request_id, "endpoint": endpoint, "status": exchange.status}
            self._log({**about, "ms": round(1000 * seconds, 2)})

    async def _answer(self, endpoint: str, exchange: "_Exchange") -> None:
        config = self._config
        video = is_video(endpoint)
        self._access.check(exchange.scope, path_of(exchange.scope), exchange.headers)
        exchange.limit_body(config.max_body_bytes if video else config.max_json_bytes)
        if endpoint in UNLIMITED:
            await self._application(exchange.scope, exchange.receive, exchange.send)
            return
        if endpoint == PLAY:
            await self._stream(exchange)
            return
        self._admit(endpoint, video=video)
        try:
            # All requests that arrived together are counted before the first of them is handled.
            await asyncio.sleep(0)
            seconds = config.video_deadline_seconds if video else config.deadline_seconds
            await self._within(LOAD_SECONDS if endpoint in LOADING else seconds, exchange)
        finally:
            self._in_flight -= 1
            self._videos_in_flight -= video
            self._metrics.ended(endpoint)

    async def _stream(self, exchange: "_Exchange") -> None:
        """Answer with a part of a video. Streams have their own limit, so that slow clients do not block searches.

        The deadline starts again with each chunk that the client has taken.
        """
        if self._streams >= self._config.max_streams:
            what = f"{self._config.max_streams} videos are already being streamed."
            raise overloaded(what)
        self._streams += 1
        self._metrics.started(PLAY)
        try:
            await self._within(self._config.video_deadline_seconds, exchange, restarts=True)
        finally:
            self._streams -= 1
            self._metrics.ended(PLAY)

    async def _within(self, deadline_seconds: float, exchange: "_Exchange", *, restarts: bool = False) -> None:
        try:
            async with asyncio.timeout(deadline_seconds) as timer:
                send = _restarting(timer, deadline_seconds, exchange.send) if restarts else exchange.send
                await self._application(exchange.scope, exchange.receive, send)
        except TimeoutError:
            if not timer.expired():
                raise
            message = f"Not answered within {deadline_seconds:g} s. Request less, or retry when less is in flight."
            raise HttpError(504, message) from None
        if exchange.problem is not None:
            raise exchange.problem

    def _admit(self, endpoint: str, *, video: bool) -> None:
        config = self._config
        if self._in_flight >= config.max_in_flight:
            what = f"{config.max_in_flight} requests are already in flight."
            raise overloaded(what)
        if video and self._videos_in_flight >= config.max_videos_in_flight:
            what = f"{config.max_videos_in_flight} requests with videos are already in flight."
            raise overloaded(what)
        self._in_flight += 1
        self._videos_in_flight += video
        self._metrics.started(endpoint)


def _restarting(timer: asyncio.Timeout, seconds: float, send: Send) -> Send:
    """Return a ``send`` that restarts the timer after each message."""
    loop = asyncio.get_running_loop()

    async def send_and_restart(message: Message) -> None:
        await send(message)
        timer.reschedule(loop.time() + seconds)

    return send_and_restart


class _Exchange:
    """One request, and the state of its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, echo_request_id: bool) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(REQUEST_ID, b"")[:_MAX_ID].decode("latin-1")  # the caller's id, truncated for the log
        self.request_id = given if given and given.isascii() and given.isprintable() else uuid.uuid4().hex
        self.status = 0
        self.problem: HttpError | None = None  # an error in the request body; the application may swallow the exception
        self._receive = receive
        self._send = send
        self._added = [(b"x-content-type-options", b"nosniff")]
        if echo_request_id:
            self._added.append((REQUEST_ID, self.request_id.encode()))
        self._body_bytes = 0
        self._max_body_bytes = 0

    def limit_body(self, max_bytes: int) -> None:
        """Set the maximum size of the request body. ``receive`` aborts a body that turns out to be larger.

        Raises:
            HttpError: Content-Length is too large (413), or is not a number (400).
        """
        self._max_body_bytes = max_bytes
        length = self.headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise HttpError(400, "Content-Length is not a number.")
        if int(length[:20]) > max_bytes:
            raise self._too_large()

    def _too_large(self) -> HttpError:
        return HttpError(413, f"The body is larger than {self._max_body_bytes} bytes.", headers={"Connection": "close"})

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._body_bytes += len(message.get("body", b""))
            if self._body_bytes > self._max_body_bytes:
                self.problem = self._too_large()
                raise self.problem
        return message

    async def send(self, message: Message) -> None:
        if self.problem is not None and not self.status:
            return  # drop the application's response to an aborted body
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._added]}
        await self._send(message)

    async def fail(self, problem: HttpError) -> None:
        """Respond with an error. If a response has already started, do nothing, because its status has been sent."""
        self.problem = None
        if self.status:
            return
        body = problem.body(self.request_id)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **problem.headers}
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": body})
