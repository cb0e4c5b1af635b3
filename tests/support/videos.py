"""Small videos that tests make."""

import io
from pathlib import Path

import av
import numpy as np

from raypipe.storage import Folder


def make_noise(path: Path, *, num_frames: int) -> bytes:
    """Make a noise video: 12 frames a second, key frames only, tables first, some 12 kB per frame; return its bytes."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=12, options={"g": "1", "qmin": "2", "qmax": "3"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for _ in range(num_frames):
            image = random.integers(0, 256, (120, 160, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def make_video(*, shade: int, num_frames: int = 10, size: int = 64) -> bytes:
    """Return a small H.264 video of one shade that brightens; another shade gives other bytes."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"threads": "1", "preset": "ultrafast", "g": "5"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(num_frames):
            picture = np.full((size, size, 3), (shade % 200) + number, dtype=np.uint8)
            picture[: 1 + shade % size, : 1 + number] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return data.getvalue()


def upload(folder: Folder, count: int, *, start: int = 0) -> list[str]:
    """Put ``count`` different videos into a folder, and return their ids."""
    names = [f"part-{number % 3}/video-{number:04d}.mp4" for number in range(start, start + count)]
    for number, name in enumerate(names, start=start):
        assert folder.put_new(name, make_video(shade=number))
    return names
