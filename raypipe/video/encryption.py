"""Detect encrypted videos from what their containers declare. Runs in the child process only.

A decoder does not detect encryption: it turns encrypted packets into noise. This module recognises Common Encryption in
MP4 (ISO/IEC 23001-7, and its predecessor PIFF), encryption in WebM, and scrambled MPEG transport streams.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from raypipe.video.container import MATROSKA_SEGMENT, read_element, size_of
from raypipe.video.mp4 import box_header

_MAX_BOXES = 10_000  # on one level; limits the time that a hostile file takes
_MAX_PAYLOAD_BYTES = 65_536
_PIFF_SAMPLE_ENCRYPTION = bytes.fromhex("a2394f525a9b4f14a2446c427c648df4")
_VISUAL_ENTRY_BYTES = 78  # the fields of a visual sample entry before its boxes
_ENCRYPTED_ENTRIES = frozenset({b"encv", b"drmi"})
_TS_PACKETS = 2000
_TS_WINDOWS = 16
_SYNC = 0x47
_SCRAMBLED_FRACTION = 0.5  # of the packets of all streams (ISO/IEC 13818-1, transport_scrambling_control)
_STRAY_FRACTION = 0.01  # of the packets of one stream; this many corrupt headers may look scrambled
_SCRAMBLED = "its packets are scrambled (transport_scrambling_control)"
_TRACKS, _TRACK, _TRACK_TYPE = 0x1654AE6B, 0xAE, 0x83
_ENCODINGS, _ENCODING, _ENCODING_TYPE = 0x6D80, 0x6240, 0x5033
_CLUSTER = 0x1F43B675
_VIDEO, _ENCRYPTION = 1, 1


def encryption_of(file: BinaryIO, container: str) -> str:
    """Return the reason why a video counts as encrypted, or "" if nothing indicates encryption."""
    size_bytes = size_of(file)
    try:
        if container == "mov":
            return _mp4(file, size_bytes)
        if container == "matroska":
            return _webm(file, size_bytes)
        if container == "mpegts":
            scrambled, count = _scrambled_packets(file, 0, pid=None)
            return _SCRAMBLED if scrambled > _SCRAMBLED_FRACTION * count else ""
    except (struct.error, ValueError, IndexError, OverflowError):
        pass  # the tables are damaged, which FFmpeg reports when it reads them
    finally:
        file.seek(0)
    return ""


def _boxes(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the MP4 boxes between two file offsets: the kind of each box, and where its content begins and ends."""
    for _ in range(_MAX_BOXES):
        if start + 8 > stop:
            return
        file.seek(start)
        kind, header, size = box_header(file.read(16))
        end = start + size if size else stop
        if end < start + header:
            return
        yield kind, start + header, min(end, stop)
        start = end


def _mp4(file: BinaryIO, size_bytes: int) -> str:
    """Return the reason why all video tracks of an MP4 are encrypted, or "" if at least one is not encrypted.

    If only some tracks are encrypted, the packets show later whether the decoded track is one of them.
    """
    reasons: dict[int, str] = {}  # track number -> reason
    for kind, start, stop in _boxes(file, 0, size_bytes):
        if kind == b"moov":
            for inner, *trak in _boxes(file, start, stop):
                if inner == b"trak":
                    reasons |= _video_track(file, *trak)
            if found := _reason_of_all(reasons):
                return found
        elif kind == b"moof":  # the first fragment stands for all fragments
            for inner, *traf in _boxes(file, start, stop):
                number = _fragment_track(file, *traf) if inner == b"traf" else None
                if number is not None and (number in reasons or not reasons):
                    reasons[number] = reasons.get(number) or _samples(file, *traf)
            return _reason_of_all(reasons)
    return ""


def _reason_of_all(reasons: dict[int, str]) -> str:
    """Return the reason of the first track if all tracks are encrypted, otherwise "".

    ``reasons`` maps each track number to the reason why the track is encrypted, or to "" if it is not.
    """
    return next(iter(reasons.values()), "") if all(reasons.values()) else ""


def _video_track(file: BinaryIO, start: int, stop: int) -> dict[int, str]:
    """Return the number of a video track, mapped to the reason why the track is encrypted.

    The reason is "" if the track is not encrypted. For a track of another type, the dict is empty.
    """
    parts = {kind: (body, end) for kind, body, end in _boxes(file, start, stop)}
    media = {kind: (body, end) for kind, body, end in _boxes(file, *parts.get(b"mdia", (0, 0)))}
    if _read(file, *media.get(b"hdlr", (0, 0)))[8:12] != b"vide":
        return {}
    header = _read(file, *parts.get(b"tkhd", (0, 0)))
    number = struct.unpack_from(">I", header, 20 if header[0] else 12)[0]
    for kind, *inner in _boxes(file, *media.get(b"minf", (0, 0))):
        if kind == b"stbl":
            entries = [
                _sample_entries(file, body + 8, end) for name, body, end in _boxes(file, *inner) if name == b"stsd"
            ]
            return {number: next(filter(None, entries), "") or _samples(file, *inner)}
    return {number: ""}


def _fragment_track(file: BinaryIO, start: int, stop: int) -> int | None:
    for kind, body, end in _boxes(file, start, stop):
        if kind == b"tfhd":
            return int(struct.unpack_from(">I", _read(file, body, end), 4)[0])
    return None


