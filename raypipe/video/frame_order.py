"""Let a decoder tell the order in which the packets of a stream are shown. Runs in the child process only."""

from collections.abc import Callable, Iterable
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext

from raypipe.video.picture_types import ORDERED_BY_TYPE, display_order
from raypipe.video.timeline import DecodedOrder, Positions, insert_in_order

MAX_PACKETS = 3000
MAX_PIXELS = 1_500_000_000  # some 10 seconds of one core
SAMPLE_PACKETS = 256
_MIN_SHOWN_FRACTION = 1 / 3  # fewer, and the stream is too damaged to tell; of pictures in two fields each, it is 1/2
# Codecs that decode frames in another order than they are shown in.
REORDERING = frozenset(
    {"h264", "hevc", "vvc", "evc", "mpeg1video", "mpeg2video", "mpeg4", "vc1", "wmv3", "vc1image", "wmv3image"}
    | {"cavs", "avs2", "avs3", "svq3", "rv30", "rv40", "dirac"}
)


def find_display_order(
    codec: str, types: npt.NDArray[np.int8], *, has_b_frames: bool, decode_order: Callable[[], DecodedOrder | None]
) -> Positions | None:
    """Return all packets of a stream without display times as they are shown; None if file order is the best guess.

    ``decode_order`` is called only if the decoder alone can tell.
    """
    if codec in ORDERED_BY_TYPE:
        return display_order(types.tolist())
    if codec not in REORDERING or not has_b_frames or not (decoded := decode_order()):
        return None
    if decoded.num_packets < len(types):
        return None
    return insert_in_order(decoded.positions, np.setdiff1d(np.arange(len(types)), decoded.positions).tolist())


def decode_order(packets: Iterable["av.Packet[Any]"], decoder: VideoCodecContext) -> DecodedOrder | None:
    """Decode packets from the start of a stream only to see which frames come out, in which order.

    The decoder is then as new. None where most packets give no frame.
    """
    shown: list[int] = []

    def decode(packet: "av.Packet[Any] | None") -> None:
        try:
            shown.extend(frame.pts for frame in decoder.decode(packet) if frame.pts is not None)
        except MemoryError:
            raise
        except av.error.FFmpegError:
            return

    count = 0
    for position, packet in enumerate(packets):
        stored = packet.pts, packet.dts
        packet.pts = packet.dts = position
        decode(packet)
        packet.pts, packet.dts = stored
        count = position + 1
    decode(None)
    decoder.flush_buffers()
    positions = [position for position in dict.fromkeys(shown) if 0 <= position < count]
    if len(positions) < _MIN_SHOWN_FRACTION * count:
        return None
    return DecodedOrder(np.array(positions, dtype=np.int64), count)
