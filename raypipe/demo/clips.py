"""The demo's clips: short videos of moving shapes. Their classes differ only in the order of the frames.

A clip shows a random scene: a textured shape in front of a quiet background, lit from the left. The scene is
independent of the label. Only the trajectory of the shape depends on the label.
"""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from raypipe.errors import ConfigError

Floats = NDArray[np.float32]
Label = Literal["grow", "shrink", "left_to_right", "right_to_left", "sunrise", "sunset"]

# The second label of a pair is the first played backwards: no single frame and no average over time can distinguish
# the two.
PAIRS: tuple[tuple[Label, Label], ...] = (
    ("grow", "shrink"),
    ("left_to_right", "right_to_left"),
    ("sunrise", "sunset"),
)
LABELS: tuple[Label, ...] = tuple(label for pair in PAIRS for label in pair)
LABELS_FILE = "labels.csv"

_BACKWARDS = frozenset(second for _, second in PAIRS)
_SHADOW_SHIFT = 0.14  # how far the shadow is shifted to the right and down, in radii of the shape
_SPRITE_REACH = 1.4  # a sprite shows the plane from -1.4 to 1.4; the tips of a shape are at radius 1
_SIZES = ((320, 240), (384, 216), (256, 256), (240, 320), (216, 384))  # width, height
_FPS = (24, 25, 30)
_SHORTEST_SECONDS, _LONGEST_SECONDS = 1.5, 3.5
_SPRITE_SIZE = 320
_NUM_GRAINS = 4
# The number of tips, and the radius of the corners between two of them: cos(pi / n) makes a regular polygon.
_SHAPES = {
    "circle": (64, math.cos(math.pi / 64)),
    "square": (4, math.cos(math.pi / 4)),
    "triangle": (3, math.cos(math.pi / 3)),
    "star": (5, 0.45),
}
_TEXTURES = ("stripes", "checks", "dots", "clouds")


@dataclass(frozen=True, slots=True)
class Motion:
    """The random parameters of a shape's movement. Which of them are used depends on the label.

    Lengths are fractions: of the frame's width for ``x``, of its height for ``y``, of its shorter side for radii.
    """

    x: float  # the horizontal position in the middle of the clip
    y: float  # the vertical position in the middle of the clip
    drift_x: float  # how far the shape drifts horizontally during the clip
    drift_y: float  # how far the shape drifts vertically during the clip
    margin: float  # the distance from the edge at which a crossing begins and ends
    radius: float  # the radius of a shape that keeps its size
    smallest: float  # the smallest radius of a shape that grows or shrinks
    largest: float  # the largest radius of a shape that grows or shrinks
    turns: float  # the number of rotations during the clip; negative is counterclockwise
    easing: float  # -1 to 1: a positive value is faster at both ends
    night: float  # the light before sunrise and after sunset: 0 is black


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that defines a clip except its label. Colours are RGB, 0 to 255."""

    num_frames: int
    average_fps: int
    motion: Motion
    sprite: Floats  # [S, S, 3]: the shape's texture in its colours
    outline: Floats  # [S, S]: distance to the shape's edge in radii, negative inside
    light: Floats  # [W, 1]: brightness of each column
    backgrounds: NDArray[np.uint8]  # [G, H, W, 3]: one lit background with G film grains


@dataclass(frozen=True, slots=True)
class Clip:
    """One video of the demo's catalogue."""

    path: Path
    label: Label
    num_frames: int
    average_fps: int

    @property
    def video_id(self) -> str:
        """The id of the video in the catalogue: its path below the folder of clips."""
        return f"{self.label}/{self.path.name}"


class Trajectory(NamedTuple):
    """The position, size and rotation of the shape, and the light, in each of T frames, as five arrays [T]."""

    x: NDArray[np.float64]  # fraction of the width
    y: NDArray[np.float64]  # fraction of the height
    radius: NDArray[np.float64]  # fraction of the shorter side
    angle: NDArray[np.float64]  # radians
    light: NDArray[np.float64]  # of the whole scene: 0 is black, 1 is daylight


