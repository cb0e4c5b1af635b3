"""Decode untrusted video in a child process that can be killed: the parent's side.

No video library is loaded here. A video goes in as a nameless file descriptor and comes back as frames in shared
memory and one small JSON message, each checked before it is used. Whatever a video does to its child costs one row.
"""

import contextlib
import importlib.util
import json
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

import raypipe
from raypipe.errors import ConfigError, SetupError
from raypipe.status import HAS_FRAMES, Status
from raypipe.video.protocol import DECODERS, MAX_MESSAGE_BYTES, DecodeRequest, Pixels, Reply, SharedFrames

_START_SECONDS = 120
_MAX_TEXT = 300
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv.pop(1).splitlines(); "
    "from raypipe.video import isolation; left = isolation.leave_network(); "
    "from raypipe.video.worker import main; main(sys.argv[1:], network_left=left)"
)


@dataclass(frozen=True, slots=True)
class DecodedVideo:
    """What became of one video: T frames, RGB crops of the size asked for, and what is known of the file."""

    status: Status
    error: str
    decoder: str
    pts_seconds: npt.NDArray[np.float64]  # [T] from the first frame
    frames: Pixels  # [T, crop, crop, 3]
    container: str = ""
    codec: str = ""
    width: int = 0
    height: int = 0
    duration_seconds: float = 0.0
    average_fps: float = 0.0


class DecodeSandbox:
    """Decodes one video at a time, in a child for each decoder that is needed.

    ``auto`` tries PyAV, then decord, then torchcodec where it is installed; all share one deadline. A child is replaced
    after ``max_videos_per_child`` videos, when it holds half its memory limit, and when it died or had to be killed.

    Raises:
        ConfigError: the decoder is not installed.
    """

    def __init__(
        self,
        request: DecodeRequest,
        *,
        decoder: str = "auto",
        timeout_seconds: float = 60,
        memory_bytes: int = 2**31,
        max_videos_per_child: int = 500,
    ) -> None:
        self._request = request
        self._decoders = installed_decoders(decoder)
        self._timeout_seconds = timeout_seconds
        self._memory_bytes = memory_bytes
        self._max_videos_per_child = max_videos_per_child
        size = SharedFrames.size_bytes(crop_size=request.crop_size, max_frames=request.max_frames)
        self._memory_fd = os.memfd_create("raypipe-frames")
        os.ftruncate(self._memory_fd, size)
        memory = mmap.mmap(self._memory_fd, size)
        self._shared = SharedFrames(memory, crop_size=request.crop_size, max_frames=request.max_frames)
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the children."""
        for decoder in list(self._children):
            self._discard(decoder)
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1

    def isolation(self) -> dict[str, bool]:
        """Which of network, files and calls the kernel let the first decoder's child give up."""
        return self._child(self._decoders[0]).isolation

    def child_pids(self) -> list[int]:
        """The processes that run now."""
        return [child.process.pid for child in self._children.values()]

    def decode(self, file: BinaryIO) -> DecodedVideo:
        """Decode the video in an open file that has a file descriptor; bad data is a status, never an exception."""
        deadline = time.monotonic() + self._timeout_seconds
        first: DecodedVideo | None = None
        for decoder in self._decoders:
            video = self._decode_with(decoder, file, deadline)
            if video.status not in {Status.DECODE_ERROR, Status.CRASHED}:
                return video if first is None or video.status in HAS_FRAMES else first
            first = first or video
        if first is None:
            msg = "No decoder is installed. pip install av."
            raise SetupError(msg)
        return first

    def _decode_with(self, decoder: str, file: BinaryIO, deadline: float) -> DecodedVideo:
        killed_before = False
        while True:
            child = self._child(decoder)
            try:
                video = self._read(child.ask(file, self._request, deadline), decoder)
            except TimeoutError:
                self._discard(decoder)
                return self._failed(Status.TIMEOUT, f"Not decoded within {self._timeout_seconds:g} s.", decoder)
            except _ChildDiedError:
                number = -self._discard(decoder)
                if number == signal.SIGKILL and not killed_before:
                    killed_before = True  # by somebody else, such as the kernel for memory: the video gets one more chance
                    continue
                if number == signal.SIGKILL:
                    return self._failed(Status.OUT_OF_MEMORY, "The decoder was killed twice, as if for memory.", decoder)
                how = signal.Signals(number).name if number > 0 else f"exit code {-number}"
                return self._failed(Status.CRASHED, f"The decoder died: {how}.", decoder)
            if video.status is Status.OUT_OF_MEMORY or child.is_worn(self._max_videos_per_child, self._memory_bytes):
                self._discard(decoder)
            return video

    def _read(self, message: dict[str, Any], decoder: str) -> DecodedVideo:
        """Check everything the child said, then copy its frames out of its reach."""
        try:
            reply = Reply(**message)
            status = Status(reply.status)
            numbers = (reply.width, reply.height, reply.num_frames, reply.duration_seconds, reply.average_fps)
            texts = (reply.error, reply.container, reply.codec)
            num_frames = int(reply.num_frames)
            sound = all(math.isfinite(number) and 0 <= number < 2**31 for number in numbers)
            sound = sound and num_frames <= self._request.max_frames and (num_frames > 0) == (status in HAS_FRAMES)
            pts_seconds = self._shared.pts_seconds[:num_frames].copy()
            sound = sound and bool(np.isfinite(pts_seconds).all()) and all(isinstance(text, str) for text in texts)
        except (TypeError, ValueError, OverflowError):
            sound = False
        if not sound:
            return self._failed(Status.CRASHED, "The decoder's answer makes no sense.", decoder)
        return DecodedVideo(
            status=status,
            error=one_line(reply.error),
            decoder=decoder,
            pts_seconds=pts_seconds,
            frames=self._shared.frames[:num_frames].copy(),
            container=one_line(reply.container),
            codec=one_line(reply.codec),
            width=int(reply.width),
            height=int(reply.height),
            duration_seconds=float(reply.duration_seconds),
            average_fps=float(reply.average_fps),
        )

    def _failed(self, status: Status, error: str, decoder: str) -> DecodedVideo:
        return DecodedVideo(status, error, decoder, self._shared.pts_seconds[:0].copy(), self._shared.frames[:0].copy())

    def _child(self, decoder: str) -> "_Child":
        if decoder not in self._children:
            self._children[decoder] = _Child(
                decoder,
                memory_fd=self._memory_fd,
                memory_bytes=self._memory_bytes,
                crop_size=self._request.crop_size,
                max_frames=self._request.max_frames,
            )
        return self._children[decoder]

    def _discard(self, decoder: str) -> int:
        """End a child and give its exit code, negative for a signal."""
        return self._children.pop(decoder).end()


