"""The embed job, from a configuration to a sealed output."""

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from typing import Any

import ray
from rich.console import Console

from raypipe import __version__
from raypipe.config import EmbedConfig
from raypipe.embed import cluster, seal
from raypipe.embed.catalogue import find_videos
from raypipe.embed.cluster import Placement
from raypipe.embed.plan import fingerprint, plan_numbers, read_plan
from raypipe.embed.planner import Packing, Planner
from raypipe.embed.stages import DecodeSettings, EmbedSettings, PutSettings
from raypipe.errors import ConfigError, JobError, RaypipeError
from raypipe.models.backbone import Dtype, Preprocessing, embedding_dim, preprocessing
from raypipe.models.weights import Weights, resolve_weights
from raypipe.progress import Progress
from raypipe.report import RunRecord, ShardSummary, write_report
from raypipe.storage import Folder
from raypipe.video.protocol import DecodeRequest, Limits

_MAX_ROUNDS = 3
_WAVE_SHARDS = 4096  # so many shards at a time pass through Ray: the driver's memory does not grow with the catalogue
_FORMAT = 1  # of the rows; a change that old rows do not fit raises it


@dataclass(frozen=True, slots=True)
class Setup:
    """What is settled before any video is read."""

    config: EmbedConfig
    output: Folder
    preprocessing: Preprocessing
    weights: Weights
    dtype: Dtype

    @property
    def embedding_dim(self) -> int:
        """D, the size of every vector."""
        return embedding_dim(self.config.backbone.name)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a vector."""
        sampling = self.config.sampling
        keys = {
            "uniform": ("num_frames", "nearest_keyframe"),
            "fps": ("fps", "max_frames", "nearest_keyframe"),
            "keyframes": ("max_frames",),
            "all": ("max_frames",),
        }[sampling.mode]
        return {
            "format": _FORMAT,
            "sampling": {"mode": sampling.mode, **{key: getattr(sampling, key) for key in keys}},
            "resize_size": self.preprocessing.resize_size,
            "crop_size": self.preprocessing.crop_size,
            "backbone": self.config.backbone.name,
            "weights": self.weights.digest,
            "dtype": self.dtype,
        }

    @property
    def decode_request(self) -> DecodeRequest:
        """What is asked of a video."""
        sampling, decode = self.config.sampling, self.config.decode
        return DecodeRequest(
            mode=sampling.mode,
            num_frames=sampling.num_frames,
            fps=sampling.fps,
            max_frames=sampling.max_frames,
            nearest_keyframe=sampling.nearest_keyframe,
            resize_size=self.preprocessing.resize_size,
            crop_size=self.preprocessing.crop_size,
            limits=Limits(max_pixels=decode.max_pixels, max_duration_seconds=decode.max_duration_seconds),
        )


def prepare(config: EmbedConfig, *, dtype: Dtype) -> Setup:
    """Settle weights and dtype; where that is ``auto`` an output that has plans decides, else ``dtype``.

    Raises:
        SetupError: the backbone, its weights or the output folder cannot be had.
    """
    output = Folder(config.output)
    backbone = config.backbone
    weights = resolve_weights(backbone.name, backbone.weights, read_bytes=_read_bytes)
    if backbone.dtype == "auto" and (numbers := plan_numbers(output)):
        dtype = read_plan(output, numbers[0]).settings.get("dtype", dtype)
    return Setup(config, output, preprocessing(backbone.name), weights, dtype)


def _read_bytes(uri: str) -> bytes:
    parent, _, name = Folder(uri).uri.rpartition("/")
    return Folder(parent or "/").read(name)


@dataclass(frozen=True, slots=True)
class EmbedRun:
    """What a run did, and where its report lies; both are empty where there was nothing to do."""

    record: RunRecord
    report_uri: str = ""


def run_embed(config: EmbedConfig, *, console: Console | None = None) -> EmbedRun:
    """Embed what is new in the input, finish what earlier runs left, seal it, and write the report.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished; the same call continues.
    """
    Folder(config.output).check_writable()
    cluster.connect()
    placement = cluster.place(config.resources)
    setup = prepare(config, dtype=cluster.dtype_where_it_runs(config.backbone.dtype, placement))
    plan_new(setup, slots=placement.decode_actors)
    record = _start_record(setup, placement)
    if not record.plans:
        return EmbedRun(record)
    try:
        with Progress(record, console=console) as progress:
            _finish_shards(setup, placement, progress)
        _seal_all(setup.output, record)
    except KeyboardInterrupt:
        record.close(outcome="interrupted")
        raise
    except RaypipeError as error:
        record.close(outcome="failed", message=str(error))
        put_report(setup.output, record)
        raise
    record.close(outcome="finished")
    return EmbedRun(record, put_report(setup.output, record))


def plan_new(setup: Setup, *, slots: int) -> None:
    """Plan what no plan holds yet.

    Raises:
        FingerprintError: the output holds vectors of other settings.
        ConfigError: there is nothing to embed and never was.
    """
    config = setup.config
    planner = Planner(setup.output, setup.settings, config.input)
    planner.load()
    found = find_videos(config.input, output_uri=config.output)
    packing = Packing(
        max_videos=config.shard.max_videos,
        max_frames=config.shard.max_frames,
        frames_per_video=config.sampling.frames_per_video,
        slots=slots,
    )
    planner.store(planner.new_videos(found, retry=config.retry), packing=packing)
    if not planner.known:
        msg = f"No video under {config.input!r}. Give a folder, a prefix, a glob or a manifest that names some."
        raise ConfigError(msg)


def _start_record(setup: Setup, placement: Placement) -> RunRecord:
    numbers = seal.unsealed_plans(setup.output)
    num_planned = sum(read_plan(setup.output, number).videos.num_rows for number in numbers)
    num_missing = sum(rows.num_rows for rows in seal.missing_shards(setup.output, numbers))
    return RunRecord(
        job="embed",
        command=" ".join(["raypipe", *sys.argv[1:]]),
        input_uri=setup.config.input,
        output_uri=setup.output.uri,
        plans=tuple(numbers),
        fingerprint=fingerprint(setup.settings),
        settings=setup.config.model_dump(),
        versions=versions(),
        machine={**machine(), "dtype": setup.dtype, "decode actors": placement.decode_actors},
        num_planned_videos=num_planned,
        num_resumed_videos=num_planned - num_missing,
        num_slots=placement.decode_actors + placement.gpu_actors,
    )


def _finish_shards(setup: Setup, placement: Placement, progress: Progress) -> None:
    """Work on what is missing until nothing is; a shard that failed is tried again after all the others.

    Raises:
        JobError: some shards failed every time.
    """
    weights = ray.put(setup.weights.state_dict)
    problems: dict[tuple[int, int], str] = {}
    patience = 2 * placement.decode_actors + 6  # so many failures in a row are not the shards' own fault
    for _ in range(_MAX_ROUNDS):
        problems.clear()
        failures_in_row = 0
        for summary in _run_missing(setup, placement, weights):
            failures_in_row = failures_in_row + 1 if summary.problem else 0
            if summary.problem:
                problems[summary.plan, summary.shard] = summary.problem
            progress.update(summary)
            if failures_in_row >= patience:
                msg = f"{failures_in_row} shards failed in a row: {summary.problem} Mend it; the same command resumes."
                raise JobError(msg)
        if not problems:
            return
    problem = next(iter(problems.values()))
    msg = f"{len(problems)} shards failed {_MAX_ROUNDS} times: {problem} The same command tries them again."
    raise JobError(msg)


def _run_missing(
    setup: Setup, placement: Placement, weights: "ray.ObjectRef[dict[str, Any]]"
) -> Iterator[ShardSummary]:
    backbone = setup.config.backbone
    decode = DecodeSettings(setup.decode_request, setup.config.decode)
    embed = EmbedSettings(
        weights=weights,
        name=backbone.name,
        device=placement.device,
        dtype=setup.dtype,
        batch_size=backbone.batch_size,
        compile=backbone.compile,
        embedding_dim=setup.embedding_dim,
        crop_size=setup.preprocessing.crop_size,
    )
    put = PutSettings(setup.output.uri, fingerprint(setup.settings), setup.embedding_dim)
    blocks = seal.missing_shards(setup.output, seal.unsealed_plans(setup.output))
    while wave := list(islice(blocks, _WAVE_SHARDS)):
        try:
            yield from cluster.run_shards(wave, placement, decode=decode, embed=embed, put=put)
        except ray.exceptions.RayError as error:
            msg = f"Ray ended the work: {cluster.reason_of(error)}. The same command resumes."
            raise JobError(msg) from error


def _seal_all(output: Folder, record: RunRecord) -> None:
    unsealed = [number for number in record.plans if not seal.seal(output, number, versions=record.versions)]
    if unsealed:
        msg = f"Plans {unsealed} still miss shards. The same command tries them again."
        raise JobError(msg)


def put_report(output: Folder, record: RunRecord) -> str:
    """Write the report of a run where no earlier run's lies, and give its URI."""
    first = f"reports/{record.plans[-1]:05d}"
    names = (first, *(f"{first}-{again}" for again in range(1, 1000)))
    folder = next(name for name in names if not output.exists(f"{name}/summary.json"))
    write_report(record, lambda name, data: output.put_new(f"{folder}/{name}", data))
    return output.child(f"{folder}/report.html")


def failed_fraction(record: RunRecord) -> float:
    """The share of this run's videos that gave no frames."""
    return record.num_failed_videos / record.num_videos if record.num_videos else 0.0


def versions() -> dict[str, str]:
    """What made the vectors."""
    found = {"raypipe": __version__, "python": platform.python_version()}
    for name in ("ray", "torch", "torchvision", "av", "decord", "torchcodec", "pyarrow", "s3fs", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, object]:
    """Where it ran."""
    total = ray.cluster_resources()
    return {
        "nodes": len(ray.nodes()),
        "CPUs": total.get("CPU", 0),
        "GPUs": total.get("GPU", 0),
        "memory_bytes": int(total.get("memory", 0)),
        "driver": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} processors",
    }
