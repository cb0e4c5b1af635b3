"""The examples run as they are: the script on a folder of videos, and the cells of the notebook in their order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import TESTS
from support.videos import make_video

EXAMPLES = TESTS.parent / "examples"
# Without the network there are no pretrained weights. A notebook runs its cells inside an event loop.
BACKBONE = ('backbone="resnet18"', 'backbone={"name": "resnet18", "weights": "random"}')
NOTEBOOK = """
import asyncio

async def main():
{cells}
    assert len(labels) == 48
    assert len(found) == 5
    assert not {{one.video_id for one in found}} & {{*watched}}

asyncio.run(main())
"""


def run(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow  # two jobs, with a Ray of their own
@pytest.mark.timeout(300)
def test_the_script_recommends(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(6):
        (videos / f"{number}.mp4").write_bytes(make_video(shade=40 * number))
    script = str(EXAMPLES / "recommend_folder.py")
    said = run(script, "videos", "work", "--weights", "random", folder=tmp_path)
    assert said.count("After ") == 5
    assert "After 0.mp4: " in said


@pytest.mark.nightly  # four jobs, and a training until it no longer improves
@pytest.mark.timeout(300)
def test_the_notebook_runs(tmp_path: Path) -> None:
    cells = json.loads((EXAMPLES / "clips_to_recommendations.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert BACKBONE[0] in code
    indented = "".join(f"    {line}\n" for line in code.replace(*BACKBONE).splitlines())
    script = tmp_path / "notebook.py"
    script.write_text(NOTEBOOK.format(cells=indented))
    run(str(script), folder=tmp_path)
