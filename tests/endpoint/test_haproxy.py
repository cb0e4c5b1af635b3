"""HAProxy as Serve starts it, but private to this machine and with limits on requests in flight."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from raypipe.config.serve import LimitsConfig
from raypipe.endpoint.haproxy.launch import find_binary, haproxy
from raypipe.endpoint.haproxy.rewrite import Bounds, rewrite
from raypipe.runs.executor import joins_ray

LIMITS = LimitsConfig(max_in_flight=7, deadline_seconds=0.5)
CONFIG = """defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend prometheus
    bind :{metrics}
    http-request use-service prometheus-exporter if {{ path /metrics }}
frontend http_frontend
    bind *:{front}
    acl is_http-raypipe path_beg /
    acl is_http-raypipe path /
    use_backend http-raypipe if is_http-raypipe
    default_backend default_backend
backend default_backend
    http-request return status 404
backend http-raypipe
    default-server fastinter 250ms fall 2 rise 2 inter 5s check
    server SERVE_REPLICA_raypipe-Api-1 127.0.0.1:30000 check observe layer4 error-limit 3 on-error mark-down
    server SERVE_PROXY_ACTOR-fallback-2 127.0.0.1:46745 check backup
listen stats
  bind *:{stats}
  stats enable
"""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make the environment look as if no cluster runs here."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))  # another test may use Ray


def test_the_rewritten_configuration() -> None:
    text = CONFIG.format(metrics=1, front=2, stats=3)
    replica, fallback = "SERVE_REPLICA_raypipe-Api-1", "SERVE_PROXY_ACTOR-fallback-2"
    changed = rewrite(text, bounds=Bounds(7, 3, 8, 9, 10), private_ports={"1", "3"})
    before, after = text.splitlines(), changed.splitlines()
    gone, new = [line for line in before if line not in after], [line for line in after if line not in before]
    assert gone == [
        "    bind :1",
        "    server SERVE_REPLICA_raypipe-Api-1 127.0.0.1:30000 check observe layer4 error-limit 3 on-error mark-down",
        "  bind *:3",
    ]
    refusals = [line for line in new if "return status 429" in line]
    assert [line for line in new if line not in refusals] == [
        "    option http-buffer-request",
        "    timeout http-request 8s",
        "    bind 127.0.0.1:1",
        "    http-request set-var(txn.request_id) req.hdr(x-request-id)",
        "    http-request set-var(txn.request_id) uuid if !{ req.hdr(x-request-id) -m found }",
        "    http-request set-log-level silent if is_http-raypipe { path /v1/play }",
        "    use_backend http-raypipe-streams if is_http-raypipe { path /v1/play }",
        "    http-request set-timeout server 8s",
        "    http-request set-timeout server 9s if { path_beg /v1/embed /v1/classify }",
        "    http-request set-timeout server 10s if { path_beg /v1/admin/ }",
        f"{gone[1]} maxconn 7",
        "  bind 127.0.0.1:3",
        "backend http-raypipe-streams",
        "    http-reuse always",
        "    http-request set-timeout server 9s",
        f"    server {replica} 127.0.0.1:30000 track http-raypipe/{replica} maxconn 3",
        f"    server {fallback} 127.0.0.1:46745 track http-raypipe/{fallback} backup",
    ]
    assert [line.rpartition('" if ')[2] for line in refusals] == [
        "is_http-raypipe !{ path /healthz /readyz /metrics } !{ path /v1/play } { be_conn_free(http-raypipe) eq 0 }",
        "is_http-raypipe { path /v1/play } { be_conn_free(http-raypipe-streams) eq 0 }",
    ]


@pytest.mark.skipif(find_binary() is None, reason="no HAProxy")
@pytest.mark.parametrize("is_accepted", [True, False])
def test_only_the_front_end_is_public_and_rejected_limits_are_dropped(
    tmp_path: Path,
    is_accepted: bool,  # noqa: FBT001 - a parameter
) -> None:
    before = dict(os.environ)
    with haproxy("127.0.0.1", LIMITS) as is_fast:
        assert is_fast
        set_here = {name: value for name, value in os.environ.items() if before.get(name) != value}
        ports = {name: set_here[f"RAY_SERVE_HAPROXY_{name.upper()}_PORT"] for name in ("metrics", "stats")}
        binary = Path(set_here["RAY_SERVE_HAPROXY_BINARY_PATH"])
        config = tmp_path / "haproxy.cfg"
        text = CONFIG.format(front=8000, **ports)
        config.write_text(text if is_accepted else text.replace("stats enable", "stats unheard-of"))
        said = subprocess.run([binary, "-v", "-f", config], capture_output=True, text=True, check=True)
        assert "HAProxy version" in said.stdout
        changed = config.read_text()
        assert [line.split()[1] for line in changed.splitlines() if "bind " in line] == [
            f"127.0.0.1:{ports['metrics']}",
            "*:8000",
            f"127.0.0.1:{ports['stats']}",
        ]
        for bound in ("maxconn 7", "server 6s\n", "server 65s if", "server 905s if", "http-request 6s"):
            assert (bound in changed) == is_accepted
        folder = binary.parent
        assert folder.stat().st_mode & 0o777 == 0o700
        node_id = "x" * 56
        assert len(f"{folder}/{node_id}/admin.sock") <= 97  # HAProxy first binds a name that is ten characters longer
    assert not folder.exists()
    assert dict(os.environ) == before


@pytest.mark.parametrize(("host", "address"), [("::1", ""), ("127.0.0.1", "127.0.0.1:6379")])
def test_an_unsupported_setup_leaves_the_environment_alone(
    monkeypatch: pytest.MonkeyPatch, host: str, address: str
) -> None:
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    before = dict(os.environ)
    with haproxy(host, LIMITS) as is_fast:
        assert not is_fast
        assert dict(os.environ) == before


def test_a_cluster_that_runs_here_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not joins_ray()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379")
    assert joins_ray()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "other"))
    assert not joins_ray()
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    assert joins_ray()
