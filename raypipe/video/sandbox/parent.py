"""The parent's side of decoding untrusted videos in a child process, which can be killed.

The parent loads no video library. The child gets each video as a file descriptor without a name. It returns frames in
shared memory and one small JSON message. The parent checks both before it uses them. A video that crashes its child
costs only its own row.
"""

import contextlib
import fcntl
import importlib.util
import json
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
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Protocol, Self

import numpy as np
import numpy.typing as npt

import raypipe
from raypipe.errors import ConfigError, SetupError
from raypipe.status import HAS_FRAMES, Status
from raypipe.video.decode_request import DECODERS, DecodeRequest, Pixels, Ranges
from raypipe.video.sandbox.protocol import MAX_MESSAGE_BYTES, WANT, SharedFrames, read_ranges, read_reply

if TYPE_CHECKING:
    from raypipe.config.embed import DecodeConfig

_START_SECONDS = 120
_END_SECONDS = 2
_START_ATTEMPTS = 5
_MAX_ASKS = 80  # a correct child asks for the whole file before it has asked this often
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv.pop(1).splitlines(); "
    "from raypipe.video.sandbox import isolation; left = isolation.leave_network(); "
    "from raypipe.video.sandbox.child import main; main(sys.argv[1:], network_left=left)"
)


@dataclass(frozen=True, slots=True)
class DecodedVideo:
    """The result of decoding one video: T frames as RGB crops of the requested size, and the file's properties."""

    status: Status
    error: str
    decoder: str
    pts_seconds: npt.NDArray[np.float64]  # [T] time since the first frame
    frames: Pixels  # [T, crop, crop, 3]
    container: str = ""
    codec: str = ""
    width: int = 0
    height: int = 0
    duration_seconds: float = 0.0
    average_fps: float = 0.0
    num_corrupt_frames: int = 0  # among the T frames; for a decode error, among all decoded frames
    interlaced: bool = False  # frames were deinterlaced
    timeline_repaired: bool = False  # the time stamps contradicted each other, so they were repaired


class PartialFile(Protocol):
    """A video file in which only some byte ranges are present."""

    @property
    def there(self) -> Ranges:
        """Return the byte ranges that are present in the file."""

    def bring(self, ranges: Ranges) -> None:
        """Fetch byte ranges of the video into the file, unless they are already present."""


