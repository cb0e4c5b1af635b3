"""The embed job, from a configuration to a sealed output."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
from rich.console import Console

from raypipe import schema
from raypipe.config import EmbedConfig
from raypipe.dataset.plan import StoredPlans
from raypipe.jobs.embed import shard
from raypipe.jobs.embed.inputs import Planning, pack, plan_listing
from raypipe.jobs.embed.setup import EmbedSetup, find_network, settle
from raypipe.jobs.embed.shard import DecodeSettings, DecodeVideos, EmbedFrames, EmbedSettings
from raypipe.models.backbones import Preprocessing, resolve_dtype
from raypipe.runs.actors import Executor, Needs, Placement
from raypipe.runs.job import BatchRun, Job, run_job
from raypipe.runs.stages import Stage
from raypipe.storage import Folder

if TYPE_CHECKING:
    from raypipe.models.weights import Weights

T = TypeVar("T")


def run_embed(config: EmbedConfig, *, executor: Executor | None = None, console: Console | None = None) -> BatchRun:
    """Embed the new videos of the input, finish what earlier runs left, seal the output, and write the report.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished; the same call resumes.
    """
    return run_job(EmbedJob(config), executor=executor, console=console)


class EmbedJob(Job):
    """Decode the videos of an input and embed their frames. ``settle`` creates ``setup``."""

    name = "embed"
    packages = ("torch", "torchvision", "av", "decord", "torchcodec")
    summarize = staticmethod(shard.summarize)

    def __init__(self, config: EmbedConfig) -> None:
        self.config: EmbedConfig = config
        self.output = Folder(config.output)
        self.input_uri = config.input
        self.setup: EmbedSetup
        self._network: Future[tuple[Weights, Preprocessing]]

    def prepare(self) -> None:
        """Load the weights in a thread while Ray starts."""
        self._network = _in_background(partial(find_network, self.config.backbone))

    def needs(self) -> Needs:
        """Return the needs of actors that decode, and of actors that embed on a GPU if there is one."""
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
        """Decide what dtype ``auto`` means on the machines that embed: with a GPU, the driver's machine does not."""
        dtype = self.config.backbone.dtype
        if dtype != "auto" or placement.device == "cpu":
            resolved = resolve_dtype(dtype, "cpu")
        else:
            resolved = executor.call_on_gpu(resolve_dtype, dtype, placement.device, num_gpus=placement.num_gpus)
        self.setup = settle(self.config, *self._network.result(), dtype=resolved)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return every setting that changes a vector."""
        return self.setup.settings

    def plan(self, plans: StoredPlans, *, num_slots: int) -> None:
        """Plan the new videos, and mark the videos that are gone; raises like ``plan_new``."""
        plan_new(self.setup, plans, num_slots=num_slots)

    @property
    def facts(self) -> Mapping[str, object]:
        """Return the dtype."""
        return {"dtype": self.setup.dtype}

    def stages(self, executor: Executor, placement: Placement) -> Sequence[Stage]:
        """Decode and embed in one actor per processor. With GPUs, decode on the processors and embed on the GPUs."""
        setup, backbone = self.setup, self.config.backbone
        decode = (DecodeVideos, DecodeSettings(setup.decode_request, self.config.decode))
        settings = EmbedSettings(
            weights=executor.share(setup.weights.state_dict),
            name=backbone.name,
            device=placement.device,
            dtype=setup.dtype,
            batch_size=backbone.batch_size,
            compile=backbone.compile,
            embedding_dim=setup.embedding_dim,
            crop_size=setup.preprocessing.crop_size,
        )
        embed = (EmbedFrames, settings)
        if placement.num_gpu_actors:
            return [placement.stage(decode), placement.gpu_stage(embed)]
        return [placement.stage(decode, embed)]  # no frame crosses the object store

    @property
    def rows(self) -> pa.Schema:
        """Return the schema of embeddings."""
        return schema.embeddings_schema(self.setup.embedding_dim, row_format=self.setup.row_format)


def plan_new(setup: EmbedSetup, plans: StoredPlans, *, num_slots: int) -> None:
    """Plan the videos that no plan holds yet, and mark the videos that are no longer in the input.

    Raises:
        FingerprintError: the output holds rows of other settings.
        ConfigError: the input has no videos and never had any, or more are gone than ``max_gone_fraction`` allows.
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


def _in_background(work: Callable[[], T]) -> Future[T]:
    """Start ``work`` in a daemon thread: unlike an executor's threads, it does not keep a failed process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)
        else:
            future.set_result(result)

    Thread(target=run, daemon=True, name="background").start()
    return future
