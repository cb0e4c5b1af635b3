"""Files that are more than usual containers: animated pictures, and captures that begin anywhere."""

import io
from collections.abc import Callable, Iterable
from typing import Any

import av
import pytest
from PIL import Image

from raypipe.status import Status
from raypipe.video.container import SNIFF_BYTES, sniff_container
from raypipe.video.decode_request import DecodeRequest
from support.numbered import SIDE, SIXTEEN, picture, read_numbers

Decode = Callable[..., Any]
MakeRequest = Callable[..., DecodeRequest]


def written(numbers: Iterable[int], container: str, codec: str, pix_fmt: str, *, rate: int, **options: str) -> bytes:
    """Return a file whose frames show these numbers."""
    data = io.BytesIO()
    with av.open(data, "w", format=container) as output:
        target: Any = output.add_stream(codec, rate=rate, options=options)
        target.width, target.height, target.pix_fmt = SIDE, SIDE, pix_fmt
        for number in numbers:
            output.mux(target.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        output.mux(target.encode(None))
    return data.getvalue()


@pytest.mark.parametrize("missing", [100, 2000])
def test_a_program_stream_that_begins_inside_a_packet(missing: int, decode: Decode, make_request: MakeRequest) -> None:
    numbers = range(300)
    captured = written(numbers, "mpeg", "mpeg2video", "yuv420p", rate=25, g="5", bf="0")[missing:]
    assert sniff_container(captured[:SNIFF_BYTES]) == "mpeg"
    assert sniff_container(captured[:SNIFF_BYTES], row_format=1) is None
    found = read_numbers(decode(captured, make_request(mode="all", max_frames=300)).frames)
    assert len(found) > 200
    assert found == list(numbers[-len(found) :])


@pytest.mark.parametrize(("codec", "pix_fmt"), [("gif", "rgb8"), ("apng", "rgb24")])
def test_an_animated_picture_is_a_video(codec: str, pix_fmt: str, decode: Decode, make_request: MakeRequest) -> None:
    video = decode(written(range(60), codec, codec, pix_fmt, rate=10), make_request(num_frames=16))
    assert (video.reply.status, video.reply.container, video.reply.codec) == (Status.OK, codec, codec)
    assert read_numbers(video.frames) == SIXTEEN
    assert video.reply.duration_seconds == pytest.approx(6, abs=0.11)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "animated WEBP"])
def test_other_pictures_are_not_read(kind: str, decode: Decode, make_request: MakeRequest) -> None:
    images = [Image.fromarray(picture(number)) for number in range(3)]
    more = {"save_all": True, "append_images": images[1:]} if kind.startswith("animated") else {}
    data = io.BytesIO()
    images[0].save(data, kind.rpartition(" ")[2], **more)
    assert decode(data.getvalue(), make_request()).reply.status is Status.FORBIDDEN_FORMAT
