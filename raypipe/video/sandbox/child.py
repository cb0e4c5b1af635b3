"""The program of the decode child process, which answers one request after another until its parent exits.

``raypipe.video.sandbox.parent`` starts the child with a socket and a block of shared memory. The child gets no
credentials, no video name, and only a few environment variables. The parent checks everything that the child writes.
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
from raypipe.video.container import VideoError, describe, error_log
from raypipe.video.decode_request import DecodeLimits, DecodeRequest, Ranges
from raypipe.video.decoders import DECODE, Decoded, refuse_unsupported
from raypipe.video.display import FrameWriter, pixel_aspect
from raypipe.video.packet_index import PacketIndex
from raypipe.video.packet_reader import SampleTableError
from raypipe.video.probe import VideoFile
from raypipe.video.ranged_file import RangedFile
from raypipe.video.sampling import choose_frames, num_frames_asked
from raypipe.video.sandbox import isolation
from raypipe.video.sandbox.protocol import MAX_MESSAGE_BYTES, WANT, Reply, SharedFrames

_GRACE_SECONDS = 5


def main(arguments: list[str], *, network_left: bool) -> None:
    """Serve requests until the parent exits.

    ``arguments`` holds the decoder's name, the file descriptors of the socket and of the shared memory, the memory
    limit in bytes, the crop size in pixels, and the maximum number of frames. ``network_left`` says whether this
    process has left the network.
    """
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
                asked = message["request"]
                request = DecodeRequest(**{**asked, "limits": DecodeLimits(**asked["limits"])})
                reply = decode_video(source, request, decoder=decoder, shared=shared)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(json.dumps(asdict(reply)).encode())


def rehearse(decoder: str, shared: SharedFrames) -> None:
    """Decode a generated video, so that all libraries are loaded before the child gives up access to files."""
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
    size, limits = shared.frames.shape[1], DecodeLimits(max_pixels=64 * 64, max_duration_seconds=60.0)
    request = DecodeRequest("uniform", 1, 1.0, 1, False, True, size, size, limits)  # noqa: FBT003
    reply = decode_video(video, request, decoder=decoder, shared=shared)
    if reply.status != Status.OK:
        msg = f"{decoder} cannot decode a generated test video: {reply.error}"
        raise RuntimeError(msg)


def _receive(connection: socket.socket) -> tuple[BinaryIO, dict[str, Any]] | None:
    """Return the next video and its request, or None if the parent has exited."""
    data, fds, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, 1)
    return (os.fdopen(fds[0], "rb"), json.loads(data)) if data else None


def _set_timer(message: dict[str, Any]) -> None:
    """Set a timer that ends this process if the parent has exited and can no longer enforce the deadline.

    The parent's own deadline is earlier.
    """
    signal.setitimer(signal.ITIMER_REAL, message["timeout_seconds"] + _GRACE_SECONDS)


def _ranged(file: BinaryIO, there: Ranges, connection: socket.socket) -> BinaryIO:
    """Return a file that asks the parent for missing parts when they are read.

    ``there`` holds the byte ranges that are already in the file.
    """

    def ask(ranges: Ranges) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # time spent on storage does not count against the video
        connection.send(json.dumps({WANT: ranges}).encode())
        if not (data := connection.recv(MAX_MESSAGE_BYTES)):
            sys.exit(0)  # the parent has exited
        _set_timer(json.loads(data))

    return cast("BinaryIO", RangedFile(file, there=there, ask=ask))


def decode_video(file: BinaryIO, request: DecodeRequest, *, decoder: str, shared: SharedFrames) -> Reply:
    """Decode one video into the shared memory, and return the reply to the parent.

    An error in the video becomes the status of the reply.
    """
    with error_log() if request.row_format > 1 else contextlib.nullcontext() as log:
        try:
            with contextlib.closing(VideoFile(file, request, log=log)) as video:
                try:
                    return _decode_frames(video, request, decoder=decoder, shared=shared)
                except SampleTableError:
                    video.scan()
                    return _decode_frames(video, request, decoder=decoder, shared=shared)
        except VideoError as error:
            return Reply(error.status, str(error))
        except MemoryError:
            return Reply(Status.OUT_OF_MEMORY, "Decoding needs more than decode.memory_bytes.")
        except Exception as error:  # noqa: BLE001  # corrupt input makes the libraries raise any type
            return Reply(Status.DECODE_ERROR, describe(error))


def _decode_frames(video: VideoFile, request: DecodeRequest, *, decoder: str, shared: SharedFrames) -> Reply:
    index = video.index
    wanted = choose_frames(index, request)
    aspect = pixel_aspect(video.reader.stream)
    writer = FrameWriter(wanted, shared.frames, request, pixel_aspect=aspect, container=index.container)
    decoded = Decoded()
    try:
        if len(wanted.packets):
            if decoder != "pyav" and request.row_format > 1:
                refuse_unsupported(video, wanted, decoder=decoder)
            decoded = DECODE[decoder](video, wanted, writer)
    except VideoError as error:
        if error.status is not Status.DECODE_ERROR:
            return _reply(index, writer, decoded, status=error.status, error=str(error))
        decoded.problem = str(error)
    except (MemoryError, SampleTableError):
        raise
    except Exception as error:  # noqa: BLE001  # as above; frames decoded before the error are kept
        decoded.problem = describe(error)
    num_frames = _keep_taken(writer, shared)
    num_asked = num_frames_asked(index, request, wanted) - decoded.num_hidden
    status, problem = _outcome(index, decoded, num_frames=num_frames, num_asked=num_asked)
    if status not in HAS_FRAMES:
        num_frames = 0
    return _reply(index, writer, decoded, status=status, error=problem, num_frames=num_frames)


def _keep_taken(writer: FrameWriter, shared: SharedFrames) -> int:
    """Move the decoded frames to the front of the shared memory, in order of time, and return their number."""
    taken = np.flatnonzero(~np.isnan(writer.pts_seconds))
    if writer.request.row_format > 1:
        taken = taken[np.argsort(writer.pts_seconds[taken], kind="stable")]
    if (taken != np.arange(len(taken))).any():
        shared.frames[: len(taken)] = shared.frames[taken]
    shared.pts_seconds[: len(taken)] = writer.pts_seconds[taken]
    return len(taken)


def _outcome(index: PacketIndex, decoded: Decoded, *, num_frames: int, num_asked: int) -> tuple[Status, str]:
    """Return the status and the error message of a video after its wanted frames were decoded as far as possible.

    ``num_asked`` is the number of frames that an undamaged file would give.
    """
    cut = ""
    if index.end_seconds < index.duration_seconds:
        cut = f"the file ends at {index.end_seconds:.2f} s of {index.duration_seconds:.2f} s"
    elif index.lost_spans:
        lost = sum(stop - start for start, stop in index.lost_spans)
        cut = f"damage hides {lost:.2f} s of {index.duration_seconds:.2f} s"
    elif index.ends_inside_fragment:
        cut = f"the file ends inside a fragment, at {index.end_seconds:.2f} s; how much is missing is unknown"
    problem = decoded.problem.rstrip(".")
    if not num_frames:
        return Status.DECODE_ERROR, decoded.problem or cut or "No frame could be decoded."
    if decoded.num_flagged_frames == num_frames:
        return Status.DECODE_ERROR, f"All {num_frames} frames are corrupt: {problem}."
    errors = []
    if num_frames < num_asked or index.ends_inside_fragment:
        errors.append(f"{num_frames} of {num_asked} frames: {cut or problem or 'some frames are damaged'}.")
    if decoded.num_corrupt_frames:
        errors.append(f"{decoded.num_corrupt_frames} of {num_frames} frames are corrupt: {problem}.")
    return (Status.PARTIAL, " ".join(errors)) if errors else (Status.OK, "")


def _reply(
    index: PacketIndex, writer: FrameWriter, decoded: Decoded, *, status: Status, error: str, num_frames: int = 0
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
