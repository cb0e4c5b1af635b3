"""Starts HAProxy in place of itself, after a change to the configuration that Ray Serve wrote.

A program of its own, started by Serve: ``haproxy_start.py BINARY MAX_IN_FLIGHT PRIVATE_PORTS HAPROXY_ARGUMENTS…``. It
imports nothing of raypipe, so that it takes no time.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_BIND = re.compile(r"( *bind )\*?:(\d+)$")
_USE_BACKEND = re.compile(r"( *)use_backend (\S+) if (\S+)$")
_SERVER = re.compile(r" *server \S+ \S+ check(?!.* backup).*$")
_PROBES = "{ path /healthz /readyz /metrics }"
_BODY = (
    r"{\"error\": {\"code\": \"overloaded\", \"message\": \"All replicas are busy. Try again after 1 s.\"}, "
    r"\"request_id\": \"%[var(txn.request_id),json(utf8s)]\"}"
)


def rewrite(text: str, *, max_in_flight: int | None, private_ports: set[str]) -> str:
    """Bind the given ports to loopback, give no server more at once than it answers, and refuse the rest with 429.

    Serve lets only the front end have an address: HAProxy's own pages would be open to every network of the machine.
    And a replica refuses in a fifth of the time that an answer takes, where HAProxy needs a hundredth. With None
    for ``max_in_flight`` all it does is bind.
    """
    return "\n".join(line for old in text.split("\n") for line in _lines(old, max_in_flight, private_ports))


def _lines(line: str, max_in_flight: int | None, private_ports: set[str]) -> Iterator[str]:
    if (bind := _BIND.match(line)) and bind[2] in private_ports:
        yield f"{bind[1]}127.0.0.1:{bind[2]}"
    elif max_in_flight is None:
        yield line
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
        yield f"{line} maxconn {max_in_flight}"
    else:
        yield line


def main(arguments: list[str]) -> None:
    """Rewrite the file behind ``-f``, and become HAProxy; what that does not accept of it is left out."""
    binary, max_in_flight, ports, *given = arguments
    path = Path(given[given.index("-f") + 1])
    text = path.read_text()
    private_ports = set(ports.split(","))
    limited = rewrite(text, max_in_flight=int(max_in_flight), private_ports=private_ports)
    if not _is_accepted(binary, limited, path.parent):
        limited = rewrite(text, max_in_flight=None, private_ports=private_ports)
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
