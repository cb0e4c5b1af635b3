"""Which frames of a video to take, decoding them with PyAV, and scaling and cropping them into an array.

PyAV always opens and indexes the file first, so that all decoders pass the same limits and are asked for the same
frames; decord and torchcodec may then decode them. Runs in the child process only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from raypipe.status import Status
from raypipe.video.index import VideoIndex
from raypipe.video.probe import VideoError, VideoFile
from raypipe.video.protocol import DecodeRequest, Pixels
from raypipe.video.sampling import Indices, Seconds, nearest, sample_timestamps, spread

_MAX_SCALED_SIDE = 16_384
_HVCC_LAYERS_BYTE = 21  # ISO/IEC 14496-15: numTemporalLayers


@dataclass(frozen=True, slots=True)
class Wanted:
    """The frames asked for, ascending in time; T of them, a frame may be wanted twice."""

    packets: Indices  # [T] positions in decoding order
    pts_seconds: Seconds  # [T] from the first frame


class FrameWriter:
    """Takes decoded frames in any order; keeps those wanted, as RGB crops in ``frames`` [max_frames, crop, crop, 3]."""

    def __init__(self, wanted: Wanted, frames: Pixels, request: DecodeRequest) -> None:
        self.frames = frames
        self.pts_seconds = np.full(len(wanted.packets), np.nan)
        self.request = request
        self._reformatter = VideoReformatter()

    @property
    def missing(self) -> Indices:
        """The slots that no frame was put in yet."""
        return np.flatnonzero(np.isnan(self.pts_seconds))

    def put(self, slots: Sequence[int], frame: VideoFrame, pts_seconds: float) -> None:
        """Scale and crop a PyAV frame into every one of ``slots``."""
        pixels = frame.width * frame.height
        if pixels > self.request.limits.max_pixels:
            limit = self.request.limits.max_pixels
            msg = f"A frame of {frame.width}x{frame.height} is {pixels} pixels; decode.max_pixels is {limit}."
            raise VideoError(Status.TOO_LARGE, msg)
        width, height = scaled_size(frame.width, frame.height, self.request.resize_size)
        scaled = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1
        )
        plane = scaled.planes[0]
        rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)[:height, : width * 3]
        self.put_pixels(slots, rows.reshape(height, width, 3), pts_seconds, rotation=frame.rotation)

    def put_pixels(self, slots: Sequence[int], image: Pixels, pts_seconds: float, *, rotation: int = 0) -> None:
        """Turn a scaled image [height, width, 3] upright, by ``rotation`` degrees counterclockwise, and crop it."""
        upright = np.rot90(image, rotation // 90) if rotation % 90 == 0 else image
        crop = center_crop(upright, self.request.crop_size)
        for slot in slots:
            self.frames[slot] = crop
            self.pts_seconds[slot] = pts_seconds


def scaled_size(width: int, height: int, resize_size: int) -> tuple[int, int]:
    """Width and height with the shorter side ``resize_size``, rounded as torchvision's ``Resize`` does."""
    if width <= height:
        scaled = resize_size, int(resize_size * height / width)
    else:
        scaled = int(resize_size * width / height), resize_size
    if max(scaled) > _MAX_SCALED_SIDE:
        msg = f"{width}x{height} would be scaled to {scaled[0]}x{scaled[1]}; no side may pass {_MAX_SCALED_SIDE}."
        raise VideoError(Status.TOO_LARGE, msg)
    return scaled


def center_crop(image: Pixels, crop_size: int) -> Pixels:
    """The centred square of an image [height, width, 3], rounded as torchvision's ``CenterCrop`` does."""
    height, width = image.shape[:2]
    top, left = round((height - crop_size) / 2), round((width - crop_size) / 2)
    return image[top : top + crop_size, left : left + crop_size]


def choose_frames(index: VideoIndex, request: DecodeRequest) -> Wanted:
    """Which packets to decode for a sampling policy. Times the file was cut off before are not among them."""
    order = np.argsort(index.pts, kind="stable")
    order = order[index.is_shown[order]]
    keyframes = order[index.is_keyframe[order]]
    if len(keyframes) and (request.mode == "keyframes" or request.nearest_keyframe):
        order = keyframes
    pts_seconds = index.pts_seconds[order]
    if request.mode in {"all", "keyframes"}:
        chosen = spread(len(order), request.max_frames)
    else:
        timestamps = asked_timestamps(index, request)
        chosen = nearest(pts_seconds, timestamps[timestamps < index.end_seconds])
    return Wanted(packets=order[chosen].astype(np.int64), pts_seconds=pts_seconds[chosen])


def asked_timestamps(index: VideoIndex, request: DecodeRequest) -> Seconds:
    """The timestamps of ``uniform`` and ``fps``, over the duration that the container promises."""
    return sample_timestamps(
        index.duration_seconds,
        mode="fps" if request.mode == "fps" else "uniform",
        num_frames=request.num_frames,
        fps=request.fps,
        max_frames=request.max_frames,
    )