def _sample_entries(file: BinaryIO, start: int, stop: int) -> str:
    for kind, body, end in _boxes(file, start, stop):
        for inner, *scheme in _boxes(file, body + _VISUAL_ENTRY_BYTES, end):
            if inner == b"sinf":
                protected = _default_is_protected(file, *scheme)
                return "" if protected is False else f"its samples are protected ('{kind.decode('latin-1')}', 'sinf')"
        if kind in _ENCRYPTED_ENTRIES:
            return f"its samples are protected ('{kind.decode('latin-1')}')"
    return ""


def _default_is_protected(file: BinaryIO, start: int, stop: int) -> bool | None:
    """Return whether a track's 'tenc' box says that samples are protected by default, or None without this box.

    The default applies to samples that belong to no sample group.
    """
    for kind, body, end in _boxes(file, start, stop):
        if kind == b"schi":
            for inner, *track in _boxes(file, body, end):
                if inner == b"tenc":
                    return bool(_read(file, *track)[6])
    return None


def _samples(file: BinaryIO, start: int, stop: int) -> str:
    """Return the reason why the sample tables of a track or fragment indicate encryption, or "" if they do not."""
    for kind, body, end in _boxes(file, start, stop):
        data = _read(file, body, end)
        if kind == b"uuid" and data[:16] == _PIFF_SAMPLE_ENCRYPTION:
            kind, data = b"senc", data[16:]  # noqa: PLW2901
        if kind == b"senc" and len(data) >= 8 and struct.unpack_from(">I", data, 4)[0]:  # noqa: PLR2004
            return "it has initialisation vectors of samples ('senc')"
        if kind == b"sgpd" and data[4:8] == b"seig" and _groups_are_protected(data):
            return "it has groups of protected samples ('seig')"
    return ""


def _groups_are_protected(data: bytes) -> bool:
    """Return whether any entry in an 'sgpd' box of type 'seig' describes protected samples."""
    version = data[0]
    at, length = 8, 0
    if version >= 1:
        (length,) = struct.unpack_from(">I", data, at)
        at += 4
    if version >= 2:  # noqa: PLR2004
        at += 4
    (count,) = struct.unpack_from(">I", data, at)
    at += 4
    for _ in range(min(count, len(data))):
        size = length
        if version >= 1 and not length:
            (size,) = struct.unpack_from(">I", data, at)
            at += 4
        if data[at + 2]:
            return True
        at += size or 20
        if at + 3 > len(data):
            break
    return False


def _read(file: BinaryIO, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(max(0, min(stop - start, _MAX_PAYLOAD_BYTES)))


def _webm(file: BinaryIO, size_bytes: int) -> str:
    for element, start, stop in _elements(file, 0, size_bytes):
        if element != MATROSKA_SEGMENT:
            continue
        for inner, *tracks in _elements(file, start, stop):
            if inner == _CLUSTER:
                return ""
            if inner == _TRACKS:
                found = (_track(file, *track) for kind, *track in _elements(file, *tracks) if kind == _TRACK)
                return next(filter(None, found), "")
    return ""


def _track(file: BinaryIO, start: int, stop: int) -> str:
    kind, encrypted = 0, False
    for element, body, end in _elements(file, start, stop):
        if element == _TRACK_TYPE:
            kind = int.from_bytes(_read(file, body, end), "big")
        elif element == _ENCODINGS:
            for inner, *encoding in _elements(file, body, end):
                if inner == _ENCODING:
                    encrypted |= any(
                        name == _ENCODING_TYPE and int.from_bytes(_read(file, *value), "big") == _ENCRYPTION
                        for name, *value in _elements(file, *encoding)
                    )
    return "its track has an encryption (ContentEncryption)" if kind == _VIDEO and encrypted else ""


def _elements(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield the Matroska elements between two file offsets: each id, and where the content begins and ends."""
    for _ in range(_MAX_BOXES):
        element = read_element(file, start) if start + 2 <= stop else None
        if element is None:
            return
        kind, body, size = element
        end = stop if size is None else min(body + size, stop)
        yield kind, body, end
        start = end


def scrambling_of(file: BinaryIO, pid: int) -> str:
    """Return the reason why one stream in a transport stream counts as scrambled, or "" if it does not.

    ``pid`` identifies the stream. Its packets are sampled across the whole file.
    """
    at, size_bytes = file.tell(), size_of(file)
    window = _TS_PACKETS * 188
    scrambled = count = 0
    for start in range(0, size_bytes, max(window, size_bytes // _TS_WINDOWS)):
        found = _scrambled_packets(file, start, pid=pid)
        scrambled, count = scrambled + found[0], count + found[1]
    file.seek(at)
    return _SCRAMBLED if scrambled > _STRAY_FRACTION * count else ""


def _scrambled_packets(file: BinaryIO, start: int, *, pid: int | None) -> tuple[int, int]:
    """Count the scrambled packets and all packets in a part of the file that begins at ``start``.

    If ``pid`` is given, only the packets of that stream are counted. Return both numbers.
    """
    file.seek(start)
    data = file.read(_TS_PACKETS * 204)
    for size in (188, 192, 204):
        for offset in range(min(size, len(data))):
            if all(byte == _SYNC for byte in data[offset : offset + 5 * size : size]):
                packets = [data[at : at + 4] for at in range(offset, len(data) - 4, size)]
                wanted = [one for one in packets if one[0] == _SYNC and pid in {None, (one[1] & 0x1F) << 8 | one[2]}]
                return sum(one[3] >= 0x80 for one in wanted), len(wanted)  # noqa: PLR2004
    return 0, 0
