"""Run ``raypipe embed`` on hostile files with healthy ones in between, on a separate Ray cluster."""

import tempfile
import time
from collections import Counter
from pathlib import Path

from chaos.hostile import MEMORY_BYTES, TIMEOUT_SECONDS, Findings
from chaos.hostile_files import damaged_files, seed_clips
from chaos.kill_cluster import NUM_CPUS, running_cluster
from raypipe import schema
from raypipe.config import EmbedConfig, load_config
from raypipe.dataset.read import read_embeddings
from raypipe.jobs.embed.verify import verify
from raypipe.status import Status
from raypipe.storage import Folder
from support.processes import Driver

_HEALTHY_EVERY = 20
_OVERRIDES = (
    "backbone.name=resnet18",
    "backbone.weights=random",
    "sampling.num_frames=2",
    "shard.max_videos=64",
    f"decode.timeout_seconds={TIMEOUT_SECONDS}",
    f"decode.memory_bytes={MEMORY_BYTES}",
)


def embed_hostile_files(seed: int, count: int) -> Findings:
    """Embed ``count`` damaged files and a healthy one after every twentieth; each file must get a row."""
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="hostile") as scratch, running_cluster() as cluster:
        videos, output = Path(scratch, "in"), Folder(f"{scratch}/out")
        videos.mkdir()
        healthy = seed_clips()["mp4-h264"]
        for number, file in enumerate(damaged_files(seed, count)):
            (videos / f"{number:05}.mp4").write_bytes(file.data)
            if number % _HEALTHY_EVERY == 0:
                (videos / f"{number:05}-healthy.mp4").write_bytes(healthy)
        names = {path.name for path in videos.iterdir()}
        findings.num_files = len(names)
        config = load_config(EmbedConfig, values={"input": str(videos), "output": output.uri}, overrides=_OVERRIDES)
        driver = Driver("embed", config, cluster.address(), Path(scratch, "driver.log"))
        actors: set[int] = set()
        try:
            while driver.process.poll() is None:
                actors.update(cluster.pids("Ray worker"))
                time.sleep(0.1)
        finally:
            driver.kill()
        if driver.process.returncode:
            findings.problems.append(f"it ends with {driver.process.returncode}: {driver.log.read_text()[-300:]}")
            return findings
        if len(actors) > NUM_CPUS:  # one actor per CPU; a further one replaces an actor that died
            findings.problems.append(f"{len(actors) - NUM_CPUS} Ray workers died")
        _check(output, names, findings)
    return findings


def _check(output: Folder, names: set[str], findings: Findings) -> None:
    findings.problems += verify(output).violations
    columns = [schema.VIDEO_ID, schema.STATUS]
    rows = [row for table in read_embeddings(output, columns=columns) for row in table.to_pylist()]
    findings.statuses.update(row[schema.STATUS] for row in rows)
    found = Counter(row[schema.VIDEO_ID] for row in rows)
    findings.problems += [f"{name} has {found[name]} rows" for name in names | set(found) if found[name] != 1]
    ill = [row for row in rows if "healthy" in row[schema.VIDEO_ID] and row[schema.STATUS] != Status.OK]
    findings.problems += [f"{row[schema.VIDEO_ID]} is {row[schema.STATUS]}" for row in ill]
