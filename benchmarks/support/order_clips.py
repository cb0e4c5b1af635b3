"""Generated clips whose label depends on the order of their frames, in tasks of increasing difficulty.

A clip has 16 slots of two frames, so that 16 uniform samples see every slot once. All clips of all labels of a task are
drawn with random backgrounds, colors, sizes, onsets and durations.

=============  ======  ==================================================================================
task           labels  what the label says
=============  ======  ==================================================================================
monotone       4       the direction in which a large shape moves, at a random time and speed
small          4       the same for a small shape
permutation    6       the order of a disc, stripes and a cross
count          4       how often one shape appears, 1 to 4 times, for the same total time
before         2       whether a disc or stripes come first, among other shapes
periodic       2       whether a shape appears 3 or 4 times at equal intervals, or once for the same time
=============  ======  ==================================================================================
"""

from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt

SIDE, NUM_SLOTS, _FRAMES_PER_SLOT, _FPS = 128, 16, 2, 16
DIRECTIONS = ("right", "left", "down", "up")
_ARM, _HOLE = 0.3, 0.6  # half the width of a cross's arms, the radius of a ring's hole
_OTHERS = ("ring", "triangle", "bars")
_PERMUTED = {"-".join(order): order for order in permutations(("disc", "stripes", "cross"))}
Image = npt.NDArray[np.uint8]  # [SIDE, SIDE, 3]
Shape = npt.NDArray[np.bool_]  # [S, S]


class Event(NamedTuple):
    """A shape that is visible in the slots ``start`` to ``stop - 1``."""

    shape: str
    start: int
    stop: int


def draw_clip(task: str, label: str, random: np.random.Generator) -> list[Image]:
    """Return one image per slot."""
    background = _background(random)
    if task in {"monotone", "small"}:
        return _moving(background, label, random, sides=(36, 60) if task == "monotone" else (9, 15))
    events = _EVENTS[task](label, random)
    drawn = {shape: _Sprite.draw(shape, random) for shape in sorted({event.shape for event in events})}
    images = []
    for slot in range(NUM_SLOTS):
        image = background.copy()
        for event in events:
            if event.start <= slot < event.stop:
                drawn[event.shape].paint(image)
        images.append(image)
    return images


class _Sprite(NamedTuple):
    """A shape in a color, at a place."""

    mask: Shape
    color: npt.NDArray[np.uint8]
    top: int
    left: int

    @classmethod
    def draw(cls, shape: str, random: np.random.Generator) -> "_Sprite":
        side = int(random.integers(56, 89))
        top, left = (int(at) for at in random.integers(0, SIDE - side + 1, 2))
        return cls(_mask(shape, side), _color(random), top, left)

    def paint(self, image: Image) -> None:
        side = len(self.mask)
        image[self.top : self.top + side, self.left : self.left + side][self.mask] = self.color


def _background(random: np.random.Generator) -> Image:
    """Return a smooth random background: four random colors in the corners, and a mix between them."""
    corners = random.integers(40, 216, (2, 2, 3)).astype(np.float64)
    along = np.linspace(0, 1, SIDE)
    mix = np.stack([1 - along, along])
    return np.einsum("iy,jx,ijc->yxc", mix, mix, corners).round().astype(np.uint8)


