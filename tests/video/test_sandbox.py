"""The real decode child: what it cannot reach, and what happens when it dies, hangs or gives false answers."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from raypipe.errors import ConfigError, SetupError
from raypipe.status import Status
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.sandbox.parent import Child, DecodedVideo, DecodeSandbox, installed_decoders, resident_bytes

AsFile = Callable[[bytes], BinaryIO]
MakeClip = Callable[..., bytes]
MakeRequest = Callable[..., DecodeRequest]


@pytest.fixture
def clip(make_clip: MakeClip, as_file: AsFile) -> Iterator[BinaryIO]:
    """Return a healthy video."""
    with as_file(make_clip()) as file:
        yield file


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until another process has done something."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_a_video_comes_back(
    pyav: DecodeSandbox, clip: BinaryIO, make_clip: MakeClip, decode: Callable[..., DecodedVideo]
) -> None:
    video = pyav.decode(clip)
    without = decode(make_clip(), pyav._request)
    assert (video.status, video.error, video.decoder) == (Status.OK, "", "pyav")
    assert (video.container, video.codec, video.width, video.height) == ("mov", "h264", 96, 72)
    assert (video.duration_seconds, video.average_fps) == (2.0, 12.0)
    np.testing.assert_array_equal(video.frames, without.frames)
    np.testing.assert_array_equal(video.pts_seconds, without.pts_seconds)
    again = pyav.decode(clip)
    assert again.frames is not video.frames
    assert not np.shares_memory(again.frames, pyav._shared.frames)


@pytest.mark.parametrize("timeout_seconds", [1.0])
def test_a_decoder_that_hangs(request_: DecodeRequest, clip: BinaryIO, timeout_seconds: float) -> None:
    with DecodeSandbox(request_, decoder="pyav", timeout_seconds=timeout_seconds) as opened:
        opened.isolation()
        (pid,) = opened.child_pids()
        os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
        video = opened.decode(clip)
        assert timeout_seconds <= time.monotonic() - start < timeout_seconds + 1
        assert video.status is Status.TIMEOUT
        assert re.search(r"\b1\b", video.error)
        assert not len(video.frames)
        assert not is_running(pid)
        assert opened.decode(clip).status is Status.OK


def test_a_video_that_takes_too_long(request_: DecodeRequest, assets: Path, clip: BinaryIO) -> None:
    with DecodeSandbox(request_, decoder="auto", timeout_seconds=0.05) as opened:
        opened.isolation()
        with (assets / "videos" / "imageio_test_images_cockatoo.mp4").open("rb") as slow:
            assert opened.decode(slow).status is Status.TIMEOUT
        assert opened.child_pids() == []
        opened._timeout_seconds = 20
        assert opened.decode(clip).status is Status.OK


def test_starting_a_child_does_not_count_for_the_video(
    request_: DecodeRequest, clip: BinaryIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [time.monotonic()]
    start_child = Child.__init__

    def start_slowly(*args: object, **options: object) -> None:
        start_child(*args, **options)  # type: ignore[arg-type]
        clock[0] += 100

    monkeypatch.setattr(Child, "__init__", start_slowly)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with DecodeSandbox(request_, decoder="pyav", timeout_seconds=20) as opened:
        assert opened.decode(clip).status is Status.OK


def kill_when_asked(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> list[int]:
    """Send a signal each to the next children that get a video; return their process ids."""
    waiting, pids, ask = list(numbers), [], Child.ask

    def ask_and_kill(self: Child, file: BinaryIO, request: DecodeRequest, deadline: float) -> dict[str, object]:
        if waiting:
            pids.append(self.process.pid)
            os.kill(self.process.pid, waiting.pop(0))
        return ask(self, file, request, deadline)

    monkeypatch.setattr(Child, "ask", ask_and_kill)
    return pids


def test_killed_once_is_retried(pyav: DecodeSandbox, assets: Path) -> None:
    (pid,) = pyav.child_pids()
    videos: list[DecodedVideo] = []

    def decode() -> None:
        with (assets / "videos" / "imageio_test_images_cockatoo.mp4").open("rb") as slow:
            videos.append(pyav.decode(slow))

    def cpu_ticks() -> int:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[11])

    idle = cpu_ticks()
    thread = threading.Thread(target=decode)
    thread.start()
    wait_until(lambda: cpu_ticks() > idle + 4)  # in the middle of the video
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert (videos[0].status, len(videos[0].frames)) == (Status.OK, 7)
    assert pyav.child_pids() != [pid]


def test_killed_twice_is_out_of_memory(pyav: DecodeSandbox, clip: BinaryIO, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = kill_when_asked(monkeypatch, signal.SIGKILL, signal.SIGKILL)
    assert pyav.decode(clip).status is Status.OUT_OF_MEMORY
    assert len(set(pids)) == 2
    assert pyav.decode(clip).status is Status.OK


def kill_as_they_start(monkeypatch: pytest.MonkeyPatch, count: int) -> list[int]:
    """Kill the first ``count`` children right after their start; return the pids of all children that start."""
    started: list[int] = []
    popen = subprocess.Popen

    def start(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        process = popen(*args, **options)
        started.append(process.pid)
        if len(started) <= count:
            process.kill()
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    return started


def test_a_child_that_is_killed_as_it_starts_is_started_again(
    request_: DecodeRequest, clip: BinaryIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = kill_as_they_start(monkeypatch, 2)
    with DecodeSandbox(request_, decoder="pyav") as sandbox:
        assert sandbox.decode(clip).status == Status.OK
    assert len(started) == 3


def test_children_that_are_killed_one_after_the_other_as_they_start(
    request_: DecodeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_as_they_start(monkeypatch, 1000)
    with (
        DecodeSandbox(request_, decoder="pyav") as sandbox,
        pytest.raises(SetupError, match=r"\b5\b") as caught,
    ):
        sandbox.isolation()
    assert caught.value.value == "pyav"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_crash_costs_one_video(
    pyav: DecodeSandbox, clip: BinaryIO, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    kill_when_asked(monkeypatch, number)
    video = pyav.decode(clip)
    assert video.status is Status.CRASHED
    assert number.name in video.error
    assert pyav.decode(clip).status is Status.OK


@dataclass(frozen=True, slots=True)
class StrangeRequest(DecodeRequest):
    """A request that the child does not understand."""

    unknown: int = 1


def test_a_child_that_exits_is_a_crash(request_: DecodeRequest, clip: BinaryIO) -> None:
    fields = {name: getattr(request_, name) for name in DecodeRequest.__slots__}
    with DecodeSandbox(StrangeRequest(**fields), decoder="pyav") as opened:
        video = opened.decode(clip)
    assert video.status is Status.CRASHED
    assert re.search(r"\b\d+\b", video.error)
    assert "SIG" not in video.error


class InterruptedDecodingError(Exception):
    """Raised by a signal handler, like a KeyboardInterrupt."""


def test_an_interrupted_answer_is_not_used_for_the_next_video(
    pyav: DecodeSandbox, clip: BinaryIO, make_clip: MakeClip, as_file: AsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise InterruptedDecodingError

    (pid,) = pyav.child_pids()
    kill_when_asked(monkeypatch, signal.SIGSTOP)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(InterruptedDecodingError):
            pyav.decode(clip)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if is_running(pid):
        os.kill(pid, signal.SIGCONT)
    with as_file(make_clip("h264-one-frame")) as other:
        assert pyav.decode(other).duration_seconds == pytest.approx(1 / 12)


def test_a_child_serves_a_limited_number_of_videos(request_: DecodeRequest, clip: BinaryIO) -> None:
    with DecodeSandbox(request_, decoder="pyav", max_videos_per_child=2) as opened:
        pids = []
        for _ in range(4):
            opened.isolation()
            pids += opened.child_pids()
            assert opened.decode(clip).status is Status.OK
        assert pids[0] == pids[1] != pids[2] == pids[3]
        assert opened.child_pids() == []
        assert not any(map(is_running, pids))


def test_a_child_that_keeps_much_memory_is_replaced(request_: DecodeRequest, clip: BinaryIO) -> None:
    with DecodeSandbox(request_, decoder="pyav", memory_bytes=2**27) as opened:
        opened.isolation()
        (pid,) = opened.child_pids()
        opened._memory_bytes = resident_bytes(pid)  # more than half of it is its libraries, which stay loaded
        assert opened.decode(clip).status is Status.OK
        assert opened.child_pids() == [pid]
        opened._memory_bytes = 2
        assert opened.decode(clip).status is Status.OK
        assert opened.child_pids() == []


def test_close_ends_the_children(request_: DecodeRequest) -> None:
    opened = DecodeSandbox(request_, decoder="pyav")
    opened.isolation()
    (pid,) = opened.child_pids()
    assert is_running(pid)
    opened.close()
    opened.close()
    assert not Path(f"/proc/{pid}").exists()  # not even as a zombie
    assert resident_bytes(pid) == 0


def test_children_end_with_their_parent(request_: DecodeRequest) -> None:
    program = (
        "import os; from raypipe.video.decode_request import DecodeRequest, DecodeLimits; "
        "from raypipe.video.sandbox.parent import DecodeSandbox; "
        f"opened = DecodeSandbox({request_!r}, decoder='pyav'); opened.isolation(); "
        "print(*opened.child_pids(), flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    wait_until(lambda: not is_running(int(done.stdout)))


def test_the_parent_loads_no_video_library() -> None:
    program = "import raypipe.video.sandbox.parent, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "raypipe" in loaded
    assert not loaded & {"av", "decord", "torch", "torchcodec", "ray", "pyarrow"}


def test_auto_continues_after_a_decoder_crashes(
    request_: DecodeRequest, clip: BinaryIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_when_asked(monkeypatch, signal.SIGSEGV)
    with DecodeSandbox(request_, decoder="auto") as opened:
        video = opened.decode(clip)
        assert (video.status, video.decoder) == (Status.OK, "decord")
        assert len(opened.child_pids()) == 1
        assert opened.decode(clip).decoder == "pyav"


def test_auto_skips_a_decoder_that_cannot_be_loaded(
    request_: DecodeRequest, make_clip: MakeClip, as_file: AsFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("decord", "torchcodec"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('no FFmpeg here')")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        DecodeSandbox(request_, decoder="decord") as alone,
        pytest.raises(SetupError, match="no FFmpeg here") as caught,
    ):
        alone.isolation()
    assert caught.value.value == "decord"
    assert "raypipe doctor" in caught.value.remedy
    with DecodeSandbox(request_, decoder="auto") as opened, as_file(make_clip()[:1000]) as broken:
        assert opened.decode(broken).status is Status.DECODE_ERROR
        assert opened._decoders == ("pyav",)


def test_decoders_by_name() -> None:
    assert installed_decoders("auto")[:2] == ("pyav", "decord")
    assert installed_decoders("decord") == ("decord",)
    with pytest.raises(ConfigError) as caught:
        installed_decoders("vlc")
    assert (caught.value.key, caught.value.value) == ("decode.decoder", "vlc")
    assert caught.value.choices[:3] == ("auto", "pyav", "decord")


def test_a_video_that_needs_too_much_memory(
    request_: DecodeRequest, huge_picture: bytes, as_file: AsFile, clip: BinaryIO
) -> None:
    memory_bytes = 2**28
    limits = replace(request_.limits, max_pixels=2**40)
    seen: list[int] = []
    done = threading.Event()
    with DecodeSandbox(replace(request_, limits=limits), decoder="pyav", memory_bytes=memory_bytes) as opened:
        opened.isolation()
        (pid,) = opened.child_pids()

        def watch() -> None:
            while not done.wait(0.001):
                seen.append(resident_bytes(pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        with as_file(huge_picture) as huge:
            video = opened.decode(huge)
        done.set()
        watcher.join()
        assert video.status is Status.OUT_OF_MEMORY, video
        assert max(seen) < memory_bytes + 2**26
        assert opened.child_pids() == []
        assert opened.decode(clip).status is Status.OK
