"""Videos are fetched in order, each with its own status, and no file stays open."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from raypipe.dataset.plan import PlannedVideo
from raypipe.errors import (
    ObjectChangedError,
    ObjectDeniedError,
    ObjectError,
    ObjectMissingError,
    ObjectTooLargeError,
    ObjectUnreadableError,
    StorageError,
)
from raypipe.jobs.embed import fetch
from raypipe.jobs.embed.fetch import Fetched, decode_fetched, fetch_video, fetch_videos
from raypipe.status import Status
from raypipe.storage import Folder
from raypipe.video.decode_request import DecodeLimits, DecodeRequest
from raypipe.video.sandbox.parent import DecodeSandbox
from support.embed_outputs import replace_object, upload, video
from support.videos import make_noise

ANY_SIZE = 2**40


def stored_video(folder: Folder, name: str) -> PlannedVideo:
    stored = folder.stat(name)
    assert stored
    return PlannedVideo.of(stored)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - each call opens the folder the same way


@pytest.fixture(scope="module")
def noise_clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return ten seconds with key frames only: about a megabyte."""
    return make_noise(tmp_path_factory.mktemp("noise") / "clip.mp4", num_frames=120)


@pytest.fixture
def sandbox_of_two() -> Iterator[DecodeSandbox]:
    """Start a sandbox that takes two frames of a video."""
    limits = DecodeLimits(max_pixels=2**20, max_duration_seconds=60)
    request = DecodeRequest("uniform", 2, 1.0, 2, False, True, 32, 32, limits)  # noqa: FBT003
    with DecodeSandbox(request, decoder="pyav") as opened:
        yield opened


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the noise clip as a large video, which is read in parts."""
    monkeypatch.setattr(fetch, "_WHOLE_BYTES", 100_000)
    monkeypatch.setattr(fetch, "_HEAD_BYTES", 65_536)


def content(fetched: Fetched) -> bytes:
    assert fetched.file is not None
    with fetched.file as file:
        return file.read()


def fake(monkeypatch: pytest.MonkeyPatch, errors: dict[str, Exception]) -> None:
    """Replace the storage: each video's content is its own URI, unless ``errors`` has an error for it."""

    def read(uri: str, *, etag: str, max_size_bytes: int, into: BinaryIO) -> int:
        assert etag
        assert max_size_bytes
        if uri in errors:
            raise errors[uri]
        return into.write(uri.encode())

    monkeypatch.setattr(fetch, "read_object", read)


def test_a_fetched_video_is_read_from_its_start(folder: Folder) -> None:
    upload(folder, {"a.mp4": b"12345"})
    fetched = fetch_video(stored_video(folder, "a.mp4"), max_size_bytes=5)
    assert (fetched.status, fetched.error) == (Status.OK, "")
    assert fetched.seconds > 0
    assert fetched.file
    assert fetched.file.fileno() >= 0
    assert content(fetched) == b"12345"


def test_a_large_video_is_not_held_in_memory(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_IN_MEMORY_BYTES", 4)
    upload(folder, {"a.mp4": b"12345", "b.mp4": b"1234"})
    large, small = (fetch_video(stored_video(folder, name), max_size_bytes=5) for name in ("a.mp4", "b.mp4"))
    assert large.file
    assert small.file
    names = [str(Path(f"/proc/self/fd/{file.fileno()}").readlink()) for file in (large.file, small.file)]
    assert ["memfd" in name for name in names] == [False, True]
    assert (content(large), content(small)) == (b"12345", b"1234")


def test_what_happened_to_an_object_since_it_was_planned_is_its_status(folder: Folder) -> None:
    upload(folder, {"gone.mp4": b"x", "changed.mp4": b"x", "large.mp4": b"123456", "ok.mp4": b"x"})
    planned = [stored_video(folder, name) for name in ("gone.mp4", "changed.mp4", "large.mp4", "ok.mp4")]
    replace_object(folder, "gone.mp4", None)
    replace_object(folder, "changed.mp4", b"other")
    found = list(fetch_videos(planned, max_size_bytes=5))
    assert [one.video for one in found] == planned
    assert [one.status for one in found] == ["missing", "changed", "too_large", "ok"]
    assert [one.file is None for one in found] == [True, True, True, False]
    assert content(found[3]) == b"x"
    assert found[0].error.startswith(folder.child("gone.mp4"))
    assert found[1].error.startswith(folder.child("changed.mp4"))
    assert all(word in found[2].error for word in ("6", "decode.max_size_bytes", "5"))


def test_an_object_that_grew_is_refused_before_it_is_read(folder: Folder) -> None:
    upload(folder, {"a.mp4": b"123456"})
    planned = stored_video(folder, "a.mp4")
    lie = PlannedVideo(planned.video_id, planned.video_uri, planned.etag, 1)
    assert fetch_video(lie, max_size_bytes=5).status is Status.TOO_LARGE


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ObjectMissingError, "missing"),
        (ObjectChangedError, "changed"),
        (ObjectDeniedError, "access_denied"),
        (ObjectTooLargeError, "too_large"),
        (ObjectUnreadableError, "storage_error"),
        (ObjectError, "storage_error"),
    ],
)
def test_an_error_of_one_object_is_its_status_in_one_line(
    monkeypatch: pytest.MonkeyPatch, error: type[ObjectError], status: str
) -> None:
    fake(monkeypatch, {"s3://nowhere/b\n.mp4": error("s3://nowhere/b\n.mp4 is \x1b[31mred")})
    before = open_files()
    fine, failed = fetch_videos([video("a.mp4"), video("b\n.mp4")], max_size_bytes=ANY_SIZE)
    assert (fine.status, content(fine)) == ("ok", b"s3://nowhere/a.mp4")
    assert (failed.status, failed.file) == (status, None)
    assert failed.error == r"s3://nowhere/b\n.mp4 is \x1b[31mred"
    assert open_files() == before


