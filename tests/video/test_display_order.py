"""The frame order of formats that say little about it: AVI, packed MPEG-4, H.261 and H.263.

The frames show their numbers.
"""

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np
import pytest

from raypipe.status import Status
from raypipe.video import packet_reader
from raypipe.video.container import VideoError
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.decoders import refuse_unsupported
from raypipe.video.packet_reader import PacketReader
from raypipe.video.packets import PictureType, PictureTypes, display_order, is_packed
from raypipe.video.probe import VideoFile
from raypipe.video.sampling import choose_frames
from support.numbered import BFRAMES, Encoded, Packet, encode, matroska, picture, read_numbers

Decode = Callable[..., Any]
MakeRequest = Callable[..., DecodeRequest]
EVERY = {"mode": "all", "max_frames": 100}
UNCODED = b"\0\0\1\xb6\x50\x9f\x7f"  # at 10 frames a second
DIVX_PACKED, DIVX = b"\0\0\1\xb2DivX503b1393p", b"\0\0\1\xb2DivX503b1393"
SHARP = {"qmin": "2", "qmax": "3"}


@cache
def mpeg4(*, bf: int = 1, group: int = 12) -> Encoded:
    """Return thirty frames, with up to ``bf`` B-frames in a row."""
    options = {"bf": str(bf), "b_strategy": "0", "sc_threshold": "1000000000", "g": str(group), **SHARP}
    return encode(range(30), encoder="mpeg4", options=options)


def packed(announcement: bytes = DIVX_PACKED) -> list[bytes]:
    """Return thirty packets with B-frames inside the packets of earlier frames, as DivX and Xvid write them."""
    chunks: list[bytes] = []
    packets = list(mpeg4().packets)
    while packets:
        one = packets.pop(0)
        if packets and packets[0].frame < one.frame:
            chunks += [one.data + packets.pop(0).data, UNCODED]
        else:
            chunks.append(one.data)
    at = chunks[0].find(b"\0\0\1\xb6")  # after all headers
    chunks[0] = chunks[0][:at] + announcement + chunks[0][at:]
    return chunks


