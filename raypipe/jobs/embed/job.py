"""The embed job, from a configuration to a sealed output."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from rich.console import Console

from raypipe import schema
from raypipe.config import EmbedConfig
from raypipe.config.embed import BackboneConfig
from raypipe.dataset.plan import fingerprint, plan_numbers, read_plan
from raypipe.errors import ConfigError
from raypipe.jobs.embed import cluster
from raypipe.jobs.embed.cluster import Placement
from raypipe.jobs.embed.packing import pack
from raypipe.jobs.embed.planning import Planning, plan_listing
from raypipe.jobs.embed.stages import DecodeSettings, EmbedSettings, PutSettings
from raypipe.models.backbones import Dtype, Preprocessing, embedding_dim
from raypipe.runs.actors import connect, machine
from raypipe.runs.background import beside
from raypipe.runs.job import BatchRun, RunShards, finish, start_record
from raypipe.storage import Folder
from raypipe.storage.folder import read_uri
from raypipe.video.protocol import DecodeRequest, Limits

if TYPE_CHECKING:
    from raypipe.models.weights import Weights


@dataclass(frozen=True, slots=True)
class Setup:
    """What is settled before any video is read."""

    config: EmbedConfig
    output: Folder
    preprocessing: Preprocessing
    weights: "Weights"
    dtype: Dtype
    row_format: int = schema.ROW_FORMAT  # that of the output, where it has rows

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
        unfiltered = {} if sampling.loop_filter else {"loop_filter": False}
        return {
            "format": self.row_format,
            "sampling": {"mode": sampling.mode, **{key: getattr(sampling, key) for key in keys}, **unfiltered},
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
            loop_filter=sampling.loop_filter,
            resize_size=self.preprocessing.resize_size,
            crop_size=self.preprocessing.crop_size,
            limits=Limits(max_pixels=decode.max_pixels, max_duration_seconds=decode.max_duration_seconds),
            row_format=self.row_format,
        )


def prepare(config: EmbedConfig, *, dtype: Dtype) -> Setup:
    """Settle weights, dtype and the format of the rows.

    An output that has plans keeps its format, and its dtype where that is ``auto``.

    Raises:
        SetupError: the backbone, its weights or the output folder cannot be had.
    """
    return _settle(config, *_network(config.backbone), dtype=dtype)


def _network(backbone: BackboneConfig) -> "tuple[Weights, Preprocessing]":
    from raypipe.models.networks import preprocessing  # noqa: PLC0415 - torch: seconds, in which Ray can start
    from raypipe.models.weights import resolve_weights  # noqa: PLC0415

    return resolve_weights(backbone.name, backbone.weights, read_bytes=read_uri), preprocessing(backbone.name)


def _settle(config: EmbedConfig, weights: "Weights", preprocessing: Preprocessing, *, dtype: Dtype) -> Setup:
    output = Folder(config.output)
    row_format = schema.ROW_FORMAT
    if numbers := plan_numbers(output):
        settings = read_plan(output, numbers[0]).settings
        row_format = schema.row_format_of(settings)
        if config.backbone.dtype == "auto":
            dtype = settings.get("dtype", dtype)
    return Setup(config, output, preprocessing, weights, dtype, row_format)


def run_embed(config: EmbedConfig, *, console: Console | None = None) -> BatchRun:
    """Embed what is new in the input, finish what earlier runs left, seal it, and write the report.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished; the same call continues.
    """
    Folder(config.output).check_writable()
    network = beside(partial(_network, config.backbone))
    connect()
    placement = cluster.place(config.resources)
    setup = _settle(config, *network.result(), dtype=cluster.dtype_where_it_runs(config.backbone.dtype, placement))
    plan_new(setup, slots=placement.decode_actors)
    record = start_record(
        setup.output,
        job="embed",
        input_uri=config.input,
        fingerprint=fingerprint(setup.settings),
        settings=config.model_dump(),
        packages=("torch", "torchvision", "av", "decord", "torchcodec"),
        machine={**machine(), "dtype": setup.dtype, "decode actors": placement.decode_actors},
        num_slots=placement.decode_actors + placement.gpu_actors,
    )
    if not record.plans:
        return BatchRun(record)
    return finish(
        setup.output, record, _work(setup, placement), patience=2 * placement.decode_actors + 6, console=console
    )


def plan_new(setup: Setup, *, slots: int) -> None:
    """Plan what no plan holds yet, and mark what is no longer in the input.

    Raises:
        FingerprintError: the output holds rows of other settings.
        ConfigError: there is nothing to embed and never was, or more is gone than ``max_gone_fraction`` allows.
    """
    config = setup.config
    planning = Planning.load(setup.output, setup.settings, config.input, retry=config.retry, gone=config.gone)
    packing = partial(
        pack,
        max_videos=config.shard.max_videos,
        max_frames=config.shard.max_frames,
        frames_per_video=config.sampling.frames_per_video,
        slots=slots,
    )
    plan_listing(planning, max_gone_fraction=config.max_gone_fraction, pack=packing)
    if not planning.planner.known:
        msg = f"No video under {config.input!r}."
        remedy = "Give a folder, a prefix, a glob or a manifest that names some."
        raise ConfigError(msg, key="input", value=config.input, remedy=remedy)


def _work(setup: Setup, placement: Placement) -> RunShards:
    """What runs blocks through the stages, the weights in the object store."""
    backbone = setup.config.backbone
    decode = DecodeSettings(setup.decode_request, setup.config.decode)
    embed = EmbedSettings(
        weights=ray.put(setup.weights.state_dict),
        name=backbone.name,
        device=placement.device,
        dtype=setup.dtype,
        batch_size=backbone.batch_size,
        compile=backbone.compile,
        embedding_dim=setup.embedding_dim,
        crop_size=setup.preprocessing.crop_size,
    )
    put = PutSettings(setup.output.uri, fingerprint(setup.settings), setup.embedding_dim, setup.row_format)
    return lambda blocks: cluster.run_shards(blocks, placement, decode=decode, embed=embed, put=put)
