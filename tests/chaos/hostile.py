"""Feed hostile files to a decode sandbox and check status, time, memory, the canary, and a healthy video afterwards."""

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import pytest

from chaos.hostile_files import HostileFile, seed_clips
from raypipe.status import HAS_FRAMES, Status
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.sandbox import parent
from raypipe.video.sandbox.parent import Child, DecodedVideo, DecodeSandbox
from video.conftest import decode, make_request
from video.test_canary import Canary

TIMEOUT_SECONDS = 5.0
MEMORY_BYTES = 1024**3
SLACK_SECONDS = 1.0
SLACK_BYTES = 64 * 1024**2
_SAMPLE_SECONDS = 0.01
_HEALTHY_EVERY = 100


@dataclass
class Findings:
    """What was fed, what the outcomes were, and which of them are problems."""

    num_files: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    max_seconds: float = 0.0
    max_child_bytes: int = 0
    num_connections: int = 0
    problems: list[str] = field(default_factory=list)


class Parts:
    """A video whose byte ranges arrive on demand, like a large one from S3."""

    def __init__(self, file: BinaryIO, data: bytes) -> None:
        self._file, self._data = file, data
        self.there: list[tuple[int, int]] = [(0, min(len(data), 512))]

    def bring(self, ranges: Any) -> None:  # noqa: ANN401 - what the sandbox has checked
        """Write these ranges into the file."""
        for start, stop in ranges:
            os.pwrite(self._file.fileno(), self._data[start:stop], start)
            self.there.append((start, stop))


class Memory:
    """Track the most memory that any decode child used, sampled a hundred times a second."""

    def __init__(self, sandbox: DecodeSandbox) -> None:
        self.max_bytes = 0
        self._sandbox = sandbox
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> None:
        """Take a sample now: the kernel keeps the peak of each child."""
        with suppress(RuntimeError):  # a child just started or ended
            for pid in self._sandbox.child_pids():
                with suppress(OSError):
                    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
                    peak = re.search(r"VmHWM:\s+([0-9]+) kB", status)
                    self.max_bytes = max(self.max_bytes, int(peak[1]) * 1024 if peak else 0)

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            self.look()


class Feeder:
    """Feed all files to one sandbox, as a job uses one for every video."""

    def __init__(self, sandbox: DecodeSandbox, request: DecodeRequest, memory: Memory) -> None:
        self.findings = Findings()
        self._sandbox = sandbox
        self._memory = memory
        self._healthy = seed_clips()["mp4-h264"]
        self.expected = decode(self._healthy, request)
        self.start_seconds = 0.0  # how long children took to start, which does not count for a video

    def feed(self, file: HostileFile, *, in_parts: bool = False) -> DecodedVideo | None:
        """Decode one file and note every problem with the outcome."""
        findings = self.findings
        findings.num_files += 1
        starting = self.start_seconds
        began = time.monotonic()
        try:
            video = self._decode(file.data, in_parts=in_parts)
        except Exception as error:  # noqa: BLE001 - any exception is a finding
            findings.problems.append(f"{file.name}: {type(error).__name__}: {error}"[:500])
            return None
        seconds = time.monotonic() - began - (self.start_seconds - starting)
        self._memory.look()
        findings.statuses[video.status] += 1
        findings.max_seconds = max(findings.max_seconds, seconds)
        findings.max_child_bytes = self._memory.max_bytes
        findings.problems += [f"{file.name}: {problem}" for problem in _problems(video, seconds)]
        if self._memory.max_bytes > MEMORY_BYTES + SLACK_BYTES:
            findings.problems.append(f"{file.name}: a child held {self._memory.max_bytes} bytes")
            self._memory.max_bytes = 0
        if findings.num_files % _HEALTHY_EVERY == 0:
            self.check_healthy()
        return video

    def check_healthy(self) -> None:
        """Check that a good video still decodes as it does without a sandbox and before any hostile file."""
        video = self._decode(self._healthy)
        same = video.status is Status.OK and np.array_equal(video.frames, self.expected.frames)
        if not same or not np.array_equal(video.pts_seconds, self.expected.pts_seconds):
            self.findings.problems.append(f"a healthy video came out other after {self.findings.num_files} files")

    def _decode(self, data: bytes, *, in_parts: bool = False) -> DecodedVideo:
        with os.fdopen(os.memfd_create("hostile"), "w+b") as file:
            if in_parts:
                file.truncate(len(data))
                parts = Parts(file, data)
                parts.bring(parts.there[:])
                return self._sandbox.decode(file, part=parts)
            file.write(data)
            file.flush()
            return self._sandbox.decode(file)


def _problems(video: DecodedVideo, seconds: float) -> Iterator[str]:
    if seconds > TIMEOUT_SECONDS + SLACK_SECONDS:
        yield f"took {seconds:.1f} s and ended as {video.status}"
    if (len(video.frames) > 0) != (video.status in HAS_FRAMES) or len(video.frames) != len(video.pts_seconds):
        yield f"{len(video.frames)} frames and {len(video.pts_seconds)} times are {video.status}"
    if not np.isfinite(video.pts_seconds).all() or "\n" in video.error:
        yield "a time is no number, or an error not one line"


def feed_reference(feeder: Feeder, file: HostileFile, canary: Canary) -> None:
    """Feed a file that names others: the server gets no request, and the frames are those of the file's own clip."""
    video = feeder.feed(file)
    findings = feeder.findings
    if canary.asked:
        findings.num_connections += len(canary.asked)
        findings.problems.append(f"{file.name}: the canary server was asked")
        canary.asked.clear()
    if video is None:
        return
    if len(video.frames) and not np.array_equal(video.frames, feeder.expected.frames):
        findings.problems.append(f"{file.name}: its frames are not its own")
    if canary.path.name in video.error:
        findings.problems.append(f"{file.name}: its error mentions the canary")


@contextmanager
def running_feeder(*, decoder: str = "auto", **changes: Any) -> Iterator[Feeder]:  # noqa: ANN401 - fields of a request
    """Yield a feeder whose first child runs; ``changes`` modify the tests' usual request."""
    request = make_request(**changes)
    with (
        pytest.MonkeyPatch.context() as patch,
        DecodeSandbox(request, decoder=decoder, timeout_seconds=TIMEOUT_SECONDS, memory_bytes=MEMORY_BYTES) as sandbox,
        Memory(sandbox) as memory,
    ):
        feeder = Feeder(sandbox, request, memory)

        def start(*args: Any, **options: Any) -> Child:  # noqa: ANN401 - what a child takes
            began = time.monotonic()
            try:
                return Child(*args, **options)
            finally:
                feeder.start_seconds += time.monotonic() - began

        patch.setattr(parent, "Child", start)
        sandbox.isolation()
        yield feeder
        feeder.check_healthy()
