"""Recognise a container by its first bytes. Pure."""

SNIFF_BYTES = 1024
_SYNC, _MIN_SYNCS = 0x47, 5  # of the packets of a transport stream
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"moof", b"styp", b"sidx", b"uuid")
_MAGIC = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"FLV\x01", "flv"),
    (b"OggS", "ogg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (b"\x00\x00\x01\xba", "mpeg"),
)
CONTAINERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "ogg", "asf")


def sniff_container(head: bytes, *, row_format: int = 2) -> str | None:
    """Return FFmpeg's name of the container that a file's first bytes show; None if it is not in ``CONTAINERS``.

    Since row format 2 a transport stream may begin inside a packet, as captured ones do.
    """
    if head[4:8] in _MP4_BOXES:
        return "mov"
    if head[:4] in {b"RIFF", b"ON2 "} and head[8:11] in {b"AVI", b"ON2"}:
        return "avi"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    for packet_size, offset in ((188, 0), (192, 4), (204, 0)):
        syncs = head[offset::packet_size]
        if len(syncs) > 1 and set(syncs[:5]) == {_SYNC}:
            return "mpegts"
    if row_format > 1 and any(
        len(syncs := head[offset::packet_size]) >= _MIN_SYNCS and set(syncs) == {_SYNC}
        for packet_size in (188, 192, 204)
        for offset in range(packet_size)
    ):
        return "mpegts"
    return None
