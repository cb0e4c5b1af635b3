"""The recipes run as they are written, one after the other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import TESTS
from support.videos import make_video

RECIPES = (TESTS.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
NUM_VIDEOS = 24


@pytest.mark.nightly  # fourteen jobs; each has a short test of its own
@pytest.mark.timeout(1800)
def test_every_recipe_runs(tmp_path: Path) -> None:
    names = [f"{label}/{number}.mp4" for number in range(1, NUM_VIDEOS // 2 + 1) for label in ("cats", "dogs")]
    for at, name in enumerate([*names, "../New/x.mp4"]):
        video = tmp_path / "Videos" / name
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(make_video(shade=10 * at))
    for file, count in (("labels", len(names)), ("few", 8)):
        rows = "".join(f"{name},{name[:4]}\n" for name in names[:count])
        (tmp_path / f"{file}.csv").write_text(f"video_id,label\n{rows}")
    histories = "".join(f"u{user},{names[at]}\n" for user in range(6) for at in range(user, user + 4))
    (tmp_path / "history.csv").write_text(f"user_id,video_id\n{histories}")
    parts = re.findall(r"```python\n(.*?)```", RECIPES, re.DOTALL)
    script = tmp_path / "recipes.py"
    # Without the network there are no pretrained weights.
    script.write_text(re.sub(r'backbone="(\w+)"', r'backbone={"name": "\1", "weights": "random"}', "\n".join(parts)))
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for output in ("vgg", "masked", "gpt2", "sizes", "small", "few", "suggestions", "anomalies"):
        assert (tmp_path / output / "report.html").exists(), output
