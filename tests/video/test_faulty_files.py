"""Files with faulty timestamps or damage give the right frames, in order; the frames show their numbers."""

import io
import itertools
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from raypipe.status import Status
from raypipe.video import packet_reader
from raypipe.video.container import VideoError, sniff_container
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.mp4 import BoxDamage, find_damage
from raypipe.video.packet_reader import PacketReader
from raypipe.video.probe import VideoFile
from support.numbered import BFRAMES, SIXTEEN, Encoded, encode, matroska, mux, read_numbers

Decode = Callable[..., Any]
MakeRequest = Callable[..., DecodeRequest]


@cache
def stream(encoder: str = "libx264", *, start: int = 0, group: int = 250) -> Encoded:
    """Return sixty frames, with B-frames if the codec has them."""
    options = {
        "libx264": {**BFRAMES, "g": str(group)},
        "libvpx-vp9": {"deadline": "realtime", "g": str(group)},
        "mpeg2video": {"bf": "2", "g": "12", "qmin": "2", "qmax": "3"},
    }
    return encode(range(start, start + 60), encoder=encoder, options=options[encoder])


def times(encoded: Encoded) -> list[int]:
    """Return milliseconds at 10 frames a second, in decoding order."""
    return [packet.frame * 100 for packet in encoded.packets]


def stamped(encoded: Encoded, container: str, *, offset_seconds: float = 0.0) -> bytes:
    """Put a stream into a container; its times start at an offset."""
    offset = 45_000 + round(offset_seconds * 90_000)
    pts = [packet.frame * 9000 + offset for packet in encoded.packets]
    delay = 9000 if encoded.codec == "mpeg2video" else 27_000
    return mux(encoded, container, pts, [time - delay for time in sorted(pts)])


def joined(container: str, encoder: str, *, offset_seconds: float = 0.0) -> bytes:
    """Return two files one after another; the times of the second start at an offset."""
    return stamped(stream(encoder), container) + stamped(
        stream(encoder, start=500), container, offset_seconds=offset_seconds
    )


