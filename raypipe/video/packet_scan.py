"""What is noted of the packets of a file while all of them are read. Runs in the child process only."""

from array import array
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

from raypipe.video.picture_types import TELL_KEYFRAMES, TELL_TYPES, PictureType, PictureTypes, believable_keyframes
from raypipe.video.timeline import NO_TIME, Flags, Stamps, Ticks

if TYPE_CHECKING:
    import av

_KEEP_PACKETS_BYTES = 64 * 1024 * 1024
_PACKET_BYTES = 640  # what a packet takes besides its content
_MAX_ERRORS = 1000
_GAP_SECONDS = 10  # a longer one counts as so many
_VP8_SHOW_FRAME = 0x10
_VP9_PROFILE_3 = 0x30  # has one bit more before those of the frame
_VP9_SHOWS = 0x0A  # show_existing_frame, show_frame
_VP9_SUPERFRAME_MASK, _VP9_SUPERFRAME = 0xE0, 0xC0


class PacketScan:
    """The packets of one stream in file order, P of them, which is decoding order.

    With ``read_types`` the first bytes of packets are looked at: for packets that show no picture, and for the types
    of pictures, in the codecs where these tell.
    """

    def __init__(self, stream: VideoStream, *, read_types: bool) -> None:
        self._stream = stream
        self._codec = stream.codec_context.codec.canonical_name if read_types else ""
        self._reader = PictureTypes(self._codec, bytes(stream.codec_context.extradata or b""))
        self._tells_types = self._codec in TELL_TYPES
        self._types = array("b")
        self._pts, self._dts, self._places = array("q"), array("q"), array("q")
        self._durations, self._is_keyframe = array("q"), array("b")
        self._is_discarded, self._is_hidden = array("b"), array("b")
        self.corrupt: list[int] = []  # positions of packets of which the demuxer says that data is lost
        self._errors = array("q")  # numbers of packets before them
        self._tick_seconds: dict[int, float] = {}
        self._most_ticks = int(_GAP_SECONDS / stream.time_base) if stream.time_base else 1
        self._highest = NO_TIME
        self._kept_bytes = 0
        self.kept: list[av.Packet[Any]] = []  # all of them, as long as they are small
        self.last_end_seconds = 0.0  # over all streams: a container's duration may be its audio's
        self.covered_ticks = 0  # how far the time stamps go on, jumps left out

    def __len__(self) -> int:
        return len(self._pts)

    def add(self, packet: "av.Packet[Any]", *, is_after_error: bool) -> None:
        """Note a packet of any stream. The demuxer may have logged an error before it."""
        if is_after_error:
            self._errors.append(len(self))
        if packet.is_corrupt and packet.stream_index == self._stream.index:
            self.corrupt.append(len(self))
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None:
            end = (time + (packet.duration or 0)) * self._tick_seconds_of(packet)
            self.last_end_seconds = max(self.last_end_seconds, end)
        if packet.stream_index != self._stream.index:
            return
        if time is not None:
            self._cover(time)
        self._pts.append(NO_TIME if packet.pts is None else packet.pts)
        self._dts.append(NO_TIME if packet.dts is None else packet.dts)
        self._places.append(-1 if packet.pos is None else packet.pos)
        self._durations.append(packet.duration or 0)
        kind = self._reader.read(memoryview(packet)) if self._tells_types else PictureType.UNKNOWN
        self._types.append(kind)
        is_told = self._codec in TELL_KEYFRAMES and kind != PictureType.UNKNOWN
        self._is_keyframe.append(kind == PictureType.INTRA if is_told else packet.is_keyframe)
        self._is_discarded.append(packet.is_discard)
        self._is_hidden.append(kind == PictureType.NOT_CODED or _is_hidden(packet, self._codec))
        self._kept_bytes += packet.size + _PACKET_BYTES
        if self._kept_bytes <= _KEEP_PACKETS_BYTES:
            self.kept.append(packet)
        else:
            self.kept.clear()

    def _tick_seconds_of(self, packet: "av.Packet[Any]") -> float:
        """Return the time base of a packet's stream: fractions are slow."""
        found = self._tick_seconds.get(packet.stream_index)
        if found is None:
            found = self._tick_seconds[packet.stream_index] = float(packet.time_base or 0)
        return found

    def renumber(self, numbers: Ticks, *, after_losses: list[int]) -> None:
        """Give the packets of a container that counts frames other numbers, as if its demuxer had found all."""
        self._dts = array("q", (numbers + (self._dts[0] - int(numbers[0]))).tolist())
        self._errors.extend(after_losses)

    def _cover(self, time: int) -> None:
        most = self._most_ticks
        if self._highest == NO_TIME or not 0 < time - self._highest <= most:
            is_reordered = self._highest != NO_TIME and -most < time - self._highest <= 0
            self._highest = self._highest if is_reordered else time
            return
        self.covered_ticks += time - self._highest
        self._highest = time

    @property
    def stamps(self) -> Stamps:
        """When each is shown and decoded, as the container says."""
        return Stamps(
            pts=np.array(self._pts, dtype=np.int64),
            dts=np.array(self._dts, dtype=np.int64),
            is_keyframe=believable_keyframes(np.array(self._is_keyframe, dtype=np.bool_), self._codec),
            is_shown=self.is_shown,
        )

    @property
    def types(self) -> npt.NDArray[np.int8]:
        """[P] the ``PictureType`` of each."""
        return np.array(self._types, dtype=np.int8)

    @property
    def is_shown(self) -> Flags:
        """[P] which show a picture; if none seemed to, their content is not what it should be, and tells nothing."""
        is_kept = ~np.array(self._is_discarded, dtype=np.bool_)
        is_shown: Flags = is_kept & ~np.array(self._is_hidden, dtype=np.bool_)
        return is_shown if is_shown.any() else is_kept

    @property
    def errors(self) -> list[int]:
        """The positions of packets before which the demuxer logged an error."""
        return sorted(set(self._errors))[:_MAX_ERRORS]

    @property
    def duration_ticks(self) -> float:
        """How long a packet says that it lasts, typically; 0 where they do not."""
        durations = np.array(self._durations, dtype=np.int64)
        return float(np.median(durations[durations > 0])) if (durations > 0).any() else 0.0

    @property
    def places(self) -> Ticks:
        """[P] where each begins in the file, -1 where that is unknown."""
        return np.array(self._places, dtype=np.int64)


def _is_hidden(packet: "av.Packet[Any]", codec: str) -> bool:
    """Return whether a packet holds only a reference that is not shown (RFC 6386, 9.1; VP9 specification, 6.2)."""
    if codec == "vp8":
        return not memoryview(packet)[0] & _VP8_SHOW_FRAME
    if codec == "vp9":
        first, last = memoryview(packet)[0], memoryview(packet)[-1]
        if last & _VP9_SUPERFRAME_MASK == _VP9_SUPERFRAME:  # several frames in one packet, of which the last is shown
            return False
        has_profile_3 = first & _VP9_PROFILE_3 == _VP9_PROFILE_3
        return not first & (_VP9_SHOWS >> has_profile_3)
    return False
