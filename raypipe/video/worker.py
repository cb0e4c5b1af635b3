"""The decode child's program: it answers one request after the other until its parent goes away.

Started by ``raypipe.video.sandbox`` with a socket and a block of shared memory, without credentials, environment or
anything that names a video. Nothing it writes is trusted by its parent.
"""

import contextlib
import importlib
import io
import json
import mmap
import os
import pkgutil
import signal
import socket
import sys
from dataclasses import asdict
from typing import Any, BinaryIO, cast

import av
import av.logging
import numpy as np

from raypipe.status import HAS_FRAMES, Status
from raypipe.video import choosing, decoders, isolation, other_decoders
from raypipe.video.decoders import Decoded, refuse_damaged
from raypipe.video.display import FrameWriter, pixel_aspect
from raypipe.video.ffmpeg_log import ErrorLog, error_log
from raypipe.video.index import VideoIndex
from raypipe.video.located import SampleTableError
from raypipe.video.probe import VideoError, VideoFile
from raypipe.video.protocol import MAX_MESSAGE_BYTES, WANT, DecodeRequest, Limits, Ranges, Reply, SharedFrames
from raypipe.video.ranges import RangedFile
from raypipe.video.reading import describe

_GRACE_SECONDS = 5
_DECODE = {
    "pyav": decoders.decode_pyav,
    "decord": other_decoders.decode_decord,
    "torchcodec": other_decoders.decode_torchcodec,
}


def main(arguments: list[str], *, network_left: bool) -> None:
    """Serve requests. Arguments: decoder, socket fd, memory fd, memory limit in bytes, crop size, most frames."""
    decoder, *numbers = arguments
    socket_fd, memory_fd, memory_bytes, crop_size, max_frames = map(int, numbers)
    shared = SharedFrames(mmap.mmap(memory_fd, 0), crop_size=crop_size, max_frames=max_frames)
    os.close(memory_fd)
    av.logging.set_level(None)
    rehearse(decoder, shared)
    isolation.limit_memory(memory_bytes)
    held = {
        "network": network_left,
        "files": isolation.leave_files(),
        "privileges": isolation.drop_privileges(),
        "calls": isolation.deny_calls(),
    }
    with socket.socket(fileno=socket_fd) as connection:
        connection.send(json.dumps(held).encode())
        while (received := _receive(connection)) is not None:
            file, message = received
            _set_timer(message)
            with file:
                source = _ranged(file, message["there"], connection) if message["there"] is not None else file
                reply = decode_video(source, message["request"], decoder=decoder, shared=shared)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(json.dumps(asdict(reply)).encode())


def rehearse(decoder: str, shared: SharedFrames) -> None:
    """Decode a video of our own, so that nothing is left to be loaded when files can no longer be opened."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if module.name != "av.__main__":
            importlib.import_module(module.name)
    video = io.BytesIO()
    with av.open(video, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"threads": "1"})
        stream.width = stream.height = 64
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    limits = {"max_pixels": 64 * 64, "max_duration_seconds": 60.0}
    asked = {"mode": "uniform", "num_frames": 1, "fps": 1.0, "max_frames": 1}
    crop_size = shared.frames.shape[1]
    size = {"resize_size": crop_size, "crop_size": crop_size}
    request = {**asked, **size, "nearest_keyframe": False, "loop_filter": True, "limits": limits}
    reply = decode_video(video, request, decoder=decoder, shared=shared)
    if reply.status != Status.OK:
        msg = f"{decoder} fails on a video of our own: {reply.error}"
        raise RuntimeError(msg)


def _receive(connection: socket.socket) -> tuple[BinaryIO, dict[str, Any]] | None:
    """The next video and what is asked of it, or None when the parent is gone."""
    data, fds, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, 1)
    return (os.fdopen(fds[0], "rb"), json.loads(data)) if data else None


def _set_timer(message: dict[str, Any]) -> None:
    """The parent's deadline comes first; this one is for a child whose parent is gone."""
    signal.setitimer(signal.ITIMER_REAL, message["timeout_seconds"] + _GRACE_SECONDS)


def _ranged(file: BinaryIO, there: Ranges, connection: socket.socket) -> BinaryIO:
    """A file of which the parent brings what is read of it."""

    def ask(ranges: Ranges) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # the storage's time is not the video's
        connection.send(json.dumps({WANT: ranges}).encode())
        if not (data := connection.recv(MAX_MESSAGE_BYTES)):
            sys.exit(0)  # the parent is gone
        _set_timer(json.loads(data))

    return cast("BinaryIO", RangedFile(file, there=there, ask=ask))


def decode_video(file: BinaryIO, request: dict[str, Any], *, decoder: str, shared: SharedFrames) -> Reply:
    """Decode one video into the shared memory; whatever is wrong with it is the reply's status."""
    asked = DecodeRequest(**{**request, "limits": Limits(**request["limits"])})
    with error_log() if asked.row_format > 1 else contextlib.nullcontext() as log:
        return _decode_logged(file, asked, decoder=decoder, shared=shared, log=log)


