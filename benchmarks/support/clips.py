"""Generated videos that are as hard to decode as real ones: camera moves over textures, moving objects, cuts, grain.

Clips use their encoder's defaults: x264 at ``medium`` has B-frames, three reference frames and, unless the clip's
options say otherwise, a key frame only at a cut or after 250 frames.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.uint8]
FPS = 30
_SUFFIXES = {"libx264": "mp4", "libx265": "mp4", "libvpx-vp9": "webm"}
_NUM_GRAINS = 4


@dataclass(frozen=True)
class Clip:
    """A video to encode, at 30 frames per second."""

    seconds: float
    width: int
    height: int
    encoder: str = "libx264"
    options: Mapping[str, str] = field(default_factory=dict)
    scene_seconds: float = 4.0
    grain: float = 2.0  # standard deviation of the noise in each frame, of 255

    @property
    def file_name(self) -> str:
        """The name of the clip's file, unique for each clip."""
        options = "".join(f"-{key}{value}" for key, value in self.options.items())
        size = f"{self.width}x{self.height}-{self.seconds:g}s-{self.scene_seconds:g}-{self.grain:g}"
        return f"{self.encoder}-{size}{options}.{_SUFFIXES[self.encoder]}"

    @property
    def num_frames(self) -> int:
        return round(self.seconds * FPS)


_GOP_60 = {"g": "60"}
_FAST_VP9 = {"deadline": "realtime", "cpu-used": "8", "row-mt": "1"}
_FAST_HEVC = {"preset": "superfast", "x265-params": "log-level=none"}

# 240p to 720p, 3 to 40 s: 14 of the 18 clips are H.264, 6 of them with a key frame every two seconds.
MIXED = (
    Clip(3, 426, 240),
    Clip(5, 640, 360, options=_GOP_60),
    Clip(8, 854, 480),
    Clip(4, 1280, 720, options=_GOP_60),
    Clip(20, 426, 240, options=_GOP_60),
    Clip(12, 640, 360),
    Clip(6, 854, 480, options=_GOP_60),
    Clip(10, 1280, 720),
    Clip(6, 640, 360, "libvpx-vp9", _FAST_VP9),
    Clip(3, 1280, 720),
    Clip(40, 426, 240),
    Clip(7, 854, 480),
    Clip(5, 854, 480, "libx265", _FAST_HEVC),
    Clip(30, 426, 240, options=_GOP_60),
    Clip(10, 426, 240, "libvpx-vp9", _FAST_VP9),
    Clip(9, 640, 360),
    Clip(4, 640, 360, "libx265", _FAST_HEVC),
    Clip(40, 640, 360, options=_GOP_60),
)


def make_catalogue(folder: Path, count: int, *, clips: Sequence[Clip] = MIXED) -> list[Path]:
    """Make ``count`` videos in one subfolder: encode each clip once, then copy it under many names.

    A copy costs a decoder as much as another clip of its kind. Existing files are reused.
    """
    encoded = encode_all(folder, clips[:count])
    catalogue = folder / f"catalogue-{count}-of-{len(encoded)}"
    catalogue.mkdir(exist_ok=True)
    made = [catalogue / f"video-{at:05d}{encoded[at % len(encoded)].suffix}" for at in range(count)]
    for at, path in enumerate(made):
        if not path.exists():
            shutil.copyfile(encoded[at % len(encoded)], path)
    return made


def encode_all(folder: Path, clips: Sequence[Clip]) -> list[Path]:
    """Return the file of each clip, encoded unless it exists."""
    return [encode(folder, clip) for clip in clips]


def encode(folder: Path, clip: Clip) -> Path:
    """Return the clip's file, encoded unless it exists."""
    path = folder / "clips" / clip.file_name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    with av.open(str(unfinished), "w") as container:
        stream = container.add_stream(clip.encoder, rate=FPS, options=dict(clip.options))
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        for pixels in _frames(clip):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="yuv420p")))
        container.mux(stream.encode(None))
    unfinished.rename(path)
    return path


