"""Run the endpoint on this machine, or on the Ray cluster that this process uses."""

import json
import logging
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Self

from raypipe.config import ServeConfig
from raypipe.endpoint.haproxy.launch import haproxy
from raypipe.endpoint.limits import TOKEN_VARIABLE, check_host
from raypipe.errors import ConfigError, JobError
from raypipe.results import Shown
from raypipe.runs.executor import joins_ray
from raypipe.search.versions import Versions
from raypipe.storage import Folder

if TYPE_CHECKING:
    from raypipe.endpoint.app import Abilities

APPLICATION = "raypipe"
_READY_SECONDS = 120.0
_POLL_SECONDS = 0.1
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


class Server(Shown):
    """A running endpoint. It answers requests as soon as the constructor returns.

    ``close`` or the end of the ``with`` block stops it.

    Attributes:
        url: The URL for requests from this machine.
        notes: Lines for people: what the server serves, and what it cannot do.

    Raises:
        SetupError: the configuration or the environment is wrong.
        JobError: Ray Serve cannot run the endpoint.
    """

    def __init__(self, config: ServeConfig) -> None:
        check_host(config.host, os.environ.get(TOKEN_VARIABLE))
        _check_port(config.host, config.port)
        Versions(Folder(config.index)).require_current()
        self.url = base_url(config)
        with ExitStack() as stack:
            is_fast = stack.enter_context(haproxy(config.host, config.limits))
            abilities = stack.enter_context(_running(config))
            _wait_until_ready(self.url)
            self._running = stack.pop_all()
        proxy = "HAProxy" if is_fast else "Ray Serve proxy"
        self.notes = [f"Serving {config.index} on {self.url} ({proxy})."]
        if abilities.why_no_embedder:
            self.notes.append(f"Without /v1/embed and /v1/classify. {abilities.why_no_embedder}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the endpoint and everything that was started for it. A second call has no effect."""
        self._running.close()

    def wait(self) -> None:
        """Wait for Ctrl-C or SIGTERM."""
        ended = threading.Event()
        before = {one: signal.signal(one, lambda *_: ended.set()) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            ended.wait()
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def shown(self) -> Mapping[str, object]:
        """Return the URL."""
        return {"url": self.url}


def base_url(config: ServeConfig) -> str:
    """Return the URL for requests from this machine."""
    host = _ANY_HOST.get(config.host, config.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.port}"


@contextmanager
def _running(config: ServeConfig) -> Iterator["Abilities"]:
    import ray  # noqa: PLC0415 - only now is the environment that it reads complete
    from ray import serve  # noqa: PLC0415

    from raypipe.endpoint.app import build, find_abilities  # noqa: PLC0415
    from raypipe.runs import actors  # noqa: PLC0415
    from raypipe.runs.ray_private import serve_controller  # noqa: PLC0415

    quiet = logging.getLogger("raypipe").getEffectiveLevel() > logging.DEBUG
    if quiet:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    abilities = find_abilities(config)
    is_our_ray = not joins_ray()
    actors.connect()
    is_our_serve = serve_controller() is None
    _check_cpus(config, abilities, ray.cluster_resources().get("CPU", 0.0))
    try:
        serve.start(http_options={"host": config.host, "port": config.port})
        serve.run(build(config, abilities), name=APPLICATION, route_prefix="/")
        yield abilities
    except (RuntimeError, TimeoutError) as error:
        msg = f"Ray Serve cannot run it: {actors.reason_of(error)}."
        raise JobError(msg) from error
    finally:
        # Hides that Ray's native code reports processes as dead that were stopped on purpose.
        with actors.native_output_hidden() if quiet and is_our_serve else nullcontext():
            if is_our_serve:
                serve.shutdown()
            else:
                serve.delete(APPLICATION)
            if is_our_ray:
                ray.shutdown()


def _check_cpus(config: ServeConfig, abilities: "Abilities", available: float) -> None:
    num_models = (abilities.embeddings is not None) + abilities.has_classifier
    replicas, models = config.replicas, config.model_replicas
    needed = replicas.min * replicas.num_cpus + num_models * models.min * models.num_cpus
    if needed > available:
        msg = f"The replicas need {needed:g} CPUs, and there are {available:g}."
        remedy = "Lower replicas.num_cpus and model_replicas.num_cpus: they only divide the CPUs between replicas."
        raise ConfigError(msg, key="replicas.num_cpus", value=needed, expected=available, remedy=remedy)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            msg = f"Cannot listen on {host} port {port}: {error.strerror}."
            raise ConfigError(msg, key="port", value=port, remedy="Choose another with --host and --port.") from None


def _wait_until_ready(url: str) -> None:
    """Wait until the proxy passes requests on to a replica that has an index."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _READY_SECONDS
    state = "nothing answers"
    while time.monotonic() < deadline:
        try:
            with opener.open(f"{url}/readyz", timeout=5):
                return
        except urllib.error.HTTPError as error:
            with error:
                state = _broken(error.read()) or f"it answers {error.code}"
        except OSError as error:
            state = str(error)
        time.sleep(_POLL_SECONDS)
    msg = f"{url} is not ready after {_READY_SECONDS:g} s: {state}."
    raise JobError(msg)


def _broken(body: bytes) -> str:
    try:
        return str(json.loads(body)["broken"]["error"])
    except (ValueError, KeyError, TypeError):
        return ""