class DecodeSandbox:
    """Decodes one video at a time, with one child process for each decoder that is used.

    ``auto`` tries those of PyAV, decord and torchcodec that are installed, in this order and with one common deadline.
    A child is replaced after ``max_videos_per_child`` videos, when it holds more than half of its memory limit, and
    after it died or was killed.

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
        self._memory_fd = os.memfd_create("raypipe-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._memory_fd, size)
        # Without these seals a child could truncate the memory, and the parent would die when it reads a frame.
        fcntl.fcntl(self._memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        memory = mmap.mmap(self._memory_fd, size)
        self._shared = SharedFrames(memory, crop_size=request.crop_size, max_frames=request.max_frames)
        self._children: dict[str, Child] = {}
        self._deadline = 0.0

    @classmethod
    def start(cls, request: DecodeRequest, decode: "DecodeConfig") -> Self:
        """Return a sandbox with the settings in ``decode``.

        Its child is already running, so that the first video does not have to wait for it.
        """
        sandbox = cls(
            request,
            decoder=decode.decoder,
            timeout_seconds=decode.timeout_seconds,
            memory_bytes=decode.memory_bytes,
        )
        sandbox.isolation()
        return sandbox

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for decoder in list(self._children):
            self._discard(decoder)
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1

    def isolation(self) -> dict[str, bool]:
        """Return whether the first decoder's child gave up its ``network``, ``files``, ``privileges`` and ``calls``."""
        return self._child(self._decoders[0]).isolation

    def child_pids(self) -> list[int]:
        return [child.process.pid for child in self._children.values()]

    def decode(self, file: BinaryIO, *, part: PartialFile | None = None) -> DecodedVideo:
        """Decode the video in an open file, which must have a file descriptor.

        Bad data becomes a status, never an exception. If only a part of the file is present, ``part`` knows which byte
        ranges are missing and fetches them. Exceptions from ``part`` propagate.
        """
        self._deadline = time.monotonic() + self._timeout_seconds
        first: DecodedVideo | None = None
        for decoder in self._decoders:
            try:
                video = self._decode_with(decoder, file, part)
            except SetupError:
                if first is None:
                    raise
                # The decoder is installed but cannot be loaded: `auto` continues without it.
                self._decoders = tuple(one for one in self._decoders if one != decoder)
                continue
            if video.status not in {Status.DECODE_ERROR, Status.CRASHED}:
                return video if first is None or video.status in HAS_FRAMES else first
            first = first or video
        if first is None:
            msg = "No decoder is installed. pip install av."
            raise SetupError(msg)
        return first

    def _decode_with(self, decoder: str, file: BinaryIO, part: PartialFile | None) -> DecodedVideo:
        was_killed = False
        while True:
            child = self._child(decoder)
            try:
                video = self._read(self._converse(child, file, part), decoder)
            except TimeoutError:
                self._discard(decoder)
                return self._failed(Status.TIMEOUT, f"Not decoded within {self._timeout_seconds:g} s.", decoder)
            except ChildDiedError:
                exit_code = self._children.pop(decoder).wait()
                if exit_code != -signal.SIGKILL:
                    ending = {-one.value: one.name for one in signal.Signals}.get(exit_code, f"exit code {exit_code}")
                    return self._failed(Status.CRASHED, f"The decoder died: {ending}.", decoder)
                if was_killed:
                    error = "The decoder was killed twice, probably because memory ran out."
                    return self._failed(Status.OUT_OF_MEMORY, error, decoder)
                was_killed = True  # not by raypipe, but perhaps by the kernel to free memory: retry once
            except BaseException:
                self._discard(decoder)  # its late reply must not be taken for the next video's reply
                raise
            else:
                is_worn = child.is_worn(self._max_videos_per_child, self._memory_bytes)
                if video.status in {Status.OUT_OF_MEMORY, Status.CRASHED} or is_worn:
                    self._discard(decoder)
                return video

    def _converse(self, child: "Child", file: BinaryIO, part: PartialFile | None) -> dict[str, Any]:
        """Send a video to the child, fetch the byte ranges that the child asks for, and return its reply.

        The reply is empty if the child asks for invalid ranges or asks too often.
        """
        if part is None:
            return child.ask(file, self._request, self._deadline)
        message = child.ask(file, self._request, self._deadline, there=part.there)
        size_bytes = os.fstat(file.fileno()).st_size
        for _ in range(_MAX_ASKS):
            if WANT not in message:
                return message
            ranges = read_ranges(message[WANT], size_bytes)
            if ranges is None:
                break
            start = time.monotonic()
            part.bring(ranges)
            self._deadline += time.monotonic() - start  # time spent on the network does not count against the video
            message = child.go_on(self._deadline)
        return {}

    def _read(self, message: dict[str, Any], decoder: str) -> DecodedVideo:
        """Validate the child's reply, then copy the frames out of the shared memory, to which the child can write."""
        reply = read_reply(message, max_frames=self._request.max_frames)
        num_frames = reply.num_frames if reply else 0
        pts_seconds = self._shared.pts_seconds[:num_frames].copy()
        if reply is None or not np.isfinite(pts_seconds).all():
            return self._failed(Status.CRASHED, "The decoder's reply is invalid.", decoder)
        known = asdict(reply)
        del known["num_frames"]
        frames = self._shared.frames[:num_frames].copy()
        return DecodedVideo(decoder=decoder, pts_seconds=pts_seconds, frames=frames, **known)

    def _failed(self, status: Status, error: str, decoder: str) -> DecodedVideo:
        return DecodedVideo(status, error, decoder, self._shared.pts_seconds[:0].copy(), self._shared.frames[:0].copy())

    def _child(self, decoder: str) -> "Child":
        if decoder not in self._children:
            start = time.monotonic()
            self._children[decoder] = self._start_child(decoder)
            self._deadline += time.monotonic() - start  # loading libraries does not count against the video
        return self._children[decoder]

    def _start_child(self, decoder: str) -> "Child":
        for _ in range(_START_ATTEMPTS):
            with contextlib.suppress(ChildDiedError):  # not killed by raypipe, perhaps by the kernel
                return Child(decoder, self._request, memory_fd=self._memory_fd, memory_bytes=self._memory_bytes)
        msg = f"The {decoder} decoder was killed {_START_ATTEMPTS} times at startup, probably because memory ran out."
        raise SetupError(msg, key="decode.decoder", value=decoder, remedy="Give it more memory.")

    def _discard(self, decoder: str) -> None:
        self._children.pop(decoder).end()


class ChildDiedError(Exception):
    """The child exited or was killed."""


