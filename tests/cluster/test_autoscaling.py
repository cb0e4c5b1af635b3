"""A cluster without processors until a job asks for one: a real autoscaler that starts nodes on this machine."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from raypipe.jobs.embed.verify import verify
from raypipe.storage import Folder
from support.cluster.network import why_impossible, without_proxies
from support.cluster.nodes import BIN
from support.videos import make_video

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(300)]

_ALONE = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-euc")
_HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # required by Ray's fake provider
_ENVIRONMENT = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "COLUMNS": "200",
    "RAY_AUTH_MODE": "disabled",  # only its own loopback
    "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
    "RAY_FAKE_CLUSTER": "1",
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
    "RAY_USAGE_STATS_ENABLED": "0",
}
_SCRIPT = """
ip link set lo up
ray start --head --num-cpus=0 --num-gpus=0 --object-store-memory=200000000 --temp-dir="$1" --autoscaling-config="$2" \
  --node-ip-address=127.0.0.1 --port=6379 --include-dashboard=false --disable-usage-stats
RAY_ADDRESS=127.0.0.1:6379 exec "$3" -m raypipe embed --input "$4" --output "$5" \
  --set backbone.name=resnet18 --set backbone.weights=random --set sampling.num_frames=2 \
  --set resources.wait_seconds=120
"""


def autoscaling() -> dict[str, object]:
    """Return what ``ray up`` would give to the head: up to two workers with one processor each."""
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    lists = [*(f"{name}_commands" for name in commands), "cluster_synced_files", "rsync_exclude", "rsync_filter"]
    worker = {"resources": {"CPU": 1, "object_store_memory": 200_000_000}, "min_workers": 0, "max_workers": 2}
    head = {"resources": {"CPU": 0}, "max_workers": 0}
    return {
        **{key: {} for key in ("head_node", "worker_nodes", "auth", "docker", "file_mounts")},
        **{key: [] for key in lists},
        "cluster_name": "from-nothing",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "file_mounts_sync_continuously": False,
        "provider": {"type": "fake_multinode", "launch_multiple": True, "head_node_id": _HEAD_ID},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {**head, "node_config": {}},
            "worker": {**worker, "node_config": {}},
        },
    }


def test_nodes_are_requested_and_used(tmp_path: Path) -> None:
    if reason := why_impossible():
        pytest.skip(reason)
    videos, output = tmp_path / "in", tmp_path / "out"
    videos.mkdir()
    for number in range(6):
        (videos / f"{number}.mp4").write_bytes(make_video(shade=number))
    config = tmp_path / "autoscaling.json"
    config.write_text(json.dumps(autoscaling()))
    unwanted = ("AWS_", "RAY_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory(prefix="rp-", ignore_cleanup_errors=True) as ray_folder:
        words = (ray_folder, str(config), sys.executable, str(videos), str(output))
        done = subprocess.run(
            [*_ALONE, _SCRIPT, "script", *words],
            capture_output=True,
            text=True,
            check=False,
            env=without_proxies(inherited) | _ENVIRONMENT | path,
            timeout=240,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    result = verify(Folder(str(output)))
    assert result.violations == []
    assert result.statuses == {"ok": 6}
