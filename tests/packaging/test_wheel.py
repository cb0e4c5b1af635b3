"""The wheel has everything that an installed raypipe needs, and works in an empty environment."""

import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from support import TESTS
from support.videos import make_video

ROOT = TESTS.parent


def run(*command: str | Path, **environment: str) -> str:
    """Run a command outside the checkout, and return what it prints."""
    words, env = list(map(str, command)), os.environ | environment
    done = subprocess.run(words, cwd="/", env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and the wheel from it."""
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", dist, ROOT)
    return next(dist.glob("*.whl"))


@pytest.mark.slow  # builds in an environment of its own, which downloads hatchling
def test_the_wheel_has_every_file_and_starts(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("raypipe/")}
        archive.extractall(tmp_path)
    listed = run("git", "-C", ROOT, "ls-files", "raypipe").split()
    templates = {f"raypipe/config/yaml/{path.name}" for path in (ROOT / "jobs").glob("*.yaml")}
    assert packed == {*listed, *templates}
    place = {"PYTHONPATH": str(tmp_path)}
    where = run(sys.executable, "-c", "import raypipe; print(raypipe.__file__, raypipe.EmbedConfig.__name__)", **place)
    assert where.split() == [str(tmp_path / "raypipe" / "__init__.py"), "EmbedConfig"]
    assert run(sys.executable, "-m", "raypipe", "init", "embed", **place) == (ROOT / "jobs/embed.yaml").read_text()


@pytest.mark.nightly  # downloads every dependency
@pytest.mark.timeout(1800)
def test_an_empty_environment_installs_the_wheel_and_embeds(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python, program = tmp_path / "venv/bin/python", tmp_path / "venv/bin/raypipe"
    run(python, "-m", "pip", "install", "--quiet", f"torch=={metadata.version('torch').partition('+')[0]}")
    run(python, "-m", "pip", "install", "--quiet", wheel)
    clean = {"PYTHONPATH": ""}
    assert run(program, "--version", **clean) == f"raypipe {metadata.version('raypipe')}\n"
    assert "decord" in run(program, "doctor", **clean)
    (tmp_path / "videos").mkdir()
    for number in range(3):
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(make_video(shade=40 * number))
    options = ("--set", "backbone.name=resnet18", "--set", "backbone.weights=random")
    run(program, "embed", "--input", tmp_path / "videos", "--output", tmp_path / "out", *options, **clean)
    assert "3 rows (3 ok)" in run(program, "verify", tmp_path / "out", **clean)
