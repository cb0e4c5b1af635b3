"""Reach the job API of a cluster, and say in one line why it cannot be reached."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from raypipe.errors import ConfigError, SetupError
from raypipe.runs.ray_private import enable_token_authentication

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
        remedy = f"Give --address http://HOST:8265, or set {ADDRESS_VARIABLE}."
        msg = "No cluster address."
        raise ConfigError(msg, key="--address", remedy=remedy)
    if not address.startswith(("http://", "https://")):
        msg = f"--address {address!r} is not the address of a job API."
        remedy = "Give the address of Ray's dashboard: http://HOST:8265."
        raise ConfigError(msg, key="--address", value=address, remedy=remedy)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    enable_token_authentication()
    with reached(address), _without(_OVERRULING):
        return JobSubmissionClient(address)


@contextmanager
def reached(address: str) -> Iterator[None]:
    """Turn what goes wrong between here and the job API into a SetupError whose ``key`` is the address.

    Its ``value`` is the HTTP status where that was 401 (no token was sent) or 403 (another token is wanted).
    """
    import requests  # noqa: PLC0415 - Ray needs it to get as far as here, and says so where it is missing

    try:
        yield
    except AuthenticationError as error:
        status, wrong = (403, "refuses this token") if "failed" in str(error) else (401, "wants a token")
        remedy = "Set RAY_AUTH_TOKEN_PATH to a file with the cluster's token, and RAY_AUTH_MODE=token."
        msg = f"{address} {wrong} ({status})."
        raise SetupError(msg, key=address, value=status, remedy=remedy) from None
    except (ConnectionError, requests.exceptions.ConnectionError, requests.exceptions.Timeout):
        remedy = (
            "Start the cluster, or forward its dashboard to here: ray attach -p 8265 cluster.yaml, "
            "or kubectl port-forward service/HEAD 8265."
        )
        msg = f"Nothing answers at {address}."
        raise SetupError(msg, key=address, remedy=remedy) from None
    except (requests.exceptions.RequestException, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        msg = f"{address} is not a job API that can be used: {reason}"
        raise SetupError(msg, key=address, value=reason) from None


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    kept: dict[str, Any] = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
