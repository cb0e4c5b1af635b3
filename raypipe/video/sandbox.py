"""Decode untrusted video in a child process that can be killed: the parent's side.

No video library is loaded here. A video goes in as a nameless file descriptor and comes back as frames in shared
memory and one small JSON message, each checked before it is used. Whatever a video does to its child costs one row.
"""

import contextlib
import fcntl
import importlib.util
import itertools
import math
import mmap
import os
import signal
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
import numpy.typing as npt

from raypipe.errors import ConfigError, SetupError
from raypipe.status import HAS_FRAMES, Status
from raypipe.video.child import Child, ChildDiedError
from raypipe.video.protocol import DECODERS, WANT, DecodeRequest, Pixels, Ranges, Reply, SharedFrames

_MAX_TEXT = 300
_START_ATTEMPTS = 5
_MAX_ASKS = 80  # a child asks less often, then for everything
_FOUND_BY_DECODING = frozenset(
    {
        Status.OK,
        Status.PARTIAL,
        Status.DECODE_ERROR,
        Status.NO_VIDEO_STREAM,
        Status.ENCRYPTED,
        Status.FORBIDDEN_FORMAT,
        Status.TOO_LARGE,
        Status.OUT_OF_MEMORY,
    }
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
    num_corrupt_frames: int = 0  # of the T frames; of an undecodable video those that were decoded all the same
    interlaced: bool = False  # frames were deinterlaced
    timeline_repaired: bool = False  # time stamps contradict each other: times are of a repaired timeline


class PartialFile(Protocol):
    """A video of which only a part is in its file."""

    @property
    def there(self) -> Ranges:
        """What is."""

    def bring(self, ranges: Ranges) -> None:
        """Put these ranges of the video into the file; those that are there already are left."""


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
        self._memory_fd = os.memfd_create("raypipe-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._memory_fd, size)
        # A child that could cut it short would kill its parent at the next look at a frame.
        fcntl.fcntl(self._memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        memory = mmap.mmap(self._memory_fd, size)
        self._shared = SharedFrames(memory, crop_size=request.crop_size, max_frames=request.max_frames)
        self._children: dict[str, Child] = {}
        self._deadline = 0.0

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
        """Which of network, files, privileges and calls the kernel let the first decoder's child give up."""
        return self._child(self._decoders[0]).isolation

    def child_pids(self) -> list[int]:
        """The processes that run now."""
        return [child.process.pid for child in self._children.values()]

    def decode(self, file: BinaryIO, *, part: PartialFile | None = None) -> DecodedVideo:
        """Decode the video in an open file that has a file descriptor; bad data is a status, never an exception.

        Of a sparse file ``part`` says what is there, and brings what is not; what it raises is passed on.
        """
        self._deadline = time.monotonic() + self._timeout_seconds
        first: DecodedVideo | None = None
        for decoder in self._decoders:
            try:
                video = self._decode_with(decoder, file, part)
            except SetupError:
                if first is None:
                    raise
                # It is there but cannot be loaded: `auto` goes without it.
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
                    return self._failed(Status.CRASHED, f"The decoder died: {ending(exit_code)}.", decoder)
                if was_killed:
                    error = "The decoder was killed twice, as if for memory."
                    return self._failed(Status.OUT_OF_MEMORY, error, decoder)
                was_killed = True  # by somebody else, such as the kernel for memory: the video gets one more chance
            except BaseException:
                self._discard(decoder)  # or its answer to this video would be taken for the next one's
                raise
            else:
                is_worn = child.is_worn(self._max_videos_per_child, self._memory_bytes)
                if video.status in {Status.OUT_OF_MEMORY, Status.CRASHED} or is_worn:
                    self._discard(decoder)
                return video

    def _converse(self, child: Child, file: BinaryIO, part: PartialFile | None) -> dict[str, Any]:
        """The child's last word on a video, once it was brought what it wanted of it."""
        if part is None:
            return child.ask(file, self._request, self._deadline)
        message = child.ask(file, self._request, self._deadline, there=part.there)
        size_bytes = os.fstat(file.fileno()).st_size
        for _ in range(_MAX_ASKS):
            if WANT not in message:
                return message
            ranges = sound_ranges(message[WANT], size_bytes)
            if ranges is None:
                break
            start = time.monotonic()
            part.bring(ranges)
            self._deadline += time.monotonic() - start  # the network's time is not the video's
            message = child.go_on(self._deadline)
        return {}

    def _read(self, message: dict[str, Any], decoder: str) -> DecodedVideo:
        """Check everything the child said, then copy its frames out of its reach."""
        try:
            reply = Reply(**message)
            status = Status(reply.status)
            numbers = (reply.width, reply.height, reply.num_frames, reply.duration_seconds, reply.average_fps)
            counts = (reply.num_frames, reply.num_corrupt_frames)
            flags = (reply.interlaced, reply.timeline_repaired)
            texts = (reply.error, reply.container, reply.codec)
            num_frames = int(reply.num_frames)
            sound = all(math.isfinite(number) and 0 <= number < 2**31 for number in numbers)
            sound = sound and status in _FOUND_BY_DECODING and (num_frames > 0) == (status in HAS_FRAMES)
            sound = sound and all(type(count) is int and 0 <= count <= self._request.max_frames for count in counts)
            sound = sound and all(type(flag) is bool for flag in flags)
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
            num_corrupt_frames=reply.num_corrupt_frames,
            interlaced=reply.interlaced,
            timeline_repaired=reply.timeline_repaired,
        )

    def _failed(self, status: Status, error: str, decoder: str) -> DecodedVideo:
        return DecodedVideo(status, error, decoder, self._shared.pts_seconds[:0].copy(), self._shared.frames[:0].copy())

    def _child(self, decoder: str) -> Child:
        if decoder not in self._children:
            start = time.monotonic()
            self._children[decoder] = self._start_child(decoder)
            self._deadline += time.monotonic() - start  # loading libraries is not the video's time
        return self._children[decoder]

    def _start_child(self, decoder: str) -> Child:
        for _ in range(_START_ATTEMPTS):
            with contextlib.suppress(ChildDiedError):  # killed by somebody else, such as the kernel for memory
                return Child(
                    decoder,
                    memory_fd=self._memory_fd,
                    memory_bytes=self._memory_bytes,
                    crop_size=self._request.crop_size,
                    max_frames=self._request.max_frames,
                )
        msg = f"The {decoder} decoder was killed {_START_ATTEMPTS} times as it started, as if for memory."
        raise SetupError(msg, key="decode.decoder", value=decoder, remedy="Give it more memory.")

    def _discard(self, decoder: str) -> None:
        self._children.pop(decoder).end()


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
        msg = f"Decoder {decoder!r} is not installed."
        raise ConfigError(msg, key="decode.decoder", value=decoder, choices=("auto", *found))
    return (decoder,)


def sound_ranges(wanted: object, size_bytes: int) -> Ranges | None:
    """What a child wants of a file, or None where it makes no sense."""
    if not isinstance(wanted, list) or not all(isinstance(one, list) and len(one) == 2 for one in wanted):  # noqa: PLR2004
        return None
    edges = [edge for one in wanted for edge in one]
    if not edges or not all(type(edge) is int for edge in edges):
        return None
    ascending = all(before < after for before, after in itertools.pairwise(edges))
    return (
        [(start, stop) for start, stop in wanted] if ascending and edges[0] >= 0 and edges[-1] <= size_bytes else None
    )


def ending(exit_code: int) -> str:
    """How a process ended, from its exit code, which is negative for a signal."""
    names = {-one.value: one.name for one in signal.Signals}
    return names.get(exit_code, f"exit code {exit_code}")


def one_line(text: str) -> str:
    """Text from an untrusted source, made safe for a table or a terminal: one printable line."""
    return "".join(char if char.isprintable() else " " for char in text)[:_MAX_TEXT].strip()
