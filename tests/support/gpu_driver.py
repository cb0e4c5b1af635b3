"""Embed on a Ray that claims to have a GPU: ``python -m support.gpu_driver CONFIG``; the model runs on a CPU."""

import sys
from dataclasses import replace
from pathlib import Path

import ray

from raypipe.config import EmbedConfig, load_config
from raypipe.jobs.embed.job import run_embed
from raypipe.runs.actors import RayExecutor
from raypipe.runs.executor import Needs, Placement


class NoGpu(RayExecutor):
    """Place actors as for a GPU, but run the model on a CPU."""

    def place(self, needs: Needs) -> Placement:
        """Check the placement, and change the device."""
        placement = super().place(needs)
        assert (placement.num_gpu_actors, placement.num_gpus, placement.device) == (1, 1.0, "cuda")
        assert placement.num_actors == 2  # all processors, because neither embedding nor committing reserves one
        return replace(placement, device="cpu")


if __name__ == "__main__":
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    run_embed(load_config(EmbedConfig, Path(sys.argv[1])), executor=NoGpu())
    ray.shutdown()
