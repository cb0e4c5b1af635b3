"""Find free TCP ports of this machine, for servers that are told their port before they bind it."""

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

# Linux takes ports for outgoing connections, and for `bind` to port 0, from this range.
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT = 20000  # Ray's workers use 10002 to 19999
_LAST_PORT = 32767
_MAX_CANDIDATES = 1000


def free_ports(count: int, *, host: str = "127.0.0.1") -> list[int]:
    """Return ``count`` different ports on which no server listens.

    If possible, the ports are outside the range of ephemeral ports. An outgoing connection could take a port inside
    that range before the server binds it.

    Raises:
        OSError: there are not enough free ports.
    """
    candidates = _candidates()
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            one = held.enter_context(socket.socket())
            try:
                one.bind((host, next(candidates, 0)))
            except OSError:
                continue
            ports.append(one.getsockname()[1])
        return ports


def _candidates() -> Iterator[int]:
    try:
        first_ephemeral, last_ephemeral = map(int, _EPHEMERAL_RANGE.read_text().split())
    except (OSError, ValueError):
        first_ephemeral, last_ephemeral = 32768, 60999
    outside = [port for port in range(_FIRST_PORT, _LAST_PORT + 1) if not first_ephemeral <= port <= last_ephemeral]
    return iter(random.sample(outside, min(_MAX_CANDIDATES, len(outside))))