JOINED = {
    "ts": lambda: joined("mpegts", "libx264"),
    "ts, a second back": lambda: joined("mpegts", "libx264", offset_seconds=5.05),
    "ts, forward": lambda: joined("mpegts", "libx264", offset_seconds=1000),
    "mpg": lambda: joined("mpeg", "mpeg2video"),
    "mkv": lambda: matroska(stream(), times(stream())) + matroska(stream(start=500), times(stream(start=500))),
    "webm": lambda: (
        matroska(*[stream("libvpx-vp9"), times(stream("libvpx-vp9"))])
        + matroska(stream("libvpx-vp9", start=500), times(stream("libvpx-vp9")))
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_files_are_played_one_after_the_other(name: str, decode: Decode, make_request: MakeRequest) -> None:
    video = decode(JOINED[name](), make_request(num_frames=16))
    assert (video.reply.status, video.reply.error) == (Status.OK, "")
    assert video.reply.timeline_repaired
    assert video.reply.duration_seconds == pytest.approx(12, abs=0.05)
    assert read_numbers(video.frames) == [4, 11, 19, 26, 34, 41, 49, 56, 504, 511, 519, 526, 534, 541, 549, 556]
    assert np.diff(video.pts_seconds) == pytest.approx(0.75, abs=0.051)


FAULTS: dict[str, Callable[[int, int], int | None]] = {
    "back": lambda frame, time: time - 2000 * (frame >= 30),
    "back by a part of a frame": lambda frame, time: time - 350 * (frame >= 30),
    "forward": lambda frame, time: time + 1_000_000 * (frame >= 30),
    "forward and back": lambda frame, time: time + 50_000 * (20 <= frame < 40),
    "first outlier": lambda frame, time: time + 20_000_000 * (frame > 0),
    "middle outlier": lambda frame, time: time + 20_000_000 * (frame == 30),
    "small middle outlier": lambda frame, time: time + 3000 * (frame == 22),
    "last outlier": lambda frame, time: time + 20_000_000 * (frame == 59),
    "early outlier": lambda frame, time: time * (frame != 30),
    "none at the start": lambda frame, time: time if frame >= 25 else None,
    "none in the middle": lambda frame, time: None if 20 <= frame < 40 else time,
    "every other": lambda frame, time: None if frame % 2 else time,
    "none": lambda _frame, _time: None,
    "all equal": lambda _frame, _time: 700,
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("encoder", ["libx264", "libvpx-vp9"])
def test_faults_are_repaired(encoder: str, name: str, decode: Decode, make_request: MakeRequest) -> None:
    encoded = stream(encoder)
    stamps = [FAULTS[name](packet.frame, packet.frame * 100) for packet in encoded.packets]
    data = matroska(encoded, stamps)
    video = decode(data, make_request(num_frames=16))
    assert (video.reply.status, video.reply.error) == (Status.OK, "")
    is_filled_in = encoder == "libvpx-vp9" and None in stamps  # by FFmpeg, if frames are not reordered
    assert video.reply.timeline_repaired or is_filled_in
    assert video.reply.duration_seconds == pytest.approx(6, abs=0.01)
    assert read_numbers(video.frames) == SIXTEEN
    everything = decode(data, make_request(num_frames=100, max_frames=100))
    assert read_numbers(everything.frames) == list(range(60))
    assert everything.reply.status is Status.OK


def test_row_format_1_is_unchanged(decode: Decode, make_request: MakeRequest) -> None:
    video = decode(JOINED["mkv"](), make_request(num_frames=16, row_format=1))
    assert not video.reply.timeline_repaired
    assert video.reply.duration_seconds == pytest.approx(5.95, abs=0.01)
    with pytest.raises(VideoError) as raised:
        VideoFile(io.BytesIO(matroska(stream(), times(stream()), duration=20_000_000.0)), make_request(row_format=1))
    assert raised.value.status is Status.TOO_LARGE


def test_videos_that_take_too_long_to_decode_are_ordered_by_their_stamps(
    decode: Decode, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packet_reader, "MAX_ORDERED_PACKETS", 20)
    monkeypatch.setattr(packet_reader, "SAMPLE_PACKETS", 10)
    video = decode(JOINED["mkv"](), make_request(num_frames=16))
    assert video.reply.timeline_repaired
    assert read_numbers(video.frames) == [4, 11, 19, 26, 34, 41, 49, 56, 504, 511, 519, 526, 534, 541, 549, 556]


def test_tables_with_an_outlier_are_repaired(decode: Decode, make_request: MakeRequest) -> None:
    encoded = stream()
    late = [(packet.frame * 9000 + 10**9 * (at >= 33)) for at, packet in enumerate(encoded.packets)]
    data = mux(encoded, "mp4", late, [at * 9000 - 27_000 + 10**9 * (at >= 33) for at in range(60)])
    video = decode(data, make_request(num_frames=16))
    assert video.reply.timeline_repaired
    assert read_numbers(video.frames) == SIXTEEN
    assert video.reply.duration_seconds == pytest.approx(6, abs=0.1)


def test_hidden_frames_are_no_fault(decode: Decode, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = stream("libvpx-vp9")
    packets = list(encoded.packets)
    packets.insert(10, replace(packets[10], data=b"\x84" + packets[10].data[1:]))  # show_frame is 0
    stamps = [packet.frame * 100 for packet in packets]
    data = matroska(Encoded("vp9", tuple(packets)), stamps)
    index = VideoFile(io.BytesIO(data), make_request()).index
    assert not index.timeline_repaired
    assert np.flatnonzero(~index.is_shown).tolist() == [10]
    assert index.duration_seconds == pytest.approx(6)
    monkeypatch.setattr(PacketReader, "decode_order", lambda *_, **__: pytest.fail("decoded"))
    assert not decode(matroska(stream(), times(stream())), make_request()).reply.timeline_repaired


@pytest.mark.parametrize("name", ["middle outlier", "back", "none at the start"])
def test_a_faulty_file_that_was_cut_is_partial(name: str, decode: Decode, make_request: MakeRequest) -> None:
    encoded = stream()
    stamps = [FAULTS[name](packet.frame, packet.frame * 100) for packet in encoded.packets]
    last = max(stamp for stamp in stamps if stamp is not None)
    data = matroska(encoded, stamps, duration=last + 100.0)
    video = decode(data[: len(data) * 3 // 4], make_request(num_frames=16))
    assert video.reply.status is Status.PARTIAL
    assert video.reply.timeline_repaired
    assert video.reply.duration_seconds == pytest.approx(6, abs=0.7)
    assert 10 <= len(video.frames) <= 13
    numbers = read_numbers(video.frames)
    assert all(0 <= before < after for before, after in itertools.pairwise(numbers))


def test_a_promise_of_many_hours_ends_the_reading(make_request: MakeRequest) -> None:
    limits = replace(make_request().limits, max_duration_seconds=3.0)
    data = matroska(stream(), times(stream()), duration=20_000_000.0)
    with pytest.raises(VideoError) as raised:
        VideoFile(io.BytesIO(data), make_request(limits=limits))
    assert raised.value.status is Status.TOO_LARGE
    assert "20000" in str(raised.value)


@pytest.mark.parametrize("packet_bytes", [188, 192, 204])
def test_a_capture_that_begins_inside_a_packet(packet_bytes: int, decode: Decode, make_request: MakeRequest) -> None:
    whole = stamped(stream(), "mpegts")
    packets = [whole[at : at + 188] for at in range(0, len(whole), 188)]
    before, after = (4, 0) if packet_bytes == 192 else (0, packet_bytes - 188)
    data = b"".join(b"\0" * before + packet + b"\xff" * after for packet in packets)
    for missing in (100, packet_bytes - 1):
        assert sniff_container(data[missing : missing + 1024]) == "mpegts"
        assert sniff_container(data[missing : missing + 1024], row_format=1) is None
    video = decode(data[100:], make_request(num_frames=16))
    assert (video.reply.status, read_numbers(video.frames)) == (Status.OK, SIXTEEN)


@cache
def fragmented() -> bytes:
    """Return six fragments of one second each."""
    data = io.BytesIO()
    encoded = stream(group=10)
    with av.open(data, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}) as output:
        source = av.open(io.BytesIO(stamped(encoded, "mpegts")))
        target = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = target
                output.mux(packet)
    return data.getvalue()


def fragments(data: bytes) -> list[int]:
    """Return where the fragments start."""
    found, at = [], 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        found += [at] if kind == b"moof" else []
        at += size
    return found


def zeroed(data: bytes, start: int, stop: int) -> bytes:
    return data[:start] + bytes(stop - start) + data[stop:]


def test_fragments_after_damage_are_read(decode: Decode, make_request: MakeRequest) -> None:
    starts = fragments(fragmented())
    assert len(starts) == 6
    whole = decode(fragmented(), make_request(num_frames=12))
    assert (whole.reply.status, find_damage(io.BytesIO(fragmented()))) == (Status.OK, BoxDamage([]))
    for damaged in (
        zeroed(fragmented(), starts[2], starts[2] + 40),
        zeroed(fragmented(), starts[2] + 30, starts[2] + 60),
        zeroed(fragmented(), starts[2], starts[3] - 5),
    ):
        video = decode(damaged, make_request(num_frames=12))
        assert video.reply.status is Status.PARTIAL
        assert video.reply.duration_seconds == pytest.approx(6, abs=0.05)
        expected = [at for at in range(12) if at not in {4, 5}]
        np.testing.assert_array_equal(read_numbers(video.frames), np.array(read_numbers(whole.frames))[expected])
        assert {"10", "12", "1.00", "6.00"} <= set(video.reply.error.replace(":", "").split())


def test_damage_up_to_the_end_is_reported(decode: Decode, make_request: MakeRequest) -> None:
    data = fragmented()
    video = decode(zeroed(data, fragments(data)[3], len(data)), make_request(num_frames=12))
    assert video.reply.status is Status.PARTIAL
    assert video.reply.duration_seconds == pytest.approx(6, abs=1)
    assert 5 <= len(video.frames) <= 7


def test_a_file_that_ends_inside_a_fragment_says_so(decode: Decode, make_request: MakeRequest) -> None:
    data = fragmented()
    for stop, seconds in ((fragments(data)[3] + 20, 3), (fragments(data)[4] - 9, 4), (len(data) - 1, 6)):
        assert find_damage(io.BytesIO(data[:stop])) == BoxDamage([], ends_inside_box=True)
        reply = decode(data[:stop], make_request(num_frames=12)).reply
        assert reply.status is Status.PARTIAL
        assert "fragment" in reply.error
        assert reply.duration_seconds == pytest.approx(seconds, abs=0.11)
    whole_fragments = decode(data[: fragments(data)[3]], make_request(num_frames=12)).reply
    assert (whole_fragments.status, whole_fragments.error) == (Status.OK, "")


@pytest.mark.parametrize(
    ("name", "duration"),
    [
        ("joined.ts", 12),
        ("joined.webm", 12),
        ("jump_forward.ts", 12),
        ("outlier.mkv", 6),
        ("first_early.mp4", 5.9),
        ("no_times_at_start.mkv", 6),
        ("captured.ts", 12),
        ("numbered.mp4", 6),
    ],
)
def test_the_reported_files(
    name: str, duration: float, assets: Path, decode: Decode, make_request: MakeRequest
) -> None:
    file = assets / "faults" / "videos" / name
    if not file.exists():
        pytest.skip(f"{file} is not there")
    video = decode(file.read_bytes(), make_request(num_frames=16))
    assert (video.reply.status, video.reply.error) == (Status.OK, "")
    assert video.reply.duration_seconds == pytest.approx(duration, abs=0.02)
    assert video.reply.timeline_repaired == (name not in {"captured.ts", "numbered.mp4"})
    assert len({frame.tobytes() for frame in video.frames}) == 16
