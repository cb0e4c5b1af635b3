"""Read only the packets that are wanted, where a file says where each lies. Runs in the child process only."""

from collections.abc import Iterator, Sequence
from typing import Any

import av
import av.container
from av.stream import Discard
from av.video.stream import VideoStream

from raypipe.video.sample_table import Samples

_READ_ON_PACKETS = 32  # a seek costs about as much as reading so many


class SampleTableError(Exception):
    """A packet is not what the file's tables say of it."""


def read_located(
    source: av.container.InputContainer, stream: VideoStream, samples: Samples, ranges: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, "av.Packet[Any]"]]:
    """The packets of ascending ranges ``[start, stop)``, and their positions among the samples.

    Raises:
        SampleTableError: a packet is not what was said of it.
    """
    for other in source.streams:
        other.discard = Discard.default if other is stream else Discard.all
    positions = {offset: position for position, offset in enumerate(samples.offset.tolist())}
    packets: Iterator[av.Packet[Any]] = iter(())
    following = len(samples.pts)  # what comes without a seek
    for start, stop in ranges:
        if not following <= start <= following + _READ_ON_PACKETS:
            source.seek(int(samples.pts[start]), stream=stream)
            packets, following = source.demux(stream), start
        wanted = start
        for packet in packets:
            if not packet.size:
                break
            position = positions.get(-1 if packet.pos is None else packet.pos, -1)
            if position > wanted or position < 0 or packet.pts != samples.pts[position]:
                msg = f"A packet at {packet.pos} of time {packet.pts} is none of the tables."
                raise SampleTableError(msg)
            if position < wanted:  # a seek goes to the key frame before, or further
                continue
            yield position, packet
            wanted += 1
            if wanted == stop:
                break
        following = wanted
