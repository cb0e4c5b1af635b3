"""How often S3 asked this process for fewer requests: each such reply, those that the client outlasts included."""

import threading
from typing import Any

from aiobotocore.session import AioSession  # type: ignore[import-untyped]

_STATUSES = frozenset({429, 503})
_CODES = frozenset({"RequestLimitExceeded", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"})
_lock = threading.Lock()
_seen = [0]


def take_throttles() -> int:
    """How many there were since the last call."""
    with _lock:
        count, _seen[0] = _seen[0], 0
    return count


def counting_session() -> AioSession:
    """A session whose clients count them."""
    session = AioSession()
    session.register("needs-retry.s3", _count)
    return session


def _count(response: tuple[object, dict[str, Any]] | None, **_: object) -> None:
    """Look at one try of one request; botocore calls it, with None where there was no reply."""
    if response is None:
        return
    parsed = response[1]
    status = parsed.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status in _STATUSES or parsed.get("Error", {}).get("Code") in _CODES:
        with _lock:
            _seen[0] += 1
