"""Decode alpha planes and composite them on black. Runs in the child process only."""

from typing import cast

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

_LIBVPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_LIBVPX_VP9_FORMATS = frozenset({"yuv420p", "yuv422p", "yuv440p", "yuv444p"})  # it is built for 8 bits
_BAND_ROWS = 64


def has_alpha_layer(stream: VideoStream) -> bool:
    """Return whether WebM stores alpha next to each picture, which only libvpx decodes."""
    if stream.codec_context.codec.canonical_name not in _LIBVPX:
        return False
    return any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items())


def decoder_context(stream: VideoStream) -> VideoCodecContext:
    """Return the decoder of a stream: its own, or libvpx where that one drops something.

    FFmpeg's own VP8 and VP9 decoders drop the alpha layer, and its VP9 decoder does not notice corrupt data. A new
    decoder has the stream's thread settings and options.
    """
    own = stream.codec_context
    codec = own.codec.canonical_name
    is_blind = codec == "vp9" and own.pix_fmt in _LIBVPX_VP9_FORMATS
    if not (is_blind or has_alpha_layer(stream)) or _LIBVPX[codec] not in av.codecs_available:
        return own
    context = cast("VideoCodecContext", av.CodecContext.create(_LIBVPX[codec], "r"))
    context.extradata = own.extradata
    context.thread_count, context.thread_type = own.thread_count, own.thread_type
    context.options = dict(own.options)
    context.color_trc, context.color_primaries = own.color_trc, own.color_primaries
    context.colorspace, context.color_range = own.colorspace, own.color_range
    return context


def has_alpha(pixel_format: VideoFormat) -> bool:
    """Return whether a pixel format has an alpha plane. A palette's is ignored."""
    return not pixel_format.has_palette and any(one.is_alpha for one in pixel_format.components)


def composite(
    frame: VideoFrame, reformatter: VideoReformatter, *, deep: bool, src_colorspace: int | None, zero_is_opaque: bool
) -> VideoFrame:
    """Composite a frame on black at full size. The result is RGBA or BGRA, whose alpha is to be ignored.

    ``deep`` asks for 16 bits a channel instead of 8. ``zero_is_opaque``: a frame that is transparent everywhere is
    opaque, because many programs leave the fourth byte of 32-bit pixels zero.
    """
    rgba, bgra = ("rgba64le", "bgra64le") if deep else ("rgba", "bgra")
    copy = reformatter.reformat(
        frame,
        format=bgra if frame.format.name == rgba else rgba,  # the same format would give the frame itself
        src_colorspace=src_colorspace,
        interpolation=Interpolation.BILINEAR,
        threads=1,
    )
    plane = copy.planes[0]
    kind, wide = (np.dtype("<u2"), np.uint32) if deep else (np.dtype(np.uint8), np.uint16)
    values = np.frombuffer(memoryview(plane), dtype=kind).reshape(-1, plane.line_size // kind.itemsize)
    pixels = values[: frame.height, : frame.width * 4].reshape(frame.height, frame.width, 4)
    if zero_is_opaque and not pixels[..., 3].any():
        return copy
    most = np.iinfo(kind).max
    for top in range(0, frame.height, _BAND_ROWS):  # a band at a time keeps the memory small
        band = pixels[top : top + _BAND_ROWS]
        color = np.multiply(band[..., :3], band[..., 3:], dtype=wide) + wide(most // 2)
        band[..., :3] = color // wide(most)
    return copy
