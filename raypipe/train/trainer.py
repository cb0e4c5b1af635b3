"""The edge to Ray Train: a trainer of workers, data and limits, from what is settled."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raypipe.config import TrainConfig
from raypipe.errors import SetupError
from raypipe.models.backbone import resolve_dtype
from raypipe.train.data import UnevenSplits, frames_dataset
from raypipe.train.setup import Setup
from raypipe.train.state import LoopSettings
from raypipe.train.worker import TRAIN, VALIDATION, WorkerSettings, train_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.data import Dataset

_WIDTH_PER_THREAD = 128


def decide_gpu(config: TrainConfig) -> bool:
    gpus = ray.cluster_resources().get("GPU", 0.0)
    wanted = config.resources.use_gpu
    if wanted is True and gpus < config.resources.num_workers:
        msg = (
            f"resources.use_gpu=true with num_workers={config.resources.num_workers}: the cluster has {gpus:g} GPUs. "
            "Choose fewer workers, auto or false."
        )
        raise SetupError(msg)
    return gpus >= config.resources.num_workers if wanted == "auto" else wanted


def make_trainer(setup: Setup, feed: Any, *, scratch: Path, use_gpu: bool) -> TorchTrainer:  # noqa: ANN401 - an actor
    config, samples = setup.config, setup.samples
    num_workers = config.resources.num_workers
    optimizer = config.optimizer
    device = "cuda" if use_gpu else "cpu"
    precision = optimizer.precision
    if precision == "auto":  # on processors autocast gains little where it does not lose
        precision = "bfloat16" if use_gpu and resolve_dtype("auto", device) == "bfloat16" else "float32"
    loop = LoopSettings(
        optimizer=optimizer,
        checkpoint=config.checkpoint,
        learning_rate=setup.learning_rate,
        seed=config.seed,
        num_train=samples.train.num_rows,
        num_validation=samples.validation.num_rows,
        class_weights=setup.class_weights,
        bfloat16=precision == "bfloat16",
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
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": 0.5}),
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
