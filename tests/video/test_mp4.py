"""An MP4's tables agree with its packets; if they do not, the packets are believed."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raypipe.status import Status
from raypipe.video import probe
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.mp4 import SampleTable, read_samples
from raypipe.video.packet_index import PacketIndex
from raypipe.video.probe import VideoFile

SCANNED = ("h264-fragmented",)  # and every file that is not MP4


class CountedFile(io.BytesIO):
    """A file that counts how many bytes are read."""

    num_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read and count."""
        data = super().read(size)
        self.num_bytes += len(data)
        return data


def both(data: bytes, request: DecodeRequest) -> tuple[PacketIndex, PacketIndex, bool]:
    """Return the index of a file, the index of all its packets, and whether the first came from the tables."""
    video = VideoFile(io.BytesIO(data), request)
    index, is_located = video.index, video.reader.samples is not None
    video.scan()
    scanned = video.index
    video.close()
    return index, scanned, is_located


def check_alike(data: bytes, request: DecodeRequest) -> bool:
    index, scanned, is_located = both(data, request)
    for name in ("pts", "is_keyframe", "is_shown"):
        np.testing.assert_array_equal(getattr(index, name), getattr(scanned, name), err_msg=name)
    for name in ("duration_seconds", "end_seconds", "average_fps"):
        assert getattr(index, name) == pytest.approx(getattr(scanned, name)), name
    return is_located


def test_tables_agree_with_the_packets(clip: Any, request_: DecodeRequest) -> None:  # noqa: ANN401
    is_located = check_alike(clip.data, request_)
    assert is_located == (clip.settings.container in {"mp4", "mov"} and clip.name not in SCANNED)


def test_tables_of_real_clips_agree_with_the_packets(real: tuple[str, bytes], request_: DecodeRequest) -> None:
    assert check_alike(real[1], request_) == real[0].endswith((".mp4", *"0123456789", "unordered"))


def test_a_long_file_is_not_read_to_be_known(long_clip: bytes, request_: DecodeRequest) -> None:
    file = CountedFile(long_clip)
    video = VideoFile(file, request_)
    assert len(video.index.pts) == 240
    video.close()
    assert file.num_bytes < len(long_clip) / 4, (file.num_bytes, len(long_clip))


def test_a_file_that_was_cut_keeps_the_frames_it_has(long_clip: bytes, request_: DecodeRequest) -> None:
    index, _, is_located = both(long_clip[: len(long_clip) * 3 // 4], request_)
    assert is_located
    assert 150 < len(index.pts) < 200
    assert index.duration_seconds == pytest.approx(20.0)
    assert index.end_seconds == pytest.approx(len(index.pts) / 12, abs=0.5)


def test_a_wrong_table_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
    make_clip: Callable[..., bytes],
    decode: Callable[..., Any],
    request_: DecodeRequest,
) -> None:
    data = make_clip("h264", num_frames=24)
    expected = decode(data, request_)
    lied = []

    def lie(*args: Any, **options: Any) -> SampleTable | None:  # noqa: ANN401
        samples = read_samples(*args, **options)
        assert samples is not None
        lied.append(True)
        return replace(samples, pts=samples.pts + np.arange(len(samples.pts)) ** 2)

    monkeypatch.setattr(probe, "read_samples", lie)
    found = decode(data, request_)
    assert lied
    assert found.reply.status == Status.OK
    np.testing.assert_array_equal(found.frames, expected.frames)
    np.testing.assert_array_equal(found.pts_seconds, expected.pts_seconds)


DAMAGE = [
    (kind, at, value)
    for kind in (b"stsz", b"stco", b"stsc", b"ctts", b"stts", b"tkhd", b"mdia", b"stbl")
    for at in (-4, 8, 12)
    for value in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0")
]
FAILED = {Status.PARTIAL, Status.DECODE_ERROR, Status.NO_VIDEO_STREAM, Status.OUT_OF_MEMORY}


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_damaged_tables_are_a_status_or_the_frames_of_a_scan(
    damage: tuple[bytes, int, bytes],
    make_clip: Callable[..., bytes],
    decode: Callable[..., Any],
    request_: DecodeRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, at, value = damage
    data = bytearray(make_clip("h264", num_frames=24))
    start = data.rindex(kind) + at
    data[start : start + 4] = value
    found = decode(bytes(data), request_)
    monkeypatch.setattr(probe, "read_samples", lambda *_, **__: None)
    scanned = decode(bytes(data), request_)
    if found.reply.status == scanned.reply.status == Status.OK:
        np.testing.assert_array_equal(found.frames, scanned.frames)
    else:
        assert {found.reply.status, scanned.reply.status} <= {Status.OK, *FAILED}
