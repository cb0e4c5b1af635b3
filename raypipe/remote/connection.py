"""Reach the job API of a cluster, and say in one line why it cannot be reached."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from raypipe.batch.cluster import use_token
from raypipe.errors import ConfigError, SetupError

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"  # Ray's own
_OVERRULING = (ADDRESS_VARIABLE, "RAY_ADDRESS")  # Ray prefers them to the address that it is given
_TALKATIVE = (
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)


def connect(address: str | None) -> JobSubmissionClient:
    """Connect to the job API at ``http://HOST:8265``.

    Raises:
        ConfigError: there is no address, or not one of HTTP.
        SetupError: nothing answers there, it is no job API, or it wants another token.
    """
    if not address:
        msg = f"No cluster: give --address http://HOST:8265, or set {ADDRESS_VARIABLE}."
        raise ConfigError(msg)
    if not address.startswith(("http://", "https://")):
        msg = f"--address {address!r} is not the address of a job API: give http://HOST:8265, that of Ray's dashboard."
        raise ConfigError(msg)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    use_token()
    with reached(address), _without(_OVERRULING):
        return JobSubmissionClient(address)


@contextmanager
def reached(address: str) -> Iterator[None]:
    """What goes wrong between here and the job API, as SetupError."""
    import requests  # noqa: PLC0415 - Ray needs it to get as far as here, and says so where it is missing

    try:
        yield
    except AuthenticationError as error:
        wrong = "refuses this token" if "failed" in str(error) else "wants a token"
        msg = f"{address} {wrong}: set RAY_AUTH_TOKEN_PATH to a file with the cluster's, and RAY_AUTH_MODE=token."
        raise SetupError(msg) from None
    except (ConnectionError, requests.exceptions.ConnectionError, requests.exceptions.Timeout):
        msg = (
            f"Nothing answers at {address}. Start the cluster, or forward its dashboard to here: "
            "ray attach -p 8265 cluster.yaml, or kubectl port-forward service/HEAD 8265."
        )
        raise SetupError(msg) from None
    except (requests.exceptions.RequestException, RuntimeError, KeyError, TypeError) as error:
        msg = f"{address} is not a job API that can be used: {' '.join(str(error).split())[:300]}"
        raise SetupError(msg) from None


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    kept: dict[str, Any] = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
