"""Videos that name other files and servers: nothing outside the video is ever read or requested."""

import http.server
import io
import struct
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest

from raypipe.status import HAS_FRAMES, Status
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.sandbox.parent import DecodedVideo, DecodeSandbox

AsFile = Callable[[bytes], BinaryIO]
MakeClip = Callable[..., bytes]
MakeRequest = Callable[..., DecodeRequest]

CONTAINER_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"dinf")


@dataclass
class Canary:
    """A video that must not be read: as a file, and on a server that records each connection."""

    path: Path
    url: str
    asked: list[str] = field(default_factory=list)


@contextmanager
def running_canary(folder: Path, data: bytes) -> Iterator[Canary]:
    """Write the video to a file and serve it on loopback."""
    path = folder / "canary.ts"
    path.write_bytes(data)

    class Handler(http.server.BaseHTTPRequestHandler):
        def setup(self) -> None:
            bait.asked.append("connection")
            super().setup()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # its name in the standard library
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        bait = Canary(path, f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield bait
        server.shutdown()
        thread.join()


@pytest.fixture
def canary(tmp_path: Path, make_clip: MakeClip) -> Iterator[Canary]:
    """Return the canary of a test."""
    with running_canary(tmp_path, make_clip("h264-ts")) as bait:
        yield bait


def hls(*targets: str) -> bytes:
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n"
    return (head + "".join(f"#EXTINF:2,\n{target}\n" for target in targets) + "#EXT-X-ENDLIST\n").encode()


def dash(target: str) -> bytes:
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S"'
        ' profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">'
        f'<Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL><SegmentBase indexRange="0-9"/>'
        "</Representation></AdaptationSet></Period></MPD>"
    ).encode()


def box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + name + body


def replace_dref(data: bytes, entry: bytes) -> bytes:
    """Return an MP4 whose data references point to ``entry``."""
    boxes = b""
    while data:
        size, name = struct.unpack(">I4s", data[:8])
        body, data = data[8:size], data[size:]
        if name in CONTAINER_BOXES:
            body = replace_dref(body, entry)
        elif name == b"dref":
            body = struct.pack(">II", 0, 1) + entry
        boxes += box(name, body)
    return boxes


def alias(path: Path) -> bytes:
    """Return a Macintosh alias record for a path, as in QuickTime files."""
    name, whole = path.name.encode(), str(path).encode()
    record = (
        bytes(4) + bytes(10) + b"\0" + bytes(27) + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    )
    record += struct.pack(">HH", 0, 0) + bytes(16)
    record += struct.pack(">HH", 2, len(whole)) + whole + bytes(len(whole) % 2) + struct.pack(">Hh", 0, -1)
    return box(b"alis", record)


def bait_files(canary: Canary, clip: bytes, fragmented: bytes) -> dict[str, bytes]:
    """Return every way we know to make a video reader follow a name."""
    file, url = f"file://{canary.path}", f"{canary.url}/canary.ts"
    reference = box(
        b"moov",
        box(b"rmra", box(b"rmda", box(b"rdrf", bytes(4) + b"url " + struct.pack(">I", len(url)) + url.encode()))),
    )
    manifest_first = struct.pack(">I", 0x01010101) + b"free" + dash(url)
    manifest_first += b" " * (0x01010101 - len(manifest_first)) + fragmented
    magic = {
        "ftyp": b"\0\0\0\x18ftypmp42",
        "moov": b"    moov",
        "ts": b"G" * 400,
        "matroska": b"\x1a\x45\xdf\xa3",
        "avi": b"RIFF    AVI LIST",
        "ogg": b"OggS",
        "mpeg": b"\0\0\1\xba",
    }
    playlists = {
        "hls-url": hls(url),
        "hls-file": hls(file, str(canary.path)),
        "hls-protocols": hls(f"subfile,,start,0,end,0,,:{canary.path}", f"concat:{canary.path}|{url}", f"crypto+{url}"),
        "hls-key": hls("canary").replace(b"#EXTINF", f'#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF'.encode(), 1),
        "ffconcat": f"ffconcat version 1.0\nfile '{file}'\nfile '{url}'\nfile {canary.path}\n".encode(),
        "dash": dash(url),
        "dash-file": dash(file),
        "sdp": b"v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "rtsp-redirect": f"RTSPtext\n{url}\n".encode(),
        "asx": f'<asx version="3.0"><entry><ref href="{url}"/></entry></asx>'.encode(),
        "image-sequence": str(canary.path.parent / "canary%d.ts").encode(),
    }
    disguised = {
        f"{name} behind {kind}": start + b"\n" + playlist
        for name, playlist in playlists.items()
        for kind, start in magic.items()
    }
    return {
        **playlists,
        **disguised,
        "dref-url": replace_dref(clip, box(b"url ", bytes(4) + file.encode() + b"\0")),
        "dref-http": replace_dref(clip, box(b"url ", bytes(4) + url.encode() + b"\0")),
        "dref-alias": replace_dref(clip, alias(canary.path)),
        "reference-movie": reference,
        "manifest-in-a-video": manifest_first,
    }


