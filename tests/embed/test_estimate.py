from pathlib import Path

import pytest

from raypipe.config import EmbedConfig, load_config
from raypipe.embed.estimate import Estimate, estimate
from raypipe.errors import ConfigError
from raypipe.storage import Folder
from support.videos import make_video


@pytest.fixture
def config(tmp_path: Path) -> EmbedConfig:
    """Of an input and an output that are empty."""
    values = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    overrides = (
        "backbone.name=resnet18",
        "backbone.weights=random",
        "sampling.num_frames=2",
        "resources.concurrency=1",
    )
    return load_config(EmbedConfig, values=values, overrides=overrides)


def test_a_probe_of_videos_that_are_read_and_that_are_not(config: EmbedConfig) -> None:
    videos = Folder(config.input)
    for shade in range(4):
        assert videos.put_new(f"{shade}.mp4", make_video(shade=shade))
    assert videos.put_new("broken.mp4", b"no video")
    found = estimate(config)
    assert (found.num_found, found.num_new, found.num_shards, found.num_probed) == (5, 5, 3, 5)
    assert found.kinds == {"mov/h264 64x64": 4, "forbidden_format": 1}
    assert min(found.decode_seconds, found.embed_seconds, found.start_seconds) > 0
    assert not Path(config.output).exists()


def test_no_video_is_a_configuration_that_is_wrong(config: EmbedConfig) -> None:
    Path(config.input).mkdir()
    with pytest.raises(ConfigError) as caught:
        estimate(config)
    assert (caught.value.key, caught.value.value) == ("input", config.input)


def test_all_processors_share_the_work_behind_one_start() -> None:
    found = Estimate(slots=4, fetch_seconds=1, decode_seconds=20, embed_seconds=19, start_seconds=7)
    assert found.wall_seconds == 17
    assert found.bottleneck == "decode"
