import io
from pathlib import Path

import pytest
from rich.console import Console

from raypipe.config import EmbedConfig, load_config
from raypipe.dataset.plan import StoredPlans
from raypipe.errors import ConfigError
from raypipe.jobs.embed.estimate import Estimate, estimate, estimate_table
from raypipe.jobs.embed.inputs import MAX_UNGUARDED
from raypipe.jobs.embed.job import plan_new
from raypipe.jobs.embed.setup import prepare
from raypipe.storage import Folder
from support.folders import keys
from support.videos import make_video


@pytest.fixture
def config(tmp_path: Path) -> EmbedConfig:
    """Return a configuration whose input and output are empty."""
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


def test_videos_to_mark_as_gone_are_counted_and_nothing_is_written(config: EmbedConfig) -> None:
    videos = Folder(config.input)
    names = [f"{number:03d}.mp4" for number in range(MAX_UNGUARDED + 2)]
    for name in names:
        assert videos.put_new(name, b"no video")
    plan_new(setup := prepare(config, dtype="float32"), StoredPlans(setup.output), num_slots=1)
    stored = keys(Folder(config.output))
    for num_deleted, is_refused in ((3, False), (MAX_UNGUARDED + 1, True)):
        for name in names[:num_deleted]:
            videos.delete(name)
        found = estimate(config)
        assert (found.num_found, found.num_new) == (len(names) - num_deleted, 0)
        assert (found.num_gone, found.gone_is_refused) == (num_deleted, is_refused)
        console = Console(width=200, file=io.StringIO())
        with console.capture() as shown:
            console.print(estimate_table(found))
        told = dict(line.split(maxsplit=1) for line in shown.get().splitlines() if line.strip())["gone"]
        assert told.startswith(str(num_deleted))
        assert ("max_gone_fraction" in told) == is_refused
    assert keys(Folder(config.output)) == stored
    with pytest.raises(ConfigError) as caught:
        plan_new(setup := prepare(config, dtype="float32"), StoredPlans(setup.output), num_slots=1)
    assert caught.value.key == "max_gone_fraction"


def test_an_input_without_videos_is_a_configuration_error(config: EmbedConfig) -> None:
    Path(config.input).mkdir()
    with pytest.raises(ConfigError) as caught:
        estimate(config)
    assert (caught.value.key, caught.value.value) == ("input", config.input)


def test_all_processors_share_the_work_behind_one_start() -> None:
    found = Estimate(slots=4, fetch_seconds=1, decode_seconds=20, embed_seconds=19, start_seconds=7)
    assert found.wall_seconds == 17
    assert found.bottleneck == "decode"
