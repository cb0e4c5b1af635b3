"""Recognise and open the container of an untrusted video. Runs in the child process only."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import av
import av.logging
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from raypipe.status import Status
from raypipe.text import one_line
from raypipe.video.decode_request import DecodeRequest

SNIFF_BYTES = 8192
_TS_BYTES = 1024  # more packets say no more, and the first of them may be lost
_OF_FORMAT_1 = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "ogg", "asf")
CONTAINERS = (*_OF_FORMAT_1, "mxf", "ivf", "h264", "hevc", "gif", "apng")
RAW_STREAMS = frozenset({"h264", "hevc"})  # without a container, and so without any times
_SYNC, _MIN_SYNCS = 0x47, 5  # the first byte of each packet in a transport stream
_TS_PACKET_BYTES = (188, 192, 204)
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"moof", b"styp", b"sidx", b"uuid")
_MAGIC = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"FLV\x01", "flv"),
    (b"OggS", "ogg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02", "mxf"),
    (b"DKIF", "ivf"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
)
_PNG, _ANIMATION, _PICTURE = b"\x89PNG\r\n\x1a\n", b"acTL", b"IDAT"  # an animated PNG announces it before its picture
_START_CODES = (b"\x00\x00\x01", b"\x00\x00\x00\x01")
_FIRST_UNITS = {  # of raw streams: parameter sets, a delimiter, or supplementary information
    "h264": (b"\x67", b"\x47", b"\x27", b"\x09", b"\x06"),
    "hevc": (b"\x40\x01", b"\x42\x01", b"\x46\x01", b"\x4e\x01"),
}
# A pack header of MPEG-2 or MPEG-1, and the start code that follows it.
_PACK = re.compile(rb"\x00\x00\x01\xba(?:[\x44-\x7f].{8}[\xf8-\xff]|[\x21-\x2f].{7})\x00\x00\x01[\xbb-\xff]", re.DOTALL)
Packet: TypeAlias = "av.Packet[Any]"
_READ_BUFFER_BYTES = 64 * 1024
_STORE_CHECKSUMS = frozenset({"hevc", "ffv1", "png", "apng"})  # encoders can add a checksum of each picture
_EBML_HEADER, MATROSKA_SEGMENT = 0x1A45DFA3, 0x18538067
_MAX_ID_BYTES, _MAX_SIZE_BYTES = 4, 8
_MAX_ELEMENTS = 1000
ONLY_A_COVER = "The only video stream is a cover picture"


class VideoError(Exception):
    """A video cannot be decoded. Its row gets ``status``, and the message becomes the row's ``error``."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


def encrypted(reason: str) -> VideoError:
    return VideoError(Status.ENCRYPTED, f"The video is encrypted: {reason}. Decrypt it first.")


def describe(error: BaseException) -> str:
    """Describe an error in one line, for a row's ``error``. FFmpeg's own message is used if there is one."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return one_line(text)[:300]


class SeekableReader(io.RawIOBase):
    """The base class of files that FFmpeg reads through Python."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class Line(NamedTuple):  # one logged error
    source: str  # FFmpeg's name of the demuxer or decoder
    message: str


class ErrorLog:
    """Collects the error lines that FFmpeg logs.

    Call ``take`` regularly. It empties the log, so that a hostile file cannot fill the memory.
    """

    def __init__(self, lines: list[tuple[int, str, str]] | None = None) -> None:
        self.lines = [] if lines is None else lines  # (level, source, message)

    def take(self) -> list[Line]:
        """Return the lines logged since the last call, and remove them from the log."""
        taken = [Line(source, one_line(message)) for _, source, message in self.lines]
        self.lines.clear()
        return taken


@contextmanager
def error_log() -> Iterator[ErrorLog]:
    """Collect the errors that FFmpeg logs in this thread while the ``with`` block runs."""
    av.logging.set_level(av.logging.ERROR)
    skipped = av.logging.get_skip_repeated()
    av.logging.set_skip_repeated(False)  # two corrupt frames in a row may have the same error
    try:
        with av.logging.Capture() as lines:
            yield ErrorLog(lines)
    finally:
        av.logging.set_skip_repeated(skipped)
        av.logging.set_level(None)


def sniff_container(head: bytes, *, row_format: int = 2) -> str | None:
    """Return FFmpeg's name for the container of a file that begins with ``head``.

    Return None if the container is not in ``CONTAINERS``. Except in row format 1 (older outputs), which has fewer
    containers, a transport stream or program stream may begin in the middle of a packet, as captured streams do.
    """
    name = _sniff(head, begins_anywhere=row_format > 1)
    return name if row_format > 1 or name in _OF_FORMAT_1 else None


def _sniff(head: bytes, *, begins_anywhere: bool) -> str | None:
    if head[4:8] in _MP4_BOXES:
        return "mov"
    if head[:4] in {b"RIFF", b"ON2 "} and head[8:11] in {b"AVI", b"ON2"}:
        return "avi"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if _is_transport_stream(head[:_TS_BYTES], begins_anywhere=begins_anywhere):
        return "mpegts"
    if head.startswith(_PNG):
        return "apng" if _ANIMATION in head.partition(_PICTURE)[0] else None
    return _raw_stream(head) or ("mpeg" if begins_anywhere and _PACK.search(head) else None)