def make_catalogue(folder: Path, *, clips_per_class: int = 8, seed: int = 0, num_processes: int = 1) -> list[Clip]:
    """Write the clips ``folder/<label>/<label>-000.mp4`` and so on, and ``folder/labels.csv``. Return the clips.

    The same seed gives the same pixels. A clip depends only on ``seed``, its label and its number, so a larger
    catalogue contains all clips of a smaller one. With ``num_processes`` above 1, other processes make the clips: the
    main module must then be safe to import.

    Raises:
        ConfigError: ``clips_per_class`` is not positive.
    """
    if clips_per_class < 1:
        msg = f"clips_per_class {clips_per_class} must be at least 1."
        raise ConfigError(msg, key="clips_per_class", value=clips_per_class)
    for label in LABELS:
        (folder / label).mkdir(parents=True, exist_ok=True)
    numbers = [(label, number) for label in LABELS for number in range(clips_per_class)]
    if num_processes == 1:
        clips = [_make_clip(folder, seed, *one) for one in numbers]
    else:
        with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as processes:
            clips = list(processes.map(partial(_make_clip, folder, seed), *zip(*numbers, strict=True), chunksize=4))
    write_csv(folder / LABELS_FILE, ("video_id", "label"), ((clip.video_id, clip.label) for clip in clips))
    return clips


def _make_clip(folder: Path, seed: int, label: Label, number: int) -> Clip:
    """Write one clip of the catalogue."""
    scene = draw_scene(np.random.default_rng([seed, LABELS.index(label), number]))
    path = folder / label / f"{label}-{number:03d}.mp4"
    _encode(path, scene, label)
    return Clip(path, label, scene.num_frames, scene.average_fps)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in UTF-8. Each line ends with a line feed only."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def trajectory(label: Label, motion: Motion, *, num_frames: int) -> Trajectory:
    """Return the shape's pose in each frame. The second label of a pair has the poses of the first in reverse order."""
    progress = _moments(label, num_frames) / (num_frames - 1)
    eased = progress + motion.easing * np.sin(2 * np.pi * progress) / (2 * np.pi)
    x = motion.x + motion.drift_x * (progress - 0.5)
    radius, light = np.full(num_frames, motion.radius), np.ones(num_frames)
    match label:
        case "grow" | "shrink":
            radius = motion.smallest + (motion.largest - motion.smallest) * eased
        case "left_to_right" | "right_to_left":
            x = motion.margin + (1 - 2 * motion.margin) * eased
        case "sunrise" | "sunset":
            light = motion.night + (1 - motion.night) * eased
    y = motion.y + motion.drift_y * (progress - 0.5)
    return Trajectory(x, y, radius, 2 * np.pi * motion.turns * progress, light)


def render(scene: Scene, label: Label) -> Iterator[NDArray[np.uint8]]:
    """Draw the frames of a clip, and yield them in order, each as RGB [H, W, 3]."""
    num_grains, height, width, _ = scene.backgrounds.shape
    poses = np.stack(trajectory(label, scene.motion, num_frames=scene.num_frames), axis=1).tolist()
    # The film grain belongs to the pose, not to the frame number, so a reversed clip has its grain in reverse too.
    for (x, y, radius, angle, light), moment in zip(poses, _moments(label, scene.num_frames), strict=True):
        frame = scene.backgrounds[moment % num_grains].copy()
        center = (x * width, y * height)
        _paint(frame, scene, center=center, radius=radius * min(width, height), angle=angle)
        yield frame if light == 1 else (frame * np.float32(light)).astype(np.uint8)


def _moments(label: Label, num_frames: int) -> NDArray[np.int64]:
    """Return the numbers 0 to T - 1, in reverse order for the second label of a pair."""
    moments = np.arange(num_frames)
    return moments[::-1] if label in _BACKWARDS else moments


