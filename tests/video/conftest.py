"""Small videos whose every frame shows which one it is, and helpers to decode them without a child process."""

import functools
import io
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import pytest
from av.container import OutputContainer

from raypipe.video.decode_request import DecodeLimits, DecodeRequest, Pixels
from raypipe.video.sandbox.child import decode_video
from raypipe.video.sandbox.parent import DecodeSandbox
from raypipe.video.sandbox.protocol import Reply, SharedFrames
from raypipe.video.timeline import Seconds
from support.videos import make_noise

FIRST_LEVEL, LEVEL_STEP = 24, 9  # the grey of frame 0, and the difference between consecutive frames
MARK = (255, 255, 255)


@dataclass(frozen=True)
class ClipSettings:
    """The recipe of a generated video. Its ``num_frames`` frames are greys, each lighter than the previous one."""

    codec: str = "libx264"
    container: str = "mp4"
    num_frames: int = 24
    fps: int = 12
    width: int = 96
    height: int = 72
    pix_fmt: str = "yuv420p"
    times: tuple[int, ...] = ()  # in units of 1 / fps; 0, 1, 2, … if empty
    rotation: int = 0
    codec_options: tuple[tuple[str, str], ...] = ()
    container_options: tuple[tuple[str, str], ...] = ()
    audio: bool = False
    video: bool = True


