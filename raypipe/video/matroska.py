"""The elements of Matroska and WebM files (EBML, RFC 8794). Runs in the child process only."""

import os
from typing import BinaryIO, NamedTuple

_HEADER, _SEGMENT = 0x1A45DFA3, 0x18538067
_MAX_ID_BYTES, _MAX_SIZE_BYTES = 4, 8
_MAX_ELEMENTS = 1000


class Element(NamedTuple):
    """The header of an element: its id, where its content begins, and how long that is; None if it does not say."""

    kind: int
    body: int
    size: int | None


def read_element(file: BinaryIO, at: int) -> Element | None:
    """Return the header of the element at a place in the file; None if there is none, or a part of one."""
    file.seek(at)
    header = file.read(_MAX_ID_BYTES + _MAX_SIZE_BYTES)
    id_bytes = 9 - header[0].bit_length() if header else 9
    size_bytes = 9 - header[id_bytes].bit_length() if id_bytes < len(header) else 9
    if id_bytes > _MAX_ID_BYTES or size_bytes > _MAX_SIZE_BYTES or id_bytes + size_bytes > len(header):
        return None
    unknown = (1 << 7 * size_bytes) - 1
    size = int.from_bytes(header[id_bytes : id_bytes + size_bytes], "big") & unknown
    kind = int.from_bytes(header[:id_bytes], "big")
    return Element(kind, at + id_bytes + size_bytes, None if size == unknown else size)


def declared_bytes(file: BinaryIO) -> int:
    """Return how long the file should be: the end of its last segment, or its size where that is not told.

    Several files in one have several segments.
    """
    size_bytes = file.seek(0, os.SEEK_END)
    at = 0
    for _ in range(_MAX_ELEMENTS):
        element = read_element(file, at)
        if element is None or element.size is None or element.kind not in {_HEADER, _SEGMENT}:
            break
        at = element.body + element.size
        if at >= size_bytes:
            return at
    return size_bytes