def write(codec: str, packets: list[bytes], container: str = "avi", *, side: tuple[int, int] = (64, 64)) -> bytes:
    """Put one packet per tenth of a second into a file; an empty packet leaves its slot empty."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        target: Any = output.add_mux_stream(codec, rate=10, width=side[0], height=side[1])
        target.time_base = Fraction(1, 10)
        for number, data in enumerate(packets):
            packet: Any = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = target, Fraction(1, 10), number == 0
            packet.pts = packet.dts = number
            packet.duration = 1
            if data:
                output.mux(packet)
    return file.getvalue()


def contents(encoded: Encoded) -> list[bytes]:
    return [packet.data for packet in encoded.packets]


@cache
def h264() -> Encoded:
    return encode(range(30), options={**BFRAMES, "g": "250"})


AVI = {
    "h264": lambda: write("h264", contents(h264())),
    "mpeg4": lambda: write("mpeg4", contents(mpeg4(bf=2))),
    "mpeg4 without B-frames": lambda: write("mpeg4", contents(mpeg4(bf=0))),
    "mpeg2video": lambda: write(
        "mpeg2video", contents(encode(range(30), encoder="mpeg2video", options={"bf": "2", "g": "12", **SHARP}))
    ),
    "packed": lambda: write("mpeg4", packed()),
    "packed, in mp4": lambda: write("mpeg4", packed(), "mp4"),
    "packed, in mkv": lambda: write("mpeg4", packed(), "matroska"),
}


@pytest.mark.parametrize("name", AVI)
def test_frames_are_in_display_order(name: str, decode: Decode, make_request: MakeRequest) -> None:
    video = decode(AVI[name](), make_request(**EVERY))
    assert (video.reply.status, video.reply.error) == (Status.OK, "")
    assert read_numbers(video.frames) == list(range(30))
    assert video.pts_seconds.tolist() == pytest.approx([number / 10 for number in range(30)])
    assert not video.reply.timeline_repaired
    some = decode(AVI[name](), make_request(num_frames=5))
    assert read_numbers(some.frames) == [3, 9, 15, 21, 27]
    assert some.reply.duration_seconds == pytest.approx(3)


@pytest.mark.parametrize("container", ["avi", "mp4", "matroska"])
def test_only_coded_intra_pictures_are_key_frames(container: str, decode: Decode, make_request: MakeRequest) -> None:
    video = decode(write("mpeg4", packed(), container), make_request(mode="keyframes"))
    assert read_numbers(video.frames) == [0, 12, 24]


def test_row_format_1_keeps_the_stored_order(decode: Decode, make_request: MakeRequest) -> None:
    video = decode(AVI["h264"](), make_request(**EVERY, row_format=1))
    assert read_numbers(video.frames) == [packet.frame for packet in h264().packets]
    index = VideoFile(io.BytesIO(AVI["packed"]()), make_request(row_format=1)).index
    assert len(index.pts) == 30
    assert index.is_shown.all()


def test_empty_slots_stay_empty(decode: Decode, make_request: MakeRequest) -> None:
    chunks = contents(mpeg4(bf=2))
    chunks[10:10] = [b""] * 5
    video = decode(write("mpeg4", chunks), make_request(**EVERY))
    assert read_numbers(video.frames) == list(range(30))
    assert np.flatnonzero(np.diff(video.pts_seconds) > 0.15).tolist() == [9]
    assert video.pts_seconds[-1] == pytest.approx(3.4)


def test_uncoded_pictures_are_not_shown(decode: Decode, make_request: MakeRequest) -> None:
    chunks = contents(mpeg4(bf=0))
    chunks[0] = DIVX + chunks[0]
    chunks[10:10] = [UNCODED, b"\x7f"]
    data = write("mpeg4", chunks)
    index = VideoFile(io.BytesIO(data), make_request()).index
    assert np.flatnonzero(~index.is_shown).tolist() == [10, 11]
    video = decode(data, make_request(**EVERY))
    assert (video.reply.status, read_numbers(video.frames)) == (Status.OK, list(range(30)))


def test_h264_that_takes_too_long_to_decode_stays_in_stored_order(
    decode: Decode, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packet_reader, "MAX_ORDERED_PACKETS", 20)
    video = decode(AVI["h264"](), make_request(**EVERY))
    assert (video.reply.status, len(video.frames)) == (Status.OK, 30)
    assert read_numbers(video.frames) == [packet.frame for packet in h264().packets]


def test_avi_without_b_frames_is_not_decoded_twice(make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PacketReader, "decode_order", lambda *_, **__: pytest.fail("decoded"))
    encoded = encode(range(30), options={**BFRAMES, "bf": "0"})
    index = VideoFile(io.BytesIO(write("h264", contents(encoded))), make_request()).index
    assert (np.diff(index.pts) == 1).all()
    VideoFile(io.BytesIO(AVI["mpeg4"]()), make_request())


@cache
def common_format(encoder: str, container: str) -> bytes:
    """Return thirty frames of 352x288 with their numbers in the middle; every tenth is a key frame."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(encoder, rate=10, options={"g": "10", **SHARP})
        stream.width, stream.height = 352, 288
        stream.pix_fmt = "rgb555le" if encoder == "rpza" else "yuv420p"
        for number in range(30):
            image = np.full((288, 352, 3), 126, dtype=np.uint8)
            image[112:176, 144:208] = picture(number)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("encoder", "container", "keys"),
    [
        ("h263", "avi", [0, 10, 20]),
        ("h263p", "avi", [0, 10, 20]),
        ("h263", "mov", [0, 10, 20]),
        ("h261", "avi", [0]),
        ("rpza", "mov", [0]),
    ],
)
def test_key_flags_that_are_wrong_are_not_trusted(
    encoder: str, container: str, keys: list[int], decode: Decode, make_request: MakeRequest
) -> None:
    data = common_format(encoder, container)
    size = {"resize_size": 288, "crop_size": 56}
    video = decode(data, make_request(num_frames=8, **size))
    assert (video.reply.status, video.reply.error) == (Status.OK, "")
    assert read_numbers(video.frames) == [2, 6, 9, 13, 17, 21, 24, 28]
    video = decode(data, make_request(mode="keyframes", **size))
    assert read_numbers(video.frames) == keys


@pytest.mark.parametrize("num_frames", [2**30, 2**31 - 1, 2**32 - 1])
def test_a_placeholder_for_the_number_of_frames_promises_nothing(
    num_frames: int, decode: Decode, make_request: MakeRequest
) -> None:
    data = bytearray(write("mpeg4", contents(mpeg4(bf=0))))
    for box, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        struct.pack_into("<I", data, data.find(box) + offset, num_frames)
    video = decode(bytes(data), make_request(num_frames=5))
    assert (video.reply.status, read_numbers(video.frames)) == (Status.OK, [3, 9, 15, 21, 27])
    assert video.reply.duration_seconds == pytest.approx(3)
    with pytest.raises(VideoError) as raised:
        VideoFile(io.BytesIO(data), make_request(row_format=1))
    assert raised.value.status is Status.TOO_LARGE


