"""The guide to the Python API runs as it is written, twice, in a process that has started Ray itself."""

from pathlib import Path

import pytest

from raypipe.free_ports import free_ports
from support import TESTS
from support.guides import indented, python_of, run_script, without_download
from support.videos import make_video

GUIDE = (TESTS.parent / "docs" / "python.md").read_text(encoding="utf-8")
# Another test may use the port.
CHANGES = {
    "block=False,": "block=False, port={port},",
    "print(error.key, error.choices)": "caught = error",
}
# A notebook runs code inside an event loop.
SCRIPT = """
import asyncio
import numpy as np
import ray.data

async def main():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    before = (context.target_max_block_size, context.enable_progress_bars)
{guide}
{guide}
    assert not run.is_new, run
    assert ray.is_initialized()
    assert context is ray.data.DataContext.get_current()
    assert before == (context.target_max_block_size, context.enable_progress_bars)
    assert "num_frames" in caught.choices, caught.choices
    row = {{row["video_id"]: row for row in table.to_pylist()}}["cats/1.mp4"]
    np.testing.assert_allclose(video.embedding, row["embedding"], atol=1e-5)
    same = {{"labels": "~/predictions", "history": "~/history.csv", "events": {{"holdout": "leave_one_out"}}}}
    assert not raypipe.index("~/embeddings", "~/index", **same, append=True).is_new

asyncio.run(main())
"""


@pytest.mark.nightly  # every job twice, and the endpoint twice; test_readme.py runs a short form
@pytest.mark.timeout(600)
def test_the_guide_runs_twice_on_a_ray_of_the_user(tmp_path: Path) -> None:
    for number in range(12):
        video = tmp_path / "Videos" / ("cats" if number < 6 else "dogs") / f"{number % 6 + 1}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(make_video(shade=15 * number))
    names = [f"{label}/{number}.mp4" for label in ("cats", "dogs") for number in range(1, 7)]
    (tmp_path / "labels.csv").write_text("video_id,label\n" + "".join(f"{name},{name[:4]}\n" for name in names))
    (tmp_path / "history.csv").write_text(
        'user_id,history\na,"[""cats/1.mp4"", ""cats/2.mp4"", ""dogs/3.mp4""]"\nb,[]\n'
    )
    guide = without_download(python_of(GUIDE))
    for old, new in CHANGES.items():
        assert old in guide
        guide = guide.replace(old, new.format(port=free_ports(1)[0]) if "{port}" in new else new)
    run_script(SCRIPT.format(guide=indented(guide)), tmp_path, timeout_seconds=560)
