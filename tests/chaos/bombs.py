"""Videos that are small to store and huge to read: far too many pixels, frames, streams, seconds or nested boxes."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av

from chaos.hostile_files import HostileFile, seed_clips
from video.conftest import CLIPS, blank_png, make_clip
from video.test_canary import box

_CONTAINER_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"}
_MANY_FRAMES = 10_000_000
_MANY_STREAMS = 10_000
_SIDE = 16_384
Edit = Callable[[bytes], bytes]


def bombs() -> Iterator[HostileFile]:
    """Yield every bomb."""
    mp4, mkv = seed_clips()["mp4-h264"], seed_clips()["matroska-h264"]
    for name, make in (
        ("a picture of 16k x 16k", _huge_picture),
        ("a header that says 16k x 16k", lambda: edited(mp4, {b"stsd": _say_16k})),
        ("10^7 frames in a table", lambda: _many_frames(mp4, _MANY_FRAMES)),
        ("10^9 frames in a table", lambda: _many_frames(mp4, 1_000_000_000)),
        ("2^32 entries that are not there", lambda: edited(mp4, {b"stts": _many_entries, b"stsz": _many_entries})),
        ("10,000 tracks", lambda: _many_tracks(mp4)),
        ("10,000 streams in Matroska", _many_streams),
        ("a size that changes again and again", _changing_size),
        ("times that go back", lambda: edited(mp4, {b"ctts": _negative_times})),
        ("times that are huge", lambda: edited(mp4, {b"stts": _huge_deltas})),
        ("no time unit", lambda: edited(mp4, {b"mdhd": lambda body: body[:12] + bytes(4) + body[16:]})),
        ("an edit list of centuries", lambda: edited(mp4, {b"edts": lambda _: _edit_list(0x7FFFFFFF, -1)})),
        ("an edit list of 10,000 cuts", lambda: edited(mp4, {b"edts": lambda _: _edit_list(1, 0, times=10_000)})),
        ("packets of strange times", _strange_packets),
        ("a header that unpacks to a gigabyte", _compressed_header),
        ("boxes in boxes", lambda: _nested(mp4)),
        ("elements in elements", lambda: mkv[:4] + b"\x80" + b"\x18\x53\x80\x67\x01" * 20_000),
        ("a megabyte of boxes of no size", lambda: mp4[:32] + struct.pack(">I4s", 8, b"free") * 131_072),
        ("20,000 tables of programs", lambda: _many_programs(seed_clips()["mpegts-h264"])),
    ):
        yield HostileFile(f"bomb: {name}", make())


def edited(data: bytes, edits: dict[bytes, Edit]) -> bytes:
    """Change the bodies of some boxes of an MP4. Its media data comes first, so it does not move."""
    boxes = b""
    while len(data) >= 8:
        size, name = struct.unpack(">I4s", data[:8])
        body, data = data[8:size], data[size:]
        if name in edits:
            body = edits[name](body)
        elif name in _CONTAINER_BOXES:
            body = edited(body, edits)
        boxes += box(name, body)
    return boxes


def _say_16k(body: bytes) -> bytes:
    """Write width and height into a sample description, after 16 bytes of headers and 24 of the entry."""
    return body[:40] + struct.pack(">HH", _SIDE, _SIDE) + body[44:]


def _many_frames(data: bytes, count: int) -> bytes:
    return edited(
        data,
        {
            b"stts": lambda _: struct.pack(">IIII", 0, 1, count, 1),
            b"stsz": lambda _: struct.pack(">III", 0, 1, count),  # one byte each
            b"stsc": lambda _: struct.pack(">IIIII", 0, 1, 1, count, 1),
            b"stss": lambda _: struct.pack(">III", 0, 1, 1),
            b"ctts": lambda _: struct.pack(">IIII", 0, 1, count, 0),
        },
    )


def _many_entries(body: bytes) -> bytes:
    return body[:4] + b"\xff\xff\xff\xff" + body[8:]


def _negative_times(_: bytes) -> bytes:
    return struct.pack(">III", 0x01000000, 2, 12) + struct.pack(">iIi", -(2**31), 12, 2**31 - 1)


def _huge_deltas(_: bytes) -> bytes:
    return struct.pack(">IIII", 0, 1, 24, 0xFFFFFFFF)


def _edit_list(duration: int, start: int, *, times: int = 1) -> bytes:
    return box(b"elst", struct.pack(">II", 0, times) + struct.pack(">IiI", duration, start, 0x00010000) * times)


def _many_tracks(data: bytes) -> bytes:
    def repeat(moov: bytes) -> bytes:
        at = moov.index(b"trak") - 4
        size = struct.unpack(">I", moov[at : at + 4])[0]
        return moov[: at + size] + moov[at : at + size] * (_MANY_STREAMS - 1) + moov[at + size :]

    return edited(data, {b"moov": repeat})


def _nested(data: bytes) -> bytes:
    inner = b""
    for _ in range(3000):
        inner = box(b"moov", inner)
    return data[:32] + inner


def _compressed_header() -> bytes:
    packer = zlib.compressobj(1)
    packed = b"".join([*(packer.compress(bytes(2**20)) for _ in range(1024)), packer.flush()])
    body = box(b"dcom", b"zlib") + box(b"cmvd", struct.pack(">I", 2**30) + packed)
    return box(b"ftyp", b"qt  \0\0\0\0qt  ") + box(b"moov", box(b"cmov", body))


def _changing_size() -> bytes:
    small, large = make_clip(CLIPS["h264-ts"]), seed_clips()["mpegts-hevc"]
    return (small + large) * 40


def _many_programs(data: bytes) -> bytes:
    return data[:188] * 20_000 + data


def _huge_picture() -> bytes:
    return _muxed("mov", "png", [(0, blank_png(_SIDE))])  # the container claims a small picture


def _strange_packets() -> bytes:
    times = (0, 2**40, -(2**40), 2**40 + 1, -1, 7, 7, 2**50)
    return _muxed("matroska", "mjpeg", [(time, b"\xff\xd8\xff\xd9") for time in sorted(times)])


def _muxed(container: str, codec: str, packets: list[tuple[int, bytes]]) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_mux_stream(codec, rate=1, width=64, height=64)
        for time, data in packets:
            packet: Any = av.Packet(data)
            packet.stream, packet.pts, packet.dts = stream, time, time
            packet.time_base, packet.is_keyframe = Fraction(1, 1000), True
            output.mux(packet)
    return file.getvalue()


def _many_streams() -> bytes:
    """Repeat the entry of one track as often as a Matroska header allows."""
    data = seed_clips()["matroska-h264"]
    at = data.index(b"\x16\x54\xae\x6b")  # Tracks; its size is in the bytes that follow
    width = 8 if data[at + 4] == 1 else 1
    size = int.from_bytes(data[at + 4 : at + 4 + width], "big") & (256**width // 2 - 1 if width == 1 else 2**56 - 1)
    start = at + 4 + width
    entry = data[start : start + size]
    tracks = entry * _MANY_STREAMS
    return data[:at] + b"\x16\x54\xae\x6b\x01" + len(tracks).to_bytes(7, "big") + tracks + data[start + size :]
