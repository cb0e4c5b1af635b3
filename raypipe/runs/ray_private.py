"""All uses of Ray names outside its public API, each with the reason. A test checks that these names exist."""

import logging
from typing import TYPE_CHECKING, Any

import ray
from ray._private.authentication import authentication_token_setup
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR as RAY_JOB_CONFIG_JSON_ENV_VAR  # noqa: PLC0414 - read by ray.init

if TYPE_CHECKING:
    from ray.data import Dataset


def enable_token_authentication() -> None:
    """Enable token authentication if this user has a token, so that clusters with authentication accept connections.

    ``ray start`` does this itself, but ``ray.init`` does not. If ``RAY_AUTH_MODE`` is set, it takes precedence.
    """
    logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)  # it logs every call
    authentication_token_setup.maybe_enable_token_auth_if_token_available()


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
