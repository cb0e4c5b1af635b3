"""Tone-map PQ and HLG pictures to SDR with lookup tables: numpy only, so that every machine gives the same pixels.

Sources: ITU-R BT.2100-2 (PQ, HLG and its OOTF), BT.2408-7 (reference white is 203 cd/m², which is 58 % PQ and 75 %
HLG, and becomes SDR white), BT.2087 (BT.2020 to BT.709), BT.1886 (SDR displays have a gamma of 2.4).
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorPrimaries, ColorTrc

from raypipe.video.decode_request import Pixels

Codes = npt.NDArray[np.uint16]
Light = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]

PQ, HLG = int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)

_WHITE_NITS = 203.0  # cd/m²
_SIZE = 65_536
_SDR_GAMMA = 2.4
_PQ_NITS = 10_000.0
_PQ_M1, _PQ_M2 = 2610 / 16384, 2523 / 4096 * 128
_PQ_C1, _PQ_C2, _PQ_C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_HLG_A, _HLG_B, _HLG_C = 0.17883277, 0.28466892, 0.55991073
_HLG_JOINT = 0.5  # the signal where the square root ends and the logarithm begins
_HLG_NITS, _HLG_GAMMA = 1000.0, 1.2  # of the nominal display
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
_FROM_BT2020 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_FROM_P3 = np.array(
    [[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]], np.float32
)
# To linear BT.709. PQ and HLG without primaries are BT.2020.
_MATRICES = {
    int(ColorPrimaries.BT2020): _FROM_BT2020,
    int(ColorPrimaries.UNSPECIFIED): _FROM_BT2020,
    int(ColorPrimaries.SMPTE431): _FROM_P3,
    int(ColorPrimaries.SMPTE432): _FROM_P3,
}


def is_hdr(color_trc: int) -> bool:
    """Return whether a transfer characteristic (``VideoFrame.color_trc``) is PQ or HLG."""
    return color_trc in {PQ, HLG}


def to_sdr(image: Codes, *, color_trc: int, color_primaries: int) -> Pixels:
    """Tone-map an RGB picture [height, width, 3] of 16-bit PQ or HLG codes to 8-bit SDR BT.709.

    What is brighter than reference white is clipped.
    """
    light: Light
    if color_trc == HLG:
        scene = _hlg_scene_light()[image]
        luma = np.einsum("hwc,c->hw", scene, _BT2020_LUMA)
        light = scene * _hlg_gain()[_root_codes(luma)][..., None]
    else:
        light = _pq_light()[image]
    matrix = _MATRICES.get(color_primaries)
    if matrix is not None:
        light = np.einsum("hwc,rc->hwr", light, matrix)
    return _sdr_codes()[_root_codes(light)]


def _root_codes(light: Light) -> Codes:
    """Return indices of the tables that take light of 0 to 1: of its square root, so that dark tones keep apart."""
    root = np.sqrt(np.clip(light, 0, 1)) * np.float32(_SIZE - 1)
    codes: Codes = (root + np.float32(0.5)).astype(np.uint16)
    return codes


def _table(function: Callable[[Numbers], Numbers]) -> Light:
    table = function(np.linspace(0, 1, _SIZE)).astype(np.float32)
    table.flags.writeable = False
    return table


@cache
def _pq_light() -> Light:
    """[65536] by PQ code: displayed light, 1 is reference white. The PQ EOTF of BT.2100, table 4."""

    def light(signal: Numbers) -> Numbers:
        power = signal ** (1 / _PQ_M2)
        linear: Numbers = (np.maximum(power - _PQ_C1, 0) / (_PQ_C2 - _PQ_C3 * power)) ** (1 / _PQ_M1)
        return linear * (_PQ_NITS / _WHITE_NITS)

    return _table(light)


@cache
def _hlg_scene_light() -> Light:
    """[65536] by HLG code: scene light, 1 is the peak. The inverse of the HLG OETF of BT.2100, table 5."""

    def light(signal: Numbers) -> Numbers:
        return np.where(signal <= _HLG_JOINT, signal**2 / 3, (np.exp((signal - _HLG_C) / _HLG_A) + _HLG_B) / 12)

    return _table(light)


@cache
def _hlg_gain() -> Light:
    """[65536] by the root of scene luminance: displayed over scene light, 1 is reference white. The HLG OOTF."""
    return _table(lambda root: root ** (2 * (_HLG_GAMMA - 1)) * (_HLG_NITS / _WHITE_NITS))


@cache
def _sdr_codes() -> Pixels:
    """[65536] by the root of linear light: 8-bit codes. The inverse of the BT.1886 EOTF."""
    codes: Pixels = np.rint(_table(lambda root: root ** (2 / _SDR_GAMMA)) * 255).astype(np.uint8)
    codes.flags.writeable = False
    return codes
