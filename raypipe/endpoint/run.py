"""``raypipe serve``: runs the application on this machine, or on its running Ray cluster, until it is stopped."""

import json
import logging
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from raypipe.config import ServeConfig
from raypipe.endpoint.haproxy.launch import haproxy, ray_runs
from raypipe.endpoint.limits import TOKEN_VARIABLE, check_host
from raypipe.errors import ConfigError, JobError
from raypipe.search.versions import Versions
from raypipe.storage import Folder

if TYPE_CHECKING:
    from raypipe.endpoint.app import Abilities

APPLICATION = "raypipe"
_READY_SECONDS = 120.0
_POLL_SECONDS = 0.1
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


def serve_until_stopped(config: ServeConfig, *, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM, then stop what was started; ``say`` gets the address and what is not available.

    Raises:
        SetupError: the configuration or the environment is wrong.
        JobError: Serve cannot run it.
    """
    check_host(config.host, os.environ.get(TOKEN_VARIABLE))
    _check_port(config.host, config.port)
    Versions(Folder(config.index)).require_current()
    with haproxy(config.host, config.limits) as is_fast, _running(config) as abilities:
        url = base_url(config)
        _wait_until_ready(url)
        say(f"Serving {config.index} on {url} ({'HAProxy' if is_fast else 'Ray Serve proxy'}).")
        if abilities.why_no_embedder:
            say(f"Without /v1/embed and /v1/classify. {abilities.why_no_embedder}")
        say(f"The page: {url}/ · Stop with Ctrl-C.")
        _wait_for_end()


def base_url(config: ServeConfig) -> str:
    """Return the URL for requests from this machine."""
    host = _ANY_HOST.get(config.host, config.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.port}"


@contextmanager
def _running(config: ServeConfig) -> Iterator["Abilities"]:
    import ray  # noqa: PLC0415 - only now: the environment that it reads is settled
    from ray import serve  # noqa: PLC0415

    from raypipe.endpoint.app import build, find_abilities  # noqa: PLC0415
    from raypipe.runs import actors  # noqa: PLC0415

    quiet = logging.getLogger("raypipe").getEffectiveLevel() > logging.DEBUG
    if quiet:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    abilities = find_abilities(config)
    is_ours = not ray.is_initialized() and not ray_runs()
    actors.connect()
    _check_cpus(config, abilities, ray.cluster_resources().get("CPU", 0.0))
    try:
        serve.start(http_options={"host": config.host, "port": config.port})
        serve.run(build(config, abilities), name=APPLICATION, route_prefix="/")
        yield abilities
    except (RuntimeError, TimeoutError) as error:
        msg = f"Ray Serve cannot run it: {actors.reason_of(error)}."
        raise JobError(msg) from error
    finally:
        if is_ours:
            # Ray's native code reports processes that were stopped on purpose as dead.
            with actors.native_output_hidden() if quiet else nullcontext():
                serve.shutdown()
                ray.shutdown()
        else:
            serve.delete(APPLICATION)


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


def _wait_for_end() -> None:
    ended = threading.Event()
    before = {one: signal.signal(one, lambda *_: ended.set()) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        ended.wait()
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