def _paint(frame: NDArray[np.uint8], scene: Scene, *, center: tuple[float, float], radius: float, angle: float) -> None:
    """Draw the shape and its shadow into ``frame``. ``center`` and ``radius`` are in pixels, ``angle`` in radians."""
    reach = radius * (1 + _SHADOW_SHIFT) + 2
    height, width, _ = frame.shape
    left, right = max(0, int(center[0] - reach)), min(width, int(center[0] + reach) + 1)
    top, bottom = max(0, int(center[1] - reach)), min(height, int(center[1] + reach) + 1)
    box = frame[top:bottom, left:right].astype(np.float32)
    across = ((np.arange(left, right) - center[0]) / radius)[None, :].astype(np.float32)
    down = ((np.arange(top, bottom) - center[1]) / radius)[:, None].astype(np.float32)

    shadow = np.take(scene.outline, _cells(across - _SHADOW_SHIFT, down - _SHADOW_SHIFT, angle, len(scene.outline)))
    box *= 1 - np.clip(0.5 - 6 * shadow, 0, 1)[..., None] * 0.4
    cells = _cells(across, down, angle, len(scene.outline))
    coverage = np.clip(0.5 - radius * np.take(scene.outline, cells), 0, 1)[..., None]
    color = np.take(scene.sprite.reshape(-1, 3), cells, axis=0)
    color *= scene.light[left:right]
    color -= box
    color *= coverage
    frame[top:bottom, left:right] = np.clip(box + color, 0, 255)


def _cells(across: Floats, down: Floats, angle: float, size: int) -> NDArray[np.int32]:
    """Return the flat index of the sprite's cell at each point, if the sprite is rotated by ``angle``.

    ``across`` and ``down`` are the distances of the points from the sprite's centre, in radii of the shape.
    """
    scale = (size - 1) / (2 * _SPRITE_REACH)
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    rows = np.clip((down * cos + size / 2) - across * sin, 0, size - 1).astype(np.int32)
    columns = np.clip((down * sin + size / 2) + across * cos, 0, size - 1).astype(np.int32)
    return np.asarray(rows * size + columns)


def _encode(path: Path, scene: Scene, label: Label) -> None:
    height, width = scene.backgrounds.shape[1:3]
    # Use one encoder thread, because with several the bytes of a file depend on the number of CPUs. Disable the
    # macroblock tree, because with AVX-512 it reads beyond the frame, so the bytes depend on the memory there.
    options = {"preset": "veryfast", "crf": "25", "threads": "1", "mbtree": "0", "g": str(scene.average_fps)}
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=scene.average_fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in render(scene, label):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def draw_scene(rng: np.random.Generator) -> Scene:
    """Return a random scene. It is drawn without the label, so that only the trajectory can depend on the label."""
    width, height = _SIZES[rng.integers(len(_SIZES))]
    average_fps = _FPS[rng.integers(len(_FPS))]
    num_frames = round(rng.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS) * average_fps)
    hue = rng.uniform()
    # The light comes from the left in every scene, so the brightness of a shape shows where the shape is.
    light = np.linspace(1.15, 1.15 - rng.uniform(0.45, 0.65), width, dtype=np.float32)[:, None]
    background = _draw_background(rng, width, height, hue + rng.uniform(0.35, 0.65)) * light
    grain = rng.normal(0, 2, (_NUM_GRAINS, height, width, 1))
    return Scene(
        num_frames=num_frames,
        average_fps=average_fps,
        motion=draw_motion(rng),
        sprite=_draw_sprite(rng, hue),
        outline=_distances(list(_SHAPES)[rng.integers(len(_SHAPES))]),
        light=light,
        backgrounds=np.clip(background + grain, 0, 255).astype(np.uint8),
    )


def draw_motion(rng: np.random.Generator) -> Motion:
    """Return random parameters of a shape's movement. They do not depend on the label."""
    return Motion(
        x=rng.uniform(0.42, 0.58),
        y=rng.uniform(0.4, 0.6),
        drift_x=rng.uniform(-0.12, 0.12),
        drift_y=rng.uniform(-0.2, 0.2),
        margin=rng.uniform(0.02, 0.15),
        radius=rng.uniform(0.2, 0.32),
        smallest=rng.uniform(0.06, 0.1),
        largest=rng.uniform(0.38, 0.46),
        turns=rng.uniform(-0.5, 0.5),
        easing=rng.uniform(-0.6, 0.6),
        night=rng.uniform(0.15, 0.35),
    )