def _frames(clip: Clip) -> Iterator[Plane]:
    """Yield YUV 4:2:0 images [height * 3 / 2, width]."""
    random = np.random.default_rng([clip.width, clip.height, clip.num_frames])
    shape = (clip.height, clip.width)
    grains = [(random.standard_normal(shape) * clip.grain).round().astype(np.int16) for _ in range(_NUM_GRAINS)]
    per_scene = max(1, round(clip.scene_seconds * FPS))
    for start in range(0, clip.num_frames, per_scene):
        scene = _Scene(clip, random)
        for number in range(min(per_scene, clip.num_frames - start)):
            luma = scene.luma(number).astype(np.int16)
            shift = tuple(random.integers(0, side) for side in shape)
            luma += np.roll(grains[random.integers(_NUM_GRAINS)], shift, axis=(0, 1))
            np.clip(luma, 16, 235, out=luma)
            yield np.concatenate([luma.astype(np.uint8), scene.chroma(number)])


class _Scene:
    """One camera move over one texture, with three objects that move independently."""

    def __init__(self, clip: Clip, random: np.random.Generator) -> None:
        self._height, self._width = clip.height, clip.width
        self._texture = _texture(random, 2 * clip.height, 2 * clip.width)
        self._chroma = [_texture(random, clip.height, clip.width) // 4 + 96 for _ in range(2)]
        self._start = random.uniform(0.25, 0.75, 2) * (clip.height, clip.width)
        self._speed = random.uniform(-1.5, 1.5, 2) * clip.height / 360
        sides = random.integers(clip.height // 10, clip.height // 4, 3)
        self._objects = [
            (random.uniform(0, 0.7, 2), random.uniform(-0.01, 0.01, 2), _texture(random, side, side)) for side in sides
        ]

    def luma(self, number: int) -> Plane:
        """Return the luma [height, width] of frame ``number``."""
        top, left = self._camera(number)
        image = self._texture[top : top + self._height, left : left + self._width].copy()
        for start, speed, pixels in self._objects:
            side = len(pixels)
            y, x = (_bounce(start + speed * number) * (self._height - side, self._width - side)).astype(int)
            image[y : y + side, x : x + side] = pixels
        return image

    def chroma(self, number: int) -> Plane:
        """Return both chroma planes, one after the other, as rows of the image's width."""
        top, left = (at // 2 for at in self._camera(number))
        half = (slice(top, top + self._height // 2), slice(left, left + self._width // 2))
        return np.concatenate([plane[half].reshape(-1) for plane in self._chroma]).reshape(-1, self._width)

    def _camera(self, number: int) -> tuple[int, int]:
        size = np.array((self._height, self._width))
        y, x = (_bounce((self._start + self._speed * number) / size) * size).astype(int)
        return int(y), int(x)


def _bounce(position: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Reflect positions into the range 0 to 1."""
    return np.abs((position + 1) % 2 - 1)


def _texture(random: np.random.Generator, height: int, width: int) -> Plane:
    """Return noise at several scales, the coarse scales stronger, as in photographs."""
    image = np.zeros((height, width), np.float32)
    for size, weight in ((64, 1.0), (16, 0.5), (4, 0.25), (1, 0.06)):
        coarse = random.standard_normal((-(-height // size) + 1, -(-width // size) + 1)).astype(np.float32)
        image += weight * _enlarged(coarse, size)[:height, :width]
    return np.clip(126 + 45 * image, 16, 235).astype(np.uint8)


def _enlarged(coarse: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Interpolate linearly, so that coarse noise is smooth."""
    for axis in (0, 1):
        step = (np.arange((coarse.shape[axis] - 1) * size) % size / size).astype(np.float32)
        shape = (-1, 1) if axis == 0 else (1, -1)
        first = np.repeat(coarse.take(range(coarse.shape[axis] - 1), axis), size, axis)
        second = np.repeat(coarse.take(range(1, coarse.shape[axis]), axis), size, axis)
        coarse = first + (second - first) * step.reshape(shape)
    return coarse
