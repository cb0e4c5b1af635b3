"""Videos whose frames show their number, packets with any timestamps, and containers around them."""

import io
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

SIDE = 64
_BLOCK = 8
_BITS = 12
MATROSKA_CODECS = {
    "h264": "V_MPEG4/ISO/AVC",
    "vp8": "V_VP8",
    "vp9": "V_VP9",
    "mjpeg": "V_MJPEG",
    "mpeg4": "V_MPEG4/ISO/ASP",
}
SIXTEEN = [2, 6, 9, 13, 17, 21, 24, 28, 32, 36, 39, 43, 47, 51, 54, 58]  # the uniform choice of 16 of 60 frames
BFRAMES = {"preset": "ultrafast", "bf": "3", "b-adapt": "0", "b-pyramid": "normal", "refs": "4", "sc_threshold": "0"}


@dataclass(frozen=True)
class Packet:
    """One packet, in decoding order; ``frame`` is the number of its frame in display order, from 0."""

    data: bytes
    frame: int
    is_keyframe: bool


@dataclass(frozen=True)
class Encoded:
    """A stream that is not in a container yet."""

    codec: str
    packets: tuple[Packet, ...]

    def __add__(self, other: "Encoded") -> "Encoded":
        """Append the packets of another stream with the same settings."""
        count = len(self.packets)
        later = tuple(Packet(one.data, count + one.frame, one.is_keyframe) for one in other.packets)
        return Encoded(self.codec, self.packets + later)


def picture(number: int) -> npt.NDArray[np.uint8]:
    """Draw a number as 4x4 black and white blocks: its bits, and a checksum in the last row."""
    bits = [(number >> bit) & 1 for bit in range(_BITS)]
    bits += [sum(bits) % 2, 1 - sum(bits) % 2, 1, 0]
    image = np.full((SIDE, SIDE, 3), 126, dtype=np.uint8)
    image[16:48, 16:48] = np.kron(np.reshape(bits, (4, 4)), np.full((_BLOCK, _BLOCK), 1))[..., None] * 200 + 25
    return image


def read_numbers(frames: npt.NDArray[np.uint8]) -> list[int]:
    """Read the numbers in frames [T, H, W, 3] of at most ``SIDE`` pixels, cropped at their centre; -1 if illegible."""
    edge = frames.shape[1] // 2 - 16
    grey = frames[:, edge : edge + 32, edge : edge + 32].mean(axis=3)
    blocks = grey.reshape(len(frames), 4, _BLOCK, 4, _BLOCK)[:, :, 2:6, :, 2:6].mean(axis=(2, 4)) > 126
    numbers = []
    for bits in blocks.reshape(len(frames), 16).astype(int).tolist():
        is_right = bits[12:] == [sum(bits[:_BITS]) % 2, 1 - sum(bits[:_BITS]) % 2, 1, 0]
        numbers.append(sum(bit << place for place, bit in enumerate(bits[:_BITS])) if is_right else -1)
    return numbers


def encode(numbers: Iterable[int], *, encoder: str = "libx264", options: dict[str, str] | None = None) -> Encoded:
    """Encode frames that show these numbers."""
    context: Any = av.CodecContext.create(encoder, "w")
    context.width = context.height = SIDE
    context.pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
    context.time_base, context.framerate = Fraction(1, 10), Fraction(10)
    context.options = {"threads": "1", **(options or {})}
    packets = []
    for frame, number in enumerate(numbers):
        image = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
        image.pts, image.time_base = frame, Fraction(1, 10)
        packets += context.encode(image)
    packets += context.encode(None)
    codec = {"libx264": "h264", "libvpx": "vp8", "libvpx-vp9": "vp9"}.get(encoder, encoder)
    found = tuple(Packet(bytes(one), one.pts, one.is_keyframe) for one in packets)
    return Encoded(codec, found)


def _element(name: int, content: bytes) -> bytes:
    size = len(content)
    return name.to_bytes((name.bit_length() + 7) // 8, "big") + (size | 1 << 56).to_bytes(8, "big") + content


def _unsigned(name: int, value: int) -> bytes:
    return _element(name, value.to_bytes(8, "big"))


def matroska(stream: Encoded, times: Sequence[int | None], *, duration: float = 0.0) -> bytes:
    """Put packets into a Matroska file in decoding order, with any times in milliseconds; None is no time."""
    header = _element(0x1A45DFA3, _element(0x4282, b"matroska") + _unsigned(0x4287, 4) + _unsigned(0x4285, 2))
    info = _unsigned(0x2AD7B1, 1_000_000)
    if duration:
        info += _element(0x4489, struct.pack(">d", duration))
    size = _unsigned(0xB0, SIDE) + _unsigned(0xBA, SIDE)
    track = _unsigned(0xD7, 1) + _unsigned(0x73C5, 1) + _unsigned(0x83, 1) + _unsigned(0x23E383, 100_000_000)
    track += _element(0x86, MATROSKA_CODECS[stream.codec].encode()) + _element(0xE0, size)
    if stream.codec == "h264":
        track += _element(0x63A2, _avcc(stream.packets[0].data))
    body = _element(0x1549A966, info) + _element(0x1654AE6B, _element(0xAE, track))
    for packet, time in zip(stream.packets, times, strict=True):
        data = _length_prefixed(packet.data) if stream.codec == "h264" else packet.data
        block = struct.pack(">BhB", 0x81, -1 if time is None else 0, 0x80 if packet.is_keyframe else 0) + data
        body += _element(0x1F43B675, _unsigned(0xE7, time or 0) + _element(0xA3, block))
    return header + _element(0x18538067, body)


def _units(data: bytes) -> list[bytes]:
    """Split an H.264 Annex B stream into its units."""
    parts = data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")
    return [part for part in parts if part]


def _length_prefixed(data: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in _units(data))


def _avcc(data: bytes) -> bytes:
    """Return the AVCDecoderConfigurationRecord of a packet with parameter sets (ISO/IEC 14496-15)."""
    sps, pps = (next(unit for unit in _units(data) if unit[0] & 31 == kind) for kind in (7, 8))
    return (
        b"\1" + sps[1:4] + b"\xff\xe1" + struct.pack(">H", len(sps)) + sps + b"\1" + struct.pack(">H", len(pps)) + pps
    )


def mux(stream: Encoded, container: str, pts: Sequence[int | None], dts: Sequence[int | None]) -> bytes:
    """Put packets into a container with FFmpeg, with times in 1/90000 s, which must increase as FFmpeg requires."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        target: Any = output.add_mux_stream(stream.codec, rate=10, width=SIDE, height=SIDE)
        target.time_base = Fraction(1, 90_000)
        for one, shown, decoded in zip(stream.packets, pts, dts, strict=True):
            packet: Any = av.Packet(one.data)
            packet.stream, packet.time_base, packet.is_keyframe = target, Fraction(1, 90_000), one.is_keyframe
            packet.pts, packet.dts, packet.duration = shown, decoded, 9000
            output.mux(packet)
    return file.getvalue()
