"""A file that arrives in parts reads like the whole file, and a child's requests for ranges are checked."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import ObjectChangedError
from raypipe.status import Status
from raypipe.video import ranged_file
from raypipe.video.decode_request import DecodeRequest, Ranges
from raypipe.video.ranged_file import BLOCK_BYTES, RangedFile
from raypipe.video.sandbox import child
from raypipe.video.sandbox.parent import Child, DecodeSandbox
from raypipe.video.sandbox.protocol import read_ranges

SIZE = 40 * BLOCK_BYTES + 12_345
CONTENT = np.random.default_rng(0).integers(1, 256, SIZE, dtype=np.uint8).tobytes()  # no zeros, so holes are visible
offsets = st.integers(0, SIZE)
steps = st.one_of(
    st.tuples(st.just("read"), offsets, st.integers(0, 5 * BLOCK_BYTES)),
    st.tuples(st.just("expect"), offsets, offsets),
)


@dataclass
class Part:
    """A video whose requested ranges come from memory."""

    file: BinaryIO
    data: bytes
    there: list[tuple[int, int]] = field(default_factory=list)
    error: Exception | None = None
    seconds: float = 0.0  # how long each request takes
    asked: list[Ranges] = field(default_factory=list)

    def bring(self, wanted: Ranges) -> None:
        """Copy the ranges into the file."""
        self.asked.append(wanted)
        if self.error and len(self.asked) > 1:
            raise self.error
        Event().wait(self.seconds)
        for start, stop in wanted:
            os.pwrite(self.file.fileno(), self.data[start:stop], start)

    @property
    def num_bytes(self) -> int:
        """Return how many bytes were requested."""
        return sum(stop - start for wanted in self.asked for start, stop in wanted)


def sparse(size: int) -> BinaryIO:
    file = os.fdopen(os.memfd_create("sparse"), "w+b")
    file.truncate(size)
    return file


@given(st.lists(steps, max_size=30))
def test_parts_read_like_the_whole(todo: list[tuple[str, int, int]]) -> None:
    with sparse(SIZE) as file:
        part = Part(file, CONTENT)
        part.bring([(0, BLOCK_BYTES)])
        ranged = RangedFile(file, there=[(0, BLOCK_BYTES)], ask=part.bring)
        for what, first, second in todo:
            if what == "expect":
                ranged.expect([(min(first, second), max(first, second))] if first != second else [])
            else:
                assert ranged.seek(first) == first
                assert ranged.read(second) == CONTENT[first : first + second]
                assert ranged.tell() == min(first + second, SIZE) or first >= SIZE
        assert len(part.asked) <= ranged_file._MAX_ASKS + 2


def test_sequential_reads_make_few_requests() -> None:
    with sparse(SIZE) as file:
        part = Part(file, CONTENT)
        ranged = RangedFile(file, there=[], ask=part.bring)
        assert b"".join(iter(lambda: ranged.read(1000), b"")) == CONTENT
        assert len(part.asked) <= 5
        assert part.num_bytes == SIZE


def test_expected_ranges_come_in_one_request_and_nothing_more() -> None:
    with sparse(100 * BLOCK_BYTES) as file:
        part = Part(file, bytes(100 * BLOCK_BYTES))
        ranged = RangedFile(file, there=[(0, BLOCK_BYTES)], ask=part.bring)
        ranged.expect([(10 * BLOCK_BYTES, 11 * BLOCK_BYTES), (50 * BLOCK_BYTES + 1, 50 * BLOCK_BYTES + 2)])
        for at in (10, 50):
            ranged.seek(at * BLOCK_BYTES)
            ranged.read(2 * BLOCK_BYTES)
        assert part.asked == [[(10 * BLOCK_BYTES, 12 * BLOCK_BYTES), (50 * BLOCK_BYTES, 52 * BLOCK_BYTES)]]
        assert part.num_bytes == 4 * BLOCK_BYTES


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        [],
        {},
        "0-1",
        [1, 2],
        [[0]],
        [[0, 1, 2]],
        [[0, "1"]],
        [[True, 5]],
        [[0, 1.5]],
        [[-1, 5]],
        [[5, 5]],
        [[5, 3]],
        [[0, 101]],
        [[0, 10**30]],
        [[0, 5], [4, 8]],
        [[6, 8], [0, 5]],
    ],
    ids=str,
)
def test_invalid_ranges_from_a_child_are_refused(wanted: object) -> None:
    assert read_ranges(wanted, 100) is None
    assert read_ranges([[0, 5], [6, 100]], 100) == [(0, 5), (6, 100)]


def open_part(data: bytes) -> Part:
    return Part(sparse(len(data)), data)


def test_a_video_in_parts_gives_the_frames_of_the_whole(
    pyav: DecodeSandbox, long_clip: bytes, as_file: Callable[[bytes], BinaryIO]
) -> None:
    with as_file(long_clip) as file:
        whole = pyav.decode(file)
    part = open_part(long_clip)
    with part.file:
        video = pyav.decode(part.file, part=part)
    assert video.status is Status.OK
    np.testing.assert_array_equal(video.frames, whole.frames)
    np.testing.assert_array_equal(video.pts_seconds, whole.pts_seconds)
    assert part.num_bytes < len(long_clip) / 2, (part.num_bytes, len(long_clip))


@pytest.mark.slow  # waits longer than a decode may take
def test_a_slow_storage_does_not_count_for_the_video(request_: DecodeRequest, long_clip: bytes) -> None:
    part = open_part(long_clip)
    part.seconds = child._GRACE_SECONDS + 1.5
    with part.file, DecodeSandbox(request_, decoder="pyav", timeout_seconds=1) as opened:
        assert opened.decode(part.file, part=part).status is Status.OK
        assert part.asked


@pytest.mark.parametrize(
    "decoder",
    ["decord", pytest.param("torchcodec", marks=pytest.mark.slow)],  # its child imports torch
)
def test_other_decoders_read_parts_too(
    decoder: str, make_request: Callable[..., DecodeRequest], make_clip: Callable[..., bytes]
) -> None:
    data = make_clip("h264")
    part = open_part(data)
    with part.file, DecodeSandbox(make_request(), decoder=decoder) as opened:
        assert opened.decode(part.file, part=part).status is Status.OK


def test_errors_of_the_storage_are_passed_on(pyav: DecodeSandbox, long_clip: bytes) -> None:
    part = open_part(long_clip)
    part.error = ObjectChangedError("it changed")
    with part.file, pytest.raises(ObjectChangedError, match="it changed"):
        pyav.decode(part.file, part=part)
    part = open_part(long_clip)
    with part.file:
        assert pyav.decode(part.file, part=part).status is Status.OK


def test_a_child_with_invalid_ranges_is_a_crash_and_replaced(
    pyav: DecodeSandbox, long_clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = open_part(long_clip)
    (pid,) = pyav.child_pids()
    ask = Child.ask

    def lie(*args: Any, **options: Any) -> dict[str, Any]:  # noqa: ANN401
        ask(*args, **options)
        return {"want": [[0, len(long_clip) + 1]]}

    with part.file:
        monkeypatch.setattr(Child, "ask", lie)
        assert pyav.decode(part.file, part=part).status is Status.CRASHED
        monkeypatch.undo()
        assert pid not in pyav.child_pids()
        assert pyav.decode(part.file, part=part).status is Status.OK
        assert part.num_bytes < 2 * len(long_clip)