def num_frames_asked(index: VideoIndex, request: DecodeRequest, wanted: Wanted) -> int:
    """How many frames an undamaged file would have given."""
    if request.mode in {"all", "keyframes"}:
        return len(wanted.packets)
    return len(asked_timestamps(index, request))


def decode_pyav(video: VideoFile, wanted: Wanted, writer: FrameWriter) -> None:
    """Decode only the groups of pictures that hold a wanted frame; read everything when that misses one."""
    problem = _note_problem(lambda: _decode_groups(video, wanted, writer))
    if len(writer.missing):
        problem = _note_problem(lambda: _decode_everything(video, wanted, writer)) or problem
    if problem and len(writer.missing) == len(wanted.packets):
        raise VideoError(Status.DECODE_ERROR, problem)


def _note_problem(decode: Callable[[], None]) -> str:
    """Damage ends the decoding, not what was decoded before it."""
    try:
        decode()
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        return describe(error)
    return ""


def packets_to_decode(index: VideoIndex, wanted_packets: Indices) -> list[tuple[int, int]]:
    """Ranges ``[start, stop)`` of packets, each starting at a key frame, whose decoding gives all wanted frames.

    A frame shown before the key frame it follows in the file (an open group of pictures) may refer to the group before.
    """
    keys = np.flatnonzero(index.is_keyframe)
    ranges: list[tuple[int, int]] = []
    for packet in np.unique(wanted_packets).tolist():
        at = int(np.searchsorted(keys, packet, side="right")) - 1
        if at >= 0 and index.pts[packet] < index.pts[keys[at]]:
            at -= 1
        start = int(keys[at]) if at >= 0 else 0
        while ranges and start <= ranges[-1][1]:
            start = min(start, ranges.pop()[0])
        ranges.append((start, packet + 1))
    return ranges


def _decode_groups(video: VideoFile, wanted: Wanted, writer: FrameWriter) -> None:
    index = video.index
    ranges = packets_to_decode(index, wanted.packets)
    stops = {stop for _, stop in ranges}
    wanted_packets = set(wanted.packets.tolist())
    slots: dict[int, list[int]] = {}
    for slot, packet in enumerate(wanted.packets.tolist()):
        slots.setdefault(int(index.pts[packet]), []).append(slot)

    def take(frames: list[VideoFrame]) -> None:
        for frame in frames:
            if frame.pts in slots:
                writer.put(slots[frame.pts], frame, _seconds(index, frame.pts))

    may_skip = skips_exactly(video.stream.codec_context)
    for position, packet in video.read(ranges):
        context = video.stream.codec_context
        if may_skip:
            context.skip_frame = "DEFAULT" if position in wanted_packets else "NONREF"
        take(context.decode(packet))
        if position + 1 in stops:
            take(context.decode(None))
            context.flush_buffers()


def skips_exactly(context: VideoCodecContext) -> bool:
    """Whether ``NONREF`` leaves out only frames that no other frame refers to.

    The decoder knows; what a container says of its packets is not so: one of AV1 can hold a hidden frame besides.

    In HEVC it also leaves out those that only higher temporal layers refer to; 'hvcC' says how many layers there are.
    In MPEG-4, whose packets may hold two frames, it can leave out the wrong one.
    """
    if context.name == "hevc":
        about = bytes(context.extradata or b"")
        return len(about) > _HVCC_LAYERS_BYTE and about[0] == 1 and (about[_HVCC_LAYERS_BYTE] >> 3) & 7 == 1
    return bool(context.name == "h264")


def _decode_everything(video: VideoFile, wanted: Wanted, writer: FrameWriter) -> None:
    """Fill the missing slots with the nearest frame of a plain reading from the start, damage tolerated."""
    index = video.index
    tolerance = 2 / index.average_fps + 0.05
    missing = iter(writer.missing.tolist())
    slot = next(missing, None)
    before: tuple[VideoFrame, float] | None = None
    for frame in all_frames(video):
        shown = frame.pts if frame.pts is not None else frame.dts
        seconds = _seconds(index, shown) if shown is not None else 0.0
        while slot is not None and seconds >= wanted.pts_seconds[slot]:
            asked = float(wanted.pts_seconds[slot])
            use, use_seconds = (frame, seconds)
            if before is not None and asked - before[1] <= seconds - asked:
                use, use_seconds = before
            if abs(use_seconds - asked) <= tolerance:
                writer.put([slot], use, use_seconds)
            slot = next(missing, None)
        before = (frame, seconds)
        if slot is None:
            return
    if slot is not None and before is not None:
        for last in (slot, *missing):
            if abs(before[1] - wanted.pts_seconds[last]) <= tolerance:
                writer.put([last], *before)


def all_frames(video: VideoFile) -> Iterator[VideoFrame]:
    """Every frame of a plain reading from the start; what is damaged is left out."""
    for packet in video.packets():
        try:
            yield from video.stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except av.error.FFmpegError:
            continue
    yield from video.stream.codec_context.decode(None)


def _seconds(index: VideoIndex, pts: int) -> float:
    return float((pts - index.first_pts) * index.time_base)


def describe(error: BaseException) -> str:
    """One line for a row's ``error``: FFmpeg's own words where there are any."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]
