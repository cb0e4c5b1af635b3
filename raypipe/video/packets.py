"""Scan all packets of a stream for times, key frames, picture types and lost frames.

Picture types are read from the first bytes of each packet. In MPEG-1, MPEG-2 and MPEG-4, no picture refers to a
B-picture, so the types alone determine the display order. In H.263, the types show the key frames: in containers such
as AVI and Matroska, FFmpeg marks every H.263 packet as a key frame.
"""

import re
import struct
from array import array
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import BinaryIO

import numpy as np
from av.video.stream import VideoStream

from raypipe.video.container import Packet, size_of
from raypipe.video.timeline import NO_TIME, DecodedOrder, Flags, Indices, Stamps, Ticks, insert_in_order

# Codecs whose decoding order can differ from the display order.
REORDERING = frozenset(
    {"h264", "hevc", "vvc", "evc", "mpeg1video", "mpeg2video", "mpeg4", "vc1", "wmv3", "vc1image", "wmv3image"}
    | {"cavs", "avs2", "avs3", "svq3", "rv30", "rv40", "dirac"}
)
_ORDERED_BY_TYPE = frozenset({"mpeg4", "mpeg1video", "mpeg2video"})
_TELL_TYPES = _ORDERED_BY_TYPE | {"h263"}
_TELL_KEYFRAMES = frozenset({"mpeg4", "h263"})
# FFmpeg's parsers or encoders mark every packet of these codecs as a key frame, and the packets' bytes are not read to
# correct this.
_ALL_CALLED_KEYFRAMES = frozenset({"h261", "rpza"})
WRONG_KEYFRAMES = _ALL_CALLED_KEYFRAMES | {"h263"}

_KEEP_PACKETS_BYTES = 64 * 1024 * 1024
_PACKET_BYTES = 640  # memory that a packet takes in addition to its content
_MAX_ERRORS = 1000
_GAP_SECONDS = 10  # a longer gap is a jump, and does not count as covered time

_HEAD_BYTES = 4096  # headers and user data before the picture
_BITS = 256
_PACKED = re.compile(rb"\x00\x00\x01\xb2DivX\d+(?:b|Build)\d+p")
_MPEG4_VOP = b"\x00\x00\x01\xb6"
_MPEG4_LAYER = re.compile(rb"\x00\x00\x01[\x20-\x2f]")
_MPEG4_CUSTOM_ASPECT = 15
_MAX_UNCODED_BYTES = 19  # as in FFmpeg; a longer packet holds a picture, even if a wrong header makes it look empty
_MPEG_PICTURE = b"\x00\x00\x01\x00"
_H263_START, _H263_START_BITS, _H263_EXTENDED, _H263_HAS_OPTIONS = 0x20, 22, 7, 1
_VP8_SHOW_FRAME = 0x10
_VP9_PROFILE_3 = 0x30  # this profile has one more bit before the flags below
_VP9_SHOWS = 0x0A  # show_existing_frame, show_frame
_VP9_SUPERFRAME_MASK, _VP9_SUPERFRAME = 0xE0, 0xC0

_CHUNK_HEADER_BYTES = 8
_MAX_CHUNKS = 1000  # at the top level of an AVI file
_MAX_INDEX_BYTES = 256 * 1024**2
_INDEX_ENTRY = np.dtype([("kind", "S4"), ("flags", "<u4"), ("offset", "<u4"), ("size", "<u4")])


