"""Every name of Ray that is not part of its public API, with the reason. A test checks that each of them exists."""

import logging
from typing import TYPE_CHECKING, Any

import ray
from ray._private.authentication import authentication_token_setup

if TYPE_CHECKING:
    from ray.data import Dataset


def enable_token_authentication() -> None:
    """Present this user's token to a cluster that asks for one, as ``ray start`` does; ``ray.init`` does not.

    ``RAY_AUTH_MODE`` takes precedence.
    """
    logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)  # it logs every call
    authentication_token_setup.maybe_enable_token_auth_if_token_available()


def serve_controller() -> Any | None:  # noqa: ANN401 - an actor handle, untyped
    """Return the controller of the Ray Serve that runs in this cluster; None if there is none."""
    try:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return None


def silence_data_logs() -> None:
    """Keep the log lines of Ray Data off the terminal, which shows a progress bar."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def map_whole_blocks(shards: "Dataset", make: type, **options: Any) -> "Dataset":  # noqa: ANN401 - those of map_batches
    """Return ``map_batches`` with ``batch_size=None`` on actors with a GPU.

    The public method refuses whole blocks on a GPU, and any batch size would split or join shards.
    """
    return shards.map_batches_internal(make, **options)