class _ChildDiedError(Exception):
    """The child is gone."""


class _Child:
    """One child process and the socket to it."""

    def __init__(self, decoder: str, *, memory_fd: int, memory_bytes: int, crop_size: int, max_frames: int) -> None:
        self.videos = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        numbers = (theirs.fileno(), memory_fd, memory_bytes, crop_size, max_frames)
        with theirs, tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(prefix="raypipe-empty-") as empty:
            self.process = subprocess.Popen(  # noqa: S603  # our own interpreter and program
                [sys.executable, "-I", "-S", "-c", _PROGRAM, _import_path(), decoder, *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=empty,
                env=_environment(),
                pass_fds=(theirs.fileno(), memory_fd),
                start_new_session=True,  # Ctrl-C is for the parent to handle
            )
            theirs.close()
            self._socket = ours
            try:
                self.isolation: dict[str, bool] = self._receive(time.monotonic() + _START_SECONDS)
            except (TimeoutError, _ChildDiedError):
                self.end()
                log.seek(0)
                lines = log.read().decode(errors="replace").strip().splitlines()
                reason = lines[-1] if lines else f"no answer within {_START_SECONDS} s"
                msg = f"The {decoder} decoder does not start: {reason}. Run raypipe doctor."
                raise SetupError(msg) from None

    def ask(self, file: BinaryIO, request: DecodeRequest, deadline: float) -> dict[str, Any]:
        """Send one video and wait for the answer.

        Raises:
            TimeoutError: the deadline passed.
            _ChildDiedError: the child is gone.
        """
        self.videos += 1
        message = {"request": asdict(request), "timeout_seconds": max(0.0, deadline - time.monotonic())}
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], [file.fileno()])
        except OSError:
            raise _ChildDiedError from None
        return self._receive(deadline)

    def is_worn(self, max_videos: int, memory_bytes: int) -> bool:
        """Whether the child has served enough, or kept so much memory that the next video would suffer."""
        return self.videos >= max_videos or resident_bytes(self.process.pid) > memory_bytes // 2

    def end(self) -> int:
        """Kill the child where it still runs, and give its exit code."""
        self._socket.close()
        self.process.kill()
        return self.process.wait()

    def _receive(self, deadline: float) -> dict[str, Any]:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = self._socket.recv(MAX_MESSAGE_BYTES)
        except TimeoutError:
            raise
        except OSError:
            raise _ChildDiedError from None
        if not data:
            raise _ChildDiedError
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(data)
            if isinstance(message, dict):
                return message
        return {}


def installed_decoders(decoder: str) -> tuple[str, ...]:
    """The decoders that ``decoder`` means, in the order they are tried.

    Raises:
        ConfigError: it names one that is not installed.
    """
    modules = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}
    found = tuple(name for name in DECODERS if importlib.util.find_spec(modules[name]))
    if decoder == "auto" and found:
        return found
    if decoder not in found:
        msg = f"Decoder {decoder!r} is not installed. Choose one of {', '.join(('auto', *found))}."
        raise ConfigError(msg)
    return (decoder,)


def resident_bytes(pid: int) -> int:
    """Memory that a process holds now; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0


def one_line(text: str) -> str:
    """Text from an untrusted source, made safe for a table or a terminal: one printable line."""
    return "".join(char if char.isprintable() else " " for char in text)[:_MAX_TEXT].strip()


def _import_path() -> str:
    """The parent's module search path, absolute, raypipe's own folder first."""
    own = str(Path(raypipe.__file__).resolve().parents[1])
    paths = [own, *(str(Path(path).resolve()) for path in sys.path if path)]
    return "\n".join(dict.fromkeys(paths))


def _environment() -> dict[str, str]:
    """Nothing of ours but where shared libraries lie: no credentials; one thread, one malloc arena."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {**kept, "PATH": os.defpath, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
