"""The examples run as they are: the script on a folder of videos, and the cells of the notebook in their order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import TESTS
from support.guides import indented, run_script, without_download
from support.videos import make_video

EXAMPLES = TESTS.parent / "examples"
# A notebook runs its cells inside an event loop.
NOTEBOOK = """
import asyncio

async def main():
{cells}
    assert len(labels) == 48
    assert len(found) == 5
    assert not {{one.video_id for one in found}} & {{*watched}}

asyncio.run(main())
"""


@pytest.mark.slow  # two jobs, with a Ray of their own
@pytest.mark.timeout(300)
def test_the_script_recommends(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(6):
        (videos / f"{number}.mp4").write_bytes(make_video(shade=40 * number))
    command = [sys.executable, EXAMPLES / "recommend_folder.py", "videos", "work", "--weights", "random"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("After ") == 5
    assert "After 0.mp4: " in done.stdout


@pytest.mark.nightly  # four jobs, and a training until it no longer improves
@pytest.mark.timeout(300)
def test_the_notebook_runs(tmp_path: Path) -> None:
    cells = json.loads((EXAMPLES / "clips_to_recommendations.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    run_script(NOTEBOOK.format(cells=indented(without_download(code))), tmp_path, timeout_seconds=280)
