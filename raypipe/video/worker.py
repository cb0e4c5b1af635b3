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

from raypipe.status import Status
from raypipe.video import decoders, isolation, other_decoders
from raypipe.video.decoders import FrameWriter
from raypipe.video.index import VideoIndex
from raypipe.video.located import SampleTableError
from raypipe.video.probe import VideoError, VideoFile
from raypipe.video.protocol import MAX_MESSAGE_BYTES, WANT, DecodeRequest, Limits, Ranges, Reply, SharedFrames
from raypipe.video.ranges import RangedFile

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
    try:
        with contextlib.closing(VideoFile(file, limits=asked.limits, loop_filter=asked.loop_filter)) as video:
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
        return Reply(Status.DECODE_ERROR, decoders.describe(error))


def _decode_open(video: VideoFile, asked: DecodeRequest, *, decoder: str, shared: SharedFrames) -> Reply:
    index = video.index
    wanted = decoders.choose_frames(index, asked)
    writer = FrameWriter(wanted, shared.frames, asked)
    problem = ""
    try:
        if len(wanted.packets):
            _DECODE[decoder](video, wanted, writer)
    except VideoError as error:
        if error.status is not Status.DECODE_ERROR:
            return _reply(index, error.status, str(error))
        problem = str(error)
    except (MemoryError, SampleTableError):
        raise
    except Exception as error:  # noqa: BLE001  # as above; the frames before the damage count
        problem = decoders.describe(error)
    taken = np.flatnonzero(~np.isnan(writer.pts_seconds))
    num_frames, num_asked = len(taken), decoders.num_frames_asked(index, asked, wanted)
    shown = f"the file ends at {index.end_seconds:.2f} s of {index.duration_seconds:.2f} s"
    cut = shown if index.end_seconds < index.duration_seconds else ""
    if not num_frames:
        return _reply(index, Status.DECODE_ERROR, problem or cut or "No frame could be decoded.")
    if num_frames < len(wanted.packets):
        shared.frames[:num_frames] = shared.frames[taken]
    shared.pts_seconds[:num_frames] = writer.pts_seconds[taken]
    if num_frames < num_asked:
        why = cut or problem.rstrip(".") or "some frames are damaged"
        return _reply(index, Status.PARTIAL, f"{num_frames} of {num_asked} frames: {why}.", num_frames)
    return _reply(index, Status.OK, "", num_frames)


def _reply(index: VideoIndex, status: Status, error: str, num_frames: int = 0) -> Reply:
    return Reply(
        status=status,
        error=error,
        container=index.container,
        codec=index.codec,
        width=index.width,
        height=index.height,
        num_frames=num_frames,
        duration_seconds=index.duration_seconds,
        average_fps=index.average_fps,
    )
