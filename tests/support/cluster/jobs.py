"""Jobs that ``raypipe submit`` sends to a cluster of several nodes, and checks of their outputs."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import yaml
from pydantic import BaseModel

from raypipe import schema
from raypipe.config import EmbedConfig, load_config
from raypipe.dataset.read import read_embeddings
from raypipe.jobs.embed.verify import verify
from raypipe.storage import Folder
from support.cluster.network import Command
from support.cluster.nodes import RayCluster
from support.folders import num_committed
from support.processes import wait_until

# Ten frames per video keep a processor busy long enough to kill something meanwhile.
_SMALL = ("backbone.name=resnet18", "backbone.weights=random", "sampling.num_frames=10", "shard.max_videos=2")


def embed_config(videos: str, output: Folder) -> EmbedConfig:
    """Return a cheap configuration of embed, with two videos per shard."""
    return load_config(EmbedConfig, values={"input": videos, "output": output.uri}, overrides=_SMALL)


def submit(cluster: RayCluster, config: BaseModel, folder: Path, *, job: str = "embed") -> Command:
    """Submit a job from the head and follow it."""
    return cluster.start_in("head", *_words(cluster, config, folder, job=job))


def send(cluster: RayCluster, config: BaseModel, folder: Path, *, job: str = "embed") -> str:
    """Submit a job from the head and return its id."""
    sent = cluster.run_in("head", *_words(cluster, config, folder, job=job), "--no-wait")
    assert sent.returncode == 0, sent.stderr
    return sent.stdout.strip()


def raypipe(cluster: RayCluster, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a raypipe command on the head and wait for its end."""
    return cluster.run_in("head", sys.executable, "-m", "raypipe", *words)


def _words(cluster: RayCluster, config: BaseModel, folder: Path, *, job: str) -> tuple[str, ...]:
    file = folder / f"{job}.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return (sys.executable, "-m", "raypipe", "submit", str(file), "--address", cluster.address)


def wait_for_shards(command: Command | None, output: Folder, count: int) -> None:
    """Wait until ``count`` shards are committed; fail if the command ends before that."""

    def are_there() -> bool:
        ended = command is not None and command.process.poll() is not None
        return num_committed(output) >= count or ended

    wait_until(are_there, what=f"{count} shards")
    assert num_committed(output) >= count, command and command.printed


def check_embedded(output: Folder, ids: list[str]) -> None:
    """Check that every video has exactly one row, every row is ok, and every promise holds."""
    assert verify(output).violations == []
    rows = [row for t in read_embeddings(output, columns=[schema.VIDEO_ID, schema.STATUS]) for row in t.to_pylist()]
    assert Counter((row[schema.VIDEO_ID], row[schema.STATUS]) for row in rows) == Counter((name, "ok") for name in ids)
