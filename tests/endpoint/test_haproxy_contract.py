"""The contract with Ray: the HAProxy configuration that Ray Serve writes has the lines that raypipe rewrites.

Serve's template is private. If a new Ray changes it, adapt ``raypipe/endpoint/haproxy/rewrite.py``, then the version.
"""

import subprocess
from pathlib import Path

import pytest
import ray

from raypipe.endpoint.haproxy.launch import find_binary
from raypipe.endpoint.haproxy.rewrite import Bounds, rewrite

CHECKED_RAY = "2.60.0"  # as in requirements.txt; rewrite.py was written for the template of this version
METRICS, STATS = 29101, 29102
ADVICE = (
    f"Ray {ray.__version__} writes an HAProxy configuration that raypipe cannot rewrite (checked with {CHECKED_RAY}). "
    "Compare ray/serve/_private/haproxy_templates.py with raypipe/endpoint/haproxy/rewrite.py."
)


@pytest.fixture(scope="module")
def written_by_ray(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Let Serve's own code write the configuration of two replicas and a fallback."""
    pytest.importorskip("jinja2", reason="Serve writes no HAProxy configuration without it")
    try:
        from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig  # noqa: PLC0415
    except ImportError as error:
        pytest.fail(f"{ADVICE} {error}")
    folder = tmp_path_factory.mktemp("serve")
    names = {"socket_path": "admin.sock", "metrics_socket_path": "metrics.sock", "server_state_file": "state"}
    paths = {name: str(folder / file) for name, file in names.items()}
    config = HAProxyConfig(metrics_port=METRICS, stats_port=STATS, metrics_enabled=False, **paths)
    replicas = [ServerConfig(f"SERVE_REPLICA__raypipe-Api-{n}", "127.0.0.1", 30_000 + n) for n in range(2)]
    fallback = ServerConfig("SERVE_PROXY_ACTOR-0", "127.0.0.1", 30_002)
    backend = BackendConfig(
        name="http-raypipe", path_prefix="/", app_name="raypipe", servers=replicas, fallback_server=fallback
    )
    path = folder / "haproxy.cfg"
    HAProxyApi(config, {backend.name: backend}, str(path))._generate_config_file_internal()
    return path.read_text()


def test_ray_is_the_version_that_was_checked() -> None:
    assert ray.__version__ == CHECKED_RAY, f"Run these tests with Ray {ray.__version__}, then set CHECKED_RAY to it."


def test_every_line_to_rewrite_exists(written_by_ray: str) -> None:
    before = written_by_ray.splitlines()
    after = rewrite(
        written_by_ray, bounds=Bounds(7, 3, 8, 9, 10), private_ports={str(METRICS), str(STATS)}
    ).splitlines()
    gone, new = [line.strip() for line in before if line not in after], [line for line in after if line not in before]
    replicas = [f"server SERVE_REPLICA__raypipe-Api-{n} 127.0.0.1:3000{n} check" for n in range(2)]
    expected = [f"bind :{METRICS}", *replicas, f"bind *:{STATS}"]
    assert [line.partition(" observe")[0] for line in gone] == expected, ADVICE
    text = "\n".join(new)
    for line, count in {
        "option http-buffer-request": 1,
        "timeout http-request 8s": 1,
        f"bind 127.0.0.1:{METRICS}": 1,
        f"bind 127.0.0.1:{STATS}": 1,
        "set-timeout server 8s": 1,
        "!{ path /healthz /readyz /metrics } !{ path /v1/play } { be_conn_free(http-raypipe) eq 0 }": 1,
        "if is_http-raypipe { path /v1/play } { be_conn_free(http-raypipe-streams) eq 0 }": 1,
        " maxconn 7": 2,
        " maxconn 3": 2,
    }.items():
        assert text.count(line) == count, f"{line}: {ADVICE}"


@pytest.mark.skipif((BINARY := find_binary()) is None, reason="no HAProxy")
def test_haproxy_accepts_the_configuration(written_by_ray: str, tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(rewrite(written_by_ray, bounds=Bounds(7, 3, 8, 9, 10), private_ports={str(METRICS), str(STATS)}))
    checked = subprocess.run([str(BINARY), "-c", "-f", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, f"{ADVICE} {checked.stderr}"
