"""Damaged files, bombs and references: each becomes a row in time, and healthy videos after it decode as before."""

import random
from pathlib import Path

import pytest

from chaos import hostile
from chaos.bombs import bombs
from chaos.hostile import feed_reference, running_feeder
from chaos.hostile_files import HostileFile, damaged_files, seed_clips
from chaos.references import large_canary, reference_files
from video.conftest import CLIPS, make_clip

pytestmark = pytest.mark.slow
_NUM_DAMAGED = 220  # about one file for each clip and kind of damage


def test_damaged_files() -> None:
    seed = random.randrange(2**32)
    with running_feeder() as feeder:
        for number, file in enumerate(damaged_files(seed, _NUM_DAMAGED)):
            feeder.feed(file, in_parts=number % 2 == 1)
    assert feeder.findings.problems == []
    assert feeder.findings.num_files == _NUM_DAMAGED
    assert {"ok", "partial", "decode_error"} <= set(feeder.findings.statuses)


def test_bombs() -> None:
    with running_feeder(decoder="pyav") as feeder:
        for file in bombs():
            feeder.feed(file)
    assert feeder.findings.problems == []
    assert {"out_of_memory", "too_large"} <= set(feeder.findings.statuses)


def test_files_that_name_others(tmp_path: Path) -> None:
    with large_canary(tmp_path) as canary, running_feeder() as feeder:
        for file in reference_files(canary):
            feed_reference(feeder, file, canary)
    assert feeder.findings.problems == []
    assert feeder.findings.num_connections == 0
    assert feeder.findings.num_files > 500


def test_violations_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use a slow reader, a reader that gives different frames, and one that sends a request to the server."""
    other = make_clip(CLIPS["h264-90"])
    with large_canary(tmp_path) as canary, running_feeder(decoder="pyav") as feeder:
        monkeypatch.setattr(hostile, "TIMEOUT_SECONDS", -hostile.SLACK_SECONDS)
        monkeypatch.setattr(feeder, "_decode", lambda *_, **__: feeder._sandbox._failed(hostile.Status.TIMEOUT, "", ""))
        feeder.feed(HostileFile("late", b""))
        monkeypatch.undo()
        canary.asked.append("connection")
        feed_reference(feeder, HostileFile("other", other), canary)
        feeder._healthy = other
    found = " ".join(feeder.findings.problems)
    for problem in ("late: took", "other: the canary server was asked", "other: its frames are not", "a healthy video"):
        assert problem in found


def test_clips_of_every_container_and_codec() -> None:
    names = seed_clips()
    for word in ("mp4", "matroska", "webm", "avi", "mpegts", "h264", "hevc", "vp9", "av1", "mpeg4"):
        assert any(word in name for name in names)
