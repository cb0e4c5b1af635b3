"""Which bytes of a video answer a request: the header Range (RFC 9110)."""

import re
from typing import NamedTuple

from raypipe.endpoint.http import HttpError

# The limit for one response. Ray Serve's proxy takes a response from the replica at once, however slowly the client
# reads it, so this limit also bounds the memory that a stream needs.
MAX_PART_BYTES = 4_194_304
_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,30})-([0-9]{0,30})[ \t]*", re.IGNORECASE)


class Part(NamedTuple):
    """Bytes ``start`` to ``stop - 1`` of a video. ``is_whole`` is true if the request asks for no range."""

    start: int
    stop: int
    is_whole: bool


def part_of(size_bytes: int, range_header: str | None, *, max_bytes: int = MAX_PART_BYTES) -> Part:
    """Return the part of a video of ``size_bytes`` that answers a request with this header.

    A header that is malformed or names several ranges is ignored, as RFC 9110 allows. If a range is longer than
    ``max_bytes``, the part is its beginning, and players request the rest when they need it.

    Raises:
        HttpError: 416 if the range is outside the video, or if a video longer than ``max_bytes`` is requested without a
            range.
    """
    found = _RANGE.fullmatch(range_header) if range_header is not None else None
    first, last = found.groups() if found else ("", "")
    if not (first or last) or (first and last and int(last) < int(first)):
        if size_bytes > max_bytes:
            message = f"The video has {size_bytes} bytes. Request at most {max_bytes} with the header Range."
            raise _unsatisfiable(message, size_bytes)
        return Part(0, size_bytes, is_whole=True)
    start = int(first) if first else max(0, size_bytes - int(last))
    stop = min(size_bytes, int(last) + 1 if first and last else size_bytes, start + max_bytes)
    if start >= stop:
        message = f"The range is outside the video, which has {size_bytes} bytes."
        raise _unsatisfiable(message, size_bytes)
    return Part(start, stop, is_whole=False)


def _unsatisfiable(message: str, size_bytes: int) -> HttpError:
    headers = {"Content-Range": f"bytes */{size_bytes}", "Accept-Ranges": "bytes"}
    return HttpError(416, message, headers=headers)