def _draw_sprite(rng: np.random.Generator, hue: float) -> Floats:
    """Return a random texture [S, S, 3] that mixes two strong colours."""
    kind = _TEXTURES[rng.integers(len(_TEXTURES))]
    axis = np.linspace(-_SPRITE_REACH, _SPRITE_REACH, _SPRITE_SIZE)
    waves = np.sin(axis * math.pi * rng.uniform(1.5, 4) + rng.uniform(0, 2 * math.pi))
    if kind == "stripes":
        pattern = np.tile(waves, (_SPRITE_SIZE, 1))
    elif kind == "checks":
        pattern = np.outer(waves, waves)
    elif kind == "dots":
        pattern = np.add.outer(waves, waves) - 0.7
    else:
        pattern = 3 * _clouds(rng, _SPRITE_SIZE, _SPRITE_SIZE, cells=10)
    mix = (0.5 + 0.5 * np.tanh(5 * pattern))[..., None]
    one = _rgb(hue, 0.85, 0.95)
    other = _rgb(hue + rng.uniform(0.08, 0.4), rng.uniform(0.2, 0.9), 0.9)
    return np.asarray(one * mix + other * (1 - mix), dtype=np.float32)


def _distances(shape: str) -> Floats:
    """Return the distance of each cell of a sprite from the line of the shape's nearest edge, [S, S].

    Distances are in radii of the shape, and negative inside the shape.
    """
    tips, inner = _SHAPES[shape]
    axis = np.linspace(-_SPRITE_REACH, _SPRITE_REACH, _SPRITE_SIZE)
    u, v = axis[None, :], axis[:, None]
    # By symmetry, fold the plane into one wedge: from a tip at angle 0 to the next inner corner at angle ``step``.
    step = math.pi / tips
    folded = np.abs((np.arctan2(u, -v) + step) % (2 * step) - step)
    radius = np.hypot(u, v)
    edge_x, edge_y = inner * math.cos(step) - 1, inner * math.sin(step)
    cross = (radius * np.cos(folded) - 1) * edge_y - radius * np.sin(folded) * edge_x
    return np.asarray(cross / math.hypot(edge_x, edge_y), dtype=np.float32)


def _draw_background(rng: np.random.Generator, width: int, height: int, hue: float) -> Floats:
    """Return a random background [H, W, 3]: a gradient between two quiet colours, with clouds."""
    angle = rng.uniform(0, 2 * math.pi)
    down, across = np.linspace(-0.5, 0.5, height) * math.sin(angle), np.linspace(-0.5, 0.5, width) * math.cos(angle)
    clouds = _clouds(rng, height, width, cells=5) * rng.uniform(0.2, 0.8)
    mix = np.clip(0.5 + np.add.outer(down, across) + clouds, 0, 1)[..., None]
    one = _rgb(hue, rng.uniform(0.1, 0.45), rng.uniform(0.5, 0.85))
    other = _rgb(hue + rng.uniform(-0.12, 0.12), rng.uniform(0.1, 0.45), rng.uniform(0.3, 0.6))
    speckle = 10 * _clouds(rng, height, width, cells=60)[..., None]
    return np.asarray(one * mix + other * (1 - mix) + speckle, dtype=np.float32)


def _clouds(rng: np.random.Generator, height: int, width: int, *, cells: int) -> Floats:
    """Return smooth noise [height, width] from -0.5 to 0.5, interpolated from a random ``cells`` x ``cells`` grid."""
    knots = np.arange(cells)

    def weights(size: int) -> NDArray[np.float64]:
        return np.asarray(np.clip(1 - np.abs(np.linspace(0, cells - 1, size)[:, None] - knots), 0, 1))

    noise = weights(height) @ rng.uniform(-0.5, 0.5, (cells, cells)) @ weights(width).T
    return np.asarray(noise, dtype=np.float32)


def _rgb(hue: float, saturation: float, value: float) -> Floats:
    """Convert a colour from HSV to RGB, 0 to 255. A hue of 1 is a full turn. Saturation and value are 0 to 1."""
    phase = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return np.asarray(255 * value * (1 - saturation + saturation * np.clip(phase, 0, 1)), dtype=np.float32)
