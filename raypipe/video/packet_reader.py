"""Read the packets of an opened video, several times if needed. Runs in the child process only."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, cast

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.stream import Discard
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from raypipe.video.container import ErrorLog, Packet, open_stream
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.mp4 import SampleTable
from raypipe.video.packets import is_packed
from raypipe.video.ranged_file import RangedFile
from raypipe.video.timeline import DecodedOrder, DisplayTimes

MAX_ORDERED_PACKETS = 3000
SAMPLE_PACKETS = 256
_MAX_ORDERED_PIXELS = 1_500_000_000  # about 10 seconds of one core
_MIN_SHOWN_FRACTION = 1 / 3  # if fewer packets show a frame, the stream is damaged; with a packet per field, 1/2 do
_READ_ON_PACKETS = 32  # a seek costs about as much as reading this many packets
_SPLIT_FILTER = "mpeg4_unpack_bframes"
_LIBVPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_LIBVPX_VP9_FORMATS = frozenset({"yuv420p", "yuv422p", "yuv440p", "yuv444p"})  # libvpx is built for 8 bits


class SampleTableError(Exception):
    """A packet differs from the file's sample tables."""


class PacketReader:
    """Reads the packets of a file's main video stream in decoding order, and provides a decoder for them.

    ``log`` is where the caller collects FFmpeg's errors. It is None if the caller does not collect them.
    """

    def __init__(self, file: BinaryIO, container: str, request: DecodeRequest, *, log: ErrorLog | None = None) -> None:
        self.file = file
        self.container = container
        self.request = request
        self.row_format = request.row_format
        self.log = log if log is not None else ErrorLog()
        self.samples: SampleTable | None = None  # each packet's offset and time, if the container has usable tables
        self.kept: list[Packet] = []  # all packets in memory, for one pass over them
        self.palette: Packet | None = None  # the first packet, if it holds the palette of all packets
        self.may_be_encrypted = self.row_format > 1 and container == "mov"
        self.is_packed = False  # whether MPEG-4 packets hold two pictures each, and are split
        self.decodes_corrupt = False  # whether the next reading uses a decoder that also returns corrupt pictures
        self._times: tuple[list[int], list[int]] | None = None  # pts and dts that replace the stored ones
        self._open()

    def _open(self) -> None:
        self._decoder: VideoCodecContext | None = None
        self.source, self.stream = open_stream(self.file, self.container, self.request)
        self.log.take()  # discards errors from probing the codec, which belong to no packet

    def reopen(self) -> None:
        """Reopen the file at its first packet, with a new decoder."""
        self.source.close()
        self._open()

    def close(self) -> None:
        self.kept = []
        self.source.close()

    @property
    def decoder(self) -> VideoCodecContext:
        """Return the decoder for ``stream``: FFmpeg's default, or libvpx if the default would lose data."""
        if self._decoder is None:
            is_own = self.row_format == 1 or (self.decodes_corrupt and not _has_alpha_layer(self.stream))
            self._decoder = self.stream.codec_context if is_own else _best_decoder(self.stream)
        return self._decoder

    def use_times(self, times: DisplayTimes) -> None:
        """Use ``times`` for packets, and thus for frames, if the container's own times are missing or wrong."""
        self._times = None
        if times.is_repaired or times.is_assigned:
            shown = np.where(times.is_shown, times.pts, np.iinfo(np.int64).max)
            dts = np.minimum.accumulate(np.append(shown, times.pts.max())[::-1])[::-1][:-1]
            self._times = times.pts.tolist(), dts.tolist()

    def demux(self, *, all_streams: bool = False) -> Iterator[Packet]:
        """Yield the packets of the stream, or of all streams, with the times that the container stores."""
        packets = _with_content(self.source.demux() if all_streams else self.source.demux(self.stream))
        return self._split(packets) if self.row_format > 1 else packets

    def _split(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """Yield packets so that each picture has its own packet and time slot.

        In a packed MPEG-4 stream, one packet can hold two pictures. Such packets are split. All others stay unchanged.
        """
        splitter: BitStreamFilterContext | None = None
        is_first = True
        for packet in packets:
            if packet.stream_index != self.stream.index:
                yield packet
                continue
            if is_first and announces_packed(self.stream, packet):
                splitter = BitStreamFilterContext(_SPLIT_FILTER, in_stream=self.stream)
                self.is_packed = True
            is_first = False
            if splitter is None:
                yield packet
                continue
            try:
                pictures = [one for one in splitter.filter(packet) if one.size]
            except MemoryError:
                raise
            except av.error.FFmpegError:
                continue
            yield from pictures

    def first_packet(self) -> "Packet | None":
        """Return the next packet of the stream, or None. Right after the file is opened, this is the first packet."""
        return next(_with_content(self.source.demux(self.stream)), None)

    def note_palette(self, packet: Packet) -> None:
        """Remember a packet that belongs to the stream and holds a palette. Call this with the first packet."""
        if packet.stream_index == self.stream.index and packet.has_sidedata("palette"):
            self.palette = packet

    def packets(self) -> Iterable[Packet]:
        """Return all packets of the stream in file order, from the first one.

        This may reopen the file. ``stream`` is then a new object.
        """
        packets: Iterable[Packet] = self.kept
        if not self.kept:
            self.reopen()
            packets = self.demux()
        self.kept = []
        return itertools.starmap(self._retimed, enumerate(packets))

    def read(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Packet]]:
        """Yield the position and the packet for each position in ``ranges``.

        ``ranges`` holds ascending ranges ``[start, stop)`` of packet positions.

        Raises:
            SampleTableError: the container's tables are wrong.
        """
        if self.samples is not None:
            if isinstance(self.file, RangedFile):
                self.file.expect([self.samples.extent(start, stop) for start, stop in ranges])
            for position, packet in self._read_located(self.samples, ranges):
                yield position, self._retimed(position, packet)
            return
        numbered = enumerate(self.packets())
        for start, stop in ranges:
            for position, packet in numbered:
                if position >= start:
                    yield position, packet
                if position + 1 == stop:
                    break

    def _read_located(self, samples: SampleTable, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Packet]]:
        """Yield the same as ``read``, but read only the wanted packets, using the offsets in the sample tables."""
        for other in self.source.streams:
            other.discard = Discard.default if other is self.stream else Discard.all
        positions = {offset: position for position, offset in enumerate(samples.offset.tolist())}
        packets: Iterator[Packet] = iter(())
        following = len(samples.pts)  # the position of the next packet if there is no seek
        for start, stop in ranges:
            if not following <= start <= following + _READ_ON_PACKETS:
                self.source.seek(int(samples.pts[start]), stream=self.stream)
                packets, following = self.source.demux(self.stream), start
            wanted = start
            for packet in packets:
                if not packet.size:
                    break
                position = positions.get(-1 if packet.pos is None else packet.pos, -1)
                if position > wanted or position < 0 or packet.pts != samples.pts[position]:
                    msg = f"A packet at {packet.pos} of time {packet.pts} is not in the tables."
                    raise SampleTableError(msg)
                if position < wanted:  # a seek goes to the previous key frame, or an earlier one
                    continue
                yield position, packet
                wanted += 1
                if wanted == stop:
                    break
            following = wanted

    def _retimed(self, position: int, packet: Packet) -> Packet:
        if self._times is not None and position < len(self._times[0]):
            packet.pts, packet.dts = self._times[0][position], self._times[1][position]
        return packet

    def decode_order(self, num_packets: int, *, may_sample: bool) -> DecodedOrder | None:
        """Decode the first ``num_packets`` packets, and return the order in which they are shown.

        If this would take too long, decode only a sample from the start or, if ``may_sample`` is False, return None.
        Also return None if fewer than a third of the packets give a frame.
        """
        affordable = _MAX_ORDERED_PIXELS // max(1, self.stream.codec_context.width * self.stream.codec_context.height)
        if num_packets > min(MAX_ORDERED_PACKETS, affordable):
            if not may_sample:
                return None
            num_packets = min(num_packets, SAMPLE_PACKETS, affordable)
        if not self.kept:
            self.reopen()
        order = _decode_order(itertools.islice(self.kept or self.demux(), num_packets), self.decoder)
        self.log.take()
        return order


