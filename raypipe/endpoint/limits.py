"""What stands before every endpoint: request ids, access, sizes, a bounded number at once, a deadline."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol

from raypipe.config.serve import LimitsConfig
from raypipe.endpoint.access import Access
from raypipe.endpoint.endpoints import LOADING, UNLIMITED, endpoint_of, is_video, path_of
from raypipe.endpoint.http_errors import HttpError, as_http_error, error_body, overloaded

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID = b"x-request-id"
CLIENT_LEFT, SERVER_FAILED = 499, 500
_MAX_ID = 200
LOAD_SECONDS = 900.0  # a large index comes from a bucket in minutes
_logger = logging.getLogger(__name__)


class Watcher(Protocol):
    """Is told of requests; ``raypipe.endpoint.metrics.Metrics`` is one."""

    def started(self, endpoint: str) -> None:
        """A request was let in."""

    def ended(self, endpoint: str) -> None:
        """It left again."""

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """A request was answered, whether it was let in or not."""


class Limits:
    """ASGI middleware. A request beyond a limit is answered at once, without a look at its body.

    ``log`` takes one flat record a request: never its token, query or body. ``echo_request_id`` is off where Ray Serve
    sends the id back itself.
    """

    def __init__(
        self,
        application: Application,
        *,
        config: LimitsConfig,
        access: Access,
        watcher: Watcher,
        log: Callable[[Mapping[str, object]], None],
        echo_request_id: bool = True,
    ) -> None:
        self._application = application
        self._config = config
        self._access = access
        self._watcher = watcher
        self._log = log
        self._echo_request_id = echo_request_id
        self._in_flight = 0
        self._videos_in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
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
            if problem is not error and problem.status >= SERVER_FAILED:
                _logger.exception("Request %s failed", exchange.request_id)
            await exchange.fail(problem)
        finally:
            seconds = time.perf_counter() - start
            self._watcher.answered(endpoint, exchange.status, seconds)
            self._log(
                {
                    "request_id": exchange.request_id,
                    "endpoint": endpoint,
                    "status": exchange.status,
                    "ms": round(1000 * seconds, 2),
                }
            )

    async def _answer(self, endpoint: str, exchange: "_Exchange") -> None:
        config = self._config
        video = is_video(endpoint)
        self._access.check(exchange.scope, path_of(exchange.scope), exchange.headers)
        exchange.limit_body(config.max_body_bytes if video else config.max_json_bytes)
        if endpoint in UNLIMITED:
            await self._application(exchange.scope, exchange.receive, exchange.send)
            return
        self._admit(endpoint, video=video)
        try:
            # Whatever arrived together with this request is counted before the first of them is worked on.
            await asyncio.sleep(0)
            await self._within(self._deadline_seconds(endpoint), exchange)
        finally:
            self._in_flight -= 1
            self._videos_in_flight -= video
            self._watcher.ended(endpoint)

    def _deadline_seconds(self, endpoint: str) -> float:
        if endpoint in LOADING:
            return LOAD_SECONDS
        return self._config.video_deadline_seconds if is_video(endpoint) else self._config.deadline_seconds

    async def _within(self, deadline_seconds: float, exchange: "_Exchange") -> None:
        try:
            async with asyncio.timeout(deadline_seconds) as timer:
                await self._application(exchange.scope, exchange.receive, exchange.send)
        except TimeoutError:
            if not timer.expired():
                raise
            message = f"Not answered within {deadline_seconds:g} s. Ask for less, or again when there is less to do."
            raise HttpError(504, message) from None
        if exchange.problem is not None:
            raise exchange.problem

    def _admit(self, endpoint: str, *, video: bool) -> None:
        config = self._config
        if self._in_flight >= config.max_in_flight:
            what = f"{config.max_in_flight} requests are being answered."
            raise overloaded(what)
        if video and self._videos_in_flight >= config.max_videos_in_flight:
            what = f"{config.max_videos_in_flight} requests with videos are being answered."
            raise overloaded(what)
        self._in_flight += 1
        self._videos_in_flight += video
        self._watcher.started(endpoint)


class _Exchange:
    """One request and its answer, of which it knows how far they have come."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, echo_request_id: bool) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = _request_id(self.headers)
        self.status = 0
        self.problem: HttpError | None = None  # what the body turned out to be, whatever the application makes of it
        scope.setdefault("state", {})["request_id"] = self.request_id
        self._receive = receive
        self._send = send
        self._added = [(b"x-content-type-options", b"nosniff")]
        if echo_request_id:
            self._added.append((REQUEST_ID, self.request_id.encode()))
        self._body_bytes = 0
        self._max_body_bytes = 0

    def limit_body(self, max_bytes: int) -> None:
        """Refuse a body that says that it is larger, and break off one that turns out to be."""
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
            return  # the application's word for a body that broke off
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._added]}
        await self._send(message)

    async def fail(self, problem: HttpError) -> None:
        """Answer with an error, unless an answer is on its way; then all that is left is to break it off."""
        self.problem = None
        if self.status:
            return
        body = error_body(problem, self.request_id)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **problem.headers}
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": body})


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    """The caller's id as far as a log can hold it, or a new one."""
    given = headers.get(REQUEST_ID, b"")[:_MAX_ID].decode("latin-1")
    return given if given and given.isascii() and given.isprintable() else uuid.uuid4().hex
