"""Small videos of given pictures, with metadata on how to display them."""

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph

Picture = npt.NDArray[Any]  # [height, width, 3 or 4], 8 or 16 bits per channel
FPS = 10
BT709, BT2020 = 1, 9  # of the matrix and the primaries
LIMITED_RANGE = 1
X264 = {"crf": "4", "preset": "ultrafast"}
# Without B-frames: x265 leaves the decoding time of a frame undefined when fewer frames follow than it may reorder.
X265 = {"x265-params": "log-level=none:pools=none:frame-threads=1:crf=4:bframes=0", "preset": "ultrafast"}


def encode(
    pictures: Sequence[Picture],
    *,
    codec: str = "libx264",
    container: str = "mp4",
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] = X264,
    flags: int = 0,
    pixel_aspect: Fraction | None = None,
    matrix: Sequence[int] | None = None,
    color_trc: int = 0,
    color: int = BT709,
    field_order: str = "",
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return a video of pictures in RGB, RGBA or, with 16 bits, RGB48.

    ``color`` is its matrix and its primaries. ``field_order`` (``tff`` or ``bff``) makes every frame interlaced.
    """
    source = {(np.uint8, 3): "rgb24", (np.uint8, 4): "rgba", (np.uint16, 3): "rgb48le"}
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=FPS, options=dict(options))
        stream.height, stream.width, channels = pictures[0].shape
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= flags
        if pixel_aspect is not None:
            stream.sample_aspect_ratio = pixel_aspect
        if matrix is not None:
            stream.set_display_matrix(matrix)
        if color_trc:
            stream.color_range, stream.colorspace = LIMITED_RANGE, color
            stream.color_primaries, stream.color_trc = color, color_trc
        stream.metadata.update(metadata or {})
        fields = Graph()
        for number, picture in enumerate(pictures):
            whole = av.VideoFrame.from_ndarray(picture, format=source[picture.dtype.type, channels])
            frame = whole.reformat(
                format=pix_fmt,
                dst_colorspace=color if color_trc else None,
                dst_color_range=LIMITED_RANGE if color_trc else None,
            )
            if color_trc:
                frame.color_primaries, frame.color_trc = color, color_trc
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            output.mux(stream.encode(_with_fields(frame, fields, field_order) if field_order else frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def _with_fields(frame: av.VideoFrame, graph: Graph, field_order: str) -> av.VideoFrame:
    """Return the frame with its field order, which PyAV itself cannot set."""
    if not graph.configured:
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, FPS)
        )
        graph.link_nodes(source, graph.add("setfield", field_order), graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()


def decode_all(data: bytes) -> list[av.VideoFrame]:
    """Return every frame of a video as PyAV gives it."""
    with av.open(io.BytesIO(data), "r") as source:
        return list(source.decode(video=0))


def corners(width: int = 96, height: int = 64) -> Picture:
    """Return a black picture with distinct corners: clockwise from the upper left white, red, green, blue."""
    picture = np.zeros((height, width, 3), np.uint8)
    rows, columns = height // 3, width // 3
    picture[:rows, :columns] = 255
    picture[:rows, -columns:, 0] = 255
    picture[-rows:, -columns:, 1] = 255
    picture[-rows:, :columns, 2] = 255
    return picture
