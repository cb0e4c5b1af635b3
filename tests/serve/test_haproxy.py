import os
import subprocess
from pathlib import Path

import pytest

from raypipe.serve.haproxy import find_binary, haproxy

pytestmark = pytest.mark.skipif(find_binary() is None, reason="no HAProxy")


def test_only_the_front_end_is_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    before = dict(os.environ)
    with haproxy("127.0.0.1") as is_fast:
        assert is_fast
        set_here = {name: value for name, value in os.environ.items() if before.get(name) != value}
        metrics, stats = (set_here[f"RAY_SERVE_HAPROXY_{name}_PORT"] for name in ("METRICS", "STATS"))
        binary = Path(set_here["RAY_SERVE_HAPROXY_BINARY_PATH"])
        config = tmp_path / "haproxy.cfg"
        config.write_text(f"frontend a\n    bind :{metrics}\nfrontend b\n    bind *:8000\nlisten c\n  bind *:{stats}\n")
        said = subprocess.run([binary, "-v", "-f", config], capture_output=True, text=True, check=True)
        assert "HAProxy version" in said.stdout
        assert config.read_text().split() == (
            f"frontend a bind 127.0.0.1:{metrics} frontend b bind *:8000 listen c bind 127.0.0.1:{stats}".split()
        )
        folder = binary.parent
        assert folder.stat().st_mode & 0o777 == 0o700
        node_id = "x" * 56
        assert len(f"{folder}/{node_id}/admin.sock") <= 97  # HAProxy binds a name of ten more first
    assert not folder.exists()


@pytest.mark.parametrize(("host", "variable"), [("::1", ""), ("127.0.0.1", "RAY_ADDRESS")])
def test_where_it_cannot_be_set_it_is_left(monkeypatch: pytest.MonkeyPatch, host: str, variable: str) -> None:
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    if variable:
        monkeypatch.setenv(variable, "127.0.0.1:6379")
    before = dict(os.environ)
    with haproxy(host) as is_fast:
        assert not is_fast
        assert dict(os.environ) == before
