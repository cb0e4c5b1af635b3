"""Encrypted videos: every way in which a container declares it, and what only looks encrypted."""

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import av
import pytest

from raypipe.status import HAS_FRAMES, TRANSIENT, Status
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.encryption import encryption_of, scrambling_of

KEY = "76a6c65c5ea762046bd749a2e632ccbb"


def box(kind: str, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind.encode()) + body


def full_box(kind: str, *parts: bytes, version: int = 0) -> bytes:
    return box(kind, bytes([version, 0, 0, 0]), *parts)


def movie(*, entry: bytes = b"", tables: bytes = b"", handler: bytes = b"vide", fragment: bytes = b"") -> io.BytesIO:
    """Return the boxes of a movie with one track, as far as they matter for encryption."""
    entry = entry or box("avc1", bytes(78))
    stsd = full_box("stsd", struct.pack(">I", 1), entry)
    media = box("mdia", full_box("hdlr", bytes(4), handler, bytes(12)), box("minf", box("stbl", stsd, tables)))
    track = box("trak", full_box("tkhd", bytes(8), struct.pack(">I", 7), bytes(68)), media)
    return io.BytesIO(box("ftyp", b"isom", bytes(4)) + box("moov", track) + fragment + box("mdat", bytes(99)))


def protected_entry(*, is_protected: bool, kind: str = "encv") -> bytes:
    tenc = full_box("tenc", bytes([0, 0, is_protected, 8]), bytes(16))
    sinf = box("sinf", box("frma", b"avc1"), full_box("schm", b"cenc", bytes(4)), box("schi", tenc))
    return box(kind, bytes(78), sinf)


def groups(*, is_protected: bool, version: int = 1) -> bytes:
    entry = bytes([0, 0, is_protected, 8]) + bytes(16)
    length = struct.pack(">I", 20) if version else b""
    return full_box("sgpd", b"seig", length, struct.pack(">I", 1), entry, version=version)


def fragment(*tables: bytes, track: int = 7) -> bytes:
    return box("moof", full_box("mfhd", bytes(4)), box("traf", full_box("tfhd", struct.pack(">I", track)), *tables))


SENC = full_box("senc", struct.pack(">I", 2), bytes(16))
PIFF = box("uuid", bytes.fromhex("a2394f525a9b4f14a2446c427c648df4"), bytes(4), struct.pack(">I", 2), bytes(16))
ENCRYPTED: dict[str, io.BytesIO] = {
    "encv": movie(entry=protected_entry(is_protected=True)),
    "encv without sinf": movie(entry=box("encv", bytes(78))),
    "sinf in another entry": movie(entry=protected_entry(is_protected=True, kind="hvc1")),
    "senc": movie(tables=SENC),
    "senc of a fragment": movie(fragment=fragment(SENC)),
    "PIFF": movie(fragment=fragment(PIFF)),
    "seig": movie(tables=groups(is_protected=True)),
    "seig of version 0": movie(tables=groups(is_protected=True, version=0)),
    "seig of a fragment": movie(
        entry=protected_entry(is_protected=False), fragment=fragment(groups(is_protected=True))
    ),
}
CLEAR: dict[str, io.BytesIO] = {
    "nothing": movie(),
    "encv of clear samples": movie(entry=protected_entry(is_protected=False)),
    "senc of no samples": movie(tables=full_box("senc", struct.pack(">I", 0))),
    "seig of clear samples": movie(tables=groups(is_protected=False)),
    "groups of another kind": movie(tables=full_box("sgpd", b"roll", struct.pack(">II", 2, 1), b"\0\1", version=1)),
    "senc of a fragment of sound": movie(fragment=fragment(SENC, track=8)),
    "an encrypted sound": movie(entry=protected_entry(is_protected=True), handler=b"soun"),
}


@pytest.mark.parametrize("name", ENCRYPTED)
def test_mp4_that_is_encrypted(name: str) -> None:
    assert encryption_of(ENCRYPTED[name], "mov")


