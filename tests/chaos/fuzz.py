"""Fuzz the container parsing that comes before decoding: ``python -m chaos.fuzz FOLDER LIBFUZZER_OPTIONS…``.

A file must end as a consistent index, or as an error that becomes its row. FOLDER keeps the files that reached new
code; the first files are a healthy video of every container and codec.
"""

import io
import sys
from pathlib import Path

import atheris
import av
import numpy as np

with atheris.instrument_imports(
    include=[
        f"raypipe.video.{name}"
        for name in ("mp4", "probe", "packet_index", "packet_reader", "timeline", "packets", "container")
    ]
):
    from raypipe.video.container import VideoError
    from raypipe.video.packet_index import PacketIndex
    from raypipe.video.probe import VideoFile
from chaos.hostile_files import seed_clips  # imports the probe too, so only after it is instrumented
from raypipe.video.decode_request import DecodeLimits
from raypipe.video.sampling import nearest, sample_timestamps
from video.conftest import make_request

_REQUEST = make_request(limits=DecodeLimits(max_packets=20_000, max_duration_seconds=3600, max_pixels=1920 * 1080))


def read(data: bytes) -> None:
    """Read one file. Any exception that does not become a row is a finding."""
    try:
        video = VideoFile(io.BytesIO(data), _REQUEST)
    except (VideoError, av.error.FFmpegError, MemoryError):
        return
    try:
        _check(video.index)
    finally:
        video.close()


def _check(index: PacketIndex) -> None:
    assert len(index.pts) == len(index.is_keyframe) == len(index.is_shown) > 0
    assert index.is_shown.any()
    assert np.isfinite([index.duration_seconds, index.end_seconds, index.average_fps]).all()
    shown = np.sort(index.pts_seconds[index.is_shown])
    for mode in ("uniform", "fps"):
        wanted = sample_timestamps(index.duration_seconds, mode=mode, num_frames=16, fps=2.0, max_frames=64)
        assert 0 < len(wanted) <= 64
        assert (np.diff(wanted) >= 0).all()
        chosen = nearest(shown, wanted)
        assert ((chosen >= 0) & (chosen < len(shown))).all()


def main() -> None:
    """Fuzz until the limit in libFuzzer's options is reached."""
    corpus = Path(sys.argv[1])
    corpus.mkdir(exist_ok=True)
    for name, data in seed_clips().items():
        (corpus / name).write_bytes(data)
    av.logging.set_level(None)
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
