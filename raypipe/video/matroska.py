"""What a Matroska file says of its own length (RFC 8794)."""

import os
from typing import BinaryIO

_HEADER, _SEGMENT = 0x1A45DFA3, 0x18538067
_MAX_ID_BYTES, _MAX_SIZE_BYTES = 4, 8
_MAX_ELEMENTS = 1000


def declared_bytes(file: BinaryIO) -> int:
    """Return how long the file should be: the end of its last segment, or its size where that is not told.

    Several files in one have several segments.
    """
    size_bytes = file.seek(0, os.SEEK_END)
    at = 0
    for _ in range(_MAX_ELEMENTS):
        file.seek(at)
        header = file.read(_MAX_ID_BYTES + _MAX_SIZE_BYTES)
        id_bytes = 9 - header[0].bit_length() if header else 9
        length = 9 - header[id_bytes].bit_length() if id_bytes < len(header) else 9
        if id_bytes > _MAX_ID_BYTES or length > _MAX_SIZE_BYTES or id_bytes + length > len(header):
            break
        kind = int.from_bytes(header[:id_bytes], "big")
        size = int.from_bytes(header[id_bytes : id_bytes + length], "big") & ((1 << 7 * length) - 1)
        if kind not in {_HEADER, _SEGMENT} or size == (1 << 7 * length) - 1:
            break
        at += id_bytes + length + size
        if at >= size_bytes:
            return at
    return size_bytes
