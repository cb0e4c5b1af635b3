"""The recipes run as they are written, one after the other."""

from pathlib import Path

import pytest

from support import TESTS
from support.guides import NAMES, fill_home, python_of, run_script, without_download, write_labels
from support.videos import make_video

RECIPES = (TESTS.parent / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.mark.nightly  # fourteen jobs; each has a short test of its own
@pytest.mark.timeout(1800)
def test_every_recipe_runs(tmp_path: Path) -> None:
    fill_home(tmp_path)
    write_labels(tmp_path / "few.csv", NAMES[:8])
    (tmp_path / "New").mkdir()
    (tmp_path / "New" / "x.mp4").write_bytes(make_video(shade=10 * len(NAMES)))
    run_script(without_download(python_of(RECIPES)), tmp_path, timeout_seconds=1200)
    for output in ("vgg", "masked", "gpt2", "sizes", "small", "few", "suggestions", "anomalies"):
        assert list((tmp_path / output).rglob("report.html")), output
