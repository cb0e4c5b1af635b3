"""A program that rewrites the HAProxy configuration of Ray Serve, and then becomes HAProxy.

Serve starts it: ``rewrite.py BINARY BOUNDS PRIVATE_PORTS HAPROXY_ARGUMENTS…``, where ``BOUNDS`` are the numbers of
``Bounds``, separated by commas. It imports nothing from raypipe, so it starts at once. Serve's configuration is not a
public interface: ``tests/endpoint/test_haproxy_contract.py`` fails if a new version of Ray no longer writes the lines
that this program matches.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BIND = re.compile(r"( *bind )\*?:(\d+)$")
_USE_BACKEND = re.compile(r"( *)use_backend (\S+) if (\S+)$")
_DEFAULTS = re.compile(r"defaults\s*$")
_BACKEND = re.compile(r"backend \S*raypipe\S*\s*$")
_SERVER = re.compile(r" *server \S+ \S+ check(?!.* backup).*$")
_TRACKED = re.compile(r"( *server (\S+) \S+) check\b.*?( backup)?$")
_PROBES = "{ path /healthz /readyz /metrics }"
_VIDEOS = "{ path_beg /v1/embed /v1/classify }"
_PLAY = "{ path /v1/play }"
_STREAMS = "-streams"  # the suffix of a backend
_LOADS = "{ path_beg /v1/admin/ }"
_BODY = (
    r"{\"error\": {\"code\": \"overloaded\", \"message\": \"All replicas are busy. Retry after 1 s.\"}, "
    r"\"request_id\": \"%[var(txn.request_id),json(utf8s)]\"}"
)


class Bounds(NamedTuple):
    """The limits that HAProxy enforces for each replica.

    ``max_in_flight`` is the number of requests in flight, and ``max_streams`` the number of videos that are played at
    the same moment. The timeouts for an answer are ``video_seconds`` for requests with videos, ``load_seconds`` for
    requests that load an index, and ``seconds`` for all others.
    """

    max_in_flight: int
    max_streams: int
    seconds: int
    video_seconds: int
    load_seconds: int


def rewrite(text: str, *, bounds: Bounds | None, private_ports: set[str]) -> str:
    """Return Serve's HAProxy configuration ``text`` with private ports bound to loopback, and with limits per replica.

    - The private ports serve HAProxy's own pages. Serve itself would open them to every network of the machine.
    - HAProxy limits the requests in flight at each replica and rejects the rest with 429. Compared with an answer, a
      rejection takes a replica a fifth of the time, and HAProxy a hundredth.
    - HAProxy forwards a request only when it is complete, so a slow client does not occupy a replica.
    - HAProxy times out if a replica hangs and misses its own deadline.
    - Videos are played through a backend of their own, so that slow players do not block other requests. These requests
      are not logged, because their addresses contain signatures.

    Without ``bounds``, only the private ports are changed.
    """
    lines = text.splitlines()
    changed = [line for old in lines for line in _lines(old, bounds, private_ports)]
    if bounds is not None:
        changed += _stream_backends(lines, bounds)
    return "\n".join(changed) + "\n"


def _stream_backends(lines: list[str], bounds: Bounds) -> Iterator[str]:
    """Yield a copy of each backend of raypipe, with the same servers, for playing videos."""
    backend = ""
    for line in lines:
        if not line.startswith(" "):
            backend = line.split()[1] if _BACKEND.match(line) else ""
            if backend:
                yield f"backend {backend}{_STREAMS}"
                yield "    http-reuse always"
                yield f"    http-request set-timeout server {bounds.video_seconds}s"
        elif backend and (server := _TRACKED.match(line)):
            start, name, backup = server.groups()
            yield f"{start} track {backend}/{name}{backup or f' maxconn {bounds.max_streams}'}"


def _lines(line: str, bounds: Bounds | None, private_ports: set[str]) -> Iterator[str]:
    if (bind := _BIND.match(line)) and bind[2] in private_ports:
        yield f"{bind[1]}127.0.0.1:{bind[2]}"
    elif bounds is None:
        yield line
    elif _DEFAULTS.match(line):
        yield line
        yield "    option http-buffer-request"
        yield f"    timeout http-request {bounds.seconds}s"
    elif _BACKEND.match(line):
        yield line
        yield f"    http-request set-timeout server {bounds.seconds}s"
        yield f"    http-request set-timeout server {bounds.video_seconds}s if {_VIDEOS}"
        yield f"    http-request set-timeout server {bounds.load_seconds}s if {_LOADS}"
    elif use := _USE_BACKEND.match(line):
        indent, backend, condition = use.groups()
        yield f"{indent}http-request set-var(txn.request_id) req.hdr(x-request-id)"
        yield f"{indent}http-request set-var(txn.request_id) uuid if !{{ req.hdr(x-request-id) -m found }}"
        yield f"{indent}http-request set-log-level silent if {condition} {_PLAY}"
        for requests, used in ((f"!{_PROBES} !{_PLAY}", backend), (_PLAY, backend + _STREAMS)):
            yield (
                f"{indent}http-request return status 429 content-type application/json hdr Retry-After 1 "
                f'hdr X-Request-Id %[var(txn.request_id)] lf-string "{_BODY}" '
                f"if {condition} {requests} {{ be_conn_free({used}) eq 0 }}"
            )
        yield f"{indent}use_backend {backend}{_STREAMS} if {condition} {_PLAY}"
        yield line
    elif _SERVER.match(line):
        yield f"{line} maxconn {bounds.max_in_flight}"
    else:
        yield line


def main(arguments: list[str]) -> None:
    """Rewrite the configuration file given by ``-f``, and replace this process with HAProxy.

    If HAProxy rejects the rewritten file, only bind the private ports to loopback.
    """
    binary, numbers, ports, *given = arguments
    path = Path(given[given.index("-f") + 1])
    text = path.read_text()
    private_ports = set(ports.split(","))
    bounds = Bounds(*map(int, numbers.split(",")))
    limited = rewrite(text, bounds=bounds, private_ports=private_ports)
    if not _is_accepted(binary, limited, path.parent):
        limited = rewrite(text, bounds=None, private_ports=private_ports)
    path.write_text(limited)
    os.execv(binary, [binary, *given])  # noqa: S606 - as Serve would have started it


def _is_accepted(binary: str, text: str, folder: Path) -> bool:
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".cfg") as file:
        file.write(text)
        file.flush()
        checked = subprocess.run([binary, "-c", "-f", file.name], capture_output=True, check=False)  # noqa: S603
        return checked.returncode == 0


if __name__ == "__main__":
    main(sys.argv[1:])
