"""decord and torchcodec, asked for the frames that PyAV's index names. Runs in the child process only.

Both can give another frame than the one asked for without saying so. Where that shows, or where decord's seeking is
known to do it, they fail: a missing frame is a row's status, a wrong one would be a wrong embedding. Neither knows of
most display properties: they refuse the videos that have them.
"""

import importlib
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from raypipe.status import Status
from raypipe.video.choosing import Wanted
from raypipe.video.decoders import Decoded
from raypipe.video.display import FrameWriter, pixel_aspect, scaled_size
from raypipe.video.index import VideoIndex
from raypipe.video.picture_types import WRONG_KEYFRAMES
from raypipe.video.probe import VideoError, VideoFile
from raypipe.video.reading import all_frames
from raypipe.video.sampling import Seconds, nearest


def refuse_unsupported(video: VideoFile, *, decoder: str) -> None:
    """Refuse what is known of a video before it is decoded that a decoder other than PyAV ignores.

    Raises:
        VideoError: there is something.
    """
    lacks = "make pixels square" if pixel_aspect(video.stream) != 1 else ""
    if video.index.timeline_repaired:
        lacks = "repair time stamps"
    if video.is_packed:
        lacks = "unpack B-frames"
    if video.index.codec in WRONG_KEYFRAMES:
        lacks = f"know the key frames of {video.index.codec}"
    if lacks:
        raise VideoError(Status.DECODE_ERROR, f"{decoder} does not {lacks}; use pyav.")


def decode_decord(video: VideoFile, wanted: Wanted, writer: FrameWriter) -> Decoded:
    """Decode the wanted frames with decord, scaled by its FFmpeg."""
    import decord  # noqa: PLC0415  # only the child that was asked for it loads it

    index = video.index
    mistake = decord_mistake(index)
    if mistake:
        raise VideoError(Status.DECODE_ERROR, f"decord gives other frames than asked for where {mistake}; use pyav.")
    first = next(all_frames(video), None)
    if first is None:
        raise VideoError(Status.DECODE_ERROR, "No frame could be decoded.")
    width, height = scaled_size(index.width, index.height, writer.request.resize_size)
    shown_size = (index.width, index.height)
    if first.rotation % 180:  # decord turns a frame upright before it scales it
        width, height = height, width
        shown_size = shown_size[::-1]
    if video.row_format > 1:
        writer.displayed_size = shown_size
    video.file.seek(0)
    reader = decord.VideoReader(video.file, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
    shown = _shown(index, len(reader), "decord")
    for slot, at in enumerate(nearest(shown, wanted.pts_seconds).tolist()):
        writer.put_pixels([slot], reader[at].asnumpy(), float(shown[at]))
    return Decoded()


def decord_mistake(index: VideoIndex) -> str:
    """What about a video makes decord's seeking miss; empty where it is exact."""
    if index.container in {"mpegts", "mpeg"}:
        return f"a container, such as {index.container}, has no index"
    if not index.is_shown.all():
        return "an edit list cuts frames off"
    if is_reordered_avi(index):
        return "an AVI file holds frames out of order"
    at = np.arange(len(index.pts))
    group = np.maximum.accumulate(np.where(index.is_keyframe, at, 0))
    if (index.pts < index.pts[group]).any():
        return "frames refer to the group of pictures before their own"
    return ""


def is_reordered_avi(index: VideoIndex) -> bool:
    """Whether when a frame is shown is a guess, at which no two libraries agree: AVI stores no times."""
    return index.container == "avi" and bool((np.diff(index.pts) < 0).any())


def decode_torchcodec(video: VideoFile, wanted: Wanted, writer: FrameWriter) -> Decoded:
    """Decode the wanted frames with torchcodec, which turns them upright itself."""
    torchcodec: Any = importlib.import_module("torchcodec.decoders")  # only the child that was asked for it loads it

    if is_reordered_avi(video.index):
        msg = "torchcodec gives other frames than asked for where an AVI file holds frames out of order; use pyav."
        raise VideoError(Status.DECODE_ERROR, msg)
    video.file.seek(0)
    decoder = torchcodec.VideoDecoder(
        video.file, stream_index=video.stream.index, dimension_order="NHWC", seek_mode="exact"
    )
    begin = float(decoder.metadata.begin_stream_seconds or 0.0)
    shown = _shown(video.index, len(decoder), "torchcodec")
    for slot, at in enumerate(nearest(shown, wanted.pts_seconds).tolist()):
        frame = decoder.get_frame_at(at)
        pts_seconds, asked = float(frame.pts_seconds) - begin, float(shown[at])
        if abs(pts_seconds - asked) > 0.5 / video.index.average_fps:
            msg = f"torchcodec gave the frame of {pts_seconds:.3f} s for the one of {asked:.3f} s; use pyav."
            raise VideoError(Status.DECODE_ERROR, msg)
        pixels = VideoFrame.from_ndarray(np.ascontiguousarray(frame.data.numpy()), format="rgb24")
        writer.put([slot], pixels, pts_seconds)
    return Decoded()


def _shown(index: VideoIndex, num_frames: int, decoder: str) -> Seconds:
    """When each frame is shown, ascending: the decoder's frames, if it counts as many as the index."""
    shown = np.sort(index.pts_seconds[index.is_shown])
    if len(shown) != num_frames:
        msg = f"{decoder} counts {num_frames} frames, the file holds {len(shown)}; use pyav."
        raise VideoError(Status.DECODE_ERROR, msg)
    return shown
