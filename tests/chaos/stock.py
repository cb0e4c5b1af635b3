"""Feed the same hostile files to Ray Data as its documentation shows: ``read_videos`` to ``write_parquet``."""

import re
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from chaos.hostile_files import damaged_files, seed_clips

SECONDS = 180.0
_PROGRAM = """
import sys, ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
ray.data.read_videos(sys.argv[1], include_paths=True).map_batches(
    lambda batch: {"path": batch["path"], "mean": batch["frame"].mean(axis=(1, 2, 3))}
).write_parquet(sys.argv[2])
"""


def through_ray_data(seed: int, count: int) -> tuple[str, int]:
    """Run on ``count`` damaged and as many healthy files; return how it ends and how many healthy files have rows."""
    with tempfile.TemporaryDirectory(prefix="stock") as folder:
        videos, output = Path(folder, "in"), Path(folder, "out")
        videos.mkdir()
        healthy = seed_clips()["mp4-h264"]
        damaged = (file for file in damaged_files(seed, 400 * count) if " mp4-h264 " in file.name)
        for number, file in enumerate(islice(damaged, count)):
            (videos / f"{number:03}-damaged.mp4").write_bytes(file.data)
            (videos / f"{number:03}-healthy.mp4").write_bytes(healthy)
        command = [sys.executable, "-c", _PROGRAM, str(videos), str(output)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            try:
                _, said = process.communicate(timeout=SECONDS)
                errors = re.findall(r"^\S*(?:Error|Exception)\b.*", said.decode(errors="replace"), re.MULTILINE)
                reason = errors[-1][:120] if errors else ""
                ending = "ends well" if process.returncode == 0 else f"ends with {process.returncode}: {reason}"
            except subprocess.TimeoutExpired:
                process.kill()
                ending = f"has not ended after {SECONDS:g} s"
        return ending, _num_healthy(output)


def _num_healthy(output: Path) -> int:
    files = list(output.glob("*.parquet"))
    paths = {path for file in files for path in pq.read_table(file, columns=["path"])["path"].to_pylist()}
    return sum(path.endswith("healthy.mp4") for path in paths)
