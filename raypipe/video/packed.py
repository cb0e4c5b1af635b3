"""Take packets with two MPEG-4 pictures each apart. Runs in the child process only.

DivX and Xvid store a B-picture in the packet of the picture before it, and later a packet with nothing in it, which
FFmpeg takes for a key frame.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import av
from av.bitstream import BitStreamFilterContext
from av.video.stream import VideoStream

from raypipe.video.picture_types import is_packed

_FILTER = "mpeg4_unpack_bframes"


def announces_packed(stream: VideoStream, packet: "av.Packet[Any]") -> bool:
    """Return whether the headers of a stream or of its first packet say that it is packed."""
    context = stream.codec_context
    if context.codec.canonical_name != "mpeg4":
        return False
    return is_packed(bytes(context.extradata or b"")) or is_packed(bytes(packet))


class Unpacker:
    """Gives each picture of a packed stream a packet; other streams stay as they are."""

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._filter: BitStreamFilterContext | None = None
        self._has_begun = False

    @property
    def is_packed(self) -> bool:
        """Whether the stream turned out to be packed."""
        return self._filter is not None

    def unpack(self, packets: Iterable["av.Packet[Any]"]) -> Iterator["av.Packet[Any]"]:
        """The packets of all streams; those of this one in display slots, as in a file that was never packed."""
        for packet in packets:
            if packet.stream_index != self._stream.index:
                yield packet
                continue
            if not self._has_begun:
                self._has_begun = True
                if announces_packed(self._stream, packet):
                    self._filter = BitStreamFilterContext(_FILTER, in_stream=self._stream)
            yield from self._take_apart(packet)

    def _take_apart(self, packet: "av.Packet[Any]") -> list["av.Packet[Any]"]:
        if self._filter is None:
            return [packet]
        try:
            return [one for one in self._filter.filter(packet) if one.size]
        except MemoryError:
            raise
        except av.error.FFmpegError:
            return []
