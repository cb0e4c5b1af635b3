"""Damaged videos, each made from a seed and a number: changed headers and bodies, truncations and more."""

import functools
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from video.conftest import CLIPS, H264, ClipSettings, make_clip

_CODECS = {
    "h264": H264,
    "hevc": CLIPS["hevc"],
    "vp9": CLIPS["vp9"],
    "av1": CLIPS["av1"],
    "mpeg4": CLIPS["mpeg4-avi"],
}
_CONTAINERS = {
    "mp4": ("h264", "hevc", "vp9", "av1", "mpeg4"),
    "matroska": ("h264", "hevc", "vp9", "av1", "mpeg4"),
    "webm": ("vp9", "av1"),
    "avi": ("h264", "vp9", "av1", "mpeg4"),
    "mpegts": ("h264", "hevc", "mpeg4"),
}
_VARIANTS = {
    "mp4-faststart-h264": CLIPS["h264-faststart"],
    "mp4-fragmented-h264": CLIPS["h264-fragmented"],
    "matroska-audio-h264": CLIPS["h264-mkv"],
    "mxf-mpeg2": CLIPS["mxf"],
    "mxf-h264": CLIPS["h264-mxf"],
    "ivf-vp8": CLIPS["vp8-ivf"],
    "raw-h264": CLIPS["h264-raw"],
    "raw-hevc": CLIPS["hevc-raw"],
    "gif": ClipSettings(codec="gif", container="gif", pix_fmt="rgb8"),
    "apng": ClipSettings(codec="apng", container="apng", pix_fmt="rgb24"),
}
_INTERESTING = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF)
_HEADER_BYTES = 1024


@dataclass(frozen=True, slots=True)
class HostileFile:
    """The bytes of a hostile file, and a name that says how they were made."""

    name: str
    data: bytes = field(repr=False)


@functools.cache
def seed_clips() -> dict[str, bytes]:
    """Return healthy videos of a second or two, by container and codec."""
    wanted: dict[str, ClipSettings] = {
        f"{container}-{codec}": replace(_CODECS[codec], container=container)
        for container, codecs in _CONTAINERS.items()
        for codec in codecs
    }
    return {name: make_clip(settings) for name, settings in (wanted | _VARIANTS).items()}


def damaged_files(seed: int, count: int, *, start: int = 0) -> Iterator[HostileFile]:
    """Yield ``count`` damaged files: every clip with every kind of damage in turn."""
    clips = sorted(seed_clips().items())
    kinds = sorted(_DAMAGE)
    for number in range(start, start + count):
        name, data = clips[number % len(clips)]
        kind = kinds[number // len(clips) % len(kinds)]
        draw = random.Random(f"{seed}-{number}")
        yield HostileFile(f"{number}: {kind} {name} (seed {seed})", _DAMAGE[kind](draw, data))


def _bytes_in(draw: random.Random, data: bytes, first: int, last: int) -> bytes:
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 3, 10, 40))):
        damaged[draw.randrange(first, last)] = draw.choice((0, 255, draw.randrange(256)))
    return bytes(damaged)


def _header(draw: random.Random, data: bytes) -> bytes:
    return _bytes_in(draw, data, 4, min(len(data), _HEADER_BYTES))


def _trailer(draw: random.Random, data: bytes) -> bytes:
    return _bytes_in(draw, data, max(4, len(data) - _HEADER_BYTES), len(data))


def _body(draw: random.Random, data: bytes) -> bytes:
    return _bytes_in(draw, data, len(data) // 8, len(data))


def _numbers(draw: random.Random, data: bytes) -> bytes:
    """Write numbers that parsers stumble over at random places, in either byte order."""
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 2, 8))):
        width = draw.choice((1, 2, 4, 8))
        value = draw.choice(_INTERESTING) & (256**width - 1)
        at = draw.randrange(4, len(data) - width)
        damaged[at : at + width] = value.to_bytes(width, draw.choice(("big", "little")))
    return bytes(damaged)


def _truncated(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(1, len(data))]


def _zeroed(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(4, len(data))
    stop = min(len(data), start + draw.choice((16, 256, 4096)))
    return data[:start] + bytes(stop - start) + data[stop:]


def _cut_out(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(4, len(data))
    return data[:start] + data[start + draw.choice((1, 4, 188, 1000)) :]


def _repeated(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(4, len(data))
    piece = data[start : start + draw.choice((8, 100, 1000))]
    return data[:start] + piece * draw.choice((2, 50)) + data[start:]


def _spliced(draw: random.Random, data: bytes) -> bytes:
    """Join the beginning of one clip and the end of another."""
    other = draw.choice(sorted(seed_clips().values()))
    return data[: draw.randrange(4, len(data))] + other[draw.randrange(len(other)) :]


def _swapped_boxes(draw: random.Random, data: bytes) -> bytes:
    """Replace the name of an MP4 box, Matroska element or RIFF chunk by another name."""
    names = [
        b"moov",
        b"trak",
        b"stbl",
        b"stts",
        b"stsz",
        b"stco",
        b"ctts",
        b"mdat",
        b"LIST",
        b"idx1",
        b"\x1f\x43\xb6\x75",
    ]
    there = [name for name in names if name in data]
    if not there:
        return _header(draw, data)
    name = draw.choice(there)
    return data.replace(name, draw.choice(names), draw.choice((1, -1)))


def _sizes(draw: random.Random, data: bytes) -> bytes:
    """Change the size field before an MP4 box, or a run of bytes in files without boxes."""
    names = [name for name in (b"moov", b"trak", b"mdia", b"stsd", b"stts", b"stsz", b"avc1", b"mdat") if name in data]
    if not names:
        return _numbers(draw, data)
    at = data.index(draw.choice(names)) - 4
    size = draw.choice((0, 1, 7, 8, 9, 0x7FFFFFFF, 0xFFFFFFFF, struct.unpack(">I", data[at : at + 4])[0] + 1))
    return data[:at] + struct.pack(">I", size % 2**32) + data[at + 4 :]


_DAMAGE = {
    "header": _header,
    "trailer": _trailer,
    "body": _body,
    "numbers": _numbers,
    "truncated": _truncated,
    "zeroed": _zeroed,
    "cut-out": _cut_out,
    "repeated": _repeated,
    "spliced": _spliced,
    "names": _swapped_boxes,
    "sizes": _sizes,
}