@pytest.mark.parametrize("error", [StorageError("no such bucket"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("at", [0, 3, 6])
def test_an_error_of_the_storage_ends_it_and_closes_everything(
    monkeypatch: pytest.MonkeyPatch, error: Exception, at: int
) -> None:
    fake(monkeypatch, {f"s3://nowhere/{at}": error})
    before = open_files()
    found: list[bytes] = []
    videos = [video(str(number)) for number in range(7)]
    with pytest.raises(type(error)):
        found.extend(content(one) for one in fetch_videos(videos, max_size_bytes=ANY_SIZE))
    assert found == [f"s3://nowhere/{number}".encode() for number in range(at)]
    assert open_files() == before


def test_videos_come_in_order_whichever_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    second_is_done = threading.Event()

    def read(uri: str, *, into: BinaryIO, **_: object) -> int:
        if uri.endswith("/0"):
            assert second_is_done.wait(60)
        if uri.endswith("/1"):
            second_is_done.set()
        return into.write(uri.encode())

    monkeypatch.setattr(fetch, "read_object", read)
    videos = [video(str(number)) for number in range(5)]
    assert [content(one) for one in fetch_videos(videos, max_size_bytes=ANY_SIZE)] == [
        one.video_uri.encode() for one in videos
    ]


def test_only_the_next_few_are_fetched_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def read(uri: str, *, into: BinaryIO, **_: object) -> int:
        started.append(uri)
        return into.write(b"x")

    monkeypatch.setattr(fetch, "read_object", read)
    coming = fetch_videos([video(str(number)) for number in range(50)], max_size_bytes=ANY_SIZE)
    for taken in range(1, 10):
        content(next(coming))
        assert len(started) <= taken + fetch._AHEAD
    coming.close()  # type: ignore[attr-defined]


def test_fifty_videos_leave_no_file_open(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    upload(folder, {f"{number:02d}.mp4": b"x" for number in range(50)})
    planned = [stored_video(folder, f"{number:02d}.mp4") for number in range(50)]
    replace_object(folder, "07.mp4", None)
    replace_object(folder, "08.mp4", b"changed")
    before = open_files()
    for fetched in fetch_videos(planned, max_size_bytes=ANY_SIZE):
        if fetched.file:
            assert open_files() <= before + 1 + fetch._AHEAD + 2  # plus the files being read right now
            fetched.file.close()
    assert open_files() <= before


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_videos_fetched_too_late_are_closed(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    fake(monkeypatch, {"s3://nowhere/5": ObjectMissingError("gone")})
    before = open_files()
    coming = fetch_videos([video(str(number)) for number in range(9)], max_size_bytes=ANY_SIZE)
    for _ in range(taken):
        content(next(coming))
    coming.close()  # type: ignore[attr-defined]
    assert open_files() <= before


def test_no_videos_give_no_results() -> None:
    assert list(fetch_videos([], max_size_bytes=1)) == []


def test_only_the_parts_read_of_a_large_video_are_fetched(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, sandbox_of_two: DecodeSandbox, noise_clip: bytes
) -> None:
    upload(folder, {"v.mp4": noise_clip})
    planned = stored_video(folder, "v.mp4")
    whole, _, _ = decode_fetched(fetch_video(planned, max_size_bytes=ANY_SIZE), sandbox_of_two)
    monkeypatch.setattr(fetch, "_WHOLE_BYTES", 100_000)
    monkeypatch.setattr(fetch, "_HEAD_BYTES", 65_536)
    monkeypatch.setattr(fetch, "_PIECE_BYTES", 50_000)
    fetched = fetch_video(planned, max_size_bytes=ANY_SIZE)
    decoded, fetch_seconds, decode_seconds = decode_fetched(fetched, sandbox_of_two)
    assert decoded.status is Status.OK
    np.testing.assert_array_equal(decoded.frames, whole.frames)
    assert fetched.part is not None
    assert sum(stop - start for start, stop in fetched.part.there) < len(noise_clip) / 2
    assert fetch_seconds > fetched.seconds
    assert decode_seconds > 0
    assert fetched.file is not None
    assert fetched.file.closed


@pytest.mark.parametrize(
    ("content", "status"), [(None, Status.MISSING), (b"another one", Status.CHANGED)], ids=["gone", "replaced"]
)
@pytest.mark.usefixtures("in_parts")
def test_a_large_video_that_changes_while_it_is_read_is_its_row(
    folder: Folder, sandbox_of_two: DecodeSandbox, noise_clip: bytes, content: bytes | None, status: Status
) -> None:
    upload(folder, {"v.mp4": noise_clip})
    fetched = fetch_video(stored_video(folder, "v.mp4"), max_size_bytes=ANY_SIZE)
    replace_object(folder, "v.mp4", content)
    decoded, _, _ = decode_fetched(fetched, sandbox_of_two)
    assert decoded.status is status
    assert folder.child("v.mp4") in decoded.error
    upload(folder, {"w.mp4": noise_clip})
    again, _, _ = decode_fetched(fetch_video(stored_video(folder, "w.mp4"), max_size_bytes=ANY_SIZE), sandbox_of_two)
    assert again.status is Status.OK
