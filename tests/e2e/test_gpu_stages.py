"""With a GPU, decode, embed and put are three stages. They give the same rows as the single stage without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raypipe import schema
from raypipe.config import EmbedConfig
from raypipe.dataset.read import read_embeddings
from raypipe.jobs.embed.job import run_embed
from raypipe.jobs.embed.verify import verify
from raypipe.storage import Folder
from support import TESTS
from support.processes import Configure
from support.videos import upload

pytestmark = pytest.mark.slow


def test_three_stages_give_the_rows_of_one(configure: Configure, tmp_path: Path) -> None:
    videos, three, one = (Folder(str(tmp_path / name)) for name in ("in", "three", "one"))
    ids = upload(videos, 12)
    assert videos.put_new("broken.mp4", b"no video")
    settings = ("shard.max_videos=2", "resources.concurrency=auto", "backbone.dtype=float32")
    run_with_gpu(configure(videos.uri, three.uri, *settings), tmp_path)
    run_embed(configure(videos.uri, one.uri, *settings))
    assert verify(three).violations == []
    assert set(rows_of(three)) == {*ids, "broken.mp4"}
    assert rows_of(three) == rows_of(one)


def run_with_gpu(config: EmbedConfig, folder: Path) -> None:
    """Run embed on a separate Ray cluster that claims to have a GPU."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    command = [sys.executable, "-m", "support.gpu_driver", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS, env=without_address())
    assert done.returncode == 0, done.stdout + done.stderr


def without_address() -> dict[str, str]:
    """Return the environment without the address of the tests' Ray."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def rows_of(output: Folder) -> dict[str, tuple[object, ...]]:
    """Return the fields and vectors of each video."""
    columns = (schema.STATUS, schema.FRAME_PTS_SECONDS, schema.EMBEDDING, schema.FRAME_EMBEDDINGS, schema.THUMBNAIL)
    tables = read_embeddings(output, columns=[schema.VIDEO_ID, *columns])
    return {
        row[schema.VIDEO_ID]: tuple(repr(row[name]) for name in columns)
        for table in tables
        for row in table.to_pylist()
    }
