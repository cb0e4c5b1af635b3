"""Embed on a Ray that believes it has a GPU: ``python -m support.gpu_driver CONFIG``; the model runs on a processor."""

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import ray

from raypipe.config import EmbedConfig, ResourcesConfig, load_config
from raypipe.jobs.embed import cluster
from raypipe.jobs.embed.cluster import Placement
from raypipe.jobs.embed.job import run_embed
from raypipe.runs.actors import configure_data

_place = cluster.place


def place_on_cpu(resources: ResourcesConfig) -> Placement:
    """What a GPU has the job do, but on a processor."""
    placement = _place(resources)
    assert (placement.gpu_actors, placement.gpus_per_actor, placement.device) == (1, 1.0, "cuda")
    assert placement.decode_actors == 2  # every processor: neither embedding nor putting takes one
    return replace(placement, device="cpu")


if __name__ == "__main__":
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    configure_data()
    with mock.patch.object(cluster, "place", place_on_cpu):
        run_embed(load_config(EmbedConfig, path=Path(sys.argv[1])))
    ray.shutdown()