class Child:
    """One child process and the socket that connects to it.

    Raises:
        ChildDiedError: the child was killed before it was ready.
        SetupError: the child does not start.
    """

    def __init__(self, decoder: str, request: DecodeRequest, *, memory_fd: int, memory_bytes: int) -> None:
        self.videos = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        numbers = (theirs.fileno(), memory_fd, memory_bytes, request.crop_size, request.max_frames)
        with theirs, tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(prefix="raypipe-empty-") as empty:
            self.process = subprocess.Popen(  # noqa: S603  # our own interpreter and program
                [sys.executable, "-I", "-S", "-c", _PROGRAM, _import_path(), decoder, *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=empty,
                env=_environment(),
                pass_fds=(theirs.fileno(), memory_fd),
                start_new_session=True,  # only the parent handles Ctrl-C
            )
            theirs.close()
            self._socket = ours
            try:
                self.isolation: dict[str, bool] = self._receive(time.monotonic() + _START_SECONDS)
            except TimeoutError:
                self.end()
                raise _not_started(decoder, log, f"no answer within {_START_SECONDS} s") from None
            except ChildDiedError:
                exit_code = self.wait()
                if exit_code == -signal.SIGKILL:
                    raise
                raise _not_started(decoder, log, f"it ended with {exit_code}") from None
            self._own_bytes = resident_bytes(self.process.pid)  # the memory of its libraries

    def ask(
        self, file: BinaryIO, request: DecodeRequest, deadline: float, *, there: Ranges | None = None
    ) -> dict[str, Any]:
        """Send one video to the child, and return its next message: the reply, or a request for missing ranges.

        ``there`` holds the byte ranges that are present in the file. None means that the whole file is present.

        Raises:
            TimeoutError: the deadline passed.
            ChildDiedError: the child exited or was killed.
        """
        self.videos += 1
        return self._send({"request": asdict(request), "there": there}, deadline, [file.fileno()])

    def go_on(self, deadline: float) -> dict[str, Any]:
        """Tell the child that the ranges it asked for are present, and return its next message.

        This raises the same errors as ``ask``.
        """
        return self._send({}, deadline, [])

    def _send(self, message: dict[str, Any], deadline: float, fds: list[int]) -> dict[str, Any]:
        message["timeout_seconds"] = max(0.0, deadline - time.monotonic())
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], fds)
        except OSError:
            raise ChildDiedError from None
        return self._receive(deadline)

    def is_worn(self, max_videos: int, memory_bytes: int) -> bool:
        """Return whether to replace the child: it has decoded enough videos, or holds too much memory."""
        kept = resident_bytes(self.process.pid) - self._own_bytes
        return self.videos >= max_videos or kept > memory_bytes // 2

    def end(self) -> int:
        """Kill the child and return its exit code. If a signal ended it, the code is the negative signal number."""
        self._socket.close()
        self.process.kill()
        return self.process.wait()

    def wait(self) -> int:
        """Return the exit code of a child that closed its socket. Kill the child only if it does not exit in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_SECONDS)
        return self.end()

    def _receive(self, deadline: float) -> dict[str, Any]:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = self._socket.recv(MAX_MESSAGE_BYTES)
        except TimeoutError:
            raise
        except OSError:
            raise ChildDiedError from None
        if not data:
            raise ChildDiedError
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(data)
            if isinstance(message, dict):
                return message
        return {}


def installed_decoders(decoder: str) -> tuple[str, ...]:
    """Return the decoders to try, in order: the given decoder or, for ``auto``, all that are installed.

    Raises:
        ConfigError: the given decoder is not installed, or ``auto`` finds no decoder.
    """
    modules = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}
    found = tuple(name for name in DECODERS if importlib.util.find_spec(modules[name]))
    if decoder == "auto" and found:
        return found
    if decoder not in found:
        msg = f"Decoder {decoder!r} is not installed."
        raise ConfigError(msg, key="decode.decoder", value=decoder, choices=("auto", *found))
    return (decoder,)


def _not_started(decoder: str, log: IO[bytes], reason: str) -> SetupError:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    msg = f"The {decoder} decoder does not start: {lines[-1] if lines else reason}."
    return SetupError(msg, key="decode.decoder", value=decoder, remedy="Run raypipe doctor.")


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes, or 0 if the process no longer exists."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0


def _import_path() -> str:
    """Return the parent's module search path as absolute paths, one per line, with raypipe's own folder first."""
    own = str(Path(raypipe.__file__).resolve().parents[1])
    paths = [own, *(str(Path(path).resolve()) for path in sys.path if path)]
    return "\n".join(dict.fromkeys(paths))


def _environment() -> dict[str, str]:
    """Return the environment variables of the child.

    They set the path of shared libraries and limit the child to one thread and one malloc arena. They hold no
    credentials.
    """
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {**kept, "PATH": os.defpath, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