def _with_content(packets: Iterator[Packet]) -> Iterator[Packet]:
    """Yield the packets that are not empty. At damage after which FFmpeg cannot continue, stop without an error."""
    try:
        for packet in packets:
            if packet.size:
                yield packet
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError):
        return


def announces_packed(stream: VideoStream, packet: Packet) -> bool:
    """Return whether the headers of an MPEG-4 stream, or its first packet, say that the stream is packed.

    In a packed stream, DivX or Xvid stored a B-picture in the packet of the picture before it. To make up for this, an
    empty packet follows later, which FFmpeg takes for a key frame.
    """
    context = stream.codec_context
    if context.codec.canonical_name != "mpeg4":
        return False
    return is_packed(bytes(context.extradata or b"")) or is_packed(bytes(packet))


def _decode_order(packets: Iterable[Packet], decoder: VideoCodecContext) -> DecodedOrder | None:
    """Decode packets from the start of a stream to find out which frames are shown, and in which order.

    Return None if fewer than a third of the packets give a frame. The decoder's state is reset afterwards.
    """
    shown: list[int] = []

    def decode(packet: "Packet | None") -> None:
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


def _has_alpha_layer(stream: VideoStream) -> bool:
    """Return whether a VP8 or VP9 stream in WebM has an alpha layer, which only libvpx decodes."""
    if stream.codec_context.codec.canonical_name not in _LIBVPX:
        return False
    return any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items())


def _best_decoder(stream: VideoStream) -> VideoCodecContext:
    """Return a stream's default decoder, or libvpx with the same settings if the default would lose data.

    FFmpeg's own VP8 and VP9 decoders drop the alpha layer, and its VP9 decoder does not detect corrupt data.
    """
    own = stream.codec_context
    codec = own.codec.canonical_name
    is_blind = codec == "vp9" and own.pix_fmt in _LIBVPX_VP9_FORMATS
    if not (is_blind or _has_alpha_layer(stream)) or _LIBVPX[codec] not in av.codecs_available:
        return own
    context = cast("VideoCodecContext", av.CodecContext.create(_LIBVPX[codec], "r"))
    context.extradata = own.extradata
    context.thread_count, context.thread_type = own.thread_count, own.thread_type
    context.options = dict(own.options)
    context.color_trc, context.color_primaries = own.color_trc, own.color_primaries
    context.colorspace, context.color_range = own.colorspace, own.color_range
    return context
