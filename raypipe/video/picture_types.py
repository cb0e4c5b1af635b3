"""What the first bytes of a packet say of its picture, and in which order such pictures are shown: pure functions.

In MPEG-1, MPEG-2 and MPEG-4 no picture refers to a B-picture, so the types alone tell the display order. H.263 is
here because FFmpeg calls all its packets key frames in containers such as AVI and Matroska.
"""

import re
from collections.abc import Iterable
from enum import IntEnum

import numpy as np

from raypipe.video.timeline import Flags, Positions

ORDERED_BY_TYPE = frozenset({"mpeg4", "mpeg1video", "mpeg2video"})
TELL_TYPES = ORDERED_BY_TYPE | {"h263"}
TELL_KEYFRAMES = frozenset({"mpeg4", "h263"})
# Codecs of which FFmpeg's parsers or encoders call every packet a key frame, and whose packets do not tell.
_ALL_CALLED_KEYFRAMES = frozenset({"h261", "rpza"})
WRONG_KEYFRAMES = _ALL_CALLED_KEYFRAMES | {"h263"}
_HEAD_BYTES = 4096  # headers and user data before the picture
_BITS = 256
_PACKED = re.compile(rb"\x00\x00\x01\xb2DivX\d+(?:b|Build)\d+p")
_MPEG4_VOP = b"\x00\x00\x01\xb6"
_MPEG4_LAYER = re.compile(rb"\x00\x00\x01[\x20-\x2f]")
_MPEG4_CUSTOM_ASPECT = 15
_MAX_UNCODED_BYTES = 19  # as in FFmpeg; a longer one holds a picture, whatever a wrong header makes of its bits
_MPEG_PICTURE = b"\x00\x00\x01\x00"
_H263_START, _H263_START_BITS, _H263_EXTENDED, _H263_HAS_OPTIONS = 0x20, 22, 7, 1


class PictureType(IntEnum):
    """How a picture is coded."""

    UNKNOWN = 0
    INTRA = 1
    PREDICTED = 2
    BIDIRECTIONAL = 3
    NOT_CODED = 4  # MPEG-4: the picture before it goes on


class _BitReader:
    """Reads numbers from the first bits of bytes; beyond the end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data[: _BITS // 8].ljust(_BITS // 8, b"\0"), "big")
        self._left = _BITS

    def read(self, count: int) -> int:
        self._left = max(0, self._left - count)
        return self._value >> self._left & ((1 << count) - 1)


class PictureTypes:
    """Reads the types of the pictures of one stream, packet after packet."""

    def __init__(self, codec: str, extradata: bytes) -> None:
        self._codec = codec
        self._time_bits = 0  # of an MPEG-4 picture's time; 0 where no layer header told
        if codec == "mpeg4":
            self._read_layer(extradata[:_HEAD_BYTES])

    def read(self, packet: memoryview) -> PictureType:
        """Return the type of a packet's first picture."""
        if self._codec == "mpeg4":
            return self._read_mpeg4(bytes(packet[:_HEAD_BYTES]))
        if self._codec in {"mpeg1video", "mpeg2video"}:
            head = bytes(packet[:_HEAD_BYTES])
            at = head.find(_MPEG_PICTURE)
            kind = head[at + 5] >> 3 & 7 if 0 <= at < len(head) - 5 else 0
            return PictureType(kind) if kind <= PictureType.BIDIRECTIONAL else PictureType.UNKNOWN
        if self._codec == "h263":
            return _read_h263(bytes(packet[: _BITS // 8]))
        return PictureType.UNKNOWN

    def _read_layer(self, head: bytes) -> None:
        """Note how many bits a time takes (ISO/IEC 14496-2, 6.2.3)."""
        found = _MPEG4_LAYER.search(head)
        if not found:
            return
        bits = _BitReader(head[found.end() :])
        bits.read(1 + 8)
        version = 1
        if bits.read(1):
            version = bits.read(4)
            bits.read(3)
        if bits.read(4) == _MPEG4_CUSTOM_ASPECT:
            bits.read(16)
        if bits.read(1):
            bits.read(2 + 1)
            if bits.read(1):
                bits.read(79)
        if bits.read(2) == 3 and version != 1:  # noqa: PLR2004 - a grey shape
            bits.read(4)
        bits.read(1)
        resolution = bits.read(16)
        self._time_bits = max(1, (resolution - 1).bit_length()) if resolution else 0

    def _read_mpeg4(self, head: bytes) -> PictureType:
        at = head.find(_MPEG4_VOP)
        if at < 0:
            return PictureType.UNKNOWN if len(head) > 1 else PictureType.NOT_CODED  # DivX skips a frame
        self._read_layer(head[:at])
        bits = _BitReader(head[at + 4 :])
        kind = (PictureType.INTRA, PictureType.PREDICTED, PictureType.BIDIRECTIONAL, PictureType.PREDICTED)[
            bits.read(2)
        ]
        for _ in range(_BITS // 2):
            if not bits.read(1):
                break
        has_marker = bits.read(1) and self._time_bits
        bits.read(self._time_bits)
        is_coded = not has_marker or not bits.read(1) or bits.read(1)
        return kind if is_coded or len(head) - at > _MAX_UNCODED_BYTES else PictureType.NOT_CODED


def _read_h263(head: bytes) -> PictureType:
    """Return the type in the picture header (ITU-T H.263, 5.1)."""
    bits = _BitReader(head)
    if bits.read(_H263_START_BITS) != _H263_START:
        return PictureType.UNKNOWN
    bits.read(8 + 5)  # temporal reference; markers, split screen, camera, freeze
    if bits.read(3) != _H263_EXTENDED:
        return PictureType.PREDICTED if bits.read(1) else PictureType.INTRA
    if bits.read(3) == _H263_HAS_OPTIONS:
        bits.read(18)
    kind = bits.read(3)
    return {0: PictureType.INTRA, 3: PictureType.BIDIRECTIONAL}.get(kind, PictureType.PREDICTED)


def is_packed(head: bytes) -> bool:
    """Return whether MPEG-4 headers or a packet announce packets with two pictures each, as DivX and Xvid make them."""
    return bool(_PACKED.search(head[:_HEAD_BYTES]))


def display_order(types: Iterable[int]) -> Positions:
    """Return positions of pictures in display order: others are shown after the B-pictures that follow them."""
    order: list[int] = []
    held = -1
    for position, kind in enumerate(types):
        if kind == PictureType.BIDIRECTIONAL:
            order.append(position)
            continue
        if held >= 0:
            order.append(held)
        held = position
    if held >= 0:
        order.append(held)
    return np.array(order, dtype=np.int64)


def believable_keyframes(is_keyframe: Flags, codec: str) -> Flags:
    """Return the key frames, of which only the first is one where all packets are called so without reason."""
    if codec not in _ALL_CALLED_KEYFRAMES or not is_keyframe.all():
        return is_keyframe
    first: Flags = np.arange(len(is_keyframe)) == 0
    return first
