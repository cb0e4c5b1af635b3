"""Corrupt pictures: what decoders report, which frames replace them, and what the row says."""

import io
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.schema import ROW_FORMAT
from raypipe.status import Status
from raypipe.video.container import Line
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.frame_reader import Damage, DamageReport, candidates, choose_replacements
from raypipe.video.packet_index import PacketIndex
from support.decoding import packet_index
from support.properties import examples

NUM_FRAMES = 32
FPS = 16
CODECS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "mp4", {"preset": "ultrafast", "crf": "16"}),
    "h264-ts": ("libx264", "mpegts", {"preset": "ultrafast", "crf": "16"}),
    "hevc": ("libx265", "mp4", {"preset": "ultrafast", "crf": "16", "x265-params": "log-level=none:pools=1:hash=1"}),
    "mpeg2": ("mpeg2video", "mpegts", {"qmin": "2", "qmax": "3"}),
    "mpeg2-ps": ("mpeg2video", "mpeg", {"qmin": "2", "qmax": "3"}),
    "mpeg4": ("mpeg4", "matroska", {"qmin": "2", "qmax": "3"}),
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "crf": "10", "b": "0"}),
    "mjpeg": ("mjpeg", "mov", {"qmin": "2", "qmax": "3"}),
}


class Textured(NamedTuple):
    """A clip of moving noise, whose packets are large enough to be corrupted."""

    data: bytes
    packets: list[tuple[int, int]]  # start in the file, and size

    def corrupted(self, *numbers: int) -> bytes:
        """Return the clip with noise in these packets, but not at their ends, where an encoder may put a checksum."""
        data = bytearray(self.data)
        noise = np.random.default_rng(1)
        for number in numbers:
            start, size = self.packets[number]
            at, stop = start + max(48, size // 4), start + size - 64
            data[at:stop] = noise.bytes(max(0, stop - at))
        assert bytes(data) != self.data
        return bytes(data)


def textured(name: str, *, group: int = 8) -> Textured:
    codec, container, options = CODECS[name]
    draw = np.random.default_rng(0)
    texture = draw.integers(0, 256, (192, 256, 3), dtype=np.uint8)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        rate = 25 if name == "mpeg2-ps" else FPS  # MPEG-2 allows only a few rates
        stream: Any = output.add_stream(codec, rate=rate, options={**options, "g": str(group), "bf": "0"})
        stream.width, stream.height = 128, 96
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(NUM_FRAMES):
            picture = texture[number : number + 96, 2 * number : 2 * number + 128]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    data = file.getvalue()
    with av.open(io.BytesIO(data)) as opened:
        packets = [(packet.pos, packet.size) for packet in opened.demux(opened.streams.video[0]) if packet.size]
    return Textured(data, [(int(start or 0), size) for start, size in packets])


@pytest.mark.parametrize("name", CODECS)
def test_corrupt_pictures_are_counted(
    name: str, decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    clip, request = textured(name), make_request(num_frames=8)
    sound = decode(clip.data, request).reply
    assert (sound.status, sound.num_frames, sound.num_corrupt_frames, sound.error) == (Status.OK, 8, 0, "")
    damaged = decode(clip.corrupted(*range(8, 16)), request)
    reply = damaged.reply
    assert reply.status == Status.PARTIAL
    assert reply.num_frames >= 7
    assert 0 < reply.num_corrupt_frames <= 3  # one of the four groups of pictures
    assert reply.error
    assert (np.diff(damaged.pts_seconds) > 0).all()
    trusting = decode(clip.corrupted(*range(8, 16)), replace(request, row_format=1)).reply
    assert trusting.num_corrupt_frames == 0


@pytest.mark.parametrize("name", ["h264", "mjpeg"])
def test_the_nearest_sound_frame_takes_the_place_of_a_corrupt_one(
    name: str, decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    clip, request = textured(name, group=1), make_request(num_frames=8)
    sound = decode(clip.data, request)
    wanted = np.rint(sound.pts_seconds * FPS).astype(int)
    damaged = decode(clip.corrupted(int(wanted[3])), request)
    assert (damaged.reply.status, damaged.reply.num_corrupt_frames) == (Status.OK, 0)
    moved = np.rint(damaged.pts_seconds * FPS).astype(int) - wanted
    assert np.abs(moved[3]) == 1
    assert not np.delete(moved, 3).any()
    np.testing.assert_array_equal(np.delete(damaged.frames, 3, 0), np.delete(sound.frames, 3, 0))


@pytest.mark.parametrize("name", ["h264", "mjpeg"])
def test_a_video_of_corrupt_frames_alone_is_not_decoded(
    name: str, decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    clip = textured(name, group=1)
    reply = decode(clip.corrupted(*range(NUM_FRAMES)), make_request(num_frames=8)).reply
    assert (reply.status, reply.num_frames) == (Status.DECODE_ERROR, 0)
    assert 0 < reply.num_corrupt_frames <= 8
    assert reply.error


def test_lost_packets_of_a_transport_stream_are_noticed(
    decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    for name in ("h264-ts", "mpeg2"):
        data = textured(name).data
        packets = [data[at : at + 188] for at in range(0, len(data), 188)]
        videos = [at for at, packet in enumerate(packets) if packet[1] & 0x1F == 1]  # PID 256
        lost = set(videos[len(videos) // 2 :][:3])
        lossy = b"".join(packet for at, packet in enumerate(packets) if at not in lost)
        reply = decode(lossy, make_request(mode="all")).reply
        assert reply.status == Status.PARTIAL, name
        assert 0 < reply.num_corrupt_frames < reply.num_frames


@pytest.mark.parametrize("name", ["vp9", "mpeg4"])
def test_a_hole_in_a_container_is_noticed(
    name: str, decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    clip, request = textured(name), make_request(num_frames=8)
    data = bytearray(clip.data)
    start, stop = clip.packets[9][0], clip.packets[15][0] + 40
    data[start:stop] = bytes(stop - start)
    reply = decode(bytes(data), request).reply
    assert (reply.status, reply.num_frames) == (Status.PARTIAL, 6)
    assert reply.duration_seconds == pytest.approx(2, abs=0.01)
    assert "0.44" in reply.error  # the lost seconds
    assert decode(bytes(data), replace(request, row_format=1)).reply.status == Status.OK


def test_missing_frames_of_a_program_stream_are_noticed(
    decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    clip, request = textured("mpeg2-ps"), make_request(num_frames=8)
    hole = clip.data[: clip.packets[9][0]] + clip.data[clip.packets[18][0] :]
    reply = decode(hole, request).reply
    assert (reply.status, reply.codec) == (Status.PARTIAL, "mpeg2video")
    assert reply.num_frames < 8
    assert decode(hole, replace(request, row_format=1)).reply.status == Status.OK


def test_errors_with_the_same_text_count_each(
    decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    clip = textured("mjpeg")
    data = bytearray(clip.data)
    for number in (8, 9):
        start, size = clip.packets[number]
        data[start + size // 2 : start + size] = bytes(size - size // 2)
    reply = decode(bytes(data), make_request(mode="all")).reply
    assert (reply.status, reply.num_corrupt_frames) == (Status.PARTIAL, 2)


def test_a_palette_of_the_first_packet_is_that_of_all(
    decode: Callable[..., Any], make_clip: Callable[..., bytes], make_request: Callable[..., DecodeRequest]
) -> None:
    data = make_clip("palette", codec="rawvideo", container="avi")
    every = decode(data, make_request(mode="all", max_frames=64)).frames
    some = decode(data, make_request(num_frames=2)).frames
    assert every[-1].mean() > every[0].mean() > 0
    assert all(any((frame == one).all() for one in every) for frame in some)


def test_a_decoder_without_damage_reports_refuses_corrupt_frames(
    decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    pytest.importorskip("decord")
    clip, request = textured("h264"), make_request(num_frames=8)
    assert decode(clip.data, request, decoder="decord").reply.status == Status.OK
    reply = decode(clip.corrupted(*range(9, 16)), request, decoder="decord").reply
    assert (reply.status, reply.num_frames) == (Status.DECODE_ERROR, 0)


def test_the_rules_are_those_of_the_latest_rows(make_request: Callable[..., DecodeRequest]) -> None:
    assert make_request().row_format == ROW_FORMAT


def index_of(keys: set[int], pts: list[int]) -> PacketIndex:
    is_keyframe = np.isin(np.arange(len(pts)), list(keys))
    return packet_index(np.array(pts), is_keyframe, time_base=Fraction(1), fps=1.0, duration_seconds=len(pts))


def test_damage_reaches_to_the_next_key_frame() -> None:
    report = DamageReport()
    report.note(1, "bad")
    levels = report.levels(index_of({0, 4}, list(range(8)))).tolist()
    assert levels == [Damage.NONE, Damage.CORRUPT, Damage.REFERRED, Damage.REFERRED, *[Damage.NONE] * 4]


def test_damage_reaches_frames_shown_before_the_next_key_frame() -> None:
    report = DamageReport()
    report.note(2, "bad")
    # In decoding order. Packets 4 and 5 are shown before the key frame 3, so they may refer to the previous group.
    levels = report.levels(index_of({0, 3}, [0, 1, 2, 5, 3, 4, 6])).tolist()
    assert levels == [0, 0, Damage.CORRUPT, 0, Damage.REFERRED, Damage.REFERRED, 0]


def test_lost_packets_damage_what_refers_to_them() -> None:
    # Packets are lost before 2 and before the key frame 5; 6 is shown before that key frame.
    index = replace(index_of({0, 3, 5}, [0, 1, 4, 5, 6, 12, 11, 13]), losses=(2, 5))
    assert DamageReport().levels(index).tolist() == [0, 0, Damage.REFERRED, 0, 0, 0, Damage.REFERRED, 0]


def test_a_flag_of_the_container_may_be_late() -> None:
    # Packet 3 is a key frame; its loss is flagged on the previous packet.
    index = replace(index_of({0, 3}, list(range(6))), corrupt=(2,))
    reached = Damage.REFERRED
    assert DamageReport().levels(index).tolist() == [0, 0, Damage.CORRUPT, reached, reached, reached]


def test_what_a_decoder_logs_counts_unless_it_flags_frames() -> None:
    log = [Line("hevc", "CABAC_MAX_BIN : 7"), Line("matroska,webm", "something else")]
    report = DamageReport()
    report.note_packet(3, log=log, decoder="hevc")
    assert (report.corrupt, report.problem) == ({3}, "CABAC_MAX_BIN : 7")
    other = DamageReport()
    other.note_packet(3, log=[Line("h264", "mmco: unref short failure")], decoder="h264")
    assert (other.corrupt, other.problem) == (set(), "")
    other.note_frame(3, decoder="h264")
    other.note_frame(4, decoder="h264")
    assert (other.corrupt, other.referring) == ({3}, {4})


@given(
    levels=st.lists(st.sampled_from(list(Damage)), min_size=1, max_size=30),
    slots=st.lists(st.floats(0, 30), min_size=1, max_size=6),
    half_seconds=st.floats(0, 8),
    used=st.sets(st.integers(0, 29), max_size=5),
)
@settings(max_examples=examples(200))
def test_replacements_are_near_the_best_and_taken_once(
    levels: list[Damage], slots: list[float], half_seconds: float, used: set[int]
) -> None:
    times = np.arange(len(levels), dtype=np.float64)
    worst: npt.NDArray[np.int8] = np.array(levels, dtype=np.int8)
    asked = dict(enumerate(slots))
    chosen = choose_replacements(times, worst, asked, used=used, half_seconds=half_seconds)
    positions = list(chosen.values())
    assert len(set(positions)) == len(positions)
    assert not used & set(positions)
    near = set(candidates(times, np.array(slots), half_seconds=half_seconds).tolist())
    taken = set(used)
    for slot, seconds in asked.items():
        free = [
            at for at in near - taken if abs(times[at] - seconds) < half_seconds - 1e-9 and worst[at] < Damage.MISSING
        ]
        if slot not in chosen:
            assert not free
            continue
        at = chosen[slot]
        assert worst[at] < Damage.MISSING
        assert abs(times[at] - seconds) <= half_seconds + 1e-9
        assert all((worst[at], abs(times[at] - seconds)) <= (worst[one], abs(times[one] - seconds)) for one in free)
        taken.add(at)