class PacketScan:
    """Records the P packets of one stream in file order, which is also decoding order.

    For some codecs, the first bytes of each packet are read to find its picture type and whether it shows a picture. If
    ``codec`` is empty, no packet bytes are read.
    """

    def __init__(self, stream: VideoStream, codec: str) -> None:
        self._stream = stream
        self._codec = codec
        self._reader = PictureTypes(codec, bytes(stream.codec_context.extradata or b""))
        self._tells_types = codec in _TELL_TYPES
        self._types = array("b")
        self._pts, self._dts, self._places = array("q"), array("q"), array("q")
        self._durations, self._is_keyframe = array("q"), array("b")
        self._is_discarded, self._is_hidden = array("b"), array("b")
        self.corrupt: list[int] = []  # positions of packets that the demuxer flags as corrupt
        self._errors = array("q")  # positions of packets before which the demuxer logged an error
        self._tick_seconds: dict[int, float] = {}  # stream index -> its time base; floats are fast
        self._most_ticks = int(_GAP_SECONDS / stream.time_base) if stream.time_base else 1
        self._highest = NO_TIME
        self._kept_bytes = 0
        self.kept: list[Packet] = []  # all packets of the stream, or none if they take too much memory
        self.last_end_seconds = 0.0  # over all streams: audio may determine the container's duration
        self.covered_ticks = 0  # the time that the time stamps cover, not counting jumps

    def __len__(self) -> int:
        return len(self._pts)

    def add(self, packet: Packet, *, is_after_error: bool) -> None:
        """Record a packet of any stream. ``is_after_error`` says that the demuxer logged an error before it."""
        is_own = packet.stream_index == self._stream.index
        if is_after_error:
            self._errors.append(len(self))
        if packet.is_corrupt and is_own:
            self.corrupt.append(len(self))
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None:
            if packet.stream_index not in self._tick_seconds:
                self._tick_seconds[packet.stream_index] = float(packet.time_base or 0)
            end = (time + (packet.duration or 0)) * self._tick_seconds[packet.stream_index]
            self.last_end_seconds = max(self.last_end_seconds, end)
        if not is_own:
            return
        if time is not None:
            self._cover(time)
        self._pts.append(NO_TIME if packet.pts is None else packet.pts)
        self._dts.append(NO_TIME if packet.dts is None else packet.dts)
        self._places.append(-1 if packet.pos is None else packet.pos)
        self._durations.append(packet.duration or 0)
        kind = self._reader.read(memoryview(packet)) if self._tells_types else PictureType.UNKNOWN
        self._types.append(kind)
        is_told = self._codec in _TELL_KEYFRAMES and kind != PictureType.UNKNOWN
        self._is_keyframe.append(kind == PictureType.INTRA if is_told else packet.is_keyframe)
        self._is_discarded.append(packet.is_discard)
        self._is_hidden.append(kind == PictureType.NOT_CODED or _is_hidden(packet, self._codec))
        self._kept_bytes += packet.size + _PACKET_BYTES
        if self._kept_bytes <= _KEEP_PACKETS_BYTES:
            self.kept.append(packet)
        else:
            self.kept.clear()

    def _cover(self, time: int) -> None:
        most = self._most_ticks
        if self._highest == NO_TIME or not 0 < time - self._highest <= most:
            is_reordered = self._highest != NO_TIME and -most < time - self._highest <= 0
            self._highest = self._highest if is_reordered else time
            return
        self.covered_ticks += time - self._highest
        self._highest = time

    def find_lost_frames(self, file: BinaryIO) -> bool:
        """Renumber the packets of a damaged AVI file, using the index at its end. Return whether frames are lost.

        FFmpeg numbers the packets by counting those that it finds, so its numbers are too low after a lost packet.
        """
        found = _numbers_in_index(file, self._stream.index, self.places)
        if found is None:
            return False
        numbers, after_losses = found
        self._dts = array("q", (numbers + (self._dts[0] - int(numbers[0]))).tolist())
        self._errors.extend(after_losses)
        return True

    def find_display_order(self, decode_order: Callable[[], DecodedOrder | None]) -> Indices | None:
        """Return the positions of the packets in display order, for a stream without display times.

        Return None if file order is the best guess. ``decode_order`` is called only if nothing but the decoder can
        determine the order.
        """
        if self._codec in _ORDERED_BY_TYPE:
            return display_order(self._types)
        has_b_frames = bool(self._stream.codec_context.has_b_frames)
        if self._codec not in REORDERING or not has_b_frames or not (decoded := decode_order()):
            return None
        if decoded.num_packets < len(self):
            return None
        others = np.setdiff1d(np.arange(len(self)), decoded.positions)
        return insert_in_order(decoded.positions, others.tolist())

    @property
    def stamps(self) -> Stamps:
        """Return the times of all packets as the container stores them, with their key frame and display flags."""
        return Stamps(
            pts=np.array(self._pts, dtype=np.int64),
            dts=np.array(self._dts, dtype=np.int64),
            is_keyframe=believable_keyframes(np.array(self._is_keyframe, dtype=np.bool_), self._codec),
            is_shown=self.is_shown,
        )

    @property
    def is_shown(self) -> Flags:
        """Return a mask [P] of the packets that show a picture.

        If the bytes of all packets say that they show no picture, the bytes are unreliable and are ignored.
        """
        is_kept = ~np.array(self._is_discarded, dtype=np.bool_)
        is_shown: Flags = is_kept & ~np.array(self._is_hidden, dtype=np.bool_)
        return is_shown if is_shown.any() else is_kept

    @property
    def errors(self) -> list[int]:
        """Return the ascending positions of packets that follow a demuxer error or lost frames, at most 1000."""
        return sorted(set(self._errors))[:_MAX_ERRORS]

    @property
    def duration_ticks(self) -> float:
        """Return the median duration that packets declare, in ticks, or 0 if no packet declares one."""
        durations = np.array(self._durations, dtype=np.int64)
        return float(np.median(durations[durations > 0])) if (durations > 0).any() else 0.0

    @property
    def places(self) -> Ticks:
        """Return the file offset [P] at which each packet begins. Unknown offsets are -1."""
        return np.array(self._places, dtype=np.int64)


class PictureType(IntEnum):
    UNKNOWN = 0
    INTRA = 1
    PREDICTED = 2
    BIDIRECTIONAL = 3
    NOT_CODED = 4  # MPEG-4: the previous picture stays on screen


_MPEG4_TYPES = (PictureType.INTRA, PictureType.PREDICTED, PictureType.BIDIRECTIONAL, PictureType.PREDICTED)


