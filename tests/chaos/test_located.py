"""An MP4 read by its tables alone gives exactly the frames of one that is read packet by packet."""

import numpy as np
import pytest

from chaos.hostile_files import seed_clips
from raypipe.video.probe import VideoFile
from video.conftest import decode, make_request

_MP4 = ("mp4-h264", "mp4-hevc", "mp4-vp9", "mp4-mpeg4", "mp4-faststart-h264", "mp4-fragmented-h264")


def check_same_frames(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    for request in (make_request(), make_request(num_frames=3), make_request(mode="all", max_frames=24)):
        located = decode(data, request)
        with monkeypatch.context() as patch:
            patch.setattr(VideoFile, "_locate", lambda _: None)
            scanned = decode(data, request)
        np.testing.assert_array_equal(located.frames, scanned.frames)
        np.testing.assert_allclose(located.pts_seconds, scanned.pts_seconds)


@pytest.mark.parametrize("name", _MP4)
def test_the_tables_give_the_frames_of_a_plain_reading(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    check_same_frames(monkeypatch, seed_clips()[name])


def test_no_av1_packet_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    data = seed_clips()["mp4-av1"]
    check_same_frames(monkeypatch, data)