X264 = (("g", "10"), ("bf", "3"), ("b-adapt", "0"), ("refs", "3"), ("preset", "veryfast"), ("crf", "12"))
X265 = (
    ("x265-params", "keyint=10:min-keyint=10:bframes=3:scenecut=0:log-level=none:pools=none:frame-threads=1"),
    ("preset", "ultrafast"),
)
BEST = (("qmin", "1"), ("qmax", "2"))
H264 = ClipSettings(codec_options=X264)
# Every way to store frames for which the decoders must agree with a plain reading.
CLIPS: dict[str, ClipSettings] = {
    "h264": H264,
    "h264-faststart": replace(H264, container_options=(("movflags", "faststart"),), audio=True),
    "h264-fragmented": replace(H264, container_options=(("movflags", "frag_keyframe+empty_moov"),)),
    "h264-mkv": replace(H264, container="matroska", audio=True),
    "h264-open-gop": replace(H264, codec_options=(*X264, ("x264-params", "open-gop=1:scenecut=0"))),
    "h264-open-gop-mkv": replace(
        H264, container="matroska", codec_options=(*X264, ("x264-params", "open-gop=1:scenecut=0"))
    ),
    "h264-intra-refresh": replace(
        H264, container="mpegts", codec_options=(*X264, ("bf", "0"), ("x264-params", "intra-refresh=1:keyint=8"))
    ),
    "h264-ts": replace(H264, container="mpegts"),
    "h264-flv": replace(H264, container="flv"),
    "h264-10-bit": replace(H264, pix_fmt="yuv420p10le"),
    "h264-4:4:4-odd": replace(H264, pix_fmt="yuv444p", width=97, height=71),
    "h264-interlaced": replace(H264, codec_options=(*X264, ("x264-params", "tff=1"))),
    "h264-variable-rate": replace(H264, times=tuple(number + number**2 // 4 for number in range(24))),
    "h264-mkv-late-start": replace(H264, container="matroska", times=tuple(range(120, 144))),
    "h264-mp4-late-start": replace(H264, times=tuple(range(120, 144))),
    "h264-90": replace(H264, rotation=90),
    "h264-180": replace(H264, rotation=180),
    "h264-270": replace(H264, rotation=-90),
    "h264-portrait": replace(H264, width=72, height=128),
    "h264-one-frame": replace(H264, num_frames=1),
    "hevc": replace(H264, codec="libx265", codec_options=X265),
    "av1": ClipSettings(codec="libsvtav1", container="matroska", codec_options=(("g", "10"), ("preset", "12"))),
    "vp9": ClipSettings(codec="libvpx-vp9", container="webm", codec_options=(("g", "10"), ("deadline", "realtime"))),
    "vp8-ogg": ClipSettings(codec="libvpx", container="ogg", codec_options=(("g", "10"), ("deadline", "realtime"))),
    "mpeg4-avi": ClipSettings(codec="mpeg4", container="avi", codec_options=(("g", "10"), ("bf", "2"), *BEST)),
    "mpeg2": ClipSettings(
        codec="mpeg2video", container="mpeg", fps=25, codec_options=(("g", "10"), ("bf", "2"), *BEST)
    ),
    "mxf": ClipSettings(codec="mpeg2video", container="mxf", fps=25, codec_options=(("g", "10"), ("bf", "2"), *BEST)),
    "h264-mxf": replace(H264, container="mxf", fps=25),
    "h264-raw": replace(H264, container="h264"),
    "hevc-raw": replace(H264, codec="libx265", container="hevc", codec_options=X265),
    "vp8-ivf": ClipSettings(codec="libvpx", container="ivf", codec_options=(("g", "10"), ("deadline", "realtime"))),
    "wmv2": ClipSettings(codec="wmv2", container="asf", codec_options=(("g", "10"),)),
    "mjpeg": ClipSettings(codec="mjpeg", container="mov", pix_fmt="yuvj420p"),
    "rgb": ClipSettings(codec="qtrle", container="mov", pix_fmt="rgb24"),
    "alpha": ClipSettings(codec="qtrle", container="mov", pix_fmt="argb"),
    "palette": ClipSettings(codec="png", container="mov", pix_fmt="pal8"),
    "ffv1-16-bit": ClipSettings(codec="ffv1", container="matroska", pix_fmt="gray16le"),
}


# Real videos, short enough to be read whole.
REAL = (
    "PaddleVideo_data_example.avi",
    "clip-video-encode_tests_test_videos_vid1.mp4",
    "clip-video-encode_tests_test_videos_vid2.mp4",
    "imageio_test_images_realshort.mp4",
    "imageio_test_images_test.webm",
    "intel_sample-videos_asl_gestures_again.mkv",
    "intel_sample-videos_asl_gestures_brother.mkv",
    "mmaction2_demo_demo_spatiotemporal_det.mp4",
    "mmaction2_tests_data_rawvideo_dataset_part_0.mp4",
    "mmaction2_tests_data_test.avi",
    "torchcodec_test_resources_av1_video.mkv",
    "torchcodec_test_resources_bt709_full_range.mp4",
    "torchcodec_test_resources_h264_10bits.mp4",
    "torchcodec_test_resources_h265_10bits.mp4",
    "torchcodec_test_resources_h265_video.mp4",
    "torchcodec_test_resources_nasa_13013.mp4",
)
HOSTILE = ("video_0", "video_90", "video_180", "video_270", "unordered")


def picture(number: int, *, width: int, height: int) -> Pixels:
    """Draw frame ``number``: a grey [height, width, 3] with a white mark in its upper left."""
    image = np.full((height, width, 3), FIRST_LEVEL + LEVEL_STEP * number, dtype=np.uint8)
    image[: height // 4, : width // 4] = MARK
    return image


def _video_frame(settings: ClipSettings, number: int) -> av.VideoFrame:
    image = picture(number, width=settings.width, height=settings.height)
    if settings.pix_fmt == "pal8":
        palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, axis=1)
        grey: Any = (np.ascontiguousarray(image[:, :, 0]), palette)
        return av.VideoFrame.from_ndarray(grey, format="pal8")
    return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=settings.pix_fmt)


def _add_audio(container: OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    samples = np.zeros((1, int(seconds * stream.rate)), dtype=np.int16)
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
    frame.sample_rate, frame.pts = stream.rate, 0
    for resampled in av.AudioResampler(stream.format.name, stream.layout, stream.rate, 1024).resample(frame):
        container.mux(stream.encode(resampled))
    container.mux(stream.encode(None))


@functools.cache
def make_clip(settings: ClipSettings) -> bytes:
    """Return the bytes of a generated video."""
    # If root runs it, the AV1 encoder gives its calling thread real-time priority and never resets it.
    with tempfile.NamedTemporaryFile() as file, ThreadPoolExecutor(1) as encoding:  # faststart reads the file back
        encoding.submit(_write_clip, file.name, settings).result()
        return Path(file.name).read_bytes()


def _write_clip(path: str, settings: ClipSettings) -> None:
    options = dict(settings.container_options)
    with av.open(path, "w", format=settings.container, container_options=options) as container:
        video = _add_video_stream(container, settings) if settings.video else None
        sound: Any = container.add_stream("aac", rate=8000, layout="mono") if settings.audio else None
        times = settings.times or range(settings.num_frames)
        if video is not None:
            for number, time in zip(range(settings.num_frames), times, strict=False):
                frame = _video_frame(settings, number)
                frame.pts, frame.time_base = time, Fraction(1, settings.fps)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if sound is not None:
            _add_audio(container, sound, settings.num_frames / settings.fps)


def _add_video_stream(container: OutputContainer, settings: ClipSettings) -> av.VideoStream:
    stream: Any = container.add_stream(settings.codec, rate=settings.fps, options=dict(settings.codec_options))
    stream.width, stream.height, stream.pix_fmt = settings.width, settings.height, settings.pix_fmt
    stream.codec_context.thread_count = 1
    if settings.rotation:
        stream.set_display_rotation(settings.rotation)
    video: av.VideoStream = stream
    return video


def make_request(**changes: object) -> DecodeRequest:
    """Request seven evenly spaced frames, 56 pixels square, cut from 64 so that the mark of ``picture`` is visible."""
    limits = DecodeLimits(max_pixels=4096 * 4096, max_duration_seconds=3600)
    request = DecodeRequest(
        mode="uniform",
        num_frames=7,
        fps=5.0,
        max_frames=32,
        nearest_keyframe=False,
        loop_filter=True,
        resize_size=64,
        crop_size=56,
        limits=limits,
    )
    return replace(request, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Decoded:
    """One decoder's result for one video."""

    reply: Reply
    pts_seconds: Seconds
    frames: Pixels


def decode(data: bytes, request: DecodeRequest, *, decoder: str = "pyav") -> Decoded:
    """Decode a safe video as a child would, but in this process."""
    size = SharedFrames.size_bytes(crop_size=request.crop_size, max_frames=request.max_frames)
    shared = SharedFrames(mmap.mmap(-1, size), crop_size=request.crop_size, max_frames=request.max_frames)
    reply = decode_video(io.BytesIO(data), request, decoder=decoder, shared=shared)
    return Decoded(reply, shared.pts_seconds[: reply.num_frames].copy(), shared.frames[: reply.num_frames].copy())


@dataclass(frozen=True)
class Clip:
    """A generated video: its name in ``CLIPS``, its settings, its bytes."""

    name: str
    settings: ClipSettings
    data: bytes = field(repr=False)


@pytest.fixture(params=CLIPS)
def clip(request: pytest.FixtureRequest) -> Clip:
    """Return each of the generated videos."""
    settings = CLIPS[request.param]
    return Clip(request.param, settings, make_clip(settings))


@pytest.fixture(params=[*REAL, *HOSTILE])
def real(request: pytest.FixtureRequest, assets: Path) -> tuple[str, bytes]:
    """Return the name and the bytes of each real clip."""
    name: str = request.param
    file = next((assets / "hostile").glob(f"decord_*_{name}.mov")) if name in HOSTILE else assets / "videos" / name
    return name, file.read_bytes()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = av.logging.get_level()
    av.logging.set_level(None)
    yield
    av.logging.set_level(level)


@pytest.fixture(name="make_clip", scope="session")
def make_clip_fixture() -> Callable[..., bytes]:
    """Return a function that makes the video of a name in ``CLIPS`` with some settings changed."""

    def make(name: str = "h264", **changes: object) -> bytes:
        return make_clip(replace(CLIPS[name], **changes))  # type: ignore[arg-type]

    return make


@pytest.fixture(name="make_request", scope="session")
def make_request_fixture() -> Callable[..., DecodeRequest]:
    """Return a function that makes the tests' usual request with some fields changed."""
    return make_request


@pytest.fixture(name="decode", scope="session")
def decode_fixture() -> Callable[..., Decoded]:
    """Return a function that decodes without a child."""
    return decode


@pytest.fixture
def as_file() -> Callable[[bytes], BinaryIO]:
    """Return a function that puts bytes into an unnamed file, as the job passes them to a sandbox."""

    def make(data: bytes) -> BinaryIO:
        file = os.fdopen(os.memfd_create("video"), "w+b")
        file.write(data)
        file.flush()
        return file

    return make


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return twenty seconds with key frames only: a few megabytes."""
    return make_noise(tmp_path_factory.mktemp("long") / "clip.mp4", num_frames=240)


def blank_png(side: int) -> bytes:
    """Return an empty square PNG with this many pixels per side and one byte per pixel."""
    compressor = zlib.compressobj(1)
    row = bytes(1 + side)
    pixels = b"".join([*(compressor.compress(row) for _ in range(side)), compressor.flush()])
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@pytest.fixture(scope="session")
def huge_picture() -> bytes:
    """Return a valid video of about a megabyte whose only frame is 16000 pixels wide and high, one byte per pixel."""
    side = 16_000
    png = blank_png(side)
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as container:
        stream = container.add_mux_stream("png", rate=1, width=side, height=side)
        packet: Any = av.Packet(png)
        packet.stream, packet.pts, packet.dts, packet.time_base, packet.is_keyframe = stream, 0, 0, Fraction(1), True
        container.mux(packet)
    return file.getvalue()


@pytest.fixture(scope="session")
def many_streams() -> Callable[[int], bytes]:
    """Return a function that makes a video of this many streams with one frame each."""

    def make(count: int) -> bytes:
        file = io.BytesIO()
        with av.open(file, "w", format="matroska") as container:
            settings = ClipSettings(codec="mpeg4", codec_options=())
            streams = [_add_video_stream(container, settings) for _ in range(count)]
            for stream in streams:
                container.mux([*stream.encode(_video_frame(settings, 0)), *stream.encode(None)])
        return file.getvalue()

    return make


@pytest.fixture
def request_(make_request: Callable[..., DecodeRequest]) -> DecodeRequest:
    """Return the tests' usual request."""
    return make_request()


@pytest.fixture
def pyav(request_: DecodeRequest) -> Iterator[DecodeSandbox]:
    """Return a sandbox whose PyAV child is running."""
    with DecodeSandbox(request_, decoder="pyav", timeout_seconds=20) as opened:
        opened.isolation()
        yield opened
