"""The embed job, from a configuration to a sealed output."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console

from raypipe import schema
from raypipe.background import in_background
from raypipe.config import EmbedConfig
from raypipe.dataset.plan import StoredPlans
from raypipe.jobs.embed import shard
from raypipe.jobs.embed.inputs import Planning, pack, plan_listing
from raypipe.jobs.embed.quantizing import with_int8_network
from raypipe.jobs.embed.setup import EmbedSetup, find_network, settle
from raypipe.jobs.embed.shard import DecodeSettings, DecodeVideos, EmbedFrames, EmbedSettings
from raypipe.models.backbones import Engine, Preprocessing, resolve_dtype, resolve_engine
from raypipe.runs.executor import Executor, Needs, Placement
from raypipe.runs.job import BatchRun, Job, run_job
from raypipe.runs.stages import Stage
from raypipe.storage import Folder

if TYPE_CHECKING:
    from concurrent.futures import Future

    from raypipe.models.openvino_backbone import ExportedNetwork
    from raypipe.models.weights import Weights


def run_embed(config: EmbedConfig, *, executor: Executor | None = None, console: Console | None = None) -> BatchRun:
    """Embed the new videos, finish the work that earlier runs left undone, seal the output, and write the report.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished. Call again to resume.
    """
    return run_job(EmbedJob(config, console=console), executor=executor, console=console)


class EmbedJob(Job):
    """The job that decodes videos and embeds their frames. ``setup`` exists after ``settle`` was called."""

    name = "embed"
    max_local_rows = 1000  # about five minutes on two processors, of which Ray would add a third of one
    packages = ("torch", "torchvision", "av", "decord", "torchcodec")
    summarize = staticmethod(shard.summarize)

    def __init__(self, config: EmbedConfig, *, console: Console | None = None) -> None:
        self.config: EmbedConfig = config
        self.output = Folder(config.output)
        self.input_uri = config.input
        self.setup: EmbedSetup
        self._network: Future[tuple[Weights, Preprocessing]]
        self._engine: Engine
        self._console = console

    def prepare(self) -> None:
        """Start to load the weights in a thread, so that they load while Ray starts."""
        self._network = in_background(partial(find_network, self.config.backbone))

    def needs(self) -> Needs:
        """Return a request for actors that decode on CPUs and, if the cluster has GPUs, actors that embed on them."""
        resources = self.config.resources
        return Needs(
            num_cpus=resources.decode_cpus,
            num_gpus=resources.embed_gpus,
            concurrency=resources.concurrency,
            joined=False,
            cpus_on=resources.decode_on,
            gpus_on=resources.embed_on,
            wait_seconds=resources.wait_seconds,
            asked=f"resources.embed_gpus={resources.embed_gpus} and resources.decode_cpus={resources.decode_cpus:g}",
        )

    def settle(self, executor: Executor, placement: Placement) -> None:
        """Resolve dtype and engine ``auto`` for the machines that embed, and create ``setup``.

        With GPUs these are not the driver's machine, so the driver's processor must not decide.
        """
        dtype = self.config.backbone.dtype
        if dtype != "auto" or placement.device == "cpu":
            resolved = resolve_dtype(dtype, "cpu")
        else:
            resolved = executor.call_on_gpu(resolve_dtype, dtype, placement.device, num_gpus=placement.num_gpus)
        self.setup = settle(self.config, *self._network.result(), dtype=resolved)
        self._engine = resolve_engine(self.config.backbone.wanted_engine, placement.device, self.setup.dtype)
        if self.setup.dtype == "int8":
            self.setup = with_int8_network(self.setup, console=self._console)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return all settings that affect the vectors."""
        return self.setup.settings

    def plan(self, plans: StoredPlans, *, num_slots: int) -> None:
        """Plan the new videos, and mark the videos that are gone. Raises the same errors as ``plan_new``."""
        self.skipped = plan_new(self.setup, plans, num_slots=num_slots)

    @property
    def facts(self) -> Mapping[str, object]:
        """Return the dtype and the engine of the network, which are added to the record."""
        setup = self.setup
        return {
            "dtype": setup.dtype,
            "engine": self._engine,
            **({"int8": asdict(setup.int8.facts)} if setup.int8 is not None else {}),
        }

    def stages(self, executor: Executor, placement: Placement) -> Sequence[Stage]:
        """Return the stages of the job.

        Without GPUs there is one stage, whose actors decode and embed. With GPUs there are two: actors on CPUs decode,
        and actors on GPUs embed.
        """
        setup, backbone = self.setup, self.config.backbone
        decode = (DecodeVideos, DecodeSettings(setup.decode_request, self.config.decode))
        settings = EmbedSettings(
            weights=executor.share(setup.weights.state_dict),
            exported=executor.share(self._export()) if self._engine == "openvino" else None,
            name=backbone.name,
            device=placement.device,
            dtype=setup.dtype,
            engine=backbone.wanted_engine,
            batch_size=backbone.batch_size,
            compile=backbone.compile,
            embedding_dim=setup.embedding_dim,
            crop_size=setup.preprocessing.crop_size,
        )
        embed = (EmbedFrames, settings)
        if placement.num_gpu_actors:
            return [placement.stage(decode), placement.gpu_stage(embed)]
        return [placement.stage(decode, embed)]  # frames stay within an actor

    def _export(self) -> "ExportedNetwork":
        if self.setup.int8 is not None:
            return self.setup.int8.network
        from raypipe.models.openvino_backbone import export  # noqa: PLC0415 - OpenVINO is optional

        return export(self.config.backbone.name, self.setup.weights.state_dict)

    @property
    def rows(self) -> pa.Schema:
        """Return the schema of the embeddings files."""
        setup = self.setup
        return schema.embeddings_schema(setup.embedding_dim, row_format=setup.row_format, vectors=setup.vectors)


def plan_new(setup: EmbedSetup, plans: StoredPlans, *, num_slots: int) -> Mapping[str, int]:
    """Plan the videos that are in no plan yet, and mark the videos that are no longer in the input.

    Return how many files of the input were skipped, by reason.

    Raises:
        FingerprintError: the output holds rows that were made with other settings.
        ConfigError: the input has no videos and never had any, or more videos are gone than ``max_gone_fraction``
            allows.
    """
    config = setup.config
    planning = Planning.load(plans, setup.settings, config.input, retry=config.retry, gone=config.gone)
    packing = partial(
        pack,
        max_videos=config.shard.max_videos,
        max_frames=config.shard.max_frames,
        frames_per_video=config.sampling.frames_per_video,
        slots=num_slots,
    )
    plan_listing(planning, max_gone_fraction=config.max_gone_fraction, pack=packing)
    planning.check_found()
    return planning.listed.skipped
