"""Find a text among millions of others: by sorted hashes, 12 bytes for each, where a dict takes over a hundred."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_ROWS = 262_144  # hashed at a time: it takes some 30 bytes for each of theirs
_NUM_WEIGHTS = 1_024  # as long as a key of S3; the hash of a longer text uses them again
_WEIGHTS = np.random.Generator(np.random.PCG64(1)).integers(1, 2**64, size=_NUM_WEIGHTS, dtype=np.uint64) | np.uint64(1)
_LENGTH_WEIGHT = np.uint64(0x9E3779B97F4A7C15)


class Lookup:
    """The position of each text of a column; of the same text twice, the first."""

    def __init__(self, texts: pa.LargeStringArray) -> None:
        """Hash and sort; null is never found."""
        hashes = np.concatenate([_hash_rows(texts.slice(at, _ROWS)) for at in range(0, max(1, len(texts)), _ROWS)])
        order = np.argsort(hashes, kind="stable")
        self._texts = texts
        self._hashes = hashes[order]
        self._positions = order.astype(np.uint32 if len(texts) < 2**32 else np.int64)

    def position(self, text: str) -> int | None:
        """The position of a text, None where it is not there."""
        return self.positions([text])[0]

    def positions(self, texts: Sequence[str]) -> list[int | None]:
        """The position of each, None where it is not there."""
        if not texts:
            return []
        wanted = np.fromiter((_hash(text) for text in texts), np.uint64, len(texts))
        starts = np.searchsorted(self._hashes, wanted)
        return [self._check(text, at, key) for text, at, key in zip(texts, starts.tolist(), wanted, strict=True)]

    def _check(self, text: str, at: int, key: np.uint64) -> int | None:
        """Go through those of the same hash: nearly always one."""
        while at < len(self._hashes) and self._hashes[at] == key:
            position = int(self._positions[at])
            if self._texts[position].as_py() == text:
                return position
            at += 1
        return None


def _hash(text: str) -> np.uint64:
    data = np.frombuffer(text.encode(errors="surrogatepass"), np.uint8).astype(np.uint64)
    weights = _WEIGHTS if len(data) <= _NUM_WEIGHTS else np.resize(_WEIGHTS, len(data))
    total: np.uint64 = np.dot(data, weights[: len(data)])
    return total ^ np.uint64(len(data) * int(_LENGTH_WEIGHT) % 2**64)


def _hash_rows(texts: pa.LargeStringArray) -> npt.NDArray[np.uint64]:
    """Multilinear: the sum of each byte times the weight of its place, modulo 2⁶⁴."""
    _, offsets_buffer, data_buffer = texts.buffers()
    if not len(texts) or data_buffer is None:
        return np.zeros(len(texts), np.uint64)
    offsets = np.frombuffer(offsets_buffer, np.int64, len(texts) + 1, texts.offset * 8)
    lengths = np.diff(offsets)
    data = np.frombuffer(data_buffer, np.uint8, int(offsets[-1] - offsets[0]), int(offsets[0]))
    places = np.arange(len(data)) - np.repeat(offsets[:-1] - offsets[0], lengths)
    products = _WEIGHTS[places % _NUM_WEIGHTS]
    products *= data
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(products, dtype=np.uint64)])
    ends = offsets - offsets[0]
    hashes: npt.NDArray[np.uint64] = sums[ends[1:]] - sums[ends[:-1]]
    return hashes ^ (lengths.astype(np.uint64) * _LENGTH_WEIGHT)