def _is_transport_stream(head: bytes, *, begins_anywhere: bool) -> bool:
    for packet_size, offset in ((188, 0), (192, 4), (204, 0)):
        syncs = head[offset::packet_size]
        if len(syncs) > 1 and set(syncs[:5]) == {_SYNC}:
            return True
    return begins_anywhere and any(
        len(syncs := head[offset::packet_size]) >= _MIN_SYNCS and set(syncs) == {_SYNC}
        for packet_size in _TS_PACKET_BYTES
        for offset in range(packet_size)
    )


def _raw_stream(head: bytes) -> str | None:
    """Return the codec of a raw H.264 or HEVC stream (Annex B), or None if ``head`` is not the beginning of one."""
    if not head.startswith(_START_CODES):
        return None
    unit = head[head.index(b"\x01") + 1 :]
    return next((codec for codec, units in _FIRST_UNITS.items() if unit.startswith(units)), None)


def open_stream(file: BinaryIO, container: str, request: DecodeRequest) -> tuple[InputContainer, VideoStream]:
    """Open a file as the given container. Prepare its main video stream for decoding in one thread.

    Raises:
        VideoError: the file has no video stream, FFmpeg has no decoder for the stream, or its frames are too large.
        av.error.FFmpegError: FFmpeg cannot read the file.
    """
    limits = request.limits
    file.seek(0)
    source = av.open(
        file,
        "r",
        format=container,
        # A fixed demuxer: FFmpeg guesses nothing from the content, and the file cannot make it open any protocol.
        options={"format_whitelist": container, "protocol_whitelist": "none", "max_streams": str(limits.max_streams)},
        metadata_errors="replace",
        buffer_size=_READ_BUFFER_BYTES,
    )
    stream = _main_stream(source)
    context = stream.codec_context
    if context is None:
        raise VideoError(Status.DECODE_ERROR, "FFmpeg has no decoder for the codec of its video.")
    context.thread_count = 1
    context.thread_type = "NONE"
    if not request.loop_filter:
        context.options = {"skip_loop_filter": "all"}
    elif request.row_format > 1 and context.codec.canonical_name in _STORE_CHECKSUMS:
        context.options = {"err_detect": "crccheck"}
    pixels = context.width * context.height
    if pixels > limits.max_pixels:
        msg = f"{context.width}x{context.height} is {pixels} pixels; decode.max_pixels is {limits.max_pixels}."
        raise VideoError(Status.TOO_LARGE, msg)
    return source, stream


def _main_stream(source: InputContainer) -> VideoStream:
    """Return the video stream that FFmpeg prefers, or the first other one if FFmpeg prefers a cover picture.

    Raises:
        VideoError: there is no video stream other than cover pictures.
    """
    streams = [one for one in source.streams.video if not one.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({one.type for one in source.streams})) or "none"
        found = ONLY_A_COVER if source.streams.video else "No video stream"
        raise VideoError(Status.NO_VIDEO_STREAM, f"{found}; the streams are: {kinds}.")
    best = source.streams.best("video")
    return next((one for one in streams if one is best), streams[0])


def size_of(file: BinaryIO) -> int:
    """Return the size of a file in bytes. The file position is restored, because FFmpeg relies on it."""
    at = file.tell()
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(at)
    return size_bytes


def read_element(file: BinaryIO, at: int) -> tuple[int, int, int | None] | None:
    """Read the header of the Matroska or WebM element (EBML, RFC 8794) that begins at offset ``at``.

    Return the id of the element, the offset of its content, and the size of its content in bytes. The size is None if
    the header declares it as unknown. If the header is invalid or incomplete, return None instead of the three values.
    """
    file.seek(at)
    header = file.read(_MAX_ID_BYTES + _MAX_SIZE_BYTES)
    id_bytes = 9 - header[0].bit_length() if header else 9
    size_bytes = 9 - header[id_bytes].bit_length() if id_bytes < len(header) else 9
    if id_bytes > _MAX_ID_BYTES or size_bytes > _MAX_SIZE_BYTES or id_bytes + size_bytes > len(header):
        return None
    unknown = (1 << 7 * size_bytes) - 1
    size = int.from_bytes(header[id_bytes : id_bytes + size_bytes], "big") & unknown
    kind = int.from_bytes(header[:id_bytes], "big")
    return kind, at + id_bytes + size_bytes, None if size == unknown else size


def declared_bytes(file: BinaryIO) -> int:
    """Return the size in bytes that a Matroska file should have according to its headers.

    This is the declared end of the last segment, or the file's actual size if no end is declared. A file may have
    several segments, for example because several files were joined.
    """
    size_bytes = size_of(file)
    at = 0
    for _ in range(_MAX_ELEMENTS):
        kind, body, size = read_element(file, at) or (0, 0, None)
        if size is None or kind not in {_EBML_HEADER, MATROSKA_SEGMENT}:
            break
        at = body + size
        if at >= size_bytes:
            return at
    return size_bytes
