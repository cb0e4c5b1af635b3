"""The demo's catalogue: short videos of shapes that move, in classes that only the order of time tells apart."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from raypipe.demo.scene import SPRITE_REACH, Floats, Motion, Scene, draw_scene
from raypipe.errors import ConfigError

Label = Literal["grow", "shrink", "left_to_right", "right_to_left", "fade_in", "fade_out"]

# The second of a pair is the first played backwards: no single frame and no average over time tells them apart.
PAIRS: tuple[tuple[Label, Label], ...] = (
    ("grow", "shrink"),
    ("left_to_right", "right_to_left"),
    ("fade_in", "fade_out"),
)
LABELS: tuple[Label, ...] = tuple(label for pair in PAIRS for label in pair)
LABELS_FILE = "labels.csv"

_BACKWARDS = frozenset(second for _, second in PAIRS)
_SHADOW_SHIFT = 0.14  # right and down, in radii


@dataclass(frozen=True, slots=True)
class Clip:
    """One video of the catalogue."""

    path: Path
    label: Label
    num_frames: int
    average_fps: int


class Trajectory(NamedTuple):
    """Where the shape is in each of T frames: five arrays [T]."""

    x: NDArray[np.float64]  # fraction of the width
    y: NDArray[np.float64]  # fraction of the height
    radius: NDArray[np.float64]  # fraction of the shorter side
    angle: NDArray[np.float64]  # radians
    opacity: NDArray[np.float64]  # 0 to 1


def make_catalogue(folder: Path, *, clips_per_class: int = 8, seed: int = 0) -> list[Clip]:
    """Write ``folder/<label>/<label>-000.mp4`` … and ``folder/labels.csv``; the same seed gives the same pixels.

    A clip depends on ``seed``, its label and its number only, so a larger catalogue begins with a smaller one.

    Raises:
        ConfigError: ``clips_per_class`` is not positive.
    """
    if clips_per_class < 1:
        msg = f"clips_per_class {clips_per_class} must be at least 1."
        raise ConfigError(msg, key="clips_per_class", value=clips_per_class)
    clips = []
    for class_number, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(clips_per_class):
            scene = draw_scene(np.random.default_rng([seed, class_number, number]))
            path = folder / label / f"{label}-{number:03d}.mp4"
            _encode(path, scene, label)
            clips.append(Clip(path, label, scene.num_frames, scene.average_fps))
    with (folder / LABELS_FILE).open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("video_id", "label"))
        rows.writerows((clip.path.relative_to(folder).as_posix(), clip.label) for clip in clips)
    return clips


def trajectory(label: Label, motion: Motion, *, num_frames: int) -> Trajectory:
    """Say where the shape is in each frame; the second label of a pair takes the first one's poses backwards."""
    progress = _moments(label, num_frames) / (num_frames - 1)
    eased = progress + motion.easing * np.sin(2 * np.pi * progress) / (2 * np.pi)
    x = motion.x + motion.drift_x * (progress - 0.5)
    radius, opacity = np.full(num_frames, motion.radius), np.ones(num_frames)
    match label:
        case "grow" | "shrink":
            radius = motion.smallest + (motion.largest - motion.smallest) * eased
        case "left_to_right" | "right_to_left":
            x = motion.margin + (1 - 2 * motion.margin) * eased
        case "fade_in" | "fade_out":
            opacity = eased
    y = motion.y + motion.drift_y * (progress - 0.5)
    return Trajectory(x, y, radius, 2 * np.pi * motion.turns * progress, opacity)


def render(scene: Scene, label: Label) -> Iterator[NDArray[np.uint8]]:
    """Draw the clip's frames, each [H, W, 3] RGB."""
    num_grains, height, width, _ = scene.backgrounds.shape
    poses = np.stack(trajectory(label, scene.motion, num_frames=scene.num_frames), axis=1).tolist()
    # The grain belongs to the pose, not to the frame: played backwards, it runs backwards too.
    for (x, y, radius, angle, opacity), moment in zip(poses, _moments(label, scene.num_frames), strict=True):
        frame = scene.backgrounds[moment % num_grains].copy()
        center = (x * width, y * height)
        _paint(frame, scene, center=center, radius=radius * min(width, height), angle=angle, opacity=opacity)
        yield frame


def _moments(label: Label, num_frames: int) -> NDArray[np.int64]:
    """Number the frames 0 to T - 1 as the first label of the pair would play them."""
    moments = np.arange(num_frames)
    return moments[::-1] if label in _BACKWARDS else moments


def _paint(
    frame: NDArray[np.uint8], scene: Scene, *, center: tuple[float, float], radius: float, angle: float, opacity: float
) -> None:
    """Draw the shape and its shadow in place, in the part of the frame they can reach; lengths are pixels."""
    reach = radius * (1 + _SHADOW_SHIFT) + 2
    height, width, _ = frame.shape
    left, right = max(0, int(center[0] - reach)), min(width, int(center[0] + reach) + 1)
    top, bottom = max(0, int(center[1] - reach)), min(height, int(center[1] + reach) + 1)
    box = frame[top:bottom, left:right].astype(np.float32)
    across = ((np.arange(left, right) - center[0]) / radius)[None, :].astype(np.float32)
    down = ((np.arange(top, bottom) - center[1]) / radius)[:, None].astype(np.float32)

    shadow = np.take(scene.outline, _cells(across - _SHADOW_SHIFT, down - _SHADOW_SHIFT, angle, len(scene.outline)))
    box *= 1 - np.clip(0.5 - 6 * shadow, 0, 1)[..., None] * (0.4 * opacity)
    cells = _cells(across, down, angle, len(scene.outline))
    coverage = np.clip(0.5 - radius * np.take(scene.outline, cells), 0, 1)[..., None] * opacity
    color = np.take(scene.sprite.reshape(-1, 3), cells, axis=0)
    color *= scene.light[left:right]
    color -= box
    color *= coverage
    frame[top:bottom, left:right] = np.clip(box + color, 0, 255)


def _cells(across: Floats, down: Floats, angle: float, size: int) -> NDArray[np.int32]:
    """Find which cell of a sprite, turned by ``angle``, lies at these distances from its centre."""
    scale = (size - 1) / (2 * SPRITE_REACH)
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    rows = np.clip((down * cos + size / 2) - across * sin, 0, size - 1).astype(np.int32)
    columns = np.clip((down * sin + size / 2) + across * cos, 0, size - 1).astype(np.int32)
    return np.asarray(rows * size + columns)


def _encode(path: Path, scene: Scene, label: Label) -> None:
    height, width = scene.backgrounds.shape[1:3]
    # One encoder thread: with several, the bytes of a file depend on the number of processors. No macroblock tree: with
    # AVX-512 it reads beyond the frame, and the bytes depend on what lies there.
    options = {"preset": "veryfast", "crf": "25", "threads": "1", "mbtree": "0", "g": str(scene.average_fps)}
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=scene.average_fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in render(scene, label):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
