"""The Ray that a command starts on this machine is private: its ports, and its token."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raypipe.storage import Folder
from support.listeners import check_strangers_get_nothing
from support.processes import pids_of
from support.videos import upload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
EMBED = """
import sys
from raypipe.config import EmbedConfig
from raypipe.jobs.embed.job import run_embed
overrides = {"backbone": {"name": "resnet18", "weights": "random"}, "sampling": {"num_frames": 2}, "executor": "ray"}
run_embed(EmbedConfig(input=sys.argv[1], output=sys.argv[2], **overrides))
print("embedded", flush=True)
input()
"""


@pytest.fixture
def fresh_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Give child processes an empty home and no other Ray. The path of Ray's sockets must be short."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    folder = tempfile.mkdtemp(prefix="rp-")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.usefixtures("fresh_machine")
def test_strangers_get_nothing_from_a_local_embed(tmp_path: Path) -> None:
    upload(Folder(str(tmp_path / "in")), 2)
    script = [sys.executable, "-c", EMBED, str(tmp_path / "in"), str(tmp_path / "out")]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert any(line.strip() == "embedded" for line in process.stdout)
            token = tmp_path / ".ray/auth_token"
            assert token.stat().st_mode & 0o777 == 0o600
            check_strangers_get_nothing(pids_of("", below=process.pid), token=token.read_text())
        finally:
            process.communicate("\n", timeout=60)
    assert process.returncode == 0