def test_the_canary_records_connections(canary: Canary) -> None:
    with urllib.request.urlopen(f"{canary.url}/canary.ts", timeout=10) as response:
        assert response.read() == canary.path.read_bytes()
    assert canary.asked == ["connection"]


def test_the_bait_is_good(canary: Canary) -> None:
    # This gives the other tests their meaning: a library without the sandbox does follow such names.
    program = "import io, sys, decord; decord.VideoReader(io.BytesIO(sys.stdin.buffer.read()))"
    subprocess.run(
        [sys.executable, "-c", program], input=hls(f"{canary.url}/a.ts"), capture_output=True, timeout=60, check=False
    )
    assert canary.asked
    concat = f"ffconcat version 1.0\nfile 'file://{canary.path}'\n".encode()
    with av.open(io.BytesIO(concat), "r", options={"safe": "0"}) as container:
        assert sum(1 for _ in container.decode(video=0)) == 24


@pytest.mark.parametrize("decoder", ["pyav", "decord", "torchcodec"])
def test_nothing_named_by_a_video_is_read(
    decoder: str, canary: Canary, make_request: MakeRequest, make_clip: MakeClip, as_file: AsFile
) -> None:
    clip = make_clip()
    fragments = (("movflags", "frag_keyframe+empty_moov+default_base_moof"),)
    baits = bait_files(canary, clip, make_clip(container_options=fragments))
    videos: dict[str, DecodedVideo] = {}
    with DecodeSandbox(make_request(), decoder=decoder, timeout_seconds=20) as opened:
        for name, data in baits.items():
            with as_file(data) as file:
                videos[name] = opened.decode(file)
        with as_file(clip) as file:
            own = opened.decode(file)
    assert own.status is Status.OK
    assert canary.asked == []
    for name, video in videos.items():
        assert canary.path.name not in video.error
        # A video that contains a manifest is complete. A track that points elsewhere may be read from its own file.
        if video.status in HAS_FRAMES:
            assert name in {"manifest-in-a-video", "dref-url", "dref-http", "dref-alias"}
            np.testing.assert_array_equal(video.frames, own.frames)


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_a_library_that_follows_names_is_blocked_in_the_child(decoder: str, canary: Canary, tmp_path: Path) -> None:
    # The child without its own checks, so only the kernel's restrictions remain.
    program = """
        import io, mmap, sys
        sys.path[:] = sys.argv.pop(1).splitlines()
        from raypipe.video.sandbox import isolation
        left = isolation.leave_network()
        from raypipe.video.sandbox import child
        from raypipe.video.sandbox.protocol import SharedFrames
        decoder, url, path = sys.argv[1:]
        size = SharedFrames.size_bytes(crop_size=56, max_frames=1)
        child.rehearse(decoder, SharedFrames(mmap.mmap(-1, size), crop_size=56, max_frames=1))
        isolation.limit_memory(2**31)
        held = left, isolation.leave_files(), isolation.drop_privileges(), isolation.deny_calls()
        print("held" if all(held) else "not held", flush=True)
        if decoder == "decord":
            import decord
            read = decord.VideoReader
        else:
            from torchcodec.decoders import VideoDecoder as read
        for bait in sys.stdin.buffer.read().split(b"|next|"):
            try:
                print("read", len(read(io.BytesIO(bait))), flush=True)
            except Exception as error:
                print("refused", flush=True)
    """
    url, file = f"{canary.url}/canary.ts", f"file://{canary.path}"
    baits = b"|next|".join(
        (hls(url), hls(file), dash(url), dash(file), f"ffconcat version 1.0\nfile {canary.path}\n".encode())
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), "\n".join(sys.path), decoder, url, str(canary.path)],
        input=baits,
        cwd=empty,
        capture_output=True,
        timeout=120,
        check=False,
    )
    lines = done.stdout.decode().splitlines()
    if lines[:1] == ["not held"]:
        pytest.skip("This kernel refuses a part of the isolation.")
    if not lines:
        pytest.skip(f"{decoder} does not start here: {done.stderr.decode().splitlines()[-1]}")
    assert canary.asked == []
    assert lines == ["held", *["refused"] * 5], done.stderr.decode()