def _decode_logged(
    file: BinaryIO, asked: DecodeRequest, *, decoder: str, shared: SharedFrames, log: ErrorLog | None
) -> Reply:
    try:
        opened = VideoFile(
            file, limits=asked.limits, loop_filter=asked.loop_filter, row_format=asked.row_format, log=log
        )
        with contextlib.closing(opened) as video:
            try:
                return _decode_open(video, asked, decoder=decoder, shared=shared)
            except SampleTableError:
                video.scan()
                return _decode_open(video, asked, decoder=decoder, shared=shared)
    except VideoError as error:
        return Reply(error.status, str(error))
    except MemoryError:
        return Reply(Status.OUT_OF_MEMORY, "Decoding needs more than decode.memory_bytes.")
    except Exception as error:  # noqa: BLE001  # three libraries raise anything at all on damaged input: it is the row's error
        return Reply(Status.DECODE_ERROR, describe(error))


def _decode_open(video: VideoFile, asked: DecodeRequest, *, decoder: str, shared: SharedFrames) -> Reply:
    index = video.index
    wanted = choosing.choose_frames(index, asked)
    aspect = pixel_aspect(video.stream)
    writer = FrameWriter(wanted, shared.frames, asked, pixel_aspect=aspect, container=video.container)
    decoded = Decoded()
    try:
        if len(wanted.packets):
            if decoder != "pyav" and asked.row_format > 1:
                other_decoders.refuse_unsupported(video, decoder=decoder)
                refuse_damaged(video, wanted, decoder=decoder)
            decoded = _DECODE[decoder](video, wanted, writer)
    except VideoError as error:
        if error.status is not Status.DECODE_ERROR:
            return _reply(index, writer, decoded, status=error.status, error=str(error))
        decoded.problem = str(error)
    except (MemoryError, SampleTableError):
        raise
    except Exception as error:  # noqa: BLE001  # as above; the frames before the damage count
        decoded.problem = describe(error)
    num_frames = _keep_taken(writer, shared)
    num_asked = choosing.num_frames_asked(index, asked, wanted) - decoded.num_hidden
    status, problem = _outcome(index, decoded, num_frames=num_frames, num_asked=num_asked)
    return _reply(
        index, writer, decoded, status=status, error=problem, num_frames=num_frames if status in HAS_FRAMES else 0
    )


def _keep_taken(writer: FrameWriter, shared: SharedFrames) -> int:
    """Move the frames that were decoded to the front, ascending in time, and return their number."""
    taken = np.flatnonzero(~np.isnan(writer.pts_seconds))
    if writer.request.row_format > 1:
        taken = taken[np.argsort(writer.pts_seconds[taken], kind="stable")]
    if (taken != np.arange(len(taken))).any():
        shared.frames[: len(taken)] = shared.frames[taken]
    shared.pts_seconds[: len(taken)] = writer.pts_seconds[taken]
    return len(taken)


def _outcome(index: VideoIndex, decoded: Decoded, *, num_frames: int, num_asked: int) -> tuple[Status, str]:
    """Return the status of a video that was read to its end, and its error."""
    shown = f"the file ends at {index.end_seconds:.2f} s of {index.duration_seconds:.2f} s"
    cut = shown if index.end_seconds < index.duration_seconds else ""
    if index.lost_spans and not cut:
        lost = sum(stop - start for start, stop in index.lost_spans)
        cut = f"damage hides {lost:.2f} s of {index.duration_seconds:.2f} s"
    problem = decoded.problem.rstrip(".")
    if not num_frames:
        return Status.DECODE_ERROR, decoded.problem or cut or "No frame could be decoded."
    if decoded.num_flagged_frames == num_frames:
        return Status.DECODE_ERROR, f"All {num_frames} frames are corrupt: {problem}."
    errors = []
    if num_frames < num_asked:
        errors.append(f"{num_frames} of {num_asked} frames: {cut or problem or 'some frames are damaged'}.")
    if decoded.num_corrupt_frames:
        errors.append(f"{decoded.num_corrupt_frames} of {num_frames} frames are corrupt: {problem}.")
    return (Status.PARTIAL, " ".join(errors)) if errors else (Status.OK, "")


def _reply(
    index: VideoIndex, writer: FrameWriter, decoded: Decoded, *, status: Status, error: str, num_frames: int = 0
) -> Reply:
    width, height = writer.displayed_size or (index.width, index.height)
    return Reply(
        status=status,
        error=error,
        container=index.container,
        codec=index.codec,
        width=width,
        height=height,
        num_frames=num_frames,
        duration_seconds=index.duration_seconds,
        average_fps=index.average_fps,
        num_corrupt_frames=decoded.num_corrupt_frames,
        interlaced=decoded.interlaced,
        timeline_repaired=index.timeline_repaired,
    )
