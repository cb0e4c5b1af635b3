"""Write vectors and thumbnails piece by piece, into files that are mapped, not read."""

import io
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe import schema

_THUMBNAILS = pa.schema([(schema.THUMBNAIL, pa.large_binary())])
_ROWS, _BYTES = 1_024, 33_554_432  # of thumbnails, in a record batch


class VectorWriter:
    """A ``.npy`` file of float16 ``[N, dim]``, whose N is known when it is closed."""

    def __init__(self, path: Path, dim: int) -> None:
        self._file = path.open("wb")
        self._shape = [0, dim]
        self._file.write(self._header())

    def add(self, vectors: npt.NDArray[np.float32]) -> None:
        """Append ``[n, dim]``."""
        self._file.write(vectors.astype("<f2").tobytes())
        self._shape[0] += len(vectors)

    def _header(self) -> bytes:
        """Numpy leaves room for N to grow, so that headers of any N are of one length."""
        header = io.BytesIO()
        description = {"descr": "<f2", "fortran_order": False, "shape": tuple(self._shape)}
        np.lib.format.write_array_header_1_0(header, description)
        return header.getvalue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._file.write(self._header())


class ThumbnailWriter:
    """An Arrow file of one column, in record batches of about a thousand."""

    def __init__(self, path: Path) -> None:
        self._writer = pa.ipc.new_file(str(path), _THUMBNAILS)
        self._waiting: list[bytes | None] = []
        self._num_bytes = 0

    def add(self, thumbnails: list[bytes | None]) -> None:
        """Append; None is a video without."""
        for thumbnail in thumbnails:
            self._waiting.append(thumbnail)
            self._num_bytes += len(thumbnail or b"")
            if len(self._waiting) >= _ROWS or self._num_bytes >= _BYTES:
                self._flush()

    def _flush(self) -> None:
        self._writer.write_batch(pa.record_batch([pa.array(self._waiting, pa.large_binary())], schema=_THUMBNAILS))
        self._waiting, self._num_bytes = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        with self._writer:
            if kind is None and self._waiting:
                self._flush()
