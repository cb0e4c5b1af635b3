"""Load on an endpoint: threads that send requests over their own connections, and record the answers."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

JSON = {"Content-Type": "application/json"}
Request = tuple[str, str, bytes | None]  # method, path, JSON body
Check = Callable[[Request, Any], None]


def get(path: str) -> Request:
    """Return a GET request."""
    return "GET", path, None


def post(path: str, body: object) -> Request:
    """Return a POST request with a JSON body."""
    return "POST", path, json.dumps(body).encode()


class Load:
    """Send requests one after another on several connections, until the block ends.

    Each answer with status 200 goes to ``check``; an exception counts as a failure. A broken connection counts as a
    failure too, and is opened again.
    """

    def __init__(
        self,
        url: str,
        requests: Sequence[Request],
        *,
        connections: int = 4,
        check: Check | None = None,
        token: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._requests = requests
        self._check = check
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self.seconds: list[float] = []  # of the answers with 200
        self.refused_seconds: list[float] = []  # of the answers with 429
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(connections)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @property
    def num_answered(self) -> int:
        """Return how many requests were answered so far, with any status."""
        return self.statuses.total()

    def _run(self, number: int) -> None:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=60)
        at = number
        while not self._ended.is_set():
            request = self._requests[at % len(self._requests)]
            at += 1
            start = time.perf_counter()
            try:
                headers = self._headers | (JSON if request[2] is not None else {})
                connection.request(request[0], request[1], request[2], headers)
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._record(0, 0.0, f"{request[1]}: {error!r}")
                continue
            seconds = time.perf_counter() - start
            self._record(response.status, seconds, self._problem(request, response.status, body))
        connection.close()

    def _problem(self, request: Request, status: int, body: bytes) -> str:
        if status == 429:
            return ""
        if status != 200:
            return f"{request[1]}: {status} {body[:200]!r}"
        try:
            if self._check is not None:
                self._check(request, json.loads(body))
        except Exception as error:  # noqa: BLE001 - any error of a check
            return f"{request[1]}: {error!r} of {body[:200]!r}"
        return ""

    def _record(self, status: int, seconds: float, problem: str) -> None:
        with self._lock:
            self.statuses[status] += 1
            if problem:
                self.failures.append(problem)
            elif status == 429:
                self.refused_seconds.append(seconds)
            else:
                self.seconds.append(seconds)
