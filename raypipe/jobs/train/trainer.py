"""The edge to Ray Train: a trainer of workers, data and limits, from what is settled."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raypipe.config import TrainConfig
from raypipe.errors import SetupError
from raypipe.jobs.train.data import READ_CPUS, UnevenSplits, frames_dataset
from raypipe.jobs.train.setup import Setup
from raypipe.jobs.train.state import LoopSettings
from raypipe.jobs.train.worker import TRAIN, VALIDATION, WorkerSettings, train_worker
from raypipe.runs.actors import await_resources

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.data import Dataset

_WIDTH_PER_THREAD = 128
_WORKER_CPUS = 0.5  # to Ray: there has to be room for reading beside the workers


def decide_gpu(config: TrainConfig) -> bool:
    """Whether the workers take a GPU each.

    Raises:
        SetupError: the cluster has too few GPUs or processors for the workers, which would wait for ever.
    """
    num_workers, wanted = config.resources.num_workers, config.resources.use_gpu
    worker = {"CPU": _WORKER_CPUS, "GPU": 1.0} if wanted is True else {"CPU": _WORKER_CPUS}
    bundles = [*[worker] * num_workers, {"CPU": float(READ_CPUS)}]
    has = await_resources(bundles, wait_seconds=config.resources.wait_seconds)
    cpus, gpus = has["CPU"], has["GPU"]
    if wanted is True and gpus < num_workers:
        msg = (
            f"resources.use_gpu=true with num_workers={num_workers}: the cluster has {gpus:g} GPUs. "
            "Choose fewer workers, auto or false."
        )
        raise SetupError(msg)
    if (needed := num_workers * _WORKER_CPUS + READ_CPUS) > cpus:
        msg = (
            f"resources.num_workers={num_workers}: they and their reading take {needed:g} CPUs; the cluster has "
            f"{cpus:g}. Choose fewer workers, or add nodes."
        )
        raise SetupError(msg)
    return gpus >= num_workers if wanted == "auto" else wanted


def make_trainer(setup: Setup, feed: Any, *, scratch: Path, use_gpu: bool) -> TorchTrainer:  # noqa: ANN401 - an actor
    """Everything that Ray Train is given; it keeps nothing but its own notes, in ``scratch``."""
    config, samples = setup.config, setup.samples
    num_workers = config.resources.num_workers
    optimizer = config.optimizer
    loop = LoopSettings(
        optimizer=optimizer,
        checkpoint=config.checkpoint,
        learning_rate=setup.learning_rate,
        seed=config.seed,
        num_train=samples.train.num_rows,
        num_validation=samples.validation.num_rows,
        class_weights=setup.class_weights,
    )
    settings = WorkerSettings(
        output_uri=setup.output.uri,
        start=ray.put(setup.start),
        loop=loop,
        cache_bytes=config.data.cache_bytes,
        num_threads=_threads(num_workers, n_embd=setup.start.config.gpt2.n_embd),
        feed=feed,
    )
    parts = {TRAIN: samples.train, VALIDATION: samples.validation}
    datasets: dict[str, Dataset | Callable[[], Dataset]] = {
        name: frames_dataset(part, embeddings_uri=config.embeddings, num_workers=num_workers, seed=config.seed)
        for name, part in parts.items()
        if part.num_rows
    }
    return TorchTrainer(
        train_worker,
        train_loop_config={"settings": settings},
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": _WORKER_CPUS}
        ),
        run_config=RunConfig(
            name=f"raypipe-{uuid.uuid4().hex[:12]}",
            storage_path=str(scratch),  # checkpoints are ours: any URI, and none that is not whole
            failure_config=FailureConfig(max_failures=config.resources.max_failures),
        ),
        datasets=datasets,
        dataset_config=UnevenSplits(),
    )


def _threads(num_workers: int, *, n_embd: int) -> int:
    """The processors of a node among the workers that share it; a narrow model is slower on several than on one."""
    nodes = [node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]]
    per_node = -(-num_workers // max(1, len(nodes)))
    return max(1, min(int(min(nodes) // per_node), n_embd // _WIDTH_PER_THREAD))
