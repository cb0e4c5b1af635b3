"""All uses of Ray names outside its public API, each with the reason. A test checks that these names exist."""

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray._private import ray_constants, services
from ray._private.authentication import authentication_token_setup
from ray._private.authentication.authentication_token_generator import generate_new_authentication_token
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR as RAY_JOB_CONFIG_JSON_ENV_VAR  # noqa: PLC0414 - read by ray.init

if TYPE_CHECKING:
    from ray.data import Dataset

_CONNECT_SECONDS = 2.0


def enable_token_authentication() -> None:
    """Enable token authentication if this user has a token, so that clusters with authentication accept connections.

    ``ray start`` does this itself, but ``ray.init`` does not. If ``RAY_AUTH_MODE`` is set, it takes precedence.
    """
    logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)  # it logs every call
    authentication_token_setup.maybe_enable_token_auth_if_token_available()


@contextmanager
def local_ray_is_private() -> Iterator[None]:
    """Keep a Ray that ``ray.init`` starts in the ``with`` block to this machine and this user.

    Its processes listen on loopback only, and if it creates ``~/.ray/auth_token``, only the user can read that file.
    Ray itself listens on all interfaces, and lets every user read the token. The same setting is needed to connect to
    such a Ray, because Ray replaces loopback addresses by the address of the machine.
    """
    is_private = _is_on_loopback()
    variable = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR  # Ray's own switch, which child processes read
    before = authentication_token_setup.generate_and_save_token, ray_constants.ENABLE_RAY_CLUSTER
    given = os.environ.get(variable)
    authentication_token_setup.generate_and_save_token = _save_new_token
    if is_private:
        ray_constants.ENABLE_RAY_CLUSTER = False
        os.environ[variable] = "0"
    try:
        yield
    finally:
        authentication_token_setup.generate_and_save_token, ray_constants.ENABLE_RAY_CLUSTER = before
        if given is not None:
            os.environ[variable] = given
        elif is_private:
            del os.environ[variable]


def token_path() -> Path:
    """Return where Ray keeps the token of this user."""
    if given := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(given)
    return authentication_token_setup._get_default_token_path()  # noqa: SLF001


def _save_new_token() -> None:
    """Create the token, unless another process creates it at the same time."""
    path = token_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, whole = tempfile.mkstemp(dir=path.parent)  # with mode 0600
    with os.fdopen(descriptor, "w") as file:
        file.write(generate_new_authentication_token())
    with suppress(FileExistsError):
        os.link(whole, path)
    os.unlink(whole)  # noqa: PTH108


def _is_on_loopback() -> bool:
    """Return whether ``ray.init`` will start Ray, or connect to a Ray that listens on loopback only."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address == "auto":
        address = next(iter(services.find_gcs_addresses()), "")
    address = address or services.find_bootstrap_address(None) or ""
    if address in {"", "local"}:
        return True
    host, _, port = address.rpartition(":")
    if host not in {"127.0.0.1", "localhost"} or not port.isdecimal():
        return False
    return not _listens(services.get_node_ip_address(), int(port))


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False


def serve_controller() -> Any | None:  # noqa: ANN401 - an actor handle, untyped
    """Return the controller actor of Ray Serve in this cluster, or None if Ray Serve is not running."""
    try:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return None


def silence_data_logs() -> None:
    """Hide the log lines of Ray Data, which would disturb the progress bar on the terminal."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def map_whole_blocks(shards: "Dataset", make: type, **options: Any) -> "Dataset":  # noqa: ANN401 - as map_batches
    """Call ``map_batches`` with ``batch_size=None`` on actors with a GPU, and return the new dataset.

    The public ``map_batches`` refuses ``batch_size=None`` on GPUs, but any other size would split or merge shards.
    """
    return shards.map_batches_internal(make, **options)
