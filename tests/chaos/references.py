"""Playlists and references of every kind that FFmpeg knows. Each names a file or a server that must not be accessed.

Each exists plain, and after the first bytes of a container, which would pass a check of those bytes.
"""

import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from chaos.hostile_files import HostileFile, seed_clips
from video.conftest import CLIPS, make_clip
from video.test_canary import Canary, alias, bait_files, box, hls, replace_dref, running_canary

_FRAGMENTS = (("movflags", "frag_keyframe+empty_moov+default_base_moof"),)
_MAGIC = {
    "ftyp": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    "free": b"\0\0\0\x08free",
    "ts": b"G" + b"\xff" * 187 + b"G" + b"\xff" * 187,
    "matroska": b"\x1a\x45\xdf\xa3\x80",
    "avi": b"RIFF\0\0\0\0AVI ",
    "flv": b"FLV\x01\x05\0\0\0\x09\0\0\0\0",
    "ogg": b"OggS",
    "asf": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
}
_PROTOCOLS = (
    *("async:{path}", "cache:{path}", "concat:{path}|{path}", "concatf:{path}", "crypto:{path}", "crypto+file:{path}"),
    *("data:video/mp2t;base64,R0dHRw==", "fd:3", "file:{path}", "ftp://{host}/a", "gopher://{host}/a", "hls+{url}"),
    *("httpproxy://{host}", "icecast://{host}/a", "ipfs://a", "md5:{path}", "mmsh://{host}/a", "mmst://{host}/a"),
    *("pipe:0", "prompeg:rtp://{host}", "rtmp://{host}/a", "rtmpt://{host}/a", "rtp://{host}", "rtsp://{host}/a"),
    *(
        "sctp://{host}",
        "srtp://{host}",
        "subfile,,start,0,end,9,,:{path}",
        "tcp://{host}",
        "tee:{path}",
        "tls://{host}",
    ),
    *("udp://{host}", "udplite://{host}", "unix:{path}", "unix:/run/docker.sock", "{path}", "../canary.ts"),
    *("http://169.254.169.254/latest/meta-data/", "/proc/self/environ", "/etc/passwd", "\\\\{host}\\share\\a"),
)


def large_canary(folder: Path) -> AbstractContextManager[Canary]:
    """Run a canary whose frames differ from those of every hostile file."""
    return running_canary(folder, make_clip(replace(CLIPS["h264-ts"], width=192, height=144)))


def reference_files(canary: Canary) -> Iterator[HostileFile]:
    """Yield all of them, including those that are valid videos."""
    clip = seed_clips()["mp4-h264"]
    fragmented = make_clip(replace(CLIPS["h264"], container_options=_FRAGMENTS))
    url, path = f"{canary.url}/canary.ts", str(canary.path)
    playlists = _playlists(url, path)
    for name, data in (bait_files(canary, clip, fragmented) | playlists | _in_containers(clip, url, path)).items():
        yield HostileFile(f"reference: {name}", data)
    for name, data in playlists.items():
        for kind, magic in _MAGIC.items():
            yield HostileFile(f"reference: {name} after {kind}", magic + b"\n" + data)


def _playlists(url: str, path: str) -> dict[str, bytes]:
    host = url.split("/")[2]
    names = [protocol.format(path=path, url=url, host=host) for protocol in _PROTOCOLS]
    texts = {
        "m3u8 master": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}\n",
        "m3u8 media": f'#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="a",URI="{url}"\n'
        f'#EXT-X-STREAM-INF:BANDWIDTH=1,AUDIO="a"\n{url}\n',
        "m3u8 map": f'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MAP:URI="{path}"\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n',
        "m3u8 byte range": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-BYTERANGE:99@0\n#EXTINF:1,\n{path}\n",
        "m3u8 key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="file://{path}"\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n',
        "m3u": f"{url}\n{path}\n",
        "pls": f"[playlist]\nFile1={url}\nNumberOfEntries=1\n",
        "xspf": f'<playlist version="1"><trackList><track><location>{url}</location></track></trackList></playlist>',
        "smil": f'<smil><body><video src="{url}"/></body></smil>',
        "asf reference": f"[Reference]\nRef1={url}\n",
        "real": f"rtsp://{host}/a\n",
        "ffconcat options": f"ffconcat version 1.0\nfile {path}\noption protocol_whitelist file,http,tcp\n",
        "ffconcat unsafe": f"ffconcat version 1.0\nfile ../../../../../..{path}\n",
        "dash template": _dash(f'<SegmentTemplate media="{url}" initialization="{url}" duration="1"/>'),
        "dash list": _dash(
            f'<SegmentList><Initialization sourceURL="{path}"/><SegmentURL media="{path}"/></SegmentList>'
        ),
        "dash xlink": f'<MPD xmlns:xlink="http://www.w3.org/1999/xlink"><Period xlink:href="{url}"/></MPD>',
        "dash entity": f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{path}">]>{_dash("<BaseURL>&x;</BaseURL>")}',
        "imf": f'<AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM"><Path>{url}</Path></AssetMap>',
        "sdp rtp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video {host.partition(':')[2]} TCP 96\n",
        "sdp control": f"v=0\nm=video 0 RTP/AVP 96\na=control:{url}\n",
        "avisynth": f'AviSource("{path}")\n',
        "vobsub": f"# VobSub index file, v7\nid: en, index: 0\n# alt: {path}\n",
        "lavfi": f"movie={path}\n",
        "image pattern": f"{Path(path).parent}/canary%d.ts",
        "ffmetadata": f";FFMETADATA1\nfile={path}\n",
        "svg": f'<svg xmlns:xlink="http://www.w3.org/1999/xlink"><image xlink:href="{url}"/></svg>',
    }
    return {name: text.encode() for name, text in texts.items()} | {f"m3u8 of {name}": hls(name) for name in names}


def _dash(inside: str) -> str:
    return (
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S"><Period>'
        f'<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">{inside}</Representation>'
        "</AdaptationSet></Period></MPD>"
    )


def _in_containers(clip: bytes, url: str, path: str) -> dict[str, bytes]:
    """Put references inside valid containers: QuickTime's data references, reference movies and URL tracks."""
    flags = {"elsewhere": bytes(4), "here as well": b"\0\0\0\x01"}
    found = {
        f"dref {kind} {name} {where}": replace_dref(clip, box(kind, flag + target))
        for kind in (b"url ", b"urn ", b"cios")
        for name, target in (("of a server", url.encode() + b"\0"), ("of a file", f"file://{path}\0".encode()))
        for where, flag in flags.items()
    }
    found["dref alis"] = replace_dref(clip, alias(Path(path)))
    found["dref rsrc"] = replace_dref(clip, alias(Path(path)).replace(b"alis", b"rsrc", 1))
    found["rmra before a movie"] = _reference_movie(url) + clip
    found["rmra of a file"] = _reference_movie(f"file://{path}")
    found["rmra alias"] = box(b"moov", box(b"rmra", box(b"rmda", box(b"rdrf", bytes(4) + b"alis" + alias(Path(path))))))
    for name in (b"data", b"urlt", b"hint", b"meta", b"iloc"):
        found[f"{name.decode()} box"] = clip + box(name, bytes(4) + url.encode())
    return found


def _reference_movie(target: str) -> bytes:
    reference = bytes(4) + b"url " + struct.pack(">I", len(target)) + target.encode()
    return box(b"moov", box(b"rmra", box(b"rmda", box(b"rdrf", reference))))