class _BitReader:
    """Reads unsigned numbers from the first 256 bits of a byte string. Bits after the end of the string are 0."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data[: _BITS // 8].ljust(_BITS // 8, b"\0"), "big")
        self._left = _BITS

    def read(self, count: int) -> int:
        self._left = max(0, self._left - count)
        return self._value >> self._left & ((1 << count) - 1)


class PictureTypes:
    """Reads the picture types of one stream, packet by packet."""

    def __init__(self, codec: str, extradata: bytes) -> None:
        self._codec = codec
        self._time_bits = 0  # the size of the time field in an MPEG-4 picture header; 0 if unknown
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
        """Store the number of bits in a picture's time field, if ``head`` holds an MPEG-4 layer header.

        The layout is from ISO/IEC 14496-2, 6.2.3.
        """
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
        kind = _MPEG4_TYPES[bits.read(2)]
        for _ in range(_BITS // 2):
            if not bits.read(1):
                break
        has_marker = bits.read(1) and self._time_bits
        bits.read(self._time_bits)
        is_coded = not has_marker or not bits.read(1) or bits.read(1)
        return kind if is_coded or len(head) - at > _MAX_UNCODED_BYTES else PictureType.NOT_CODED


def _read_h263(head: bytes) -> PictureType:
    """Return a picture's type, read from its header (ITU-T H.263, 5.1)."""
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


def _is_hidden(packet: Packet, codec: str) -> bool:
    """Return whether a VP8 or VP9 packet holds only a reference frame that is not shown.

    The layouts are from RFC 6386, 9.1, and from the VP9 specification, 6.2.
    """
    if codec == "vp8":
        return not memoryview(packet)[0] & _VP8_SHOW_FRAME
    if codec == "vp9":
        first, last = memoryview(packet)[0], memoryview(packet)[-1]
        if last & _VP9_SUPERFRAME_MASK == _VP9_SUPERFRAME:  # several frames in one packet; the last one is shown
            return False
        has_profile_3 = first & _VP9_PROFILE_3 == _VP9_PROFILE_3
        return not first & (_VP9_SHOWS >> has_profile_3)
    return False


def is_packed(head: bytes) -> bool:
    """Return whether ``head`` says that each packet of an MPEG-4 stream may hold two pictures.

    ``head`` is the beginning of the stream's headers or of a packet.
    """
    return bool(_PACKED.search(head[:_HEAD_BYTES]))


def display_order(types: Iterable[int]) -> Indices:
    """Return the positions of pictures in display order, given their types in decoding order.

    B-pictures are shown before the last other picture that was decoded before them.
    """
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
    """Return a mask [P] of the packets that can be trusted to be key frames.

    For some codecs, FFmpeg marks every packet as a key frame without reason. Then only the first packet counts as one.
    """
    all_for_no_reason = codec in _ALL_CALLED_KEYFRAMES and is_keyframe.all()
    return np.asarray(np.arange(len(is_keyframe)) == 0, np.bool_) if all_for_no_reason else is_keyframe


def _numbers_in_index(file: BinaryIO, stream_index: int, places: Ticks) -> tuple[Ticks, list[int]] | None:
    """Read the frame number of each packet from the index of an AVI file. ``places`` [P] holds the packets' offsets.

    Return the numbers [P], and the positions of packets before which others are lost. Return None if no packet is lost,
    or if the index is itself damaged and does not list every packet.
    """
    at = file.tell()
    try:
        movi, entries = _read_index(file)
    except (ValueError, struct.error):
        return None
    finally:
        file.seek(at)  # where FFmpeg expects it
    kinds = (f"{stream_index:02d}dc".encode(), f"{stream_index:02d}db".encode())
    entries = entries[np.isin(entries["kind"], kinds)]
    is_filled = entries["size"] > 0
    if is_filled.sum() <= len(places):
        return None
    for base in (movi, 0):  # offsets are relative to the packet list or to the start of the file
        begins = entries["offset"].astype(np.int64) + base + _CHUNK_HEADER_BYTES
        numbers = np.searchsorted(begins, places)
        if (np.diff(begins) > 0).all() and numbers.max() < len(begins) and (begins[numbers] == places).all():
            filled_before = np.cumsum(is_filled)[numbers]
            return numbers.astype(np.int64), (np.flatnonzero(np.diff(filled_before) > 1) + 1).tolist()
    return None


def _read_index(file: BinaryIO) -> tuple[int, "np.ndarray[tuple[int], np.dtype[np.void]]"]:
    """Return the offset of the packet list in an AVI file, and the entries of the index after the list.

    Raises:
        ValueError: there is no complete index.
        struct.error: the file ends before the index.
    """
    size = size_of(file)
    at, movi = 12, -1
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(_CHUNK_HEADER_BYTES))
        if kind == b"LIST" and file.read(4) == b"movi":
            movi = at + _CHUNK_HEADER_BYTES
        if kind == b"idx1" and movi > 0 and length <= min(_MAX_INDEX_BYTES, size - at - _CHUNK_HEADER_BYTES):
            file.seek(at + _CHUNK_HEADER_BYTES)
            return movi, np.frombuffer(file.read(length // _INDEX_ENTRY.itemsize * _INDEX_ENTRY.itemsize), _INDEX_ENTRY)
        at += _CHUNK_HEADER_BYTES + length + length % 2
    raise ValueError(at)
