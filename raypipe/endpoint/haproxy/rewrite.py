"""A program that rewrites the HAProxy configuration of Ray Serve, and then becomes HAProxy.

Serve starts it: ``rewrite.py BINARY BOUNDS PRIVATE_PORTS HAPROXY_ARGUMENTS…``, where ``BOUNDS`` are the four numbers of
``Bounds``, separated by commas. It imports nothing from raypipe, so it starts at once. Serve's configuration is not a
public interface: ``tests/endpoint/test_haproxy_contract.py`` fails if a new Ray no longer has the lines matched here.
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
_PROBES = "{ path /healthz /readyz /metrics }"
_VIDEOS = "{ path_beg /v1/embed /v1/classify }"
_LOADS = "{ path_beg /v1/admin/ }"
_BODY = (
    r"{\"error\": {\"code\": \"overloaded\", \"message\": \"All replicas are busy. Retry after 1 s.\"}, "
    r"\"request_id\": \"%[var(txn.request_id),json(utf8s)]\"}"
)


class Bounds(NamedTuple):
    """How many requests a replica may have in flight, and the seconds after which HAProxy gives up on its answer."""

    max_in_flight: int
    seconds: int
    video_seconds: int
    load_seconds: int


def rewrite(text: str, *, bounds: Bounds | None, private_ports: set[str]) -> str:
    """Bind the private ports to loopback, limit the requests in flight at each server, and reject the rest with 429.

    Serve sets an address only for its front end: HAProxy's own pages would be open to every network of the machine.
    Rejecting a request takes a replica a fifth of the time of an answer, and HAProxy a hundredth. A slow client does
    not occupy a replica until its request is complete. If a replica hangs and misses its own deadline, HAProxy times
    out instead. Without ``bounds``, only the ports are bound.
    """
    return "\n".join(line for old in text.split("\n") for line in _lines(old, bounds, private_ports))


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
        yield (
            f"{indent}http-request return status 429 content-type application/json hdr Retry-After 1 "
            f'hdr X-Request-Id %[var(txn.request_id)] lf-string "{_BODY}" '
            f"if {condition} !{_PROBES} {{ be_conn_free({backend}) eq 0 }}"
        )
        yield line
    elif _SERVER.match(line):
        yield f"{line} maxconn {bounds.max_in_flight}"
    else:
        yield line


def main(arguments: list[str]) -> None:
    """Rewrite the file after ``-f`` and become HAProxy. If HAProxy rejects the result, only bind the ports."""
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