@pytest.mark.parametrize("name", CLEAR)
def test_mp4_that_is_not(name: str) -> None:
    assert encryption_of(CLEAR[name], "mov") == ""


@pytest.mark.parametrize("name", ENCRYPTED)
def test_a_damaged_movie_ends(name: str) -> None:
    data = ENCRYPTED[name].getvalue()
    for at in range(0, len(data), 7):
        for value in (b"\0", b"\xff"):
            encryption_of(io.BytesIO(data[:at] + value * 4 + data[at + 4 :]), "mov")
    for size in range(len(data)):
        encryption_of(io.BytesIO(data[:size]), "mov")


def element(name: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return name.to_bytes((name.bit_length() + 7) // 8, "big") + (len(body) | 1 << 28).to_bytes(4, "big") + body


def webm(*encoding: bytes, kind: int = 1) -> io.BytesIO:
    encodings = element(0x6D80, element(0x6240, *encoding)) if encoding else b""
    track = element(0xAE, element(0xD7, b"\1"), element(0x83, bytes([kind])), encodings)
    segment = element(0x1549A966) + element(0x1654AE6B, track) + element(0x1F43B675, bytes(9))
    return io.BytesIO(element(0x1A45DFA3, bytes(4)) + b"\x18\x53\x80\x67\x01" + b"\xff" * 7 + segment)


def test_webm_that_is_encrypted_and_that_is_not() -> None:
    encrypted, compressed = element(0x5033, b"\1"), element(0x5033, b"\0")
    assert encryption_of(webm(encrypted), "matroska")
    assert encryption_of(webm(compressed), "matroska") == ""
    assert encryption_of(webm(), "matroska") == ""
    assert encryption_of(webm(encrypted, kind=2), "matroska") == ""  # an audio track


def test_a_damaged_webm_ends() -> None:
    data = webm(element(0x5033, b"\1")).getvalue()
    for at in range(len(data)):
        for value in (b"\0", b"\xff"):
            encryption_of(io.BytesIO(data[:at] + value * 4 + data[at + 4 :]), "matroska")
        encryption_of(io.BytesIO(data[:at]), "matroska")


def test_a_transport_stream_that_is_scrambled(make_clip: Callable[..., bytes]) -> None:
    data = bytearray(make_clip("h264-ts"))
    assert encryption_of(io.BytesIO(data), "mpegts") == ""
    for at in range(3, len(data), 188):
        data[at] |= 0x80
    assert encryption_of(io.BytesIO(data), "mpegts")
    clear = make_clip("h264-ts")
    assert scrambling_of(io.BytesIO(clear), 256) == ""
    assert scrambling_of(io.BytesIO(clear * 20 + bytes(data)), 256)  # scrambled later, and only the video
    assert scrambling_of(io.BytesIO(clear * 20 + bytes(data)), 257) == ""


@pytest.fixture(scope="module")
def encrypted(make_clip: Callable[..., bytes]) -> bytes:
    """Return a video that FFmpeg encrypted, and that it decodes to noise."""
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": KEY, "encryption_kid": KEY}
    file = io.BytesIO()
    source = io.BytesIO(make_clip("h264"))
    with av.open(source) as given, av.open(file, "w", format="mp4", container_options=options) as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    return file.getvalue()


def test_an_encrypted_video_has_a_status_of_its_own(
    encrypted: bytes, decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    reply = decode(encrypted, make_request()).reply
    assert (reply.status, reply.num_frames) == (Status.ENCRYPTED, 0)
    assert reply.error
    assert Status.ENCRYPTED not in HAS_FRAMES | TRANSIENT
    trusting = decode(encrypted, replace(make_request(), row_format=1)).reply
    assert trusting.status != Status.ENCRYPTED


def test_packets_that_say_so_are_enough(
    encrypted: bytes,
    decode: Callable[..., Any],
    make_request: Callable[..., DecodeRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raypipe.video.probe.encryption_of", lambda *_: "")
    monkeypatch.setattr("raypipe.video.probe.read_samples", lambda *_, **__: None)  # as for fragments
    assert decode(encrypted, make_request()).reply.status == Status.ENCRYPTED