def test_a_cut_avi_is_partial(decode: Decode, make_request: MakeRequest) -> None:
    for name in ("mpeg4", "h264"):
        data = AVI[name]()
        start, stop = data.find(b"movi"), data.find(b"idx1")
        video = decode(data[: start + (stop - start) * 2 // 3], make_request(num_frames=10))
        assert video.reply.status is Status.PARTIAL
        assert video.reply.duration_seconds == pytest.approx(3, abs=0.05)
        assert sorted(read_numbers(video.frames)) == read_numbers(video.frames)


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4"])
def test_frames_after_damage_keep_their_times(codec: str, decode: Decode, make_request: MakeRequest) -> None:
    encoded = encode(range(30), encoder="mjpeg", options=SHARP) if codec == "mjpeg" else mpeg4(group=1, bf=0)
    data = write(codec, contents(encoded))
    at = [data.find(packet.data) for packet in encoded.packets]
    damaged = data[: at[9] - 8] + bytes(at[15] - at[9]) + data[at[15] - 8 :]
    video = decode(damaged, make_request(**EVERY))
    rest = [number for number in range(30) if not 9 <= number < 15]
    assert read_numbers(video.frames) == rest
    assert video.pts_seconds.tolist() == pytest.approx([number / 10 for number in rest])
    some = decode(damaged, make_request(num_frames=10))
    assert (some.reply.status, read_numbers(some.frames)) == (Status.PARTIAL, [2, 5, 8, 17, 20, 23, 26, 29])
    assert some.reply.duration_seconds == pytest.approx(3)
    no_index = damaged.replace(b"idx1", b"JUNK")
    assert decode(no_index, make_request(**EVERY)).pts_seconds[-1] == pytest.approx(2.3)


@pytest.mark.parametrize("name", ["packed", "packed, in mp4", "h263"])
def test_other_decoders_refuse_what_they_would_show_wrong(name: str, make_request: MakeRequest) -> None:
    data = common_format("h263", "avi") if name == "h263" else AVI[name]()
    video = VideoFile(io.BytesIO(data), make_request())
    wanted = choose_frames(video.index, make_request())
    with pytest.raises(VideoError) as raised:
        refuse_unsupported(video, wanted, decoder="decord")
    assert raised.value.status is Status.DECODE_ERROR


def test_display_order_of_picture_types() -> None:
    kinds = {"I": PictureType.INTRA, "P": PictureType.PREDICTED, "B": PictureType.BIDIRECTIONAL}
    for types, order in (("", []), ("I", [0]), ("IPBBPB", [0, 2, 3, 1, 5, 4]), ("BIP", [0, 1, 2])):
        assert display_order([kinds[one] for one in types]).tolist() == order


def test_picture_types_of_mpeg4() -> None:
    encoded = mpeg4()
    types = PictureTypes("mpeg4", b"")
    found = [types.read(memoryview(packet.data)) for packet in encoded.packets]
    assert [kind == PictureType.INTRA for kind in found] == [packet.is_keyframe for packet in encoded.packets]
    assert PictureType.BIDIRECTIONAL in found
    assert types.read(memoryview(UNCODED)) is PictureType.NOT_CODED
    assert types.read(memoryview(b"\0\0\1\xb6")) is PictureType.INTRA  # the header is cut off
    assert types.read(memoryview(b"\0\0")) is PictureType.UNKNOWN


def test_only_the_announcement_makes_a_stream_packed() -> None:
    assert is_packed(b"\0\0\1\xb0\1" + DIVX_PACKED)
    assert is_packed(b"\0\0\1\xb2DivX501Build413p")
    assert not is_packed(DIVX + b"\0\0\1\xb6p")
    assert not is_packed(b"\0\0\1\xb2XviD0069")


def test_matroska_with_packed_pictures(decode: Decode, make_request: MakeRequest) -> None:
    chunks = packed()
    packets = tuple(Packet(data, number, is_keyframe=number == 0) for number, data in enumerate(chunks))
    data = matroska(replace(mpeg4(), packets=packets), [number * 100 for number in range(30)])
    video = decode(data, make_request(**EVERY))
    assert read_numbers(video.frames) == list(range(30))
    assert np.diff(video.pts_seconds) == pytest.approx(0.1)
