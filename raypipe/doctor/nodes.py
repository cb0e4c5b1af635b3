"""Check every node of a cluster from within: its packages, its GPUs, and whether it reaches the bucket."""

import platform
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypipe import __version__
from raypipe.doctor import Check
from raypipe.errors import RaypipeError
from raypipe.jobs.embed.inputs import find_videos
from raypipe.storage import Folder

_PACKAGES = ("ray", "torch", "av", "pyarrow", "s3fs")
_WAIT_SECONDS = 120.0  # a node imports all of it first
_SHOWN = 3


def first_video(uri: str) -> str:
    """List an input up to its first video; raises SetupError if it cannot be listed."""
    first = next(iter(find_videos(uri, output_uri="")), None)
    return f"{uri} is listed; the first video is {first.video_id}" if first else f"{uri} is listed, and holds no video"


def writable(uri: str) -> str:
    """Put the marker of a writable output; raises SetupError if it cannot be written."""
    Folder(uri).check_writable()
    return f"{uri} can be written, each object once"


def check_nodes(*, input_uri: str | None, output_uri: str | None) -> Iterator[Check]:
    """Ask every node that is alive; nodes that give the same answer are one check."""
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
            alike["", f"cannot run a task: {' '.join(str(error).split())[:200]}"].append(asked[reference])
    for reference in silent:
        alike["", f"does not answer within {_WAIT_SECONDS:g} s"].append(asked[reference])
    for (found, problem), addresses in alike.items():
        shown, more = ", ".join(sorted(addresses)[:_SHOWN]), len(addresses) - _SHOWN
        who = f"{shown} and {more} more" if more > 0 else shown
        parts = ": ".join(part for part in (who, found, problem) if part)
        yield Check("nodes", "error" if problem else "ok", parts)


def _look_around(input_uri: str | None, output_uri: str | None, *, has_gpu: bool) -> tuple[str, str]:
    versions = [f"Python {platform.python_version()}", f"raypipe {__version__}", *_versions()]
    problems = []
    if has_gpu:
        import torch  # noqa: PLC0415 - takes seconds, and only nodes with a GPU need it

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


def _versions() -> Iterator[str]:
    for name in _PACKAGES:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            yield f"no {name}"
