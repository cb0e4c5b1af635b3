"""Clips of four classes that differ in the order of time alone: a square that moves right, left, down or up."""

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

LABELS = ("right", "left", "down", "up")
SIZE, NUM_FRAMES, FPS = 224, 32, 16


def make_motion_clips(folder: Path, count: int, *, seed: int) -> list[tuple[str, str]]:
    """Write ``count`` clips, the classes in turn; give (file name, label) of each. Every clip has its own background.

    ``left`` is ``right`` played backwards and ``up`` is ``down``: the frames of a class, taken without their order,
    are drawn alike.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number in range(count):
        label = LABELS[number % len(LABELS)]
        name = f"{seed:03d}-{number:05d}.mp4"
        if not (folder / name).exists():
            _write(folder / name, label, np.random.default_rng([seed, number]))
        clips.append((name, label))
    return clips


def _write(path: Path, label: str, random: np.random.Generator) -> None:
    coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    background = np.kron(coarse, np.ones((SIZE // 8, SIZE // 8, 1), dtype=np.uint8))
    side = int(random.integers(40, 72))
    color = random.integers(0, 256, 3, dtype=np.uint8)
    across = int(random.integers(0, SIZE - side))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "23", "threads": "1"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for along in _positions(label, side):
            frame = _with_square(background, color, side, along, across, vertical=label in {"down", "up"})
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _positions(label: str, side: int) -> npt.NDArray[np.int64]:
    positions = np.linspace(0, SIZE - side, NUM_FRAMES).astype(np.int64)
    return positions if label in {"right", "down"} else positions[::-1]


def _with_square(
    background: npt.NDArray[np.uint8],
    color: npt.NDArray[np.uint8],
    side: int,
    along: int,
    across: int,
    *,
    vertical: bool,
) -> npt.NDArray[np.uint8]:
    frame = background.copy()
    top, left = (along, across) if vertical else (across, along)
    frame[top : top + side, left : left + side] = color
    return frame
