"""Check a cluster from outside: its Ray version, and whether it asks for a token."""

from urllib.parse import urlsplit

import ray
import requests
from ray.job_submission import JobSubmissionClient

from raypipe.doctor import Check
from raypipe.submit import reached

_TIMEOUT_SECONDS = 20.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_REFUSED = (401, 403)


def check_api(client: JobSubmissionClient) -> list[Check]:
    """Check the job API, which runs code for everybody whom it answers."""
    return [_version(client), _token(client.get_address())]


def _version(client: JobSubmissionClient) -> Check:
    with reached(client.get_address()):
        # Ray's own request; the public get_version() returns the version of the API only.
        there = client._do_request("GET", "/api/version").json()["ray_version"]  # noqa: SLF001
    found = f"Ray {there} there, {ray.__version__} here"
    if there.split(".")[:2] == ray.__version__.split(".")[:2]:
        return Check("versions", "ok", found)
    remedy = f"pip install 'ray=={there}' here: jobs are sent as that release takes them."
    return Check("versions", "warning", found, remedy)


def _token(address: str) -> Check:
    with reached(address):
        answer = requests.get(f"{address}/api/jobs/", timeout=_TIMEOUT_SECONDS)
    if answer.status_code in _REFUSED:
        return Check("token", "ok", f"{address} refuses a request without it ({answer.status_code})")
    is_near = urlsplit(address).hostname in _LOOPBACK
    found = f"{address} answers {answer.status_code} without one{', at loopback' if is_near else ''}"
    remedy = (
        "Whoever reaches it runs code on every node. Start the cluster with RAY_AUTH_MODE=token, as cluster.yaml does."
    )
    return Check("token", "warning" if is_near else "error", found, remedy)
