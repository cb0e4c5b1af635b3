"""How the parent handles a child's answer: it checks everything before it believes anything."""

import json
import math
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from raypipe.status import Status
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.sandbox.parent import Child, ChildDiedError, DecodeSandbox
from raypipe.video.sandbox.protocol import printable_line

MakeRequest = Callable[..., DecodeRequest]


@pytest.fixture(scope="module")
def pyav(make_request: MakeRequest) -> Iterator[DecodeSandbox]:
    """Return a sandbox that gets forged answers."""
    with DecodeSandbox(make_request(), decoder="pyav", timeout_seconds=20) as opened:
        yield opened


GOOD: dict[str, object] = {"status": "ok", "num_frames": 1, "width": 2, "height": 2, "duration_seconds": 1.0}


@pytest.mark.parametrize(
    "false_answer",
    [
        {"num_frames": -1},
        {"num_frames": 33},
        {"num_frames": 2**40},
        {"num_frames": 0},
        {"num_frames": "1"},
        {"num_frames": None},
        {"num_frames": [1]},
        {"num_frames": math.nan},
        {"num_frames": math.inf},
        {"status": "decode_error"},
        {"status": "partial", "num_frames": 0},
        {"status": "no such status"},
        {"status": "missing", "num_frames": 0},
        {"status": "access_denied", "num_frames": 0},
        {"status": None},
        {"status": ["ok"]},
        {"status": {"ok": 1}},
        {"width": -1},
        {"width": 2**31},
        {"height": "72"},
        {"duration_seconds": math.nan},
        {"duration_seconds": math.inf},
        {"duration_seconds": 10**400},
        {"average_fps": -1.0},
        {"average_fps": None},
        {"error": 5},
        {"error": None},
        {"codec": ["h264"]},
        {"container": {}},
        {"unknown": 1},
        {"self": 1},
    ],
    ids=str,
)
def test_a_forged_answer_is_a_crash(pyav: DecodeSandbox, false_answer: dict[str, object]) -> None:
    pyav._shared.pts_seconds[:] = 0
    assert pyav._read(GOOD, "pyav").status is Status.OK
    video = pyav._read({**GOOD, **false_answer}, "pyav")
    assert video.status is Status.CRASHED
    assert video.error
    assert (video.frames.shape, video.pts_seconds.shape) == ((0, 56, 56, 3), (0,))


@pytest.mark.parametrize("pts", [math.nan, math.inf, -math.inf])
def test_times_that_are_not_finite_are_a_crash(pyav: DecodeSandbox, pts: float) -> None:
    pyav._shared.pts_seconds[:] = 0
    pyav._shared.pts_seconds[1] = pts
    assert pyav._read(GOOD, "pyav").status is Status.OK
    assert pyav._read({**GOOD, "num_frames": 2}, "pyav").status is Status.CRASHED


def test_text_of_the_child_is_one_printable_line(pyav: DecodeSandbox) -> None:
    text = "a\x1b[31m\r\nb\u202e\ud800\0" + "x" * 60_000
    message = {"status": "decode_error", "error": text, "codec": text, "container": "\ud800"}
    video = pyav._read(json.loads(json.dumps(message)), "pyav")
    assert video.status is Status.DECODE_ERROR
    assert video.error == video.codec == printable_line(text)
    assert video.error.startswith("a [31m  b   xxx")
    assert len(video.error) <= 300
    assert video.container == ""
    video.error.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"\xff" * 100,
        b"[]",
        b"1",
        b"null",
        b"{" * 60_000,
        b"[" * 60_000,
        b'{"status": "ok"' + b" " * 70_000 + b"}",
    ],
    ids=lambda data: f"{data[:8]!r}x{len(data)}",
)
def test_invalid_messages_are_a_crash(pyav: DecodeSandbox, data: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(data)
        told = object.__new__(Child)
        told._socket = ours
        message = told._receive(time.monotonic() + 5)
    assert message == {}
    assert pyav._read(message, "pyav").status is Status.CRASHED


def test_a_child_that_hangs_up_is_dead() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        theirs.close()
        told = object.__new__(Child)
        told._socket = ours
        with pytest.raises(ChildDiedError):
            told._receive(time.monotonic() + 5)