def _color(random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return a saturated color: one channel is dark and one is bright."""
    dark, middle, bright = random.permutation(3)
    color = np.zeros(3, dtype=np.uint8)
    color[dark], color[middle], color[bright] = random.integers(0, 40), random.integers(0, 256), 255
    return color


def _mask(shape: str, side: int) -> Shape:
    """Return the pixels of a shape in a square."""
    y, x = np.mgrid[:side, :side] / (side - 1) * 2 - 1
    radius = np.hypot(x, y)
    masks: Mapping[str, Shape] = {
        "disc": radius <= 1,
        "stripes": np.floor((y + 1) * 4.5) % 2 == 0,
        "bars": np.floor((x + 1) * 4.5) % 2 == 0,
        "cross": np.minimum(np.abs(x), np.abs(y)) < _ARM,
        "ring": (radius <= 1) & (radius > _HOLE),
        "triangle": np.abs(x) <= (y + 1) / 2,
    }
    return masks[shape]


def _moving(background: Image, direction: str, random: np.random.Generator, *, sides: tuple[int, int]) -> list[Image]:
    """Return a square that waits, moves by at least half of the image, and waits again."""
    side, color = int(random.integers(*sides)), _color(random)
    room = SIDE - side
    across, distance = int(random.integers(0, room + 1)), int(random.integers(room // 2, room + 1))
    first, num_moves = int(random.integers(0, room - distance + 1)), int(random.integers(6, NUM_SLOTS))
    onset = int(random.integers(0, NUM_SLOTS - num_moves + 1))
    moved = np.clip((np.arange(NUM_SLOTS) - onset) / num_moves, 0, 1) * distance
    along = first + (moved if direction in {"right", "down"} else distance - moved)
    images = []
    for at in along.round().astype(int).tolist():
        top, left = (at, across) if direction in {"down", "up"} else (across, at)
        image = background.copy()
        image[top : top + side, left : left + side] = color
        images.append(image)
    return images


def _in_turn(
    shapes: tuple[str, ...], lengths: npt.NDArray[np.int64], random: np.random.Generator, *, min_gap: int = 0
) -> list[Event]:
    """Return events one after the other, with random gaps before, between and after them."""
    gaps = np.array([0, *[min_gap] * (len(shapes) - 1), 0])
    free = NUM_SLOTS - int(lengths.sum() + gaps.sum())
    gaps += random.multinomial(free, random.dirichlet(np.ones(len(gaps))))
    events, at = [], 0
    for shape, gap, length in zip(shapes, gaps.tolist(), lengths.tolist(), strict=False):
        events.append(Event(shape, at + gap, at + gap + length))
        at += gap + length
    return events


def _permuted(label: str, random: np.random.Generator) -> list[Event]:
    return _in_turn(_PERMUTED[label], random.integers(1, 6, 3), random)


def _repeated(label: str, random: np.random.Generator) -> list[Event]:
    count, total = int(label), int(random.integers(4, 9))
    lengths = 1 + random.multinomial(total - count, np.full(count, 1 / count))
    return _in_turn((_any_shape(random),) * count, lengths, random, min_gap=1)


def _ordered(label: str, random: np.random.Generator) -> list[Event]:
    others = list(random.permutation(_OTHERS)[: int(random.integers(1, 4))])
    first, second = sorted(random.choice(len(others) + 2, 2, replace=False).tolist())
    pair = ("disc", "stripes") if label == "disc_first" else ("stripes", "disc")
    shapes = [str(shape) for shape in others]
    shapes.insert(first, pair[0])
    shapes.insert(second, pair[1])
    return _in_turn(tuple(shapes), random.integers(1, 4, len(shapes)), random)


def _periodic_or_once(label: str, random: np.random.Generator) -> list[Event]:
    count, length, shape = int(random.integers(3, 5)), int(random.integers(1, 3)), _any_shape(random)
    if label == "once":
        return _in_turn((shape,), np.array([count * length]), random)
    longest = (NUM_SLOTS - length) // (count - 1)
    period = int(random.integers(length + 1, longest + 1))
    start = int(random.integers(0, NUM_SLOTS - (count - 1) * period - length + 1))
    return [Event(shape, at, at + length) for at in range(start, start + count * period, period)]


def _any_shape(random: np.random.Generator) -> str:
    return str(random.choice(["disc", "stripes", "cross", "ring", "triangle"]))


_EVENTS: Mapping[str, Callable[[str, np.random.Generator], list[Event]]] = {
    "permutation": _permuted,
    "count": _repeated,
    "before": _ordered,
    "periodic": _periodic_or_once,
}
LABELS: Mapping[str, tuple[str, ...]] = {
    "monotone": DIRECTIONS,
    "small": DIRECTIONS,
    "permutation": tuple(_PERMUTED),
    "count": ("1", "2", "3", "4"),
    "before": ("disc_first", "stripes_first"),
    "periodic": ("periodic", "once"),
}


def write_clips(folder: Path, task: str, count: int, *, seed: int) -> dict[str, str]:
    """Write ``count`` clips of a task, unless they exist, and return their labels by video ID."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {f"{seed:03d}-{number:05d}.mp4": LABELS[task][number % len(LABELS[task])] for number in range(count)}
    for number, (name, label) in enumerate(labels.items()):
        if not (folder / name).exists():
            _write_clip(folder / name, draw_clip(task, label, np.random.default_rng([seed, number])))
    return labels


def _write_clip(path: Path, images: list[Image]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_FPS, options={"preset": "veryfast", "crf": "23", "threads": "1"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for image in images:
            for _ in range(_FRAMES_PER_SLOT):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
