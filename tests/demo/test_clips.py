"""The demo's catalogue: six classes in three pairs; the clips of one class are the other's played backwards."""

import csv
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.demo import clips
from raypipe.demo.clips import (
    LABELS,
    LABELS_FILE,
    PAIRS,
    Clip,
    Label,
    Motion,
    Scene,
    draw_motion,
    draw_scene,
    make_catalogue,
    render,
    trajectory,
)
from raypipe.errors import ConfigError

FORWARD = [first for first, _ in PAIRS]
# The property that each class is named after, and its minimum change over a clip.
CHANGES = {"grow": ("radius", 0.25), "left_to_right": ("x", 0.65), "sunrise": ("light", 0.6)}

pairs = st.sampled_from(PAIRS)
motions = st.integers(0, 2**32 - 1).map(lambda seed: draw_motion(np.random.default_rng(seed)))


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Clip]]:
    folder = tmp_path_factory.mktemp("catalogue")
    return folder, make_catalogue(folder, clips_per_class=2, seed=3)


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return [draw_scene(np.random.default_rng(seed)) for seed in range(40)]


def decode(path: Path) -> tuple[np.ndarray, av.VideoStream]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]), stream


def test_every_class_has_its_clips_and_its_labels(catalogue: tuple[Path, list[Clip]]) -> None:
    folder, made = catalogue
    assert len(LABELS) == 6
    expected = [(f"{label}/{label}-{number:03d}.mp4", label) for label in LABELS for number in range(2)]
    assert [(clip.path.relative_to(folder).as_posix(), clip.label) for clip in made] == expected
    assert sorted(folder.rglob("*.mp4")) == sorted(clip.path for clip in made)
    with (folder / LABELS_FILE).open(encoding="utf-8", newline="") as file:
        rows = [tuple(row) for row in csv.reader(file)]
    assert rows == [("video_id", "label"), *expected]


def test_every_clip_decodes_to_what_it_states(catalogue: tuple[Path, list[Clip]]) -> None:
    for clip in catalogue[1]:
        frames, stream = decode(clip.path)
        assert len(frames) == stream.frames == clip.num_frames
        assert stream.average_rate == clip.average_fps
        assert 1.4 <= clip.num_frames / clip.average_fps <= 3.6
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")


def test_a_key_frame_comes_every_second_and_the_index_comes_first(catalogue: tuple[Path, list[Clip]]) -> None:
    for clip in catalogue[1]:
        with av.open(str(clip.path)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
        keys = [(packet.pts or 0) * packet.time_base * clip.average_fps for packet in packets if packet.is_keyframe]
        assert keys[0] == 0
        assert max(np.diff([*keys, clip.num_frames])) <= clip.average_fps
        content = clip.path.read_bytes()
        assert content.index(b"moov") < content.index(b"mdat")


def test_the_same_seed_makes_the_same_files(catalogue: tuple[Path, list[Clip]], tmp_path: Path) -> None:
    again = make_catalogue(tmp_path, clips_per_class=1, seed=3)
    assert [clip.path.read_bytes() for clip in again] == [clip.path.read_bytes() for clip in catalogue[1][::2]]


def test_clips_that_are_made_in_parallel_are_the_same(catalogue: tuple[Path, list[Clip]], tmp_path: Path) -> None:
    made = make_catalogue(tmp_path, clips_per_class=4, seed=3, num_processes=2)
    assert [clip.video_id for clip in made] == [f"{label}/{label}-{at:03d}.mp4" for label in LABELS for at in range(4)]
    contents = [clip.path.read_bytes() for clip in made if int(clip.path.stem[-1]) < 2]
    assert contents == [clip.path.read_bytes() for clip in catalogue[1]]


def test_another_seed_number_or_class_makes_another_file(
    catalogue: tuple[Path, list[Clip]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "LABELS", LABELS[:1])
    other = make_catalogue(tmp_path, clips_per_class=1, seed=4)
    contents = {clip.path.read_bytes() for clip in [*catalogue[1], *other]}
    assert len(contents) == len(catalogue[1]) + len(other)


@given(pairs, motions, st.integers(2, 200))
def test_the_second_of_a_pair_takes_the_poses_of_the_first_backwards(
    pair: tuple[Label, Label], motion: Motion, num_frames: int
) -> None:
    first, second = (trajectory(label, motion, num_frames=num_frames) for label in pair)
    for values, backwards in zip(first, second, strict=True):
        np.testing.assert_array_equal(values, backwards[::-1])
        np.testing.assert_array_equal(np.sort(values), np.sort(backwards))


@given(st.sampled_from(FORWARD), motions, st.integers(2, 200))
def test_a_class_moves_as_its_name_says(label: Label, motion: Motion, num_frames: int) -> None:
    path = trajectory(label, motion, num_frames=num_frames)
    field, least = CHANGES[label]
    assert (np.diff(getattr(path, field)) > 0).all()
    assert getattr(path, field)[-1] - getattr(path, field)[0] >= least
    for other in {"radius", "light"} - {field}:
        assert np.ptp(getattr(path, other)) == 0
    assert (path.light >= 0).all()
    assert (path.light <= 1).all()


@pytest.mark.parametrize("pair", PAIRS)
def test_played_backwards_every_pixel_of_a_class_is_a_clip_of_the_other(pair: tuple[Label, Label]) -> None:
    scene = draw_scene(np.random.default_rng(11))
    first, second = (np.stack(list(render(scene, label))) for label in pair)
    np.testing.assert_array_equal(first, second[::-1])
    assert (first != second).any()


def test_every_scene_is_short_and_fits_the_codec(drawn: list[Scene]) -> None:
    for scene in drawn:
        height, width = scene.backgrounds.shape[1:3]
        assert 24 <= scene.average_fps <= 30
        assert 1.4 <= scene.num_frames / scene.average_fps <= 3.6
        assert (width % 2, height % 2) == (0, 0)  # yuv420p halves width and height


def test_scenes_differ_in_size_shape_and_length(drawn: list[Scene]) -> None:
    sizes = [scene.backgrounds.shape[1:3] for scene in drawn]
    assert {np.sign(width - height) for height, width in sizes} == {-1, 0, 1}
    assert len({scene.outline.tobytes() for scene in drawn}) == 4
    assert len({scene.num_frames for scene in drawn}) > 20


def test_the_shape_is_drawn_where_the_trajectory_says() -> None:
    scene = draw_scene(np.random.default_rng(5))
    path = trajectory("left_to_right", scene.motion, num_frames=scene.num_frames)
    width = scene.backgrounds.shape[2]
    for number, frame in enumerate(render(scene, "left_to_right")):
        background = scene.backgrounds[number % len(scene.backgrounds)].astype(int)
        changed = np.abs(frame.astype(int) - background).sum(axis=2) > 90
        if 0.3 < path.x[number] < 0.7:  # the whole shape is inside the frame
            assert abs(np.nonzero(changed)[1].mean() - path.x[number] * width) < 0.05 * width


def test_no_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_catalogue(tmp_path, clips_per_class=0)
    assert (caught.value.key, caught.value.value) == ("clips_per_class", 0)
    assert not list(tmp_path.iterdir())
