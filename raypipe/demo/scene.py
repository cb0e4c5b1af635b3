"""What is to be seen in a demo clip, drawn at random: a textured shape before a quiet background, lit from the left."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SPRITE_REACH = 1.4  # a sprite shows the plane from -1.4 to 1.4; a shape's tips are at radius 1

_SIZES = ((320, 240), (384, 216), (256, 256), (240, 320), (216, 384))  # width, height
_FPS = (24, 25, 30)
_SHORTEST_SECONDS, _LONGEST_SECONDS = 2.0, 6.0
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
    """How a shape may move, whatever the label; lengths are fractions of the frame's width, height or shorter side."""

    x: float  # where it is halfway
    y: float
    drift_x: float  # how far it wanders in one clip
    drift_y: float
    margin: float  # where a crossing begins and ends
    radius: float  # while it keeps its size
    smallest: float
    largest: float
    turns: float  # of rotation in one clip; negative is counterclockwise
    easing: float  # -1 to 1: positive is faster at both ends


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything in a clip but its label; colours are RGB, 0 to 255."""

    num_frames: int
    average_fps: int
    motion: Motion
    sprite: Floats  # [S, S, 3]: the shape's texture in its colours
    outline: Floats  # [S, S]: distance to the shape's edge in radii, negative inside
    light: Floats  # [W, 1]: brightness of each column
    backgrounds: NDArray[np.uint8]  # [G, H, W, 3]: one, lit, with G film grains


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene at random; it is not told the label, so nothing but the trajectory can depend on one."""
    width, height = _SIZES[rng.integers(len(_SIZES))]
    average_fps = _FPS[rng.integers(len(_FPS))]
    num_frames = round(rng.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS) * average_fps)
    hue = rng.uniform()
    # A window on the left, in every scene: where a shape is can be seen from how bright it is.
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
    """Draw how far and how fast, whatever the label."""
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
    )


def _draw_sprite(rng: np.random.Generator, hue: float) -> Floats:
    """Draw a texture that mixes two strong colours: [S, S, 3]."""
    kind = _TEXTURES[rng.integers(len(_TEXTURES))]
    axis = np.linspace(-SPRITE_REACH, SPRITE_REACH, _SPRITE_SIZE)
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
    """Measure the distance of a sprite's points to the line of the nearest edge, in radii: [S, S], negative inside."""
    tips, inner = _SHAPES[shape]
    axis = np.linspace(-SPRITE_REACH, SPRITE_REACH, _SPRITE_SIZE)
    u, v = axis[None, :], axis[:, None]
    # Fold the plane into the wedge between a tip, at angle 0, and the next corner between tips, at angle ``step``.
    step = math.pi / tips
    folded = np.abs((np.arctan2(u, -v) + step) % (2 * step) - step)
    radius = np.hypot(u, v)
    edge_x, edge_y = inner * math.cos(step) - 1, inner * math.sin(step)
    cross = (radius * np.cos(folded) - 1) * edge_y - radius * np.sin(folded) * edge_x
    return np.asarray(cross / math.hypot(edge_x, edge_y), dtype=np.float32)


def _draw_background(rng: np.random.Generator, width: int, height: int, hue: float) -> Floats:
    """Draw a gradient between two quiet colours, with clouds in it: [H, W, 3]."""
    angle = rng.uniform(0, 2 * math.pi)
    down, across = np.linspace(-0.5, 0.5, height) * math.sin(angle), np.linspace(-0.5, 0.5, width) * math.cos(angle)
    clouds = _clouds(rng, height, width, cells=5) * rng.uniform(0.2, 0.8)
    mix = np.clip(0.5 + np.add.outer(down, across) + clouds, 0, 1)[..., None]
    one = _rgb(hue, rng.uniform(0.1, 0.45), rng.uniform(0.5, 0.85))
    other = _rgb(hue + rng.uniform(-0.12, 0.12), rng.uniform(0.1, 0.45), rng.uniform(0.3, 0.6))
    speckle = 10 * _clouds(rng, height, width, cells=60)[..., None]
    return np.asarray(one * mix + other * (1 - mix) + speckle, dtype=np.float32)


def _clouds(rng: np.random.Generator, height: int, width: int, *, cells: int) -> Floats:
    """Draw noise that is smooth between ``cells`` by ``cells`` points: [height, width], -0.5 to 0.5."""
    knots = np.arange(cells)

    def weights(size: int) -> NDArray[np.float64]:
        return np.asarray(np.clip(1 - np.abs(np.linspace(0, cells - 1, size)[:, None] - knots), 0, 1))

    noise = weights(height) @ rng.uniform(-0.5, 0.5, (cells, cells)) @ weights(width).T
    return np.asarray(noise, dtype=np.float32)


def _rgb(hue: float, saturation: float, value: float) -> Floats:
    """Turn hue (any number; 1 is a full turn), saturation and value (0 to 1) into RGB, 0 to 255."""
    phase = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return np.asarray(255 * value * (1 - saturation + saturation * np.clip(phase, 0, 1)), dtype=np.float32)
